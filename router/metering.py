"""From readings of the cards to looks at their energy: what `core.energy` measures with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from local_llm.datamodels import GpuReading
from router.core.energy import CardLook

Cards = Callable[[], tuple[float, tuple[GpuReading, ...]] | None]
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def looks_at(cards: tuple[GpuReading, ...], at_us: int) -> tuple[CardLook, ...]:
    """The cards that tell their energy or power, looked at at `at_us` (microseconds since 1970 UTC).

    A card that is cut into MIG instances tells what all of them draw: nothing is known of one of them.
    """
    return tuple(
        CardLook(gpu.uuid or f"gpu{gpu.index}", at_us, _milli(gpu.energy_j), _milli(gpu.power_w))
        for gpu in cards
        if not gpu.mig and (gpu.energy_j is not None or gpu.power_w is not None)
    )


def boot_id() -> str:
    """What names this start of the machine; counters of an earlier one have begun anew. Empty where nothing tells."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _milli(value: float | None) -> int | None:
    return None if value is None else round(value * 1000)
