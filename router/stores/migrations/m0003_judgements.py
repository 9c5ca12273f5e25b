"""Version 3: what judges and checks have said about answers.

Frozen: a later change is a new numbered file.
"""

from __future__ import annotations

from sqlalchemy import Connection

_TABLE = """CREATE TABLE judgement (
    request_id TEXT NOT NULL,
    tier TEXT NOT NULL,
    provenance TEXT NOT NULL,
    judge TEXT NOT NULL,
    model TEXT NOT NULL,
    quality DOUBLE PRECISION NOT NULL,
    action_probability DOUBLE PRECISION NOT NULL,
    label_probability DOUBLE PRECISION NOT NULL,
    output_tokens BIGINT,
    judged_at_us BIGINT NOT NULL,
    PRIMARY KEY (request_id, tier, provenance, judge)
)"""


def upgrade(connection: Connection) -> None:
    """Add the table."""
    sqlite = connection.dialect.name == "sqlite"
    connection.exec_driver_sql(_TABLE + (" WITHOUT ROWID" if sqlite else ""))
