"""`simulate`: what the policies would have cost and kept on a trace, over a simulated engine."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from router.commands.output import Format, write_json, write_rows
from router.commands.price_book import row_for
from router.core.snapshot import PriceRow
from router.errors import BadRequest, Unavailable
from router.settings import Settings, load_settings
from router.simulation.arrivals import gamma_bursts
from router.simulation.bound import least_spend_ratio
from router.simulation.company import Company, others_of
from router.simulation.plot import svg
from router.simulation.policies import DEFAULT_NAMES, RULES, Policy, rule
from router.simulation.product import PRODUCTS, ProductPolicy
from router.simulation.report import ALL, Result, api_costs_usd, pooled, row_of, shown, summary_table
from router.simulation.runner import run as play
from router.simulation.setting import Setting, setting
from router.simulation.traces import (
    TraceError,
    TraceRequest,
    at_rate,
    faster,
    from_records,
    mean_rate_rps,
    read_csv,
)
from router.simulation.workloads import SETS, Workload
from router.stores.engines import read_engine
from router.stores.queries import iterate_records


@dataclass(frozen=True, slots=True)
class Options:
    """What the command was asked: a set of `workloads`, a `trace`, or (neither) the log.

    `azure` is the folder of the published files that the six workloads are made of; at most one of `scale` and
    `rate_rps` is given; `requests` cuts every workload. `others_ratio` of the requests are sent to the engine past the
    gateway, of which there are `gateways` that share it.
    """

    trace: Path | None = None
    workloads: str | None = None
    azure: Path | None = None
    requests: int | None = None
    gpu: str | None = None
    start_coefficients: str | None = None
    policies: Sequence[str] = ()
    seed: int = 0
    scale: float | None = None
    rate_rps: float | None = None
    burst_cv: float | None = None
    max_batched_tokens: int | None = None
    self_calibration: bool = True
    others_ratio: float = 0.0
    gateways: int = 1
    plot: Path | None = None


def run(config: Path | None, form: Format, options: Options) -> None:
    """Play every workload with each policy and print the rows.

    Raises `RouterError` for names that are not known, a trace that cannot be read and a log that cannot be.
    """
    names = _checked(options)
    settings = load_settings(config, serving=False)
    price = _price(settings)
    several = len(settings.tiers.engines)
    if several > 1 and options.gpu is None:
        raise BadRequest(
            f"the config has {several} engines and one is played: name its kind with --gpu, and play its share of the "
            f"traffic with --scale {1 / several:.3g}",
            param="gpu",
        )
    engine = setting(
        settings.tiers.local,
        settings.policy.policy_config(),
        price,
        gpu=options.gpu,
        start_coefficients=options.start_coefficients,
        max_batched_tokens=options.max_batched_tokens,
        self_calibration=options.self_calibration,
    )
    if settings.policy.on_saturation != "spill":
        told = f"on_saturation: {settings.policy.on_saturation} is played as spill: who waits or is turned away is not."
        print(told, file=sys.stderr)  # noqa: T201 - the command's output
    workloads = _workloads(settings, options)
    results = _play_all(workloads, names, engine, options)
    title = f"{_described(workloads)} on {engine.described}, else {price.model}"
    if options.plot is not None:
        try:
            options.plot.write_text(svg(results, title=title, slo=engine.slo), encoding="utf-8")
        except OSError as error:
            raise Unavailable(f"{options.plot} cannot be written: {error.strerror}") from error
    totals = pooled(results, engine.slo) if options.workloads is not None else []
    if form is Format.TABLE:
        _show(results, totals, _least_spend(_ours(workloads, options), engine), title)
    else:
        _write(results, totals, form)


def _checked(options: Options) -> list[str]:
    names = list(dict.fromkeys(options.policies or DEFAULT_NAMES))
    for name in names:
        if name not in PRODUCTS and rule(name) is None:
            known = ", ".join((*PRODUCTS, *RULES))
            raise BadRequest(f"{name!r} is no policy; there are {known} and count64 (any cap)", param="policies")
    return names


def _ours(workloads: Sequence[Workload], options: Options) -> list[Workload]:
    """Without what others send."""
    found = []
    for workload in workloads:
        others = others_of(workload.trace, options.others_ratio, options.seed)
        kept = tuple(request for place, request in enumerate(workload.trace) if place not in others)
        found.append(Workload(workload.name, kept))
    return found


def _play_all(workloads: Sequence[Workload], names: Sequence[str], engine: Setting, options: Options) -> list[Result]:
    results: list[Result] = []
    total = len(names) * sum(len(workload.trace) for workload in workloads)
    with _progress(total) as advance:
        done = 0
        for workload in workloads:
            costs_usd = api_costs_usd(workload.trace, engine.product.price)
            for name in names:
                gateways = [_policy(name, engine) for _ in range(options.gateways)]
                company = Company(gateways, workload.trace, options.others_ratio, options.seed)
                played = play(
                    workload.trace,
                    company if options.others_ratio or options.gateways > 1 else gateways[0],
                    coefficients=engine.truth,
                    limits=engine.limits,
                    seed=options.seed,
                    progress=partial(advance, done),
                )
                done += len(workload.trace)
                ours, ours_usd = company.ours(played, costs_usd)
                row = row_of(name, ours, ours_usd, engine.slo)
                results.append(Result(workload.name, row, ours, ours_usd))
    return results


def _policy(name: str, engine: Setting) -> Policy:
    known = rule(name)
    return known if known is not None else ProductPolicy(PRODUCTS[name](engine.product))


def _workloads(settings: Settings, options: Options) -> tuple[Workload, ...]:
    if options.workloads is None:
        name = options.trace.name if options.trace is not None else "the log"
        return (Workload(name, _scaled(_requests(settings, options), options)[: options.requests]),)
    made = SETS.get(options.workloads)
    if made is None:
        raise BadRequest(f"there are no workloads {options.workloads!r}, but {', '.join(SETS)}", param="workloads")
    return made(options.azure, seed=options.seed, requests=options.requests, rate_factor=options.scale or 1.0)


def _requests(settings: Settings, options: Options) -> tuple[TraceRequest, ...]:
    if options.trace is not None:
        return read_csv(options.trace, options.requests)
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


def _described(workloads: Sequence[Workload]) -> str:
    if len(workloads) > 1:
        return f"{len(workloads)} workloads, {sum(len(workload.trace) for workload in workloads)} requests"
    (workload,) = workloads
    return f"{len(workload.trace)} requests of {workload.name} at {mean_rate_rps(workload.trace):.2f}/s"


def _least_spend(workloads: Sequence[Workload], engine: Setting) -> dict[str, float]:
    """What no rule can spend less than, by workload, and for `ALL` of them."""
    found: dict[str, float] = {}
    spent = always = 0.0
    for workload in workloads:
        costs_usd = api_costs_usd(workload.trace, engine.product.price)
        found[workload.name] = least_spend_ratio(
            workload.trace, costs_usd, coefficients=engine.truth, limits=engine.limits, slo=engine.slo
        )
        usd = float(sum(costs_usd))
        spent, always = spent + usd * found[workload.name], always + usd
    return {**found, ALL: spent / always if always else 0.0}


def _show(results: Sequence[Result], totals: Sequence[Result], least: Mapping[str, float], title: str) -> None:
    """For people; the last line is what no rule can spend less than, however clairvoyant."""
    print(title)  # noqa: T201 - the command's output
    last: dict[str, Any] = {"policy": "(no rule below)"}
    if totals:
        table: list[Mapping[str, Any]] = [*summary_table(results, totals)]
        last |= {name: f"{100 * ratio:.1f}" for name, ratio in least.items()}
        last["all: spend %"] = last.pop(ALL)
    else:
        table = [shown(result.row) for result in results]
        last["API spend %"] = f"{100 * least[ALL]:.1f}"
    write_rows([*table, last], list(table[0]), Format.TABLE)


def _write(results: Sequence[Result], totals: Sequence[Result], form: Format) -> None:
    """One workload: its rows. Several: a row a policy and workload, and after them one a policy for all of them."""
    rows: list[dict[str, Any]] = [result.row.stable() for result in results]
    if totals:
        rows = [{"workload": result.workload, **result.row.stable()} for result in (*results, *totals)]
    if form is Format.JSON:
        write_json(rows)
    else:
        write_rows(rows, list(rows[0]), form)


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error, if that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda _before, _count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("simulating", total=max(1, total))
        shown_at = -math.inf

        def advance(before: int, count: int) -> None:
            nonlocal shown_at
            count += before
            if count - shown_at >= total / 200 or count >= total:
                shown_at = count
                bar.update(task, completed=count)

        yield advance
