"""A provider that plays a script: for tests of everything above it, and for load runs without a network.

    ScriptedProvider([Fail(UpstreamUnavailable("down")), Say("Hello there", delay_s=0.05)])

Each call takes the next step; after the last the script starts again, or, with `repeat=False`, the provider refuses.
Streams are written as OpenAI-style events and read by the scanner that reads real ones.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from router.core.request import TokenUsage
from router.errors import UpstreamBroken, UpstreamError, UpstreamUnavailable
from router.ports import PlainReply, ProviderCall
from router.providers.plain_answer import read_plain
from router.providers.sse_scan import SseScanner

Sleep = Callable[[float], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Say:
    """Answer with `text`, one word a token.

    `input_tokens=None` tells no usage; `fails_after` breaks a stream after so many words, with `error`.
    """

    text: str = "ok"
    delay_s: float = 0.0
    gap_s: float = 0.0
    input_tokens: int | None = 10
    cached_input_tokens: int | None = 0  # None: the host does not say
    finish_reason: str = "stop"
    fails_after: int | None = None
    error: UpstreamError = field(default_factory=lambda: UpstreamBroken("The script cuts the stream here"))

    @property
    def words(self) -> list[str]:
        """The tokens of the answer, blanks in front of all but the first."""
        return [word if index == 0 else f" {word}" for index, word in enumerate(self.text.split())]

    def usage(self) -> dict[str, Any] | None:
        """OpenAI's usage object."""
        if self.input_tokens is None:
            return None
        completion = len(self.words)
        return {
            "prompt_tokens": self.input_tokens,
            "completion_tokens": completion,
            "total_tokens": self.input_tokens + completion,
            "prompt_tokens_details": None
            if (cached := self.cached_input_tokens) is None
            else {"cached_tokens": cached},
        }


@dataclass(frozen=True, slots=True)
class Fail:
    """Raise `error`, after `delay_s`."""

    error: UpstreamError
    delay_s: float = 0.0


Step = Say | Fail


class ScriptedProvider:
    """Plays `steps`. `calls` are those it was given, `closed_streams` counts streams closed before their end."""

    def __init__(self, steps: Sequence[Step] = (Say(),), *, repeat: bool = True, sleep: Sleep = asyncio.sleep) -> None:
        self.steps = tuple(steps)
        self.calls: list[ProviderCall] = []
        self.closed_streams = 0
        self.closed = False
        self._repeat = repeat
        self._sleep = sleep

    async def complete(self, call: ProviderCall) -> PlainReply:
        """The next step as a plain answer."""
        step = await self._next(call)
        message = {"role": "assistant", "content": "".join(step.words)}
        body: dict[str, Any] = {
            **self._head(call, "chat.completion"),
            "choices": [{"index": 0, "message": message, "finish_reason": step.finish_reason}],
        }
        usage = step.usage()
        if usage is not None:
            body["usage"] = usage
        return read_plain(msgspec.json.encode(body))

    async def open_stream(self, call: ProviderCall) -> ScriptedStream:
        """The next step as a stream."""
        step = await self._next(call)
        return ScriptedStream(self, step, self._events(call, step), include_usage=call.include_usage, sleep=self._sleep)

    async def close(self) -> None:
        """Note that it was closed."""
        self.closed = True

    async def _next(self, call: ProviderCall) -> Say:
        position = len(self.calls)
        self.calls.append(call)
        if not self.steps or (position >= len(self.steps) and not self._repeat):
            raise UpstreamUnavailable("The script has ended")
        step = self.steps[position % len(self.steps)]
        if step.delay_s > 0:
            await self._sleep(step.delay_s)
        if isinstance(step, Fail):
            raise step.error
        return step

    def _head(self, call: ProviderCall, kind: str) -> dict[str, Any]:
        model = call.candidate.wire_model
        return {"id": f"chatcmpl-{len(self.calls)}", "object": kind, "created": 1_795_304_780, "model": model}

    def _events(self, call: ProviderCall, step: Say) -> Iterator[bytes]:
        head = self._head(call, "chat.completion.chunk")

        def event(choices: list[dict[str, Any]], **more: Any) -> bytes:
            return b"data: " + msgspec.json.encode({**head, "choices": choices, **more}) + b"\n\n"

        def delta(said: dict[str, str], finish: str | None = None) -> bytes:
            return event([{"index": 0, "delta": said, "finish_reason": finish}])

        yield delta({"role": "assistant", "content": ""})
        for word in step.words:
            yield delta({"content": word})
        yield delta({}, step.finish_reason)
        usage = step.usage()
        if usage is not None:
            yield event([], usage=usage)
        yield b"data: [DONE]\n\n"


class ScriptedStream:
    """`ports.StreamReply` of one step."""

    def __init__(
        self, provider: ScriptedProvider, step: Say, events: Iterator[bytes], *, include_usage: bool, sleep: Sleep
    ) -> None:
        self.output_events = 0
        self.saw_output = False
        self.usage: TokenUsage | None = None
        self.usage_event: Mapping[str, Any] | None = None
        self._provider = provider
        self._step = step
        self._events = events
        self._scanner = SseScanner(include_usage=include_usage)
        self._sleep = sleep
        self._closed = False

    async def next_block(self) -> bytes | None:
        """The next event, or `None` at the end; raises the step's error where the script breaks."""
        scanner, step = self._scanner, self._step
        while not (scanner.done or scanner.failure is not None or self._closed):
            if step.fails_after is not None and self.output_events >= step.fails_after:
                raise step.error
            if step.gap_s > 0:
                await self._sleep(step.gap_s)
            block = scanner.feed(next(self._events))
            self.output_events = scanner.output_events
            self.saw_output = self.output_events > 0
            if block is not None:
                return block
        if scanner.failure is not None or not scanner.done:
            raise UpstreamBroken(f"The script's stream is broken: {scanner.failure or 'it was closed'}")
        self.usage, self.usage_event = scanner.usage, scanner.usage_event
        return None

    async def close(self) -> None:
        """Stop."""
        if not self._closed:
            self._closed = True
            if not self._scanner.done:
                self._provider.closed_streams += 1
