"""`doctor`: the state of everything the gateway needs, and which cost lever is off."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import packages_distributions
from pathlib import Path

from local_llm.nvml import Nvml
from router.checks import Check, State
from router.commands import doctor_checks as look
from router.commands.doctor_classifier import classifier
from router.commands.doctor_gpu import GpuLook, engine_start, utilization_caps
from router.commands.output import Format, write_json, write_rows
from router.errors import ConfigError
from router.settings import Settings, load_settings

_ORDER = (State.OK, State.OFF, State.WARN, State.FAIL)


def examine(
    settings: Settings,
    *,
    at_utc: datetime,
    claims: Mapping[str, Sequence[str]],
    seen: GpuLook,
    environ: Mapping[str, str],
) -> list[Check]:
    """Every check that needs no running gateway.

    `claims` maps top-level packages to the distributions that have them; `seen` is what NVML tells; `environ` says
    which cards and whose model files the engine will find.
    """
    return [
        *look.config(settings),
        *look.packages(claims),
        *look.access(settings),
        *look.local_tier(settings),
        *look.gpus(seen.readings, seen.problem),
        *engine_start(settings, seen, environ, asked=False),
        *utilization_caps(settings, seen),
        *look.api_tiers(settings),
        *look.price_rows(settings, at_utc),
        *look.database(settings),
        *classifier(settings, at_utc),
        *look.learning(settings),
        *look.levers(settings),
    ]


def examine_start(settings: Settings, *, seen: GpuLook, environ: Mapping[str, str]) -> list[Check]:
    """Only what a start of the engine on its cards needs; what is missing for it fails."""
    return [
        *look.config(settings),
        *look.local_tier(settings),
        *look.gpus(seen.readings, seen.problem),
        *engine_start(settings, seen, environ, asked=True),
        *utilization_caps(settings, seen),
    ]


def _look_at_gpus() -> GpuLook:
    nvml = Nvml()
    try:
        readings = nvml.read()
        return GpuLook(readings, nvml.problem, nvml.driver_version, nvml.cuda_version)
    finally:
        nvml.close()


def run(config: Path | None, form: Format, *, gpu_only: bool = False) -> bool:
    """Print the checks; false when one failed. A config with mistakes is a check that failed, one line a mistake.

    `gpu_only` looks at what a start of the engine needs and at nothing else.
    """
    try:
        settings = load_settings(config)
    except ConfigError as error:
        checks = [Check("config", State.FAIL, line, "see docs/configuration.md") for line in error.lines()]
    else:
        seen = _look_at_gpus()
        if gpu_only:
            checks = examine_start(settings, seen=seen, environ=os.environ)
        else:
            claims = packages_distributions()
            checks = examine(settings, at_utc=datetime.now(UTC), claims=claims, seen=seen, environ=os.environ)
    rows = [
        {"state": check.state.value, "name": check.name, "detail": check.detail, "cure": check.cure} for check in checks
    ]
    worst = max((check.state for check in checks), key=_ORDER.index)
    if form is Format.JSON:
        write_json({"state": worst.value, "checks": rows})
    else:
        write_rows(rows, ["state", "name", "detail", "cure"], form)
    return worst is not State.FAIL
