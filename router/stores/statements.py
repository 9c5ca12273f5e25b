"""The writer's SQL, in its driver's own parameter style, built once. Every statement may be repeated at will."""

from __future__ import annotations

from router.stores.rows import ATTEMPT_COLUMNS, DISPATCHED_COLUMNS, HOLD_COLUMNS, REQUEST_COLUMNS

# What an attempt's dispatch says and its settlement does not repeat.
_KEPT_FROM_DISPATCH = frozenset({"request_id", "number", "estimate_input_tokens", "reserve_nanousd"})


def _insert(table: str, columns: tuple[str, ...], on_conflict: str) -> str:
    marks = ", ".join("?" for _ in columns)
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks}) ON CONFLICT {on_conflict}"  # noqa: S608


_SETTLE = ", ".join(f"{name} = excluded.{name}" for name in ATTEMPT_COLUMNS if name not in _KEPT_FROM_DISPATCH)


class Statements:
    """SQL text by what it is for; `qmark` drivers take `?`, others `%s`."""

    def __init__(self, *, qmark: bool) -> None:
        def say(sql: str) -> str:
            return sql if qmark else sql.replace("?", "%s")

        self._say = say
        self.begin = "BEGIN IMMEDIATE" if qmark else "BEGIN"
        self.instance = say(_insert("instance", ("instance", "started_at_us"), "(instance) DO NOTHING"))
        # A settled hold stays settled, whichever of the two events comes first.
        self.hold = say(
            _insert(
                "hold",
                HOLD_COLUMNS,
                "(request_id) DO UPDATE SET state = excluded.state "
                "WHERE excluded.state = 'settled' AND hold.state <> 'settled'",
            )
        )
        self.dispatched = say(_insert("attempt", DISPATCHED_COLUMNS, "(request_id, number) DO NOTHING"))
        self.attempt = say(
            _insert(
                "attempt",
                ATTEMPT_COLUMNS,
                f"(request_id, number) DO UPDATE SET {_SETTLE} WHERE attempt.state <> 'settled'",
            )
        )
        self.request = say(_insert("request", REQUEST_COLUMNS, "(request_id) DO NOTHING"))
        self.world = say(_insert("world", ("world_hash", "body"), "(world_hash) DO NOTHING"))
        self.reopen = say("UPDATE hold SET state = 'open' WHERE request_id = ? AND state = 'resolved'")
        self.forget_request = say("DELETE FROM request WHERE request_id = ? AND resolved = 1")
        self.forget_lost = say(
            "UPDATE attempt SET state = 'dispatched', amount_nanousd = 0, outcome = NULL, flags = '', is_last = 0, "
            "price_version = '', usage_estimated = 0 WHERE request_id = ? AND state = 'lost'"
        )
        self.feedback = say(
            "INSERT INTO feedback (score, comment, received_at_us, request_id, tenant) "
            "SELECT ?, ?, ?, request_id, tenant FROM request WHERE request_id = ? AND (? OR tenant = ?) "
            "ON CONFLICT (request_id, tenant) DO UPDATE SET score = excluded.score, comment = excluded.comment, "
            "received_at_us = excluded.received_at_us WHERE excluded.received_at_us >= feedback.received_at_us"
        )
        self.owned = say("SELECT 1 FROM request WHERE request_id = ? AND (? OR tenant = ?)")
        self.look = "SELECT request_id FROM request LIMIT 1"

    def booked(self, count: int) -> str:
        """Which of `count` ids are booked, and whether by crash recovery."""
        marks = ", ".join("?" for _ in range(count))
        return self._say(f"SELECT request_id, resolved FROM request WHERE request_id IN ({marks})")  # noqa: S608
