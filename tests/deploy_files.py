"""The files of deploy/, and an example config as the gateway reads it."""

from __future__ import annotations

from pathlib import Path

from router.settings import parse_settings
from router.settings_types import Settings

ROOT = Path(__file__).parents[1]


DEPLOY = ROOT / "deploy"


KEYS = {"ROUTER_API_KEY": "r", "ENGINE_API_KEY": "e", "OPENAI_API_KEY": "o"}


CONFIGS = sorted(path.name for path in (DEPLOY / "configs").glob("*.yaml"))


def settings_of(name: str, environ: dict[str, str] | None = None) -> Settings:
    return parse_settings((DEPLOY / "configs" / name).read_text(), KEYS if environ is None else environ, source=name)
