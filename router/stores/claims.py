"""Which hardware is whose: no two gateways keep the hours of one name, unless they share the engine on it.

Two engines under one name would be paid for twice and invoiced once. On Postgres each gateway holds an advisory lock on
the names of its hardware for as long as its session lives, so that a crash frees them at once; a SQLite file has but
one gateway.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from decimal import Decimal
from time import monotonic, sleep

from sqlalchemy import Connection, Engine, func, select
from sqlalchemy.exc import SQLAlchemyError

from router.core.periods import AssetTerms
from router.errors import RouterError
from router.stores.liveness import advisory_key
from router.stores.schema import asset, asset_rate

_MUTEX = advisory_key("asset claims")
_PATIENCE_S, _RETRY_S = 1.0, 0.05


class AssetInUse(RouterError):
    """Another gateway keeps the hours of hardware of this name."""

    code = "asset_in_use"


class AssetClaims:
    """The names that this gateway holds. Synchronous, for one thread at a time."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._is_postgres = engine.dialect.name == "postgresql"
        self._session: Connection | None = None
        self._wanted: dict[str, AssetTerms] = {}
        self._held: set[str] = set()  # in this session

    @contextmanager
    def taking(self, terms: Sequence[AssetTerms]) -> Iterator[None]:
        """Hold the names of `terms`; nobody else takes any until the end of the block. Raises AssetInUse."""
        if not self._is_postgres:
            yield
            return
        session = self._living_session()
        session.execute(select(func.pg_advisory_lock(_MUTEX)))
        try:
            for one in (*self._wanted.values(), *terms):
                if one.asset not in self._held:
                    self._take_soon(session, one)
                    self._held.add(one.asset)
                self._wanted[one.asset] = one
            yield
        finally:
            with suppress(SQLAlchemyError):
                session.execute(select(func.pg_advisory_unlock(_MUTEX)))

    def _living_session(self) -> Connection:
        """The session that holds the names; another one, holding none, if it has been lost."""
        if self._session is not None:
            try:
                self._session.execute(select(1))
            except SQLAlchemyError:
                self.release()
        if self._session is None:
            self._session = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        return self._session

    @classmethod
    def _take_soon(cls, session: Connection, terms: AssetTerms) -> None:
        """A moment's patience: the server notices a little later than we that a gateway has died."""
        ends_at_s = monotonic() + _PATIENCE_S
        while True:
            try:
                cls._take(session, terms)
            except AssetInUse:
                if monotonic() > ends_at_s:
                    raise
                sleep(_RETRY_S)
            else:
                return

    @staticmethod
    def _take(session: Connection, terms: AssetTerms) -> None:
        key = advisory_key(f"asset {terms.asset}")
        if session.scalar(select(func.pg_try_advisory_lock(key))):
            if terms.shared_engine is not None:  # others may come, if theirs is the same engine
                session.execute(select(func.pg_advisory_lock_shared(key)))
                session.execute(select(func.pg_advisory_unlock(key)))
            return
        if terms.shared_engine is None or not session.scalar(select(func.pg_try_advisory_lock_shared(key))):
            raise _in_use(terms.asset, "is kept by another gateway on this database")
        if (difference := _difference(session, terms)) is not None:
            session.execute(select(func.pg_advisory_unlock_shared(key)))
            raise _in_use(terms.asset, difference)

    def elsewhere(self, name: str) -> bool:
        """Whether another gateway that runs now holds `name`; to be asked within `taking`."""
        if self._session is None:
            return False
        key = advisory_key(f"asset {name}")
        if self._session.scalar(select(func.pg_try_advisory_lock(key))):
            self._session.execute(select(func.pg_advisory_unlock(key)))
            return False
        return True

    def renew(self) -> None:
        """Take the names anew if the session has been lost. Raises AssetInUse if somebody was quicker."""
        with self.taking(()):
            return

    def release(self) -> None:
        """Let all of them go."""
        session, self._session = self._session, None
        self._held.clear()
        if session is not None:
            with suppress(SQLAlchemyError):
                session.execute(select(func.pg_advisory_unlock_all()))
                session.close()


def _difference(session: Connection, terms: AssetTerms) -> str | None:
    """What the gateway that has it says otherwise of it."""
    engine = session.scalar(select(asset.c.shared_engine).where(asset.c.asset == terms.asset))
    if engine != terms.shared_engine:
        return f"is kept by another gateway for the engine at {engine or 'its own address'}"
    rate = asset_rate.c
    latest = select(rate.usd_per_hour).where(rate.asset == terms.asset).order_by(rate.from_us.desc()).limit(1)
    usd_per_hour = session.scalar(latest)
    if usd_per_hour is not None and Decimal(usd_per_hour) != terms.usd_per_hour:
        return (
            f"is kept by another gateway at {Decimal(usd_per_hour):f} USD an hour, here it costs {terms.usd_per_hour:f}"
        )
    return None


def _in_use(name: str, why: str) -> AssetInUse:
    return AssetInUse(
        f"The hardware {name!r} {why}: give this gateway's a name of its own with hardware.asset. Two gateways share a "
        "name only where both use one external engine, at one address and one price."
    )
