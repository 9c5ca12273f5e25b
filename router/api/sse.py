"""A stream on the wire: relay whole events, then usage with the final cost, then `[DONE]`; or an honest error."""

from __future__ import annotations

from contextlib import aclosing
from typing import Any

import msgspec
from starlette.types import Send

from router.api.answer_headers import Headers, usd_text
from router.api.error_responses import stream_error_event
from router.delivery import StreamAnswer
from router.errors import RouterError

DONE = b"data: [DONE]\n\n"


def usage_chunk(answer: StreamAnswer) -> bytes:
    """The usage-only chunk for a caller who asked, with `usage.cost` in dollars, exact.

    Where the upstream told none, or nothing usable, the tokens are our own count, and `usage.estimated` says so.
    """
    chunk: dict[str, Any] = dict(answer.usage_event or {})
    if not chunk:
        chunk = {
            "id": answer.meta.request_id,
            "object": "chat.completion.chunk",
            "created": 0,
            "model": answer.meta.model,
            "choices": [],
        }
    usage = dict(chunk.get("usage") or {})
    booked = answer.usage
    if booked is not None and booked.estimated:
        usage |= {
            "prompt_tokens": booked.input_tokens,
            "completion_tokens": booked.output_tokens,
            "total_tokens": booked.input_tokens + booked.output_tokens,
            "estimated": True,
        }
    usage["cost"] = msgspec.Raw(usd_text(answer.cost_nanousd).encode())
    chunk["usage"] = usage
    return b"data: " + msgspec.json.encode(chunk) + b"\n\n"


async def send_stream(
    send: Send, answer: StreamAnswer, headers: Headers, *, include_usage: bool, keep: list[bytes] | None = None
) -> None:
    """Relay `answer`; `keep` collects what was sent, for a later replay. Raises nothing of the upstream's."""
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    async with aclosing(answer.blocks()) as blocks:
        try:
            async for block in blocks:
                if keep is not None:
                    keep.append(block)
                await send({"type": "http.response.body", "body": block, "more_body": True})
        except RouterError as error:
            tail = stream_error_event(error)
            if keep is not None:
                keep.clear()
        else:
            tail = (usage_chunk(answer) if include_usage else b"") + DONE
            if keep is not None:
                keep.append(tail)
    await send({"type": "http.response.body", "body": tail, "more_body": False})
