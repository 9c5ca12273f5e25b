"""`simulate`: what the policies would have cost and kept on a trace, over a simulated engine."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from local_llm.coefficients import PRESETS
from local_llm.datamodels import SloTargets
from local_llm.simulated_engine import LIMITS
from router.commands.output import Format, write_json, write_rows
from router.commands.price_book import row_for
from router.core.datamodels import PolicyConfig, PriceRow
from router.errors import BadRequest, Unavailable
from router.settings import Settings, load_settings
from router.settings_types import Engine
from router.simulation.policies import DEFAULT_NAMES, PRODUCT, RULES, Policy, rule
from router.simulation.product import ProductConfig, ProductPolicy
from router.simulation.report import STABLE, Row, api_costs_usd, row_of, shown, svg
from router.simulation.runner import run as play
from router.simulation.traces import (
    TraceError,
    TraceRequest,
    at_rate,
    faster,
    from_records,
    gamma_bursts,
    mean_rate_rps,
    read_csv,
)
from router.stores.engines import read_engine
from router.stores.queries import iterate_records

DEFAULT_GPU = "h100-8b-fp16"
_CPU_SLO = SloTargets(ttft_s=15.0, tpot_s=0.5, slack_s=5.0)


@dataclass(frozen=True, slots=True)
class Options:
    """What the command was asked. `trace` is `None` for the log; at most one of `scale` and `rate_rps` is given."""

    trace: Path | None
    gpu: str
    start_coefficients: str | None
    policies: Sequence[str]
    seed: int
    scale: float | None
    rate_rps: float | None
    burst_cv: float | None
    max_batched_tokens: int | None
    self_calibration: bool
    plot: Path | None


def run(config: Path | None, form: Format, options: Options) -> None:
    """Play the trace with each policy and print the rows.

    Raises `RouterError` for names that are not known, a trace that cannot be read and a log that cannot be.
    """
    names = _checked(options)
    settings = load_settings(config)
    trace = _scaled(_requests(settings, options), options)
    price = _price(settings)
    slo = _slo(settings, options.gpu)
    limits = LIMITS[options.gpu]
    if options.max_batched_tokens is not None:
        limits = replace(limits, max_batched_tokens=options.max_batched_tokens)
    product = ProductConfig(
        coefficients=PRESETS[options.start_coefficients or options.gpu],
        limits=limits,
        slo=slo,
        price=price,
        policy=PolicyConfig(),
        self_calibration=options.self_calibration,
    )
    costs_usd = api_costs_usd(trace, price)
    rows: list[Row] = []
    with _progress(len(trace) * len(names)) as advance:
        for done, name in enumerate(names):
            played = play(
                trace,
                _policy(name, product),
                coefficients=PRESETS[options.gpu],
                limits=limits,
                seed=options.seed,
                progress=partial(advance, done * len(trace)),
            )
            rows.append(row_of(name, played, costs_usd, slo))
    title = _title(trace, price, options)
    if options.plot is not None:
        try:
            options.plot.write_text(svg(rows, title=title), encoding="utf-8")
        except OSError as error:
            raise Unavailable(f"{options.plot} cannot be written: {error.strerror}") from error
    _write(rows, form, title)


def _checked(options: Options) -> list[str]:
    for name in (options.gpu, options.start_coefficients or options.gpu):
        if name not in LIMITS:
            raise BadRequest(f"{name!r} is no GPU that is known; there are {', '.join(LIMITS)}", param="gpu")
    names = list(dict.fromkeys(options.policies or DEFAULT_NAMES))
    for name in names:
        if name != PRODUCT and rule(name) is None:
            known = ", ".join((PRODUCT, *RULES))
            raise BadRequest(f"{name!r} is no policy; there are {known} and count64 (any cap)", param="policies")
    return names


def _policy(name: str, product: ProductConfig) -> Policy:
    known = rule(name)
    return known if known is not None else ProductPolicy(product)


def _requests(settings: Settings, options: Options) -> tuple[TraceRequest, ...]:
    if options.trace is not None:
        return read_csv(options.trace)
    engine = read_engine(settings.server.database_url)
    try:
        trace, left_out = from_records(iterate_records(engine))
    except SQLAlchemyError as error:
        shown_url = settings.server.database_url_masked
        raise Unavailable(f"the books at {shown_url} cannot be read ({type(error).__name__}); see `doctor`") from error
    finally:
        engine.dispose()
    if left_out:
        print(  # noqa: T201 - the command's output
            f"{left_out} requests left out: no usage known, or never to be answered locally.", file=sys.stderr
        )
    if not trace:
        raise TraceError("the log holds no request that could have been answered locally")
    return trace


def _scaled(trace: tuple[TraceRequest, ...], options: Options) -> tuple[TraceRequest, ...]:
    if options.rate_rps is not None:
        trace = at_rate(trace, options.rate_rps)
    elif options.scale is not None:
        trace = faster(trace, options.scale)
    if options.burst_cv is None:
        return trace
    rate_rps = mean_rate_rps(trace)
    if rate_rps <= 0.0:
        raise TraceError("a trace whose requests come all at once has no rate for bursts")
    return gamma_bursts(trace, rate_rps=rate_rps, count=len(trace), cv=options.burst_cv, seed=options.seed)


def _price(settings: Settings) -> PriceRow:
    """Of the cheapest tier that is paid by the token: it is what a request costs that does not run locally."""
    for _, model in settings.tiers.api_models():
        return row_for(settings, model.name, datetime.now(UTC))
    raise BadRequest("the config names no API model to compare with; give one under tiers.cheap", param="config")


def _slo(settings: Settings, gpu: str) -> SloTargets:
    """The config's own promises where it speaks of a GPU server, else the defaults for `gpu`."""
    local = settings.tiers.local
    if local.engine in (Engine.VLLM, Engine.EXTERNAL):
        return local.slo
    return _CPU_SLO if gpu == "embedded-cpu" else SloTargets()


def _title(trace: Sequence[TraceRequest], price: PriceRow, options: Options) -> str:
    source = options.trace.name if options.trace is not None else "the log"
    rate = f"{mean_rate_rps(trace):.2f}/s"
    return f"{len(trace)} requests of {source} at {rate} on {options.gpu}, else {price.model}"


def _write(rows: Sequence[Row], form: Format, title: str) -> None:
    if form is Format.JSON:
        write_json([row.stable() for row in rows])
    elif form is Format.CSV:
        write_rows([row.stable() for row in rows], STABLE, form)
    else:
        print(title)  # noqa: T201 - the command's output
        table = [shown(row) for row in rows]
        write_rows(table, list(table[0]), form)


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error, if that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda _before, _count: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("simulating", total=max(1, total))
        shown_at = -math.inf

        def advance(before: int, count: int) -> None:
            nonlocal shown_at
            count += before
            if count - shown_at >= total / 200 or count >= total:
                shown_at = count
                bar.update(task, completed=count)

        yield advance
