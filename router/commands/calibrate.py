"""`calibrate-engine`: measure the local engine with a bounded load and write the coefficients that fit it."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import yaml

from local_llm.calibration import CalibrationError, Fit
from local_llm.datamodels import EngineCoefficients, EngineLimits
from local_llm.measure import measure, plan_for, timed_call, tokens_per_word
from router.clock import SystemClock
from router.commands.output import Format, write_rows
from router.errors import BadRequest, RouterError
from router.local_engines import LocalEngine
from router.local_tier import build_local_tier
from router.settings import Engine, LocalSettings, Settings, load_settings

_READY_S = {Engine.EMBEDDED: 60.0, Engine.EXTERNAL: 10.0, Engine.VLLM: 1800.0}
_DIGITS = 6
_FIGURES = ("t0_s", "c_seq_s", "c_kv_s", "c_prefill_s", "c_att_s", "api_s", "practical_batch")
_MEANING = {
    "t0_s": "seconds of a step: reading the weights",
    "c_seq_s": "seconds per sequence in a step",
    "c_kv_s": "seconds per token of context in a step",
    "c_prefill_s": "seconds per prompt token",
    "c_att_s": "seconds per prompt token and context token",
    "api_s": "seconds of the front end before a first token",
    "practical_batch": "sequences over which the weights' reading is spread",
}


class CannotCalibrate(RouterError):
    """The engine cannot be measured now; the message says why and what to do."""

    code = "cannot_calibrate"


def run(config: Path | None, *, engine: str | None, seconds: float, output: Path | None) -> None:
    """Measure `engine` for about `seconds`, print a table and the YAML, write it to `output`.

    Raises CannotCalibrate, and BadRequest where it is not clear which engine is meant.
    """
    settings = load_settings(config)
    local = which(settings, engine)
    found = asyncio.run(
        calibrate(settings, engine=engine, seconds=seconds, note=lambda text: sys.stderr.write(f"{text}\n"))
    )
    write_rows(
        table(local.coefficients, found.coefficients), ["figure", "measured", "configured", "meaning"], Format.TABLE
    )
    text = as_yaml(local.model, found)
    sys.stdout.write(f"\nput this under {local.where} of your config:\n\n{text}")
    if output is not None:
        output.write_text(text)
        sys.stdout.write(f"\nwritten to {output}\n")


def which(settings: Settings, name: str | None) -> LocalSettings:
    """The engine called `name`, or the only one. Raises CannotCalibrate where there is none, else BadRequest."""
    engines = settings.tiers.engines
    if not engines:
        raise CannotCalibrate("there is no local engine to measure; set tiers.local.engine")
    if name is None and len(engines) == 1:
        return engines[0]
    for engine in engines:
        if name is not None and name in (engine.name, engine.candidate_name):
            return engine
    known = ", ".join(engine.name or engine.candidate_name for engine in engines)
    asked = "say which engine to measure with --engine" if name is None else f"there is no engine {name!r}"
    raise BadRequest(f"{asked}; there are: {known}", code="invalid_value", param="engine")


async def calibrate(
    settings: Settings, *, engine: str | None = None, seconds: float, note: Callable[[str], object]
) -> Fit:
    """Start the engine if it is ours, see that nobody else uses it, measure it. Raises as `run` does."""
    local = which(settings, engine)
    if local.unavailable is not None:
        raise CannotCalibrate(f"the local engine cannot be reached: {local.unavailable}")
    if local.engine is Engine.VLLM and _listens(local.api_base or ""):
        raise CannotCalibrate(
            f"something listens at {local.api_base} already: stop the gateway (or whatever it is) first, since an "
            "engine is measured alone and this command starts it itself"
        )
    tier = build_local_tier([local], clock=SystemClock(), data_dir=settings.server.data_dir)
    (ours,) = tier.engines
    if ours.candidate.unavailable is not None:
        raise CannotCalibrate(ours.candidate.unavailable_detail or "the engine is not available")
    await tier.start()
    try:
        if ours.process is not None:
            note("starting the engine")
        if not await ours.wait_ready(_READY_S[local.engine]):
            state, problem = ours.room.process()
            raise CannotCalibrate(f"the engine is {state.value}: {problem or 'its metrics cannot be read'}")
        _see_that_it_is_idle(ours)
        return await _measure(ours, ours.room.limits, seconds=seconds, note=note)
    finally:
        await tier.stop()


async def _measure(engine: LocalEngine, limits: EngineLimits, *, seconds: float, note: Callable[[str], object]) -> Fit:
    headers = {"Authorization": f"Bearer {engine.api_key}"} if engine.api_key is not None else {}
    ends_at_s = engine.clock.now_s() + seconds
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        call = timed_call(session, engine.base_url, model=engine.candidate.wire_model, headers=headers)
        try:
            plan = plan_for(limits, tokens_per_word=await tokens_per_word(call))
            found = await measure(
                call, limits, name="measured", plan=plan, note=note, time_left=lambda: engine.clock.now_s() < ends_at_s
            )
        except CalibrationError as error:
            raise CannotCalibrate(f"the measurement failed: {error}") from error
        except (aiohttp.ClientError, TimeoutError) as error:
            raise CannotCalibrate(f"the engine stopped answering: {type(error).__name__}") from error
    note(f"fit: {found.decode_error_ratio:.0%} off on average for steps, {found.prefill_error_ratio:.0%} for prompts")
    return found


def _see_that_it_is_idle(engine: LocalEngine) -> None:
    reading = engine.room.reading()
    if reading is None:
        return  # an engine that tells nothing: whoever calls must know
    busy = (reading.running_requests or 0) + (reading.waiting_requests or 0)
    if busy:
        raise CannotCalibrate(f"the engine is busy with {busy} requests; measure it when nobody else uses it")


def table(before: EngineCoefficients, measured: EngineCoefficients) -> list[dict[str, Any]]:
    """Measured beside configured figures."""
    old, new = asdict(before), asdict(measured)
    return [
        {"figure": name, "measured": f"{new[name]:.4g}", "configured": f"{old[name]:.4g}", "meaning": _MEANING[name]}
        for name in _FIGURES
    ]


def as_yaml(model: str, found: Fit) -> str:
    """The key `coefficients` as a config takes it."""
    row = asdict(found.coefficients)
    figures = {name: float(f"{row[name]:.{_DIGITS}g}") for name in _FIGURES}
    told = (
        f"# {model}, measured: {found.decode_error_ratio:.0%} off on average for steps, "
        f"{found.prefill_error_ratio:.0%} for prompts\n"
    )
    return told + yaml.safe_dump({"coefficients": figures}, sort_keys=False)


def _listens(api_base: str) -> bool:
    parts = urlsplit(api_base)
    try:
        with socket.create_connection((parts.hostname or "127.0.0.1", parts.port or 80), 1.0):
            return True
    except OSError:
        return False
