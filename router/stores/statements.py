"""The writer's SQL, in its driver's own parameter style, built once. Every statement may be repeated at will."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from router.stores.rows import ATTEMPT_COLUMNS, JUDGEMENT_COLUMNS, OPEN_COLUMNS, REQUEST_COLUMNS

# Rows per statement: some, so that each is done in a fraction of a millisecond (see `database._give_way`).
SMALL_ROWS, LARGE_ROWS = 32, 8


def _names(columns: tuple[str, ...]) -> str:
    return ", ".join(columns)


def _marks(count: int) -> str:
    return ", ".join("?" * count)


def _insert(table: str, columns: tuple[str, ...], on_conflict: str, rows: int = 1) -> str:
    values = ", ".join([f"({_marks(len(columns))})"] * rows)
    return f"INSERT INTO {table} ({_names(columns)}) VALUES {values} ON CONFLICT {on_conflict}"  # noqa: S608


class Rows:
    """A statement for one row, and the same for `GROUP` rows at once.

    Every statement gives up the interpreter lock and has to win it back from the event loop: with one a row that costs
    more than the row. Only two sizes, so that the driver keeps both prepared.
    """

    def __init__(self, one: str, group: str, size: int) -> None:
        self.one = one
        self.group = group
        self.size = size

    def write(self, cursor: Any, rows: Sequence[tuple[Any, ...]], give_way: Callable[[], None] = lambda: None) -> int:
        """Run it for all `rows`; how many were affected. Calls `give_way` between two groups."""
        affected, size = 0, self.size
        whole = len(rows) - len(rows) % size
        for start in range(0, whole, size):
            cursor.execute(self.group, [value for row in rows[start : start + size] for value in row])
            affected += cursor.rowcount
            give_way()
        if whole < len(rows):
            cursor.executemany(self.one, rows[whole:])
            affected += cursor.rowcount
        return affected


class Statements:
    """SQL text by what it is for; `qmark` drivers take `?`, others `%s`."""

    def __init__(self, *, qmark: bool) -> None:
        def say(sql: str) -> str:
            return sql if qmark else sql.replace("?", "%s")

        self._say = say
        self.begin = "BEGIN IMMEDIATE" if qmark else "BEGIN"
        self.instance = say(_insert("instance", ("instance", "started_at_us"), "(instance) DO NOTHING"))
        # An event may come after the end of its request, through the spool: then nothing is open any more. What crash
        # recovery has booked is no end: a line of a spool found later may tell of one more attempt.
        self.opened = say(
            f"INSERT INTO open_attempt ({_names(OPEN_COLUMNS)}) SELECT {_marks(len(OPEN_COLUMNS))} "  # noqa: S608
            "WHERE NOT EXISTS (SELECT 1 FROM request WHERE request_id = ? AND resolved = 0) "
            "ON CONFLICT (request_id, number) DO NOTHING"
        )
        self.closed = Rows(
            say("DELETE FROM open_attempt WHERE request_id = ?"),
            say(f"DELETE FROM open_attempt WHERE request_id IN ({_marks(SMALL_ROWS)})"),  # noqa: S608
            SMALL_ROWS,
        )
        self.attempt = self._rows("attempt", ATTEMPT_COLUMNS, "(request_id, number) DO NOTHING", SMALL_ROWS)
        self.request = self._rows("request", REQUEST_COLUMNS, "(request_id) DO NOTHING", LARGE_ROWS)
        self.world = say(_insert("world", ("world_hash", "body"), "(world_hash) DO NOTHING"))
        self.forget_request = say("DELETE FROM request WHERE request_id = ? AND resolved = 1")
        self.forget_attempts = say("DELETE FROM attempt WHERE request_id = ? AND state = 'lost'")
        self.feedback = say(
            "INSERT INTO feedback (score, comment, received_at_us, request_id, tenant) "
            "SELECT ?, ?, ?, request_id, tenant FROM request WHERE request_id = ? AND (? OR tenant = ?) "
            "ON CONFLICT (request_id, tenant) DO UPDATE SET score = excluded.score, comment = excluded.comment, "
            "received_at_us = excluded.received_at_us WHERE excluded.received_at_us >= feedback.received_at_us"
        )
        said = ", ".join(f"{name} = excluded.{name}" for name in JUDGEMENT_COLUMNS[4:])
        self.judgement = say(
            _insert("judgement", JUDGEMENT_COLUMNS, f"(request_id, tier, provenance, judge) DO UPDATE SET {said}")
            + " WHERE excluded.judged_at_us >= judgement.judged_at_us"
        )
        self.owned = say("SELECT 1 FROM request WHERE request_id = ? AND (? OR tenant = ?)")
        self.look = "SELECT request_id FROM request LIMIT 1"

    def _rows(self, table: str, columns: tuple[str, ...], on_conflict: str, size: int) -> Rows:
        one, group = (_insert(table, columns, on_conflict, rows) for rows in (1, size))
        return Rows(self._say(one), self._say(group), size)

    def booked(self, count: int) -> str:
        """Which of `count` ids are booked, and whether by crash recovery."""
        return self._say(f"SELECT request_id, resolved FROM request WHERE request_id IN ({_marks(count)})")  # noqa: S608
