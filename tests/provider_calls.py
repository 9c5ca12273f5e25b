"""Calls as the flow makes them, for tests of providers."""

from __future__ import annotations

from typing import Any

import msgspec

from router.core.datamodels import Candidate, Tier
from router.ports import CallTimeouts, ProviderCall

CANDIDATE = Candidate(
    name="cheap/m", tier=Tier.CHEAP, provider="openai", wire_model="wire-model", context_window_tokens=8192
)
TIMEOUTS = CallTimeouts(connect_s=2.0, first_byte_s=5.0, idle_s=5.0, total_s=10.0, min_tokens_per_s=0.25)


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
