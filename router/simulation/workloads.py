"""The workloads that the admission is judged on: six with bursts in them, and shapes that it was not made for.

The six are Azure's conversation and code traces of 2023 at 0.7 and 1.3 times what one H100 carries within its promises
when nothing comes in bursts, and bursts with the conversations' lengths at 0.7 and 1.2 times. Where the published files
are not at hand, traffic of the same kind is drawn: lengths from the quantiles of those traces (Patel et al.,
"Splitwise", ISCA 2024; github.com/Azure/AzurePublicDataset, CC-BY 4.0), conversations at a drifting rate, code in
sessions with long silence between.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from router.simulation.arrivals import gamma_bursts, modulated, poisson, waves
from router.simulation.traces import TraceError, TraceRequest, at_rate, read_csv

CONVERSATIONS_FILE = "AzureLLMInferenceTrace_conv.csv"
COMPLETIONS_FILE = "AzureLLMInferenceTrace_code.csv"

CONVERSATIONS_RPS, COMPLETIONS_RPS = 11.03, 6.99
"""What an H100 with an 8B model in fp16 carries of each within 1 s and 50 ms a token, at most 1 % missed."""
_BURSTS_RPS = 0.885 * CONVERSATIONS_RPS
_LONGEST_PROMPT_TOKENS = 8000
_BURST_CV = 4.0
_DISTINCT_LENGTHS = 5_000
_CONVERSATIONS, _COMPLETIONS, _BURSTS, _SHAPES = 19_000, 8_800, 12_000, 6_000

_SHARES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
_CONVERSATION_PROMPTS = (2, 181, 207, 387, 403, 703, 1020, 1071, 1130, 1315, 2735, 4083, 4142, 8000)
_CONVERSATION_OUTPUTS = (7, 41, 54, 77, 91, 103, 129, 177, 384, 400, 424, 451, 601, 1000)
_COMPLETION_PROMPTS = (3, 75, 147, 385, 770, 1075, 1469, 1909, 2433, 3193, 5194, 7315, 7436, 7437)
_COMPLETION_OUTPUTS = (6, 6, 7, 8, 9, 11, 13, 16, 20, 29, 55, 90, 252, 1500)


@dataclass(frozen=True, slots=True)
class Workload:
    """Traffic by name; times in seconds from 0, lengths in tokens."""

    name: str
    trace: tuple[TraceRequest, ...]


def six(
    folder: Path | None = None, *, seed: int = 0, requests: int | None = None, rate_factor: float = 1.0
) -> tuple[Workload, ...]:
    """The six, from Azure's two CSV files in `folder`, else drawn. At most `requests` each, the first ones.

    `rate_factor` multiplies every rate: the same workloads for a GPU that carries less. Raises `TraceError` for a
    folder without the files.
    """
    if folder is not None:
        conversations, completions = _azure(folder)
    else:
        conversations = _conversations(seed, requests or _CONVERSATIONS)
        completions = _completions(seed, requests or _COMPLETIONS)
    loads = [
        (f"{name} {load:.1f}", at_rate(trace, load * rps * rate_factor))
        for name, trace, rps in (
            ("conv", conversations, CONVERSATIONS_RPS),
            ("code", completions, COMPLETIONS_RPS),
        )
        for load in (0.7, 1.3)
    ]
    for load in (0.7, 1.2):
        rate_rps = load * _BURSTS_RPS * rate_factor
        count = requests or _BURSTS
        drawn = gamma_bursts(conversations, rate_rps=rate_rps, count=count, cv=_BURST_CV, seed=10 + seed)
        loads.append((f"bursts {load:.1f}", at_rate(drawn, rate_rps)))
    return tuple(Workload(name, trace[:requests]) for name, trace in loads)


def shapes(
    _folder: Path | None = None, *, seed: int = 0, requests: int | None = None, rate_factor: float = 1.0
) -> tuple[Workload, ...]:
    """Traffic of other kinds, around what an H100 carries of it: a day, sessions, long prompts, long answers, heavy
    tails, independent arrivals, heavier bursts; always drawn. At most `requests` each; `rate_factor` as in `six`.
    """
    r, n = rate_factor, min(requests or _SHAPES, _SHAPES)
    conversations, completions = _conversations(seed, _DISTINCT_LENGTHS), _completions(seed, _DISTINCT_LENGTHS)
    dice = random.Random(100 + seed)
    long_prompts = _lengths(lambda: (_between(dice, 8_000, 32_000), _between(dice, 50, 400)))
    reasoning = _lengths(lambda: (_between(dice, 50, 1_500), _between(dice, 2_000, 8_000)))
    heavy = _lengths(lambda: (_log_normal(dice, 600, 1.1, 16_000), _log_normal(dice, 150, 1.1, 4_000)))
    mixed = conversations + completions

    sessions = modulated(mixed, rate_rps=8 * r, count=n, seed=seed, block_s=5, sigma=0.8, on_s=30, off_s=30)
    return (
        Workload("poisson", poisson(conversations, rate_rps=12 * r, count=n, seed=seed)),
        Workload("day", waves(conversations, rate_rps=11 * r, count=n, period_s=300, swing=0.9, seed=seed)),
        Workload("sessions", sessions),
        Workload("bursts cv 8", gamma_bursts(mixed, rate_rps=8 * r, count=n, cv=8, seed=seed)),
        Workload("heavy tails", gamma_bursts(heavy, rate_rps=8 * r, count=n, cv=4, seed=seed)),
        Workload("long prompts", poisson(long_prompts, rate_rps=0.9 * r, count=max(1, n // 8), seed=seed)),
        Workload("reasoning", gamma_bursts(reasoning, rate_rps=0.5 * r, count=max(1, n // 8), cv=3, seed=seed)),
    )


SETS: Mapping[str, Callable[..., tuple[Workload, ...]]] = MappingProxyType({"six": six, "shapes": shapes})


def _azure(folder: Path) -> tuple[tuple[TraceRequest, ...], tuple[TraceRequest, ...]]:
    paths = folder / CONVERSATIONS_FILE, folder / COMPLETIONS_FILE
    for path in paths:
        if not path.is_file():
            raise TraceError(f"{path} is not there; it is one of github.com/Azure/AzurePublicDataset, folder data")
    conversations, completions = (_clipped(read_csv(path)) for path in paths)
    return conversations, completions


def _clipped(trace: Sequence[TraceRequest]) -> tuple[TraceRequest, ...]:
    return tuple(replace(r, prompt_tokens=min(r.prompt_tokens, _LONGEST_PROMPT_TOKENS)) for r in trace)


def _conversations(seed: int, count: int) -> tuple[TraceRequest, ...]:
    dice = random.Random(1_000 + seed)
    lengths = _lengths(lambda: (_quantile(dice, _CONVERSATION_PROMPTS), _quantile(dice, _CONVERSATION_OUTPUTS)))
    return modulated(lengths, rate_rps=5.5, count=count, seed=seed, block_s=60.0, sigma=0.2)


def _completions(seed: int, count: int) -> tuple[TraceRequest, ...]:
    dice = random.Random(2_000 + seed)
    lengths = _lengths(lambda: (_quantile(dice, _COMPLETION_PROMPTS), _quantile(dice, _COMPLETION_OUTPUTS)))
    return modulated(lengths, rate_rps=2.6, count=count, seed=seed, block_s=4.0, sigma=0.8, on_s=40.0, off_s=50.0)


def _lengths(draw: Callable[[], tuple[int, int]]) -> tuple[TraceRequest, ...]:
    return tuple(TraceRequest(0.0, *draw()) for _ in range(_DISTINCT_LENGTHS))


def _quantile(dice: random.Random, values: Sequence[int]) -> int:
    """A draw from the distribution whose quantiles at `_SHARES` are `values`, straight lines between them."""
    share = dice.random()
    upper = bisect_right(_SHARES, share)
    low, high = _SHARES[upper - 1], _SHARES[upper]
    return round(values[upper - 1] + (values[upper] - values[upper - 1]) * (share - low) / (high - low))


def _between(dice: random.Random, least: int, most: int) -> int:
    """Log-uniform."""
    return round(math.exp(dice.uniform(math.log(least), math.log(most))))


def _log_normal(dice: random.Random, median: int, sigma: float, most: int) -> int:
    return min(most, max(1, round(median * math.exp(sigma * dice.gauss(0.0, 1.0)))))
