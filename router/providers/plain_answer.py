"""What a complete OpenAI-style answer says about itself. Pure."""

from __future__ import annotations

import msgspec

from router.errors import UpstreamBroken
from router.ports import PlainReply
from router.providers.chat_shapes import BAD_ENDINGS, NOTHING, decode_plain, output_text
from router.providers.usage import usage_from


def read_plain(body: bytes) -> PlainReply:
    """Read usage and finish reason; raises `UpstreamBroken` for an error, an abort, or anything but a completion."""
    try:
        plain = decode_plain(body)
    except msgspec.MsgspecError:
        raise UpstreamBroken("The upstream's answer is not a chat completion") from None
    if plain.error not in NOTHING or plain.object == "error":
        raise UpstreamBroken("The upstream answered 200 with an error")
    if not plain.choices:
        raise UpstreamBroken("The upstream's answer holds no choices")
    for choice in plain.choices:
        if choice.finish_reason in BAD_ENDINGS:
            raise UpstreamBroken(f"The upstream gave up: finish_reason {choice.finish_reason!r}")
    messages = [choice.message for choice in plain.choices if choice.message is not None]
    saw_output = any(message.content not in NOTHING or message.carries_more() for message in messages)
    usage = usage_from(plain.usage, saw_output=saw_output)
    # more tokens than the answer has bytes may turn out to be beyond belief: then its text is what can be counted
    text = output_text(plain) if usage is None or usage.output_tokens > len(body) else ""
    return PlainReply(body=body, usage=usage, finish_reason=plain.choices[0].finish_reason, output_text=text)
