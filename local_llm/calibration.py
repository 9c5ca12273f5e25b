"""Better coefficients from what is seen: quantile tracking while serving, least squares from a measured run. Pure.

While serving, two factors follow the 0.65 quantile of observed over predicted: c1 (prefill) from times to first token,
c2 (decode) from gaps between tokens of steps without prefill, both of our own streams, else of the engine's
histograms. Each observation moves a factor by a fixed small ratio, up by q when reality was slower than predicted and
down by 1 - q when it was not, so outliers weigh no more than others. A model that is wrong by 0.4 to 2.5 times gets
right within a few hundred requests.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from local_llm.datamodels import EngineCoefficients
from local_llm.steptime import prefill_s

_QUANTILE = 0.65
_PREFILL_STEP = 0.04
_GAP_STEP = 0.01
_FIRST_GAIN = 6.0
_GAIN_DECAY = 0.95
_MIN_FACTOR = 0.25
_MAX_FACTOR = 4.0
_ENOUGH_OBSERVATIONS = 50
_CAREFUL_PREFILL, _CAREFUL_DECODE = 2.0, 1.5
_HARDLY_TRIED = 10
_RELAXED, _DOUBTED = 0.9, 0.99


class Calibrating(Protocol):
    """What learns from observed times; see `Calibration`."""

    @property
    def coefficients(self) -> EngineCoefficients:
        """As learnt so far."""
        ...

    def observe_prefill(self, *, observed_s: float, predicted_s: float, prefill_ratio: float) -> None:
        """Prompts have been read; `prefill_ratio` is the share of `predicted_s` that is prefill and no decode."""
        ...

    def observe_gap(self, *, observed_s: float, predicted_s: float, decode_ratio: float = 1.0) -> None:
        """A token followed another; `decode_ratio` is the share of `predicted_s` that is decode and no prefill."""
        ...

    def relax(self) -> bool:
        """A request was turned away from an empty engine; whether that changes what is believed."""
        ...


class Calibration:
    """Correction of one engine's coefficients from live observations; O(1) each.

    A `careful` one begins with an engine slower than `base` says, by as much as one GPU generation: where the base is
    another GPU's, the first burst would break promises by the dozen before anything is learnt; where it is right, that
    is known after some ten answers and costs next to nothing.
    """

    def __init__(self, base: EngineCoefficients, *, quantile: float = _QUANTILE, careful: bool = False) -> None:
        self._base = base
        self._quantile = quantile
        self.prefill_factor = _CAREFUL_PREFILL if careful else 1.0
        self.decode_factor = _CAREFUL_DECODE if careful else 1.0
        self._was_slower = False
        self.prefill_observations = 0
        self.gap_observations = 0

    @property
    def coefficients(self) -> EngineCoefficients:
        """The base, corrected. `calibrated` once both factors rest on enough observations, or if the base was."""
        c1, c2 = self.prefill_factor, self.decode_factor
        enough = min(self.prefill_observations, self.gap_observations) >= _ENOUGH_OBSERVATIONS
        base = self._base
        return replace(
            base,
            t0_s=base.t0_s * c2,
            c_seq_s=base.c_seq_s * c2,
            c_kv_s=base.c_kv_s * c2,
            c_prefill_s=base.c_prefill_s * c1,
            c_att_s=base.c_att_s * c1,
            calibrated=base.calibrated or enough,
        )

    def observe_prefill(self, *, observed_s: float, predicted_s: float, prefill_ratio: float = 1.0) -> None:
        """Prompts have been read. Nonsense (negative, infinite) is ignored.

        The less of the prediction was prefill (`prefill_ratio`), the less it can tell, and the smaller is the step.
        """
        if _usable(observed_s, predicted_s) and 0.0 <= prefill_ratio <= 1.0:
            step = prefill_ratio * _gain(_PREFILL_STEP, self.prefill_observations)
            slower = observed_s > predicted_s
            self.prefill_factor = self._moved(self.prefill_factor, step, slower)
            self._was_slower = self._was_slower or slower
            self.prefill_observations += 1

    def observe_gap(self, *, observed_s: float, predicted_s: float, decode_ratio: float = 1.0) -> None:
        """A token followed another; `predicted_s` is the step at that time, of which `decode_ratio` is no prefill."""
        if _usable(observed_s, predicted_s) and 0.0 <= decode_ratio <= 1.0:
            step = decode_ratio * _gain(_GAP_STEP, self.gap_observations)
            self.decode_factor = self._moved(self.decode_factor, step, observed_s > predicted_s)
            self.gap_observations += 1

    def relax(self) -> bool:
        """An empty engine that has hardly been tried was too slow for a request: believe a little less bad of it.

        Else one believed too slow for every prompt that comes would never be tried, and so never be known. False once
        enough has been seen, or that it was slower still, or where nothing less can be believed. Care is given up at
        once, the base slowly: a prompt that is really too long teaches that by a broken promise.
        """
        known = self._was_slower or self.prefill_observations >= _HARDLY_TRIED
        if known or self.prefill_factor <= _MIN_FACTOR:
            return False
        self.prefill_factor, self.decode_factor = _relaxed(self.prefill_factor), _relaxed(self.decode_factor)
        return True

    def _moved(self, factor: float, step: float, slower: bool) -> float:
        moved = factor * math.exp(step * (self._quantile if slower else self._quantile - 1.0))
        return min(_MAX_FACTOR, max(_MIN_FACTOR, moved))


def _gain(step: float, observations: int) -> float:
    """The first observations move further: the preset may be another GPU's."""
    return step * max(1.0, _FIRST_GAIN * _GAIN_DECAY**observations)


def _relaxed(factor: float) -> float:
    return max(1.0, factor * _RELAXED) if factor > 1.0 else max(_MIN_FACTOR, factor * _DOUBTED)


def _usable(observed_s: float, predicted_s: float) -> bool:
    return 0.0 <= observed_s < math.inf and 0.0 < predicted_s < math.inf


@dataclass(frozen=True, slots=True)
class DecodeRun:
    """Measured: `streaming` sequences holding `context_tokens` in all took `step_s` for a token each."""

    streaming: int
    context_tokens: float
    step_s: float


@dataclass(frozen=True, slots=True)
class PrefillRun:
    """Measured on an idle engine: a prompt of `prompt_tokens`, none cached, took `ttft_s` to its first token."""

    prompt_tokens: int
    ttft_s: float


class CalibrationError(Exception):
    """The run cannot be fitted; the message says what is missing."""


@dataclass(frozen=True, slots=True)
class Fit:
    """Coefficients from a measured run, and how far they are from it (mean of |predicted/observed - 1|)."""

    coefficients: EngineCoefficients
    decode_error_ratio: float
    prefill_error_ratio: float


def fit(
    name: str,
    decode: Sequence[DecodeRun],
    prefill: Sequence[PrefillRun],
    *,
    practical_batch: float,
    max_batched_tokens: int,
) -> Fit:
    """Least squares of relative errors with no coefficient below 0.

    Decode gives t0, c_seq and c_kv; prefill, with t0 known, gives api, c_prefill and c_att. Raises `CalibrationError`
    with fewer than three usable runs of a kind.
    """
    steps = [run for run in decode if run.step_s > 0 and run.streaming > 0]
    prompts = [run for run in prefill if run.ttft_s > 0 and run.prompt_tokens > 0]
    if len(steps) < 3 or len(prompts) < 3:
        raise CalibrationError(
            f"needs three runs of each kind, has {len(steps)} of decode and {len(prompts)} of prefill"
        )
    t0_s, c_seq_s, c_kv_s = _least_squares(
        [(1.0, float(run.streaming), run.context_tokens) for run in steps], [run.step_s for run in steps]
    )
    if t0_s + c_seq_s == 0.0:  # noise: no model makes a step for nothing but looking at what it holds
        t0_s, c_seq_s, c_kv_s = _least_squares(
            [(1.0, float(run.streaming), 0.0) for run in steps], [run.step_s for run in steps]
        )
    own_s = [run.ttft_s - t0_s * (0.5 + math.ceil(run.prompt_tokens / max_batched_tokens)) for run in prompts]
    times_s = [max(1e-6, seconds) for seconds in own_s]
    api_s, c_prefill_s, c_att_s = _least_squares(
        [(1.0, float(run.prompt_tokens), 0.5 * run.prompt_tokens**2) for run in prompts], times_s
    )
    if c_prefill_s == 0.0:  # noise: no model reads a prompt for nothing but its attention
        api_s, c_prefill_s, c_att_s = _least_squares([(1.0, float(run.prompt_tokens), 0.0) for run in prompts], times_s)
    found = EngineCoefficients(
        name=name,
        t0_s=t0_s,
        c_seq_s=c_seq_s,
        c_kv_s=c_kv_s,
        c_prefill_s=c_prefill_s,
        c_att_s=c_att_s,
        practical_batch=practical_batch,
        calibrated=True,
        api_s=api_s,
    )
    decode_errors = [
        abs((t0_s + c_seq_s * run.streaming + c_kv_s * run.context_tokens) / run.step_s - 1.0) for run in steps
    ]
    prefill_errors = [
        abs((run.ttft_s - own + api_s + prefill_s(found, run.prompt_tokens)) / run.ttft_s - 1.0)
        for run, own in zip(prompts, own_s, strict=True)
    ]
    return Fit(found, sum(decode_errors) / len(decode_errors), sum(prefill_errors) / len(prefill_errors))


def _least_squares(rows: Sequence[tuple[float, float, float]], values: Sequence[float]) -> tuple[float, float, float]:
    """x >= 0 that minimises the sum of ((row.x - value)/value)^2.

    With three unknowns the best is among the unconstrained solutions over each subset of them, so all are tried.
    """
    weighted = [tuple(cell / value for cell in row) for row, value in zip(rows, values, strict=True)]
    best, best_loss = (0.0, 0.0, 0.0), math.inf
    for size in (3, 2, 1):
        for columns in itertools.combinations(range(3), size):
            solution = _solve_normal([[row[column] for column in columns] for row in weighted])
            if solution is None or any(value < 0.0 for value in solution):
                continue
            x = [0.0, 0.0, 0.0]
            for column, value in zip(columns, solution, strict=True):
                x[column] = value
            loss = sum((sum(a * b for a, b in zip(row, x, strict=True)) - 1.0) ** 2 for row in weighted)
            if loss < best_loss * (1.0 - 1e-12):
                best, best_loss = (x[0], x[1], x[2]), loss
    return best


def _solve_normal(rows: Sequence[Sequence[float]]) -> list[float] | None:
    """Least squares of rows.x = 1 by normal equations, columns scaled to unit length; `None` if dependent."""
    size = len(rows[0])
    scale = [math.sqrt(sum(row[i] ** 2 for row in rows)) for i in range(size)]
    if any(length == 0.0 for length in scale):
        return None
    scaled = [[row[i] / scale[i] for i in range(size)] for row in rows]
    matrix = [
        [sum(row[i] * row[j] for row in scaled) for j in range(size)] + [sum(row[i] for row in scaled)]
        for i in range(size)
    ]
    for i in range(size):
        pivot = max(range(i, size), key=lambda r: abs(matrix[r][i]))
        if abs(matrix[pivot][i]) < 1e-10:
            return None
        matrix[i], matrix[pivot] = matrix[pivot], matrix[i]
        for r in range(size):
            if r != i:
                ratio = matrix[r][i] / matrix[i][i]
                matrix[r] = [a - ratio * b for a, b in zip(matrix[r], matrix[i], strict=True)]
    return [matrix[i][size] / matrix[i][i] / scale[i] for i in range(size)]
