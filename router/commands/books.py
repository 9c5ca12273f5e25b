"""What the reports share: the books of a config, ranges of whole UTC days, money for people."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from router.core.vocabulary import NANO_PER_USD
from router.errors import Unavailable
from router.settings import Settings, load_settings
from router.stores.engines import read_engine

_BAR_CHARS = 32


@contextmanager
def books_of(config: Path | None) -> Iterator[tuple[Settings, Engine]]:
    """Settings and books. Raises `Unavailable` for a database that cannot be read."""
    settings = load_settings(config, serving=False)
    engine = read_engine(settings.server.database_url)
    try:
        yield settings, engine
    except SQLAlchemyError as error:
        # The driver's own text may hold the address with its password.
        shown = settings.server.database_url_masked
        raise Unavailable(f"the books at {shown} cannot be read ({type(error).__name__}); see `doctor`") from error
    finally:
        engine.dispose()


def usd(nanousd: int) -> str:
    """To the nano-dollar."""
    return f"{Decimal(nanousd) / NANO_PER_USD:.9f}"


def bar(value: int, largest: int) -> str:
    """A bar as long as `value` is of `largest`; hollow below 0."""
    length = round(_BAR_CHARS * abs(value) / largest) if largest else 0
    return ("█" if value >= 0 else "░") * length
