"""The parts of OpenAI-style answers that we look at; everything else stays undecoded bytes. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import Raw, Struct

ABSENT = Raw(b"")
NULL = Raw(b"null")
NOTHING = (ABSENT, NULL, Raw(b'""'), Raw(b"[]"), Raw(b"{}"))
BAD_ENDINGS = frozenset({"abort", "error"})  # finish reasons that mean: the host gave up
UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""All that the decoder raises for bytes that are no JSON, no UTF-8, or nested without end."""

# Unpaired surrogate escapes are JSON by its grammar, and hosts that cut text by bytes send them.
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")


class Message(Struct, gc=False):
    """What a choice says: the `message` of a plain answer, or a `delta` of a stream."""

    content: Raw = ABSENT
    tool_calls: Raw = ABSENT
    reasoning_content: Raw = ABSENT
    reasoning: Raw = ABSENT
    reasoning_details: Raw = ABSENT
    refusal: Raw = ABSENT
    audio: Raw = ABSENT
    images: Raw = ABSENT
    function_call: Raw = ABSENT

    def carries_more(self) -> bool:
        """Whether there is output besides `content`: tool calls, reasoning, a refusal, audio, images."""
        return not (
            self.tool_calls in NOTHING
            and self.reasoning_content in NOTHING
            and self.reasoning in NOTHING
            and self.reasoning_details in NOTHING
            and self.refusal in NOTHING
            and self.audio in NOTHING
            and self.images in NOTHING
            and self.function_call in NOTHING
        )


class ChunkChoice(Struct, gc=False):
    """One choice within a chunk."""

    index: int = 0
    delta: Message | None = None
    finish_reason: str | None = None


class Chunk(Struct, gc=False):
    """One data event of a stream."""

    choices: list[ChunkChoice] | None = None
    usage: Raw = ABSENT
    error: Raw = ABSENT
    object: str | None = None


class PlainChoice(Struct, gc=False):
    """One choice of a plain answer."""

    message: Message | None = None
    finish_reason: str | None = None


class Plain(Struct, gc=False):
    """A plain answer."""

    choices: list[PlainChoice] | None = None
    usage: Any = None
    error: Raw = ABSENT
    object: str | None = None


decode_chunk = msgspec.json.Decoder(Chunk).decode
_decode_plain = msgspec.json.Decoder(Plain).decode


def decode_plain(body: bytes) -> Plain:
    """A plain answer. Raises one of `UNREADABLE` if it is none."""
    if not body.isascii():
        body.decode()  # what is not looked at is not checked by the decoder, and no caller could read it
    try:
        return _decode_plain(body)
    except msgspec.DecodeError:
        return _decode_plain(without_surrogates(body))


def output_text(plain: Plain) -> str:
    """Everything the model wrote, for counting: contents, reasoning, refusals, tool names and arguments."""
    texts: list[str] = []
    for choice in plain.choices or ():
        message = choice.message
        if message is not None:
            for member in (message.content, message.reasoning_content, message.reasoning, message.refusal):
                texts.extend(_strings(member))
            texts.extend(_strings(message.tool_calls, ("function", "name", "arguments")))
            texts.extend(_strings(message.function_call, ("name", "arguments")))
    return "\n".join(texts)


def _strings(member: Raw, keys: tuple[str, ...] = ("text",)) -> Iterator[str]:
    """The strings of a member: itself, or those under `keys` in its lists and objects."""
    if member not in NOTHING:
        yield from _walk(msgspec.json.decode(without_surrogates(bytes(member))), keys)


def _walk(value: Any, keys: tuple[str, ...]) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _walk(item, keys)
    elif isinstance(value, dict):
        for key in keys:
            yield from _walk(value.get(key), keys)


def without_surrogates(payload: bytes) -> bytes:
    """For looking only: surrogate escapes replaced, so that unpaired ones do not stop the decoder."""
    return _SURROGATE.sub(rb"\\ufffd", payload)
