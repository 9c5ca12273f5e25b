"""Version 1: attempts in flight, attempts booked, requests, the worlds they were decided in, feedback.

Frozen: a later change is a new numbered file. Plain DDL, so that it cannot drift with the code around it.
"""

from __future__ import annotations

from sqlalchemy import Connection

_TABLES = {
    "instance": """CREATE TABLE instance (
        instance TEXT NOT NULL PRIMARY KEY,
        started_at_us BIGINT NOT NULL
    )""",
    "open_attempt": """CREATE TABLE open_attempt (
        request_id TEXT NOT NULL,
        number INTEGER NOT NULL,
        instance TEXT NOT NULL,
        tenant TEXT NOT NULL,
        candidate TEXT NOT NULL,
        tier TEXT NOT NULL,
        provider TEXT NOT NULL,
        model TEXT NOT NULL,
        opened_at_us BIGINT NOT NULL,
        expires_at_us BIGINT,
        estimate_input_tokens BIGINT NOT NULL,
        reserve_nanousd BIGINT NOT NULL,
        hold_nanousd BIGINT NOT NULL,
        PRIMARY KEY (request_id, number)
    )""",
    "attempt": """CREATE TABLE attempt (
        request_id TEXT NOT NULL,
        number INTEGER NOT NULL,
        state TEXT NOT NULL,
        tenant TEXT NOT NULL,
        candidate TEXT NOT NULL,
        tier TEXT NOT NULL,
        provider TEXT NOT NULL,
        model TEXT NOT NULL,
        opened_at_us BIGINT NOT NULL,
        outcome TEXT NOT NULL,
        input_tokens BIGINT,
        output_tokens BIGINT,
        cached_input_tokens BIGINT,
        cache_write_tokens BIGINT,
        reasoning_tokens BIGINT,
        usage_estimated SMALLINT NOT NULL,
        usage_flags TEXT NOT NULL,
        amount_nanousd BIGINT NOT NULL,
        price_version TEXT NOT NULL,
        work_gpu_ns BIGINT,
        flags TEXT NOT NULL,
        duration_us BIGINT,
        first_token_us BIGINT,
        detail TEXT,
        is_last SMALLINT NOT NULL,
        PRIMARY KEY (request_id, number)
    )""",
    "request": """CREATE TABLE request (
        request_id TEXT NOT NULL PRIMARY KEY,
        schema_version INTEGER NOT NULL,
        tenant TEXT NOT NULL,
        received_at_us BIGINT NOT NULL,
        requested_model TEXT NOT NULL,
        stream SMALLINT NOT NULL,
        outcome TEXT NOT NULL,
        reason TEXT,
        session TEXT,
        cost_nanousd BIGINT NOT NULL,
        duration_us BIGINT NOT NULL,
        first_token_us BIGINT,
        exploration_probability DOUBLE PRECISION NOT NULL,
        prompt_sha256 TEXT NOT NULL,
        prompt_text TEXT,
        policy_version TEXT,
        inputs_hash TEXT,
        world_hash TEXT,
        features TEXT,
        score TEXT,
        decision TEXT,
        usage TEXT,
        moment TEXT,
        resolved SMALLINT NOT NULL
    )""",
    "world": """CREATE TABLE world (
        world_hash TEXT NOT NULL PRIMARY KEY,
        body TEXT NOT NULL
    )""",
    "feedback": """CREATE TABLE feedback (
        request_id TEXT NOT NULL,
        tenant TEXT NOT NULL,
        score DOUBLE PRECISION NOT NULL,
        comment TEXT,
        received_at_us BIGINT NOT NULL,
        PRIMARY KEY (request_id, tenant)
    )""",
}
# Rows of these are small and found by key: on SQLite one B-tree instead of a table and its index.
_SMALL = frozenset({"open_attempt", "attempt", "feedback", "instance"})
_INDEXES = (
    "CREATE INDEX attempt_opened ON attempt (opened_at_us)",
    "CREATE INDEX request_received ON request (received_at_us, request_id)",
)


def upgrade(connection: Connection) -> None:
    """Create everything."""
    sqlite = connection.dialect.name == "sqlite"
    for name, statement in _TABLES.items():
        connection.exec_driver_sql(statement + (" WITHOUT ROWID" if sqlite and name in _SMALL else ""))
    for statement in _INDEXES:
        connection.exec_driver_sql(statement)
