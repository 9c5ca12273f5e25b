"""What a complete OpenAI-style answer says about itself. Pure."""

from __future__ import annotations

from router.errors import UpstreamBroken
from router.ports import BrokenReply, PlainReply
from router.providers.chat_shapes import BAD_ENDINGS, NOTHING, UNREADABLE, decode_plain, output_text
from router.providers.usage import usage_from


def read_plain(body: bytes) -> PlainReply:
    """Read usage and finish reason; raises `UpstreamBroken` for an error, an abort, or anything but a completion.

    Where such an answer tells what it used, the error (`BrokenReply`) tells it too: it may be on the invoice.
    """
    try:
        plain = decode_plain(body)
    except UNREADABLE:
        raise UpstreamBroken("The upstream's answer is not a chat completion") from None
    choices = plain.choices or []
    messages = [choice.message for choice in choices if choice.message is not None]
    saw_output = any(message.content not in NOTHING or message.carries_more() for message in messages)
    usage = usage_from(plain.usage, saw_output=saw_output)
    if plain.error not in NOTHING or plain.object == "error":
        raise BrokenReply("The upstream answered 200 with an error", usage=usage)
    if not choices:
        raise BrokenReply("The upstream's answer holds no choices", usage=usage)
    for choice in choices:
        if choice.finish_reason in BAD_ENDINGS:
            raise BrokenReply(f"The upstream gave up: finish_reason {choice.finish_reason!r}", usage=usage)
    if len(messages) < len(choices):
        raise BrokenReply("The upstream's answer holds a choice without a message", usage=usage)
    # more tokens than the answer has bytes may turn out to be beyond belief: then its text is what can be counted
    text = output_text(plain) if usage is None or usage.output_tokens > len(body) else ""
    return PlainReply(body=body, usage=usage, finish_reason=choices[0].finish_reason, output_text=text)
