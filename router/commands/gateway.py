"""`serve` and `explain`: the commands that put the gateway together."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from router import bootstrap
from router.commands.output import write_json
from router.logs import configure_logging
from router.settings import Settings, load_settings


def serve(config: Path | None, *, host: str | None, port: int | None, log_level: str) -> None:
    """Run the gateway until a signal ends it. `host` and `port` win over file and environment, and are checked too."""
    environ = dict(os.environ)
    if host is not None:
        environ["ROUTER_SERVER__HOST"] = host
    if port is not None:
        environ["ROUTER_SERVER__PORT"] = str(port)
    settings = load_settings(config, environ)
    configure_logging(secrets=settings.secret_values(), level=log_level.upper())
    bootstrap.serve(settings)


def explain(config: Path | None, *, prompt: str | None, request: Path | None) -> None:
    """Print the decision for a prompt or a request body."""
    settings = _quiet_settings(config)
    if prompt is not None:
        body = json.dumps({"model": "auto", "messages": [{"role": "user", "content": prompt}]}).encode()
    elif str(request) == "-":
        body = sys.stdin.buffer.read()
    else:
        body = Path(str(request)).read_bytes()
    write_json(bootstrap.explain(settings, body))


def _quiet_settings(config: Path | None) -> Settings:
    settings = load_settings(config)
    configure_logging(secrets=settings.secret_values(), level="WARNING")
    return settings
