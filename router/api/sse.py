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

    Where the upstream sent none, the tokens are our own count, and `usage.estimated` says so.
    """
    sent = answer.usage_event
    chunk: dict[str, Any]
    if sent is not None:
        chunk = dict(sent)
        usage = dict(chunk.get("usage") or {})
    else:
        counted = answer.usage
        prompt = counted.input_tokens if counted is not None else 0
        output = counted.output_tokens if counted is not None else 0
        usage = {
            "prompt_tokens": prompt,
            "completion_tokens": output,
            "total_tokens": prompt + output,
            "estimated": True,
        }
        chunk = {
            "id": answer.meta.request_id,
            "object": "chat.completion.chunk",
            "created": 0,
            "model": answer.meta.model,
            "choices": [],
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
