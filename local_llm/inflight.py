"""The router's own count of what is in an engine: exact, always fresh, O(1) per event. Clock values are passed in.

Kept per engine: n in flight, prompt tokens dispatched without a first token, sequences streaming and the context they
hold, reserved tokens, the share of step time spent in prefill (decaying mean, tau 5 s) and the prefill bucket: seconds
of prefill work not yet drained. The bucket drains by what decode leaves of the GPU, 1 - step/(f_tpot*SLO_tpot), at
least 5 %.

Counts are integers: whatever the order of events, they come back to exactly 0.
"""

from __future__ import annotations

import math
from collections import deque

from local_llm.datamodels import EngineCoefficients, InflightState, SloTargets
from local_llm.steptime import drain_ratio, prefill_s, step_s, ttft_s

_PREFILL_SHARE_TAU_S = 5.0
_BATCHED_TOKENS_GUESS = 2048


class Ticket:
    """One request inside an engine. Every call is O(1); nothing counts after `end`."""

    __slots__ = (
        "_context_tokens",
        "_first",
        "_inflight",
        "_open",
        "_prompt_tokens",
        "_reserved_tokens",
        "first_due_at_s",
    )

    def __init__(self, inflight: Inflight, prompt_tokens: int, expected_output_tokens: int) -> None:
        self._inflight = inflight
        self._prompt_tokens = prompt_tokens
        self._reserved_tokens = prompt_tokens + expected_output_tokens
        self._context_tokens = 0
        self._first = False
        self._open = True
        self.first_due_at_s = math.inf

    @property
    def open(self) -> bool:
        """Whether the request is still in the engine."""
        return self._open

    def first_token(self, now_s: float) -> None:
        """The prompt has been read: from waiting to streaming. A second call counts nothing."""
        if self._open and not self._first:
            self._inflight._start_streaming(self, now_s, self._prompt_tokens + 1)

    def token(self, count: int = 1) -> None:
        """`count` more tokens have been generated. Ignored before the first token and after the end."""
        if self._open and self._first and count > 0:
            self._context_tokens += count
            self._inflight._context_tokens += count

    def end(self, now_s: float) -> None:
        """It has left the engine, however it went. Idempotent."""
        if self._open:
            self._inflight._leave(self, now_s)


class Inflight:
    """Mutable count of one engine; use from one thread (the event loop).

    `coefficients`, `slo` and `unseen_factor` may be replaced at any time.
    """

    def __init__(
        self,
        coefficients: EngineCoefficients,
        slo: SloTargets,
        *,
        f_tpot: float = 0.6,
        max_batched_tokens: int = _BATCHED_TOKENS_GUESS,
    ) -> None:
        self.coefficients = coefficients
        self.slo = slo
        self.unseen_factor = 1.0
        self._f_tpot = f_tpot
        self._max_batched_tokens = max_batched_tokens
        self._n = 0
        self._waiting_prompt_tokens = 0
        self._streaming = 0
        self._context_tokens = 0
        self._reserved_tokens = 0
        self._prefill_share = 0.0
        self._prefill_share_at_s = 0.0
        self._bucket_s = 0.0
        self._bucket_at_s = 0.0
        self._silent: deque[Ticket] = deque()

    @property
    def n(self) -> int:
        """Requests in flight."""
        return self._n

    def enter(self, now_s: float, prompt_tokens: int, expected_output_tokens: int, *, streamed: bool = True) -> Ticket:
        """Count a dispatch; end the ticket on every path. Negative token counts are taken as 0.

        A call that is not `streamed` shows no first token; its prompt counts as read once the predicted time to first
        token has passed, and half its expected output as context from then on. Otherwise a batch of plain calls would
        look like one endless prefill.
        """
        prompt = max(0, prompt_tokens)
        expected = max(0, expected_output_tokens)
        self._advance(now_s)
        ticket = Ticket(self, prompt, expected)
        if not streamed:
            self._expect_first_token(ticket, now_s, prompt)
        self._n += 1
        self._waiting_prompt_tokens += prompt
        self._reserved_tokens += ticket._reserved_tokens
        self._bucket_s += self.unseen_factor * prefill_s(self.coefficients, prompt)
        return ticket

    def state(self, now_s: float) -> InflightState:
        """A frozen copy as of `now_s`."""
        self._advance(now_s)
        return InflightState(
            n=self._n,
            waiting_prompt_tokens=self._waiting_prompt_tokens,
            streaming=self._streaming,
            context_tokens=self._context_tokens,
            reserved_tokens=self._reserved_tokens,
            prefill_share=min(1.0, self._prefill_share * self._share_decay(now_s)),
            bucket_s=self._bucket_s,
            bucket_at_s=self._bucket_at_s,
            unseen_factor=self.unseen_factor,
            taken_at_s=now_s,
        )

    def _share_decay(self, now_s: float) -> float:
        return math.exp(-max(0.0, now_s - self._prefill_share_at_s) / _PREFILL_SHARE_TAU_S)

    def _step_s(self) -> float:
        k = self.unseen_factor
        return step_s(self.coefficients, streaming=k * self._streaming, context_tokens=k * self._context_tokens)

    def _advance(self, now_s: float) -> None:
        """Bring clock-driven state up to `now_s`; a clock that runs backwards changes nothing."""
        while self._silent and (self._silent[0].first_due_at_s <= now_s or not self._silent[0].open):
            ticket = self._silent.popleft()
            if ticket.open and not ticket._first:
                half_output = (ticket._reserved_tokens - ticket._prompt_tokens) // 2
                self._start_streaming(ticket, ticket.first_due_at_s, ticket._prompt_tokens + half_output)
        self._drain(now_s)

    def _drain(self, now_s: float) -> None:
        elapsed_s = now_s - self._bucket_at_s
        if elapsed_s > 0.0:
            ratio = drain_ratio(self._step_s(), f_tpot=self._f_tpot, tpot_s=self.slo.tpot_s)
            self._bucket_s = max(0.0, self._bucket_s - ratio * elapsed_s)
            self._bucket_at_s = now_s

    def _expect_first_token(self, ticket: Ticket, now_s: float, prompt_tokens: int) -> None:
        k = self.unseen_factor
        due_at_s = now_s + ttft_s(
            self.coefficients,
            decode_step_s=self._step_s(),
            streaming=k * self._streaming,
            waiting_prompt_tokens=k * self._waiting_prompt_tokens,
            prompt_tokens=prompt_tokens,
            max_batched_tokens=self._max_batched_tokens,
        )
        if self._silent:  # first come, first served: nobody is read before the one ahead
            due_at_s = max(due_at_s, self._silent[-1].first_due_at_s)
        ticket.first_due_at_s = due_at_s
        self._silent.append(ticket)

    def _start_streaming(self, ticket: Ticket, now_s: float, context_tokens: int) -> None:
        self._drain(now_s)
        ticket._first = True
        ticket._context_tokens = context_tokens
        self._waiting_prompt_tokens -= ticket._prompt_tokens
        self._streaming += 1
        self._context_tokens += context_tokens
        work_s = self.unseen_factor * self.coefficients.c_prefill_s * ticket._prompt_tokens
        self._prefill_share = self._prefill_share * self._share_decay(now_s) + work_s / _PREFILL_SHARE_TAU_S
        self._prefill_share_at_s = max(self._prefill_share_at_s, now_s)

    def _leave(self, ticket: Ticket, now_s: float) -> None:
        self._advance(now_s)
        ticket._open = False
        self._n -= 1
        self._reserved_tokens -= ticket._reserved_tokens
        if ticket._first:
            self._streaming -= 1
            self._context_tokens -= ticket._context_tokens
        else:
            self._waiting_prompt_tokens -= ticket._prompt_tokens
        if self._n == 0:  # an empty engine has no prefill left to do, and nobody to protect from one
            self._bucket_s = 0.0
            self._silent.clear()
