"""What a config is told of its mistakes."""

from __future__ import annotations

import pytest

from router.errors import ConfigError
from router.settings import (
    parse_settings,
)

KEY = {"OPENAI_API_KEY": "sk-canary-0123456789"}


EMBEDDED = "tiers: {local: {engine: embedded}}\n"


def problems(text: str, environ: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_settings(text, environ or {}, source="router.yaml")
    return caught.value.lines()


def only_problem(text: str, environ: dict[str, str] | None = None) -> str:
    found = problems(text, environ)
    assert len(found) == 1, found
    return found[0]
