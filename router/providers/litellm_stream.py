"""A stream that litellm reads, as `ports.StreamReply`: its chunks become events and go through the same scanner."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

import msgspec

from router.core.request import TokenUsage
from router.errors import UpstreamBroken, UpstreamError, UpstreamTimeout
from router.ports import ProviderCall
from router.providers.http_stream import TRICKLE_WINDOW_S, TrickleGuard
from router.providers.sse_scan import SseScanner

# HTTP answers opened for the call that runs in this context, whoever opened them.
OPENED: ContextVar[list[Any] | None] = ContextVar("OPENED", default=None)

_DONE = b"data: [DONE]\n\n"


def answer_members(answer: Any) -> dict[str, Any]:
    """A response or chunk of litellm's as OpenAI sends it: members that are null there are null here too."""
    members: dict[str, Any] = answer.model_dump(mode="json", exclude_none=True, exclude_unset=True)
    for choice in members.get("choices", ()):
        choice.setdefault("finish_reason", None)
        for told in ("message", "delta"):
            said = choice.get(told)
            if isinstance(said, dict):
                said.pop("provider_specific_fields", None)
                if told == "message":
                    said.setdefault("content", None)
    return members


def chunk_event(chunk: Any) -> bytes:
    """One chunk as an event; usage, which litellm hangs on an empty choice, gets the chunk to itself."""
    members = answer_members(chunk)
    if members.get("usage") is not None and not any(_says_something(c) for c in members.get("choices", ())):
        members["choices"] = []
    return b"data: " + msgspec.json.encode(members) + b"\n\n"


def _says_something(choice: Mapping[str, Any]) -> bool:
    return choice.get("finish_reason") is not None or any(choice.get("delta", {}).values())


class LiteLLMStream:
    """One stream. `opened` are the HTTP answers behind it, `to_error` maps what litellm raises while it is read."""

    def __init__(
        self,
        chunks: AsyncIterator[Any],
        opened: Sequence[Any],
        call: ProviderCall,
        start_s: float,
        to_error: Callable[[Exception], UpstreamError],
    ) -> None:
        self.output_events = 0
        self.saw_output = False
        self.usage_event: Mapping[str, Any] | None = None
        self.finish_reason: str | None = None
        self._chunks = chunks
        self._opened = opened
        self._to_error = to_error
        self._scanner = SseScanner(include_usage=call.include_usage)
        self._loop = asyncio.get_running_loop()
        self._timeouts = call.timeouts
        self._start_s = start_s
        self._guard = TrickleGuard(call.timeouts.min_tokens_per_s, TRICKLE_WINDOW_S)
        self._waited_s = 0.0
        self._failure: UpstreamError | None = None
        self._closed = False

    @property
    def usage(self) -> TokenUsage | None:
        """What the upstream has told so far."""
        return self._scanner.usage

    async def next_block(self) -> bytes | None:
        """The next events, or `None` at the good end."""
        scanner = self._scanner
        while True:
            if self._failure is not None or scanner.done or scanner.failure is not None or self._closed:
                await self._end()
                return None
            since_s = self._loop.time()
            block = await self._read(since_s)
            self._waited_s += self._loop.time() - since_s
            events = scanner.output_events
            if events and not self.saw_output:
                self.saw_output = True
                self._guard.start(self._waited_s, events)
            self.output_events = events
            if self._guard.too_slow(self._waited_s, events) and not scanner.done:
                rate = self._timeouts.min_tokens_per_s
                self._failure = UpstreamTimeout(f"The upstream sends fewer than {rate:g} tokens a second")
            if block is not None:
                return block

    async def close(self) -> None:
        """Stop reading and close the upstream's answer."""
        if not self._closed:
            self._closed = True
            for answer in self._opened:
                await answer.stream.aclose()
            closing = getattr(self._chunks, "aclose", None)
            if closing is not None:
                await closing()

    async def _read(self, since_s: float) -> bytes | None:
        scanner, timeouts = self._scanner, self._timeouts
        end_s = self._start_s + timeouts.total_s
        due_s = since_s + timeouts.idle_s if self.saw_output else self._start_s + timeouts.first_byte_s
        try:
            async with asyncio.timeout_at(min(due_s, end_s)):
                chunk = await anext(self._chunks)
        except StopAsyncIteration:
            return scanner.feed(_DONE)
        except Exception as error:  # noqa: BLE001 - whatever litellm raises has a place in our tree
            self._failure = self._to_error(error)
            self._failure.__cause__ = error
            return None
        event = chunk_event(chunk)
        finishes = any(choice.finish_reason is not None for choice in chunk.choices)
        if finishes and getattr(self._chunks, "received_finish_reason", "") is None:
            scanner.fail("it was cut: the upstream gave no finish reason")  # litellm makes one up at any end
            return None
        return scanner.feed(event)

    async def _end(self) -> None:
        scanner = self._scanner
        self.usage_event = scanner.usage_event
        self.finish_reason = scanner.finish_reason
        failure = self._failure
        if failure is None and scanner.failure is not None:
            failure = UpstreamBroken(f"The upstream's stream is broken: {scanner.failure}")
        if failure is None and not scanner.done:
            failure = UpstreamBroken("The upstream's stream was closed before its end")
        await self.close()
        if failure is not None:
            raise failure
