"""`check-config`: every mistake of a config at once, a model without a price included."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from router.bootstrap import unpriced
from router.prices import PriceBook
from router.settings import ApiModel, TierSettings, load_settings


def run(config: Path | None) -> None:
    """Print `ok` and what is accepted without effect. Raises `ConfigError` with every mistake."""
    settings = load_settings(config, further=_without_price)
    file = settings.source
    for key in settings.not_acted_on:
        sys.stderr.write(f"{file}: {key}: accepted, but not acted on in this release\n")
    for name in settings.ignored_env:
        sys.stderr.write(f"{name} (environment): is no setting and was ignored\n")
    sys.stdout.write(f"{file}: ok\n")


def _without_price(tiers: TierSettings) -> Iterable[tuple[ApiModel, str]]:
    book = PriceBook.load(tiers.price_overrides())
    return unpriced(tiers, book, datetime.now(UTC), keyless_too=True)
