"""What reading prompts took, gathered until it says something of the engine's speed. Clock values are passed in."""

from __future__ import annotations

import math

from local_llm.calibration import Calibrating
from local_llm.datamodels import EngineCoefficients

_ENOUGH_CHUNKS = 4


class PromptsRead:
    """Prompts read since nobody waited last: how long that took, what was read, and the steps it had to wait for.

    Prompts that share a chunk come together, so what was seen is added up until nobody waits: only then are observed
    and predicted time about the same prompts.
    """

    __slots__ = ("observed_s", "squares", "steps", "tokens")

    def __init__(self) -> None:
        self.observed_s = self.steps = 0.0
        self.tokens = self.squares = 0

    def add(self, prompt_tokens: int, took_s: float, *, found_a_step: bool) -> None:
        """One more, read in `took_s`; `found_a_step` says that it came while a step was under way."""
        self.observed_s += max(0.0, took_s)
        self.tokens += prompt_tokens
        self.squares += prompt_tokens * prompt_tokens
        if found_a_step:
            self.steps += 0.5

    def enough(self, max_batched_tokens: int) -> bool:
        """Whether so much was read that it need not be awaited that nobody waits."""
        return self.tokens >= _ENOUGH_CHUNKS * max_batched_tokens

    def tell(
        self,
        calibration: Calibrating,
        c: EngineCoefficients,
        *,
        k: float,
        step_s: float,
        room: float,
        whole_steps: bool,
    ) -> bool:
        """Tell `calibration` observed and predicted time; `False` where there is nothing to tell.

        `k` is the load by others, `step_s` a decode step now, `room` its tokens left for prompts; `whole_steps` says
        that the last chunk took a step to itself, as nobody waits behind it.
        """
        chunks = k * self.tokens / room
        steps = self.steps + (math.ceil(chunks) if whole_steps else chunks)
        work_s = k * (c.c_prefill_s * self.tokens + 0.5 * c.c_att_s * self.squares)
        predicted_s = steps * step_s + work_s
        if predicted_s <= 0.0:
            return False
        calibration.observe_prefill(
            observed_s=self.observed_s, predicted_s=predicted_s, prefill_ratio=work_s / predicted_s
        )
        return True
