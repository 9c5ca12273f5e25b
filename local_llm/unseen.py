"""Load on an engine that this router did not send: other routers, direct clients. Pure; clock values are passed in.

Two figures from the same looks at the engine. kappa = sum(gamma*(running + waiting)) / sum(gamma*own n) with
gamma = exp(-age/60 s), at least 1 and only once the sum below the line has reached 20, stands for others who send in
proportion to us, and needs no fresh look. What the engine held beside ours at every one of the last three looks is a
floor that holds also while we have nothing in there ourselves.
"""

from __future__ import annotations

import math
from collections import deque

from local_llm.datamodels import Others

_TAU_S = 60.0
_ENOUGH = 20.0
_LOOKS = 3
_GUESSED_TOKENS_PER_REQUEST = 1000.0


class UnseenLoad:
    """Learns from looks at one engine; O(1) each."""

    def __init__(self) -> None:
        self._engine_sum = 0.0
        self._own_sum = 0.0
        self._looked_at_s: float | None = None
        self._looks: deque[Others] = deque(maxlen=_LOOKS)

    @property
    def factor(self) -> float:
        """kappa, >= 1."""
        if self._own_sum < _ENOUGH:
            return 1.0
        return max(1.0, self._engine_sum / self._own_sum)

    @property
    def others(self) -> Others:
        """The least of the last looks: a request that is just coming or going is nobody else's."""
        if len(self._looks) < _LOOKS:
            return Others()
        return Others(
            n=min(look.n for look in self._looks),
            streaming=min(look.streaming for look in self._looks),
            context_tokens=min(look.context_tokens for look in self._looks),
            waiting_prompt_tokens=min(look.waiting_prompt_tokens for look in self._looks),
        )

    def observe(
        self,
        now_s: float,
        *,
        running: int | None,
        waiting: int | None,
        own_n: int,
        own_context_tokens: float = 0.0,
        kv_tokens_used: float | None = None,
    ) -> None:
        """One look: the engine's own count of requests, ours at that time, and the KV tokens it holds if it tells.

        A look that lacks a count is no look: the figures stay as they are.
        """
        if running is None or waiting is None:
            return
        total = running + waiting
        if self._looked_at_s is not None:
            decay = math.exp(-max(0.0, now_s - self._looked_at_s) / _TAU_S)
            self._engine_sum *= decay
            self._own_sum *= decay
        self._looked_at_s = now_s
        self._engine_sum += total
        self._own_sum += own_n
        n = max(0, total - own_n)
        streaming = min(n, running)
        queued = n - streaming
        context = _GUESSED_TOKENS_PER_REQUEST * streaming
        if kv_tokens_used is not None and n > 0:
            context = max(0.0, kv_tokens_used - own_context_tokens)
        self._looks.append(
            Others(
                n=n,
                streaming=streaming,
                context_tokens=context if n > 0 else 0.0,
                waiting_prompt_tokens=_GUESSED_TOKENS_PER_REQUEST * queued,
            )
        )
