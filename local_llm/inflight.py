"""The router's own count of what is in an engine: exact, always fresh, O(1) per event. Clock values are passed in.

Kept per engine: n in flight, prompt tokens dispatched without a first token, sequences streaming and the context they
hold, reserved tokens with their squares and the variance of their lengths, the share of step time spent in prefill
(decaying mean, tau 5 s) and the prefill bucket: seconds of prefill work not yet drained. The bucket drains by what
decode leaves of the GPU, 1 - step/(f_tpot*SLO_tpot), at least 5 %.

From streams that show their tokens two more are known, without a guess at how time is shared. The engine reads prompts
in the order they came, so every first token tells how far it has got, and so when it will be through
(`backlog_done_at_s`). And it gives every sequence a token a step, so what all streams together have shown, divided by
their number, is what each of them has: a stream is behind by the time since its first token less SLO_tpot for each of
those. Who has the least to show for its time is found in a heap, O(log n) once a stream.

Counts are integers: whatever the order of events, they come back to exactly 0.
"""

from __future__ import annotations

import math
from collections import deque

from local_llm.calibration import Calibrating
from local_llm.datamodels import EngineCoefficients, InflightState, Others, SloTargets
from local_llm.derating import slowed
from local_llm.histograms import EngineInterval, predicted
from local_llm.paces import Paces
from local_llm.prompts_read import PromptsRead
from local_llm.steptime import drain_ratio, prefill_s, read_s, step_s, ttft_s

_PREFILL_SHARE_TAU_S = 5.0
_BATCHED_TOKENS_GUESS = 2048
_TAKE_LEARNT_EVERY = 4


class Ticket:
    """One request inside an engine. Every call is O(1); nothing counts after `end`."""

    __slots__ = (
        "_context_tokens",
        "_entered_at_s",
        "_first",
        "_gap_prefills",
        "_inflight",
        "_last_token_at_s",
        "_open",
        "_predicted_ttft_s",
        "_prompt_tokens",
        "_reserved_tokens",
        "_variance",
        "first_due_at_s",
    )

    def __init__(
        self,
        inflight: Inflight,
        now_s: float,
        prompt_tokens: int,
        expected_output_tokens: int,
        variance: int,
        predicted_ttft_s: float,
    ) -> None:
        self._inflight = inflight
        self._prompt_tokens = prompt_tokens
        self._reserved_tokens = prompt_tokens + expected_output_tokens
        self._variance = variance
        self._context_tokens = 0
        self._first = False
        self._open = True
        self._entered_at_s = now_s
        self._predicted_ttft_s = predicted_ttft_s
        self._last_token_at_s = -math.inf
        self._gap_prefills = -1
        self.first_due_at_s = math.inf

    @property
    def open(self) -> bool:
        """Whether the request is still in the engine."""
        return self._open

    def first_token(self, now_s: float) -> None:
        """The prompt has been read: from waiting to streaming. A second call counts nothing."""
        if self._open and not self._first:
            self._inflight._learn_prefill(self, now_s)
            self._inflight._start_streaming(self, now_s, self._prompt_tokens + 1)

    def token(self, count: int = 1, now_s: float | None = None) -> None:
        """`count` more tokens have been generated. Ignored before the first token and after the end.

        With `now_s` the time since the last ones is learnt from, if the engine is calibrated while it serves.
        """
        if self._open and self._first and count > 0:
            self._context_tokens += count
            inflight = self._inflight
            inflight._context_tokens += count
            if self._context_tokens > self._reserved_tokens:
                self._outgrow()
            inflight.progress += 1
            paces = inflight._paces
            if paces.visible > 0:
                paces.earned_s += inflight.slo.tpot_s * count / paces.visible
            if now_s is not None and inflight._calibration is not None:
                inflight._learn_gap(self, count, now_s)

    def _outgrow(self) -> None:
        """Longer than expected: it will likely go on for half of what it has said, as lengths have heavy tails."""
        wanted = self._context_tokens + (self._context_tokens - self._prompt_tokens) // 2
        self._inflight._reserve(wanted - self._reserved_tokens, wanted**2 - self._reserved_tokens**2, 0)
        self._reserved_tokens = wanted

    def end(self, now_s: float, *, ok: bool = False) -> None:
        """It has left the engine, however it went. Idempotent. Only an `ok` end is a sign of life of the engine."""
        if self._open:
            self._inflight._leave(self, now_s)
            self._inflight.progress += ok


class Inflight:
    """Mutable count of one engine; use from one thread (the event loop).

    `slo`, `unseen_factor`, `others` and `slowdown` may be replaced at any time; so may `coefficients`, unless
    `calibration` learns or `slowdown` scales them. `progress` grows with every sign of life of the engine.
    """

    def __init__(
        self,
        coefficients: EngineCoefficients,
        slo: SloTargets,
        *,
        f_tpot: float = 0.6,
        max_batched_tokens: int = _BATCHED_TOKENS_GUESS,
        calibration: Calibrating | None = None,
    ) -> None:
        self._full_speed = coefficients if calibration is None else calibration.coefficients
        self.coefficients = self._full_speed
        self._slowdown = 1.0
        self.slo = slo
        self.unseen_factor = 1.0
        self.others = Others()
        self.progress = 0
        self._calibration = calibration
        self._learnt = 0
        self._prefills = 0
        self._gap_learnt_at_s = -math.inf
        self._f_tpot = f_tpot
        self.max_batched_tokens = max_batched_tokens
        self._n = 0
        self._plain_n = 0
        self._waiting_prompt_tokens = 0
        self._streaming = 0
        self._context_tokens = 0
        self._reserved_tokens = 0
        self._reserved_squares = 0
        self._variance = 0
        self._prefill_share = 0.0
        self._prefill_share_at_s = 0.0
        self._bucket_s = 0.0
        self._bucket_at_s = 0.0
        self._silent: deque[Ticket] = deque()
        self._waiting_prompt_squares = 0
        self._backlog_done_at_s = 0.0
        self._paces = Paces()
        self._read_at_s = -math.inf
        self._reading = PromptsRead()

    @property
    def slowdown(self) -> float:
        """How many times slower than learnt the engine's cards are made to run now. Setting it scales `coefficients`.

        Predictions are made with it, so that what is learnt stays the speed of a card in order.
        """
        return self._slowdown

    @slowdown.setter
    def slowdown(self, ratio: float) -> None:
        if ratio != self._slowdown:
            self._slowdown = ratio
            self.coefficients = slowed(self._full_speed, ratio)

    @property
    def n(self) -> int:
        """Requests in flight."""
        return self._n

    @property
    def streamed_n(self) -> int:
        """Those in flight that show their tokens as they come."""
        return self._n - self._plain_n

    def enter(
        self,
        now_s: float,
        prompt_tokens: int,
        expected_output_tokens: int,
        *,
        output_variance: float = 0.0,
        streamed: bool = True,
    ) -> Ticket:
        """Count a dispatch; end the ticket on every path. Negative token counts are taken as 0.

        `output_variance` (tokens squared) says how sure the expected output is; 0 reserves it in full.

        A call that is not `streamed` shows no first token; its prompt counts as read once the predicted time to first
        token has passed, and half its expected output as context from then on. Otherwise a batch of plain calls would
        look like one endless prefill.
        """
        prompt = max(0, prompt_tokens)
        expected = max(0, expected_output_tokens)
        self._advance(now_s)
        ticket = Ticket(self, now_s, prompt, expected, max(0, round(output_variance)), self._ttft_s(prompt))
        if not streamed:
            self._plain_n += 1
            self._expect_first_token(ticket)
        self._n += 1
        self._prefills += 1
        self._waiting_prompt_tokens += prompt
        self._waiting_prompt_squares += prompt * prompt
        begins_at_s = now_s + self.coefficients.api_s + (0.5 * self._step_s() if self._streaming else 0.0)
        self._backlog_done_at_s = max(self._backlog_done_at_s, begins_at_s) + self._read_s(prompt, prompt * prompt)
        self._reserve(ticket._reserved_tokens, ticket._reserved_tokens**2, ticket._variance)
        self._bucket_s += self.unseen_factor * prefill_s(self.coefficients, prompt)
        return ticket

    def learn_from_engine(self, seen: EngineInterval) -> None:
        """What the engine tells of its own speed; for a time in which no stream of ours has shown it."""
        calibration = self._calibration
        if calibration is None:
            return
        predicted_s, prefill_ratio = predicted(seen, self.coefficients, self.max_batched_tokens)
        observed_s, decode_ratio = seen.step_s, 1.0 - prefill_ratio
        # Which of the two was off shows over many looks, as some hold more prefill than others.
        if prefill_ratio > 0.0:
            calibration.observe_prefill(observed_s=observed_s, predicted_s=predicted_s, prefill_ratio=prefill_ratio)
        if decode_ratio > 0.0 and seen.lone_prompt_tokens is None:
            calibration.observe_gap(observed_s=observed_s, predicted_s=predicted_s, decode_ratio=decode_ratio)
        self._take_learnt(calibration, at_once=True)

    def turned_away(self) -> None:
        """A request was not sent here for want of room. From an empty engine that can only be what we believe of it.

        One that others fill is not empty.
        """
        if self._n == 0 and self.others.n == 0 and self._calibration is not None and self._calibration.relax():
            self._take_learnt(self._calibration, at_once=True)

    @property
    def lessons(self) -> int:
        """How often something has been learnt of the engine's speed."""
        return self._learnt

    def state(self, now_s: float) -> InflightState:
        """A frozen copy as of `now_s`."""
        self._advance(now_s)
        # floats on purpose: what is recorded must read back to the very same bytes
        return InflightState(
            n=self._n,
            waiting_prompt_tokens=float(self._waiting_prompt_tokens),
            streaming=self._streaming,
            context_tokens=float(self._context_tokens),
            reserved_tokens=float(self._reserved_tokens),
            prefill_share=min(1.0, self._prefill_share * self._share_decay(now_s)),
            bucket_s=self._bucket_s,
            bucket_at_s=self._bucket_at_s,
            unseen_factor=self.unseen_factor,
            taken_at_s=now_s,
            others_n=float(self.others.n),
            others_streaming=float(self.others.streaming),
            others_context_tokens=float(self.others.context_tokens),
            others_waiting_prompt_tokens=float(self.others.waiting_prompt_tokens),
            backlog_done_at_s=self._backlog_done_at_s if self._n > self._plain_n else None,
            lag_s=self._paces.lag_s(now_s),
            reserved_squares=float(self._reserved_squares),
            output_variance=float(self._variance),
        )

    def _read_s(self, prompt_tokens: int, squares: int) -> float:
        k = self.unseen_factor
        room = max(1.0, self.max_batched_tokens - k * self._streaming)
        return read_s(self.coefficients, k * prompt_tokens, k * squares, decode_step_s=self._step_s(), room_tokens=room)

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

    def _ttft_s(self, prompt_tokens: int) -> float:
        k = self.unseen_factor
        return ttft_s(
            self.coefficients,
            decode_step_s=self._step_s(),
            streaming=k * self._streaming,
            waiting_prompt_tokens=k * self._waiting_prompt_tokens,
            prompt_tokens=prompt_tokens,
            max_batched_tokens=self.max_batched_tokens,
        )

    def _expect_first_token(self, ticket: Ticket) -> None:
        due_at_s = ticket._entered_at_s + ticket._predicted_ttft_s
        if self._silent:  # first come, first served: nobody is read before the one ahead
            due_at_s = max(due_at_s, self._silent[-1].first_due_at_s)
        ticket.first_due_at_s = due_at_s
        self._silent.append(ticket)

    def _learn_prefill(self, ticket: Ticket, now_s: float) -> None:
        """Reading a prompt took from the first token before it, or from its own dispatch, to its own first token."""
        self.progress += 1
        calibration = self._calibration
        if calibration is None or ticket.first_due_at_s < math.inf:
            return
        entered_at_s = ticket._entered_at_s + self.coefficients.api_s
        fresh = entered_at_s >= self._read_at_s
        reading, took_s = self._reading, now_s - max(entered_at_s, self._read_at_s)
        reading.add(ticket._prompt_tokens, took_s, found_a_step=fresh and self._streaming > 0)
        nobody_waits = self._waiting_prompt_tokens == ticket._prompt_tokens
        if nobody_waits or reading.enough(self.max_batched_tokens):
            self._reading = PromptsRead()
            k, step = self.unseen_factor, self._step_s()
            room = max(1.0, self.max_batched_tokens - k * self._streaming)
            if reading.tell(calibration, self.coefficients, k=k, step_s=step, room=room, whole_steps=nobody_waits):
                self._take_learnt(calibration)

    def _learn_gap(self, ticket: Ticket, count: int, now_s: float) -> None:
        """A gap counts if no prompt was dispatched or waiting within it, and once per step, not once per stream."""
        quiet = self._waiting_prompt_tokens == 0 and ticket._gap_prefills == self._prefills
        if quiet and self._calibration is not None:
            step = self._step_s()
            if now_s - self._gap_learnt_at_s >= step:
                self._gap_learnt_at_s = now_s
                self._calibration.observe_gap(observed_s=(now_s - ticket._last_token_at_s) / count, predicted_s=step)
                self._take_learnt(self._calibration)
        ticket._gap_prefills = self._prefills if self._waiting_prompt_tokens == 0 else -1
        ticket._last_token_at_s = now_s

    def _take_learnt(self, calibration: Calibrating, *, at_once: bool = False) -> None:
        self._learnt += 1
        if at_once or self._learnt % _TAKE_LEARNT_EVERY == 0:
            self._full_speed = calibration.coefficients
            self.coefficients = slowed(self._full_speed, self._slowdown)

    def _start_streaming(self, ticket: Ticket, now_s: float, context_tokens: int) -> None:
        self._drain(now_s)
        ticket._first = True
        ticket._context_tokens = context_tokens
        self._forget_prompt(ticket)
        self._read_at_s = self._backlog_done_at_s = now_s
        if self._waiting_prompt_tokens:
            self._backlog_done_at_s += self._read_s(self._waiting_prompt_tokens, self._waiting_prompt_squares)
        if ticket.first_due_at_s == math.inf:
            self._paces.visible += 1
        else:
            self._reading = PromptsRead()  # that it has been read is a guess, nothing to learn from
        self._paces.start(ticket, now_s)
        self._streaming += 1
        self._context_tokens += context_tokens
        work_s = self.unseen_factor * self.coefficients.c_prefill_s * ticket._prompt_tokens
        self._prefill_share = self._prefill_share * self._share_decay(now_s) + work_s / _PREFILL_SHARE_TAU_S
        self._prefill_share_at_s = max(self._prefill_share_at_s, now_s)

    def _leave(self, ticket: Ticket, now_s: float) -> None:
        self._advance(now_s)
        ticket._open = False
        self._n -= 1
        if ticket.first_due_at_s < math.inf:
            self._plain_n -= 1
        self._reserve(-ticket._reserved_tokens, -(ticket._reserved_tokens**2), -ticket._variance)
        if ticket._first:
            self._streaming -= 1
            self._context_tokens -= ticket._context_tokens
            self._paces.visible -= ticket.first_due_at_s == math.inf
        else:
            self._forget_prompt(ticket)
            self._read_at_s, self._reading = now_s, PromptsRead()
        if self._n == 0:  # an empty engine has no prefill left to do, and nobody to protect from one
            self._bucket_s = 0.0
            self._silent.clear()
            self._paces.clear()
            self._backlog_done_at_s = 0.0

    def _reserve(self, tokens: int, squares: int, variance: int) -> None:
        self._reserved_tokens += tokens
        self._reserved_squares += squares
        self._variance += variance

    def _forget_prompt(self, ticket: Ticket) -> None:
        self._waiting_prompt_tokens -= ticket._prompt_tokens
        self._waiting_prompt_squares -= ticket._prompt_tokens * ticket._prompt_tokens
