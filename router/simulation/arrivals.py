"""Arrivals drawn by rule, with lengths from elsewhere: independent, bursty, drifting, in sessions. Seeded, no clock."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace

from router.simulation.traces import TraceError, TraceRequest

_CALM, _BUSY = 0, 1
_RATE_FACTORS = (0.4, 2.2)
_MEAN_DWELL_S = (90.0, 45.0)


def poisson(lengths: Sequence[TraceRequest], *, rate_rps: float, count: int, seed: int) -> tuple[TraceRequest, ...]:
    """`count` requests with lengths drawn from `lengths`, coming independently of each other."""
    dice = random.Random(seed)
    return _arrive(lengths, count, dice, lambda: dice.expovariate(rate_rps))


def gamma_bursts(
    lengths: Sequence[TraceRequest], *, rate_rps: float, count: int, cv: float = 4.0, seed: int
) -> tuple[TraceRequest, ...]:
    """`count` requests in bursts: gamma-distributed gaps of coefficient of variation `cv`, under a rate of two states.

    The rate is 0.4 or 2.2 times `rate_rps`, for 90 and 45 seconds at a time in the mean (exponential).
    """
    dice = random.Random(seed)
    shape = 1.0 / (cv * cv)
    scale_s = 1.0 / (rate_rps * shape)
    now_s, state = 0.0, _CALM
    changes_at_s = dice.expovariate(1.0 / _MEAN_DWELL_S[state])

    def gap_s() -> float:
        nonlocal now_s, state, changes_at_s
        gap = dice.gammavariate(shape, scale_s) / _RATE_FACTORS[state]
        now_s += gap
        while now_s > changes_at_s:
            state = _BUSY if state == _CALM else _CALM
            changes_at_s += dice.expovariate(1.0 / _MEAN_DWELL_S[state])
        return gap

    return _arrive(lengths, count, dice, gap_s)


def modulated(
    lengths: Sequence[TraceRequest],
    *,
    rate_rps: float,
    count: int,
    seed: int,
    block_s: float,
    sigma: float,
    on_s: float | None = None,
    off_s: float = 0.0,
) -> tuple[TraceRequest, ...]:
    """`count` requests whose rate changes every `block_s` by a log-normal factor of that `sigma` and mean 1.

    With `on_s` they come in sessions of that length, with `off_s` of silence between (both exponential, in the mean);
    `rate_rps` is the mean over sessions and silence. Scale with `traces.at_rate` where the rate must be met exactly.
    """
    dice = random.Random(seed)
    share_on = 1.0 if on_s is None else on_s / (on_s + off_s)
    peak_rps = rate_rps / share_on
    block_ends_s = session_ends_s = now_s = 0.0
    block_rps = peak_rps

    def gap_s() -> float:
        nonlocal now_s, block_ends_s, session_ends_s, block_rps
        came_s = now_s
        while True:
            if on_s is not None and now_s >= session_ends_s:
                now_s = block_ends_s = session_ends_s + dice.expovariate(1.0 / off_s)
                session_ends_s = now_s + dice.expovariate(1.0 / on_s)
            if now_s >= block_ends_s:
                block_ends_s = now_s + block_s
                block_rps = peak_rps * math.exp(sigma * dice.gauss(0.0, 1.0) - 0.5 * sigma * sigma)
            step_s = dice.expovariate(block_rps)
            ends_s = block_ends_s if on_s is None else min(block_ends_s, session_ends_s)
            if now_s + step_s <= ends_s:
                now_s += step_s
                return now_s - came_s
            now_s = ends_s  # without memory: what is left of the gap is drawn anew at the new rate

    return _arrive(lengths, count, dice, gap_s)


def waves(
    lengths: Sequence[TraceRequest], *, rate_rps: float, count: int, period_s: float, swing: float, seed: int
) -> tuple[TraceRequest, ...]:
    """`count` requests at a rate that swings as a sine between (1 - swing) and (1 + swing) times `rate_rps`: a day."""
    dice = random.Random(seed)
    now_s = 0.0

    def gap_s() -> float:
        nonlocal now_s
        came_s = now_s
        while True:
            now_s += dice.expovariate(rate_rps * (1.0 + swing))
            level = 1.0 - swing * math.cos(2.0 * math.pi * now_s / period_s)
            if dice.random() * (1.0 + swing) < level:
                return now_s - came_s

    return _arrive(lengths, count, dice, gap_s)


def _arrive(
    lengths: Sequence[TraceRequest], count: int, dice: random.Random, gap_s: Callable[[], float]
) -> tuple[TraceRequest, ...]:
    if not lengths:
        raise TraceError("no lengths to draw from")
    now_s = 0.0
    found: list[TraceRequest] = []
    for _ in range(count):
        now_s += gap_s()
        found.append(replace(lengths[dice.randrange(len(lengths))], at_s=now_s))
    return tuple(found)
