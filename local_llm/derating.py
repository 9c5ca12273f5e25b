"""A card that is slowed down works slower than its coefficients say: by how much. Pure.

Heat or a weak power supply make the driver lower the clocks. The step times grow about as the clock falls, so the
coefficients are multiplied by the lost ratio at once; learning from observed times alone would take hundreds of
requests, and promises would break meanwhile. A power cap is everyday life under full load and is learnt, not derated.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from local_llm.datamodels import EngineCoefficients, GpuReading

# Without clocks to compare: NVIDIA says that a hardware slowdown lowers them "by a factor of 2 or more".
_TYPICAL_RATIO = {
    "hw_slowdown": 2.0,
    "hw_thermal_slowdown": 2.0,
    "hw_power_brake_slowdown": 2.0,
    "sw_thermal_slowdown": 1.25,
}
SEVERE_RATIO = 3.0
"""From here on a card is no place for new work: its clock is at a third or less."""


def slowdown_ratio(gpus: Iterable[GpuReading]) -> float:
    """How many times slower the slowest of an engine's cards is than it should be; 1 for none.

    From its clocks where it tells them, else a typical figure for the reason it gives.
    """
    return max((_slowdown_of(gpu) for gpu in gpus), default=1.0)


def _slowdown_of(gpu: GpuReading) -> float:
    typical = max((_TYPICAL_RATIO[reason] for reason in gpu.throttle_reasons if reason in _TYPICAL_RATIO), default=1.0)
    if typical == 1.0:
        return 1.0  # a low clock without such a reason is that of a card with little to do
    if not gpu.sm_clock_mhz or not gpu.sm_clock_max_mhz:
        return typical
    return max(1.0, gpu.sm_clock_max_mhz / gpu.sm_clock_mhz)


def slowed(coefficients: EngineCoefficients, ratio: float) -> EngineCoefficients:
    """The same engine on a card that is `ratio` times slower. The front end's time is no GPU work and stays."""
    if ratio == 1.0:
        return coefficients
    return replace(
        coefficients,
        t0_s=coefficients.t0_s * ratio,
        c_seq_s=coefficients.c_seq_s * ratio,
        c_kv_s=coefficients.c_kv_s * ratio,
        c_prefill_s=coefficients.c_prefill_s * ratio,
        c_att_s=coefficients.c_att_s * ratio,
    )
