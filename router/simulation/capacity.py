"""How many requests a second an engine carries within its promises, everything sent to it, without bursts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from local_llm.datamodels import EngineCoefficients, EngineLimits, SloTargets
from router.simulation.arrivals import poisson
from router.simulation.policies import RULES
from router.simulation.runner import run
from router.simulation.traces import TraceRequest

_SEEDS = (3, 4)
_ALLOWED_MISS_RATIO = 0.01
_HALVINGS = 9
_LEAST_RPS = 0.01


def slo_capacity_rps(
    lengths: Sequence[TraceRequest],
    *,
    coefficients: EngineCoefficients,
    limits: EngineLimits,
    slo: SloTargets,
    requests: int = 4000,
    progress: Callable[[], None] = lambda: None,
) -> float:
    """The greatest Poisson load, in requests a second, of which at most 1 % miss their promises.

    Lengths are drawn from `lengths`; found by halving between 0 and a load that is surely too much, the same dice for
    each, `requests` a trial. `progress` is called after every trial.
    """

    def carries(rate_rps: float) -> bool:
        missed = 0
        for seed in _SEEDS:
            trace = poisson(lengths, rate_rps=rate_rps, count=requests, seed=seed)
            played = run(trace, RULES["always_local"](), coefficients=coefficients, limits=limits, seed=seed)
            missed += sum(stay.misses(slo) for stay in played.stays if stay.admitted)
            progress()
        return missed <= _ALLOWED_MISS_RATIO * requests * len(_SEEDS)

    low_rps, high_rps = _LEAST_RPS, 1.0
    while carries(high_rps):
        low_rps, high_rps = high_rps, 2.0 * high_rps
    for _ in range(_HALVINGS):
        middle_rps = 0.5 * (low_rps + high_rps)
        if carries(middle_rps):
            low_rps = middle_rps
        else:
            high_rps = middle_rps
    return low_rps
