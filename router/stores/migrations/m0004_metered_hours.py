"""Version 4: the energy of owned hardware as it was measured, and engines that several gateways share.

Frozen: a later change is a new numbered file. Hours closed before keep their modelled energy.
"""

from __future__ import annotations

from sqlalchemy import Connection

_TABLE = """CREATE TABLE asset_energy (
    asset TEXT NOT NULL,
    card TEXT NOT NULL,
    from_us BIGINT NOT NULL,
    to_us BIGINT NOT NULL,
    energy_mj BIGINT NOT NULL,
    basis TEXT NOT NULL,
    counter_mj BIGINT,
    cards INTEGER NOT NULL,
    boot TEXT NOT NULL,
    PRIMARY KEY (asset, card, from_us)
)"""
_CHANGES = (
    "ALTER TABLE asset ADD COLUMN shared_engine TEXT",
    "ALTER TABLE asset_rate ADD COLUMN power_kw TEXT",
    "ALTER TABLE asset_rate ADD COLUMN wall_usd_per_kwh TEXT",
    "ALTER TABLE period ADD COLUMN energy_measured_mj BIGINT",
    "ALTER TABLE period ADD COLUMN energy_modelled_mj BIGINT",
    "ALTER TABLE period ADD COLUMN energy_nanousd BIGINT",
    "ALTER TABLE period ADD COLUMN energy_basis TEXT",
)


def upgrade(connection: Connection) -> None:
    """Add everything."""
    sqlite = connection.dialect.name == "sqlite"
    connection.exec_driver_sql(_TABLE + (" WITHOUT ROWID" if sqlite else ""))
    for statement in _CHANGES:
        connection.exec_driver_sql(statement)
