"""Numbered steps that bring a database to the schema this version knows; each runs once, whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from sqlalchemy import Connection, Engine, inspect

from router.errors import RouterError
from router.stores.migrations import m0001_initial, m0002_periods, m0003_judgements, m0004_metered_hours
from router.stores.schema import metadata

Migration = Callable[[Connection], None]

MIGRATIONS: tuple[Migration, ...] = (
    m0001_initial.upgrade,
    m0002_periods.upgrade,
    m0003_judgements.upgrade,
    m0004_metered_hours.upgrade,
)

# Any number will do as long as every version of this program uses the same.
_POSTGRES_LOCK = 0x68_6C_72_6D


class SchemaError(RouterError):
    """The database is not one that this version can use: newer, half migrated, or somebody else's."""

    code = "ledger_schema"


def migrate(engine: Engine, migrations: Sequence[Migration] = MIGRATIONS) -> int:
    """Bring the database to the last of `migrations`; the version it then has. Safe to be run by two processes at once.

    Raises SchemaError for a schema that is newer than `migrations` or half done.
    """
    while True:
        with engine.begin() as connection:
            if connection.dialect.name == "postgresql":
                connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_POSTGRES_LOCK})")
            version = version_of(connection)
            if version > len(migrations):
                raise SchemaError(
                    f"The ledger's schema has version {version}, this program knows up to {len(migrations)}: "
                    "run the newer program, or point server.database_url at another database."
                )
            if version == len(migrations):
                return version
            if version == 0:
                connection.exec_driver_sql(
                    "CREATE TABLE schema_version (version INTEGER NOT NULL PRIMARY KEY, applied_at_us BIGINT NOT NULL)"
                )
            migrations[version](connection)
            applied_at_us = int(datetime.now(UTC).timestamp() * 1e6)
            connection.exec_driver_sql(f"INSERT INTO schema_version VALUES ({version + 1}, {applied_at_us})")  # noqa: S608


def version_of(connection: Connection) -> int:
    """The schema version of a database, 0 for an empty one. Raises SchemaError when it is half done."""
    names = set(inspect(connection).get_table_names())
    if "schema_version" not in names:
        ours = sorted(names & set(metadata.tables))
        if ours:
            raise SchemaError(
                f"The database holds {', '.join(ours)} but no schema_version: a half-done migration or somebody "
                "else's tables. Restore a backup, or point server.database_url at another database."
            )
        return 0
    versions = [row[0] for row in connection.exec_driver_sql("SELECT version FROM schema_version ORDER BY version")]
    if not versions or versions != list(range(1, len(versions) + 1)):
        raise SchemaError(f"The ledger's schema_version says {versions}: a half-done migration. Restore a backup.")
    return len(versions)


def verify(connection: Connection) -> None:
    """Raise SchemaError unless every table and column that this version reads or writes is there."""
    inspector = inspect(connection)
    names = set(inspector.get_table_names())
    for table in metadata.sorted_tables:
        there = {column["name"] for column in inspector.get_columns(table.name)} if table.name in names else set()
        missing = [column.name for column in table.columns if column.name not in there]
        if missing:
            raise SchemaError(
                f"The ledger's table {table.name} lacks {', '.join(missing)}: a half-done migration. Restore a backup."
            )
