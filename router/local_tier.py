"""All engines of the local tier: built, started and stopped together; their cards are read once for all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from local_llm.nvml import Nvml
from local_llm.poller import GpuWatcher
from router.local_engines import LocalEngine, build_local_engine, runs_on_this_machine
from router.ports import Clock
from router.settings_types import LocalSettings


@dataclass(slots=True)
class LocalTier:
    """The engines, in the order of the config. `gpus` is `None` where none of them works on cards of this machine."""

    engines: tuple[LocalEngine, ...]
    gpus: GpuWatcher | None = None

    async def start(self) -> None:
        """Start the engines that are ours, and look at all of them from now on. Does not wait until they are ready."""
        if self.gpus is not None:
            self.gpus.start()
        for engine in self.engines:
            await engine.start()

    async def wait_ready(self, timeout_s: float, *, supervised: bool = False) -> bool:
        """Whether all engines (with `supervised`: those we started) may be admitted to; waits for it up to `timeout_s`.

        One that can not answer in this process at all (no key, not installed) is not waited for.
        """
        waited = [one for one in self.engines if one.poller is not None and (one.process is not None or not supervised)]
        return all(await asyncio.gather(*(one.wait_ready(timeout_s) for one in waited)))

    async def stop(self) -> None:
        """Stop looking, and stop the engines that are ours, all at once."""
        ended = await asyncio.gather(*(engine.stop() for engine in self.engines), return_exceptions=True)
        if self.gpus is not None:
            self.gpus.stop()
        for error in ended:
            if error is not None:
                raise error


def build_local_tier(settings: Sequence[LocalSettings], *, clock: Clock, data_dir: Path) -> LocalTier:
    """The engines of `settings`, none of which is NONE. Starts nothing."""
    nvml = Nvml()
    gpus = GpuWatcher(nvml.read, now_s=clock.now_s, problem=lambda: nvml.problem)
    engines = tuple(build_local_engine(one, clock=clock, data_dir=data_dir, cards=gpus.latest) for one in settings)
    watched = any(
        runs_on_this_machine(one) and engine.poller is not None for one, engine in zip(settings, engines, strict=True)
    )
    return LocalTier(engines, gpus if watched else None)
