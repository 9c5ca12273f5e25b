"""`doctor`: the state of everything the gateway needs, and which cost lever is off."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

from local_llm.datamodels import GpuReading
from local_llm.nvml import Nvml
from router.checks import Check, State
from router.commands import doctor_checks as look
from router.commands.output import Format, write_json, write_rows
from router.errors import ConfigError
from router.settings import Settings, load_settings

_ORDER = (State.OK, State.OFF, State.WARN, State.FAIL)


def examine(
    settings: Settings,
    *,
    at_utc: datetime,
    claims: Mapping[str, Sequence[str]],
    gpus: Sequence[GpuReading],
    gpu_problem: str | None,
) -> list[Check]:
    """Every check that needs no running gateway.

    `claims` maps top-level packages to the distributions that have them; `gpus` is what NVML reads, with the reason
    in `gpu_problem` when that is nothing.
    """
    return [
        *look.config(settings),
        *look.packages(claims),
        *look.access(settings),
        *look.local_tier(settings),
        *look.gpus(gpus, gpu_problem),
        *look.api_tiers(settings),
        *look.price_rows(settings, at_utc),
        *look.database(settings),
        *look.levers(settings),
    ]


def _read_gpus() -> dict[str, Any]:
    nvml = Nvml()
    try:
        return {"gpus": nvml.read(), "gpu_problem": nvml.problem}
    finally:
        nvml.close()


def run(config: Path | None, form: Format) -> bool:
    """Print the checks; false when one failed. A config with mistakes is a check that failed, one line a mistake."""
    try:
        settings = load_settings(config)
    except ConfigError as error:
        checks = [Check("config", State.FAIL, line, "see docs/configuration.md") for line in error.lines()]
    else:
        checks = examine(settings, at_utc=datetime.now(UTC), claims=packages_distributions(), **_read_gpus())
    rows = [
        {"state": check.state.value, "name": check.name, "detail": check.detail, "cure": check.cure} for check in checks
    ]
    worst = max((check.state for check in checks), key=_ORDER.index)
    if form is Format.JSON:
        write_json({"state": worst.value, "checks": rows})
    else:
        write_rows(rows, ["state", "name", "detail", "cure"], form)
    return worst is not State.FAIL
