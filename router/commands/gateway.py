"""`serve` and `explain`: the commands that put the gateway together."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

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
    from router.server import serve as run

    settings = load_settings(config, environ)
    configure_logging(secrets=settings.secret_values(), level=log_level.upper())
    run(settings)


def explain(config: Path | None, *, prompt: str | None, request: Path | None) -> None:
    """Print the decision for a prompt or a request body."""
    settings = _quiet_settings(config)
    if prompt is not None:
        body = json.dumps({"model": "auto", "messages": [{"role": "user", "content": prompt}]}).encode()
    elif str(request) == "-":
        body = sys.stdin.buffer.read()
    else:
        body = Path(str(request)).read_bytes()
    write_json(_decision(settings, body))


def _decision(settings: Settings, body: bytes) -> dict[str, Any]:
    """The decision of a gateway that has just started: engines ready and empty, circuits closed, nothing spent."""
    from local_llm.datamodels import ProcessState
    from router.api.auth import DEFAULT_TENANT
    from router.api.explained import explained
    from router.api.schemas import decode_chat
    from router.bootstrap import build
    from router.flow import consider, describe

    gateway = build(settings)
    for room in gateway.state.engines.values():
        room.process = lambda: (ProcessState.READY, None)
        room.metrics_required = ()
    gateway.tokens.load()
    seen = describe(decode_chat(body, {}), DEFAULT_TENANT, gateway.deps)
    decision, _ = consider(seen, gateway.deps)
    return explained(seen, decision) | {"assumed": "engines ready and empty, circuits closed, nothing spent"}


def _quiet_settings(config: Path | None) -> Settings:
    settings = load_settings(config)
    configure_logging(secrets=settings.secret_values(), level="WARNING")
    return settings
