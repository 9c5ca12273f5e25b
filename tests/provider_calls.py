"""Calls as the flow makes them, for tests of providers."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from router.core.decision import Candidate
from router.core.vocabulary import Tier
from router.errors import UpstreamError
from router.ports import CallTimeouts, Provider, ProviderCall

CANDIDATE = Candidate(
    name="cheap/m", tier=Tier.CHEAP, provider="openai", wire_model="wire-model", context_window_tokens=8192
)
TIMEOUTS = CallTimeouts(connect_s=90.0, first_byte_s=90.0, idle_s=90.0, total_s=120.0, min_tokens_per_s=0.01)


def raw_fields(**members: Any) -> dict[str, msgspec.Raw]:
    """Members of a body, each still encoded, as the edge leaves them."""
    return {name: msgspec.Raw(msgspec.json.encode(value)) for name, value in members.items()}


def a_call(
    *,
    stream: bool = False,
    include_usage: bool = False,
    timeouts: CallTimeouts = TIMEOUTS,
    candidate: Candidate = CANDIDATE,
    **members: Any,
) -> ProviderCall:
    """A call with one user message, `members` on top."""
    members = {"messages": [{"role": "user", "content": "Hello, upstream!"}], **members}
    if stream:
        members["stream"] = True
    return ProviderCall(
        request_id="req-1",
        candidate=candidate,
        fields=raw_fields(**members),
        stream=stream,
        include_usage=include_usage,
        timeouts=timeouts,
    )


class Read:
    """A stream read to its end."""

    def __init__(self) -> None:
        self.raw = b""
        self.blocks: list[bytes] = []
        self.stream: Any = None
        self.error: UpstreamError | None = None

    @property
    def text(self) -> str:
        """The text of all choices, in the order of arrival."""
        choices = [choice for event in self.events for choice in event["choices"]]
        return "".join(choice["delta"].get("content") or "" for choice in choices)

    @property
    def events(self) -> list[Any]:
        """The relayed events, decoded."""
        lines = self.raw.decode().splitlines()
        return [json.loads(line[6:]) for line in lines if line.startswith("data: ")]


async def read(provider: Provider, **call: Any) -> Read:
    """Open a stream, read it to its end or failure, close it."""
    seen = Read()
    try:
        seen.stream = await provider.open_stream(a_call(stream=True, **call))
        while (block := await seen.stream.next_block()) is not None:
            seen.blocks.append(block)
            seen.raw += block
    except UpstreamError as error:
        seen.error = error
    if seen.stream is not None:
        await seen.stream.close()
    return seen
