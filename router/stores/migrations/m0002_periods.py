"""Version 2: the hours of the local tier's hardware: assets, rates, on-times, postings and closed periods.

Frozen: a later change is a new numbered file. Local attempts booked before name no asset: their hours were never
invoiced, so they are not posted.
"""

from __future__ import annotations

from sqlalchemy import Connection

_TABLES = (
    """CREATE TABLE asset (
        asset TEXT NOT NULL PRIMARY KEY,
        home TEXT NOT NULL,
        kind TEXT NOT NULL,
        on_mode TEXT NOT NULL,
        first_on_us BIGINT NOT NULL,
        closed_until_us BIGINT NOT NULL
    )""",
    """CREATE TABLE asset_rate (
        asset TEXT NOT NULL,
        from_us BIGINT NOT NULL,
        usd_per_hour TEXT NOT NULL,
        practical_capacity_ratio TEXT NOT NULL,
        cost_lines TEXT NOT NULL,
        version TEXT NOT NULL,
        PRIMARY KEY (asset, from_us)
    )""",
    """CREATE TABLE asset_on (
        asset TEXT NOT NULL,
        from_us BIGINT NOT NULL,
        to_us BIGINT,
        PRIMARY KEY (asset, from_us)
    )""",
    """CREATE TABLE posting (
        request_id TEXT NOT NULL,
        number INTEGER NOT NULL,
        part INTEGER NOT NULL,
        asset TEXT NOT NULL,
        period_us BIGINT NOT NULL,
        adjusts_us BIGINT,
        done_us BIGINT NOT NULL,
        tenant TEXT NOT NULL,
        model TEXT NOT NULL,
        status TEXT NOT NULL,
        work_gpu_ns BIGINT NOT NULL,
        amount_nanousd BIGINT NOT NULL,
        price_version TEXT NOT NULL,
        PRIMARY KEY (request_id, number, part)
    )""",
    """CREATE TABLE period (
        asset TEXT NOT NULL,
        start_us BIGINT NOT NULL,
        end_us BIGINT NOT NULL,
        on_us BIGINT NOT NULL,
        usd_per_hour TEXT NOT NULL,
        rate_version TEXT NOT NULL,
        cost_lines TEXT NOT NULL,
        invoice_nanousd BIGINT NOT NULL,
        absorbed_nanousd BIGINT NOT NULL,
        unabsorbed_nanousd BIGINT NOT NULL,
        work_gpu_ns BIGINT NOT NULL,
        closed_at_us BIGINT NOT NULL,
        PRIMARY KEY (asset, start_us)
    )""",
)
_CHANGES = (
    "ALTER TABLE attempt ADD COLUMN asset TEXT",
    "ALTER TABLE attempt ADD COLUMN posted SMALLINT NOT NULL DEFAULT 0",
    # Holds only what the books of the hours have not seen yet, so it stays as small as the last seconds' traffic.
    "CREATE INDEX attempt_unposted ON attempt (asset) WHERE posted = 0 AND asset IS NOT NULL",
    "CREATE INDEX posting_period ON posting (asset, period_us)",
)


def upgrade(connection: Connection) -> None:
    """Add everything."""
    sqlite = connection.dialect.name == "sqlite"
    for statement in _TABLES:
        connection.exec_driver_sql(statement + (" WITHOUT ROWID" if sqlite else ""))
    for statement in _CHANGES:
        connection.exec_driver_sql(statement)
