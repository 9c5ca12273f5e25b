"""A continuous-batching engine in simulated time: what vLLM would do with a request, without a GPU. Pure, no clock.

One step lasts `t0 + c_seq*B + c_kv*S + c_prefill*P + c_att*sum(chunk*context)` seconds, with B sequences decoding over
S tokens of context and P prompt tokens read beside them (the linear sum-of-rooflines form that `steptime` predicts
with). Scheduling follows vLLM V1: every decoding sequence gets its token first, prompts are read in chunks out of what
is left of the step's token budget, first come first served; KV is paged; when a decode step finds no free block, the
sequence that started last gives its blocks back and is recomputed later.

The caller owns time: `start_step` says how long the next step takes, `end_step` what came out of it. Both are O(1) in
the number of decoding sequences: all of them get one token a step, so a sequence is known by the step it started in.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from heapq import heappop, heappush
from types import MappingProxyType
from typing import Generic, TypeVar

from local_llm.coefficients import UNKNOWN
from local_llm.datamodels import EngineCoefficients, EngineLimits

_BLOCK_TOKENS = 16
_PHASE = _BLOCK_TOKENS - 1
_WATERMARK_RATIO = 0.005  # blocks kept free of new prompts, so that those already decoding can grow

LIMITS: Mapping[str, EngineLimits] = MappingProxyType(
    {
        "h100-8b-fp16": EngineLimits(1024, 2048, 400_000, 131_072),
        "h100-8b-fp8": EngineLimits(1024, 2048, 450_000, 131_072),
        "a100-8b-fp16": EngineLimits(256, 2048, 400_000, 131_072),
        "embedded-cpu": EngineLimits(4, 512, 16_384, 4096),
        UNKNOWN: EngineLimits(8, 2048, 65_536, 8192),
    }
)
"""Room of the engines whose coefficients are known, by the same names."""


class EngineRequest:
    """One request inside the engine; callers add what they need. `emitted_tokens` is up to date outside of decoding."""

    __slots__ = (
        "_context_tokens",
        "_held_tokens",
        "_prefilled_tokens",
        "_started_at_step",
        "_version",
        "emitted_tokens",
        "output_tokens",
        "preemptions",
        "prompt_tokens",
    )

    def __init__(self, prompt_tokens: int, output_tokens: int) -> None:
        self.prompt_tokens = max(1, prompt_tokens)
        self.output_tokens = max(1, output_tokens)
        self.emitted_tokens = 0
        self.preemptions = 0
        self._prefilled_tokens = 0
        self._held_tokens = 0  # what its prefill covers: the prompt, and after a preemption what it had said so far
        self._context_tokens = 0
        self._started_at_step = 0
        self._version = 0


_Request = TypeVar("_Request", bound=EngineRequest)


class SimulatedEngine(Generic[_Request]):
    """One engine on one GPU; mutable. Counters only grow: `busy_s`, `output_tokens`, `preemptions`, `prefill_tokens`.

    `paused` holds the requests that the step under way has preempted.
    """

    def __init__(self, coefficients: EngineCoefficients, limits: EngineLimits) -> None:
        """Raises `ValueError` for limits that let nothing run."""
        if limits.max_num_seqs < 1 or limits.max_batched_tokens < 1:
            raise ValueError("an engine needs room for one sequence and one token a step")
        self.coefficients = coefficients
        self.limits = limits
        tokens = (
            limits.kv_tokens if limits.kv_tokens is not None else limits.max_num_seqs * limits.context_window_tokens
        )
        self._blocks = tokens // _BLOCK_TOKENS
        self._free = self._blocks
        self._watermark = int(self._blocks * _WATERMARK_RATIO)
        self._waiting: deque[_Request] = deque()
        self._prefilling: list[_Request] = []
        self._chunks: list[tuple[_Request, int]] = []
        self._streaming = 0
        self._context_tokens = 0
        self._step = 0
        self._dt_s = 0.0
        self._ends: list[tuple[int, int, int, _Request]] = []
        self._started: list[tuple[int, _Request]] = []
        self._starts = 0
        self._growing = [0] * _BLOCK_TOKENS
        self.busy_s = 0.0
        self.output_tokens = 0
        self.prefill_tokens = 0
        self.preemptions = 0
        self.paused: list[_Request] = []

    @property
    def idle(self) -> bool:
        """Nothing to do."""
        return not (self._streaming or self._prefilling or self._waiting)

    @property
    def running(self) -> int:
        """Sequences that hold KV, as the gauge of running requests counts them."""
        return self._streaming + len(self._prefilling)

    @property
    def waiting(self) -> int:
        """Requests that hold nothing yet."""
        return len(self._waiting)

    @property
    def kv_usage_ratio(self) -> float:
        """Share of the KV blocks in use."""
        return 1.0 - self._free / self._blocks if self._blocks else 1.0

    def fits(self, prompt_tokens: int, output_tokens: int) -> bool:
        """Whether such a request can ever run here, alone."""
        total = prompt_tokens + output_tokens
        return total <= self.limits.context_window_tokens and total <= (self._blocks - self._watermark) * _BLOCK_TOKENS

    def submit(self, request: _Request) -> None:
        """Queue it. Raises `ValueError` if it could never run."""
        if not self.fits(request.prompt_tokens, request.output_tokens):
            raise ValueError(f"{request.prompt_tokens} + {request.output_tokens} tokens never fit this engine")
        request._held_tokens = request.prompt_tokens
        self._waiting.append(request)

    def start_step(self) -> float:
        """Plan the next step and say how many seconds it takes. 0 when idle; to be followed by `end_step`."""
        if self.idle:
            return 0.0
        self._grow()
        limits, c = self.limits, self.coefficients
        room = limits.max_batched_tokens - self._streaming
        chunks = self._chunks
        read, attention = 0, 0.0
        for request in self._prefilling:
            if room <= 0:
                break
            done = request._prefilled_tokens
            chunk = min(room, request._held_tokens - done)
            chunks.append((request, chunk))
            room -= chunk
            read += chunk
            attention += chunk * (done + 0.5 * chunk)
        waiting = self._waiting
        while waiting and room > 0 and self.running < limits.max_num_seqs:
            request = waiting[0]
            blocks = -(-request._held_tokens // _BLOCK_TOKENS)
            if blocks + self._watermark > self._free:
                break
            waiting.popleft()
            self._free -= blocks
            self._prefilling.append(request)
            chunk = min(room, request._held_tokens)
            chunks.append((request, chunk))
            room -= chunk
            read += chunk
            attention += 0.5 * chunk * chunk
        self.prefill_tokens += read
        self._dt_s = (
            c.t0_s
            + c.c_seq_s * self._streaming
            + c.c_kv_s * self._context_tokens
            + c.c_prefill_s * read
            + c.c_att_s * attention
        )
        return self._dt_s

    def end_step(self) -> tuple[list[_Request], list[_Request]]:
        """Finish the step: (requests that began or went on to stream, requests that are done), both in order.

        A request begins with its first token; after a preemption it goes on with its next. One that is done at once is
        in both.
        """
        self.busy_s += self._dt_s
        self._dt_s = 0.0
        self._step += 1
        streaming = self._streaming
        self._context_tokens += streaming
        self.output_tokens += streaming
        started: list[_Request] = []
        done: list[_Request] = []
        ends, step = self._ends, self._step
        while ends and ends[0][0] <= step:
            _, _, version, request = heappop(ends)
            if request._version == version:
                self._stop_decoding(request)
                done.append(request)
        if self._chunks:
            for request, chunk in self._chunks:
                request._prefilled_tokens += chunk
                if request._prefilled_tokens >= request._held_tokens:
                    self._start_decoding(request, started, done)
            self._chunks.clear()
        return started, done

    def _grow(self) -> None:
        """Blocks for the tokens that this step adds; who started last gives way when there are too few."""
        self.paused.clear()
        need = self._growing[self._step & _PHASE]
        while need > self._free and (self._streaming > 1 or self._prefilling):
            if not self._preempt():
                break
            need = self._growing[self._step & _PHASE]
        self._free -= need

    def _preempt(self) -> bool:
        started = self._started
        while started:
            version, request = started.pop()
            if request._version == version:
                self._stop_decoding(request)
                request._held_tokens = request.prompt_tokens + request.emitted_tokens
                request._prefilled_tokens = 0
                request.preemptions += 1
                self.preemptions += 1
                self.paused.append(request)
                self._waiting.appendleft(request)
                return True
        return False

    def _start_decoding(self, request: _Request, started: list[_Request], done: list[_Request]) -> None:
        """The last chunk of a prompt gives a token with it."""
        self._prefilling.remove(request)
        self.output_tokens += 1
        started.append(request)
        request.emitted_tokens += 1
        left = request.output_tokens - request.emitted_tokens
        if left <= 0:
            self._free += -(-request._held_tokens // _BLOCK_TOKENS)
            done.append(request)
            return
        step = self._step
        request._context_tokens = request._held_tokens
        request._started_at_step = step
        request._version += 1
        self._starts += 1
        self._streaming += 1
        self._context_tokens += request._context_tokens + 1
        self._growing[(step - request._context_tokens) & _PHASE] += 1
        heappush(self._ends, (step + left, self._starts, request._version, request))
        self._started.append((request._version, request))
        if len(self._started) > 4 * self._streaming + 64:
            self._started = [entry for entry in self._started if entry[1]._version == entry[0]]

    def _stop_decoding(self, request: _Request) -> None:
        """Take it out of the batch and give its blocks back."""
        steps = self._step - request._started_at_step
        held = request._context_tokens + steps
        self._streaming -= 1
        self._context_tokens -= held + 1
        self._growing[(request._started_at_step - request._context_tokens) & _PHASE] -= 1
        self._free += -(-held // _BLOCK_TOKENS)
        request.emitted_tokens += steps
        request._version += 1
