"""Bytes of an OpenAI-style event stream in, whole events out; pure.

What is relayed is relayed byte for byte, except that usage is taken out of chunks where the client is not to see it.
Held back are the usage-only chunk and `[DONE]`: who relays the stream sends them itself, once the money is settled.

Policy, in one place:
- An event that is not JSON, or has not the shape of a chunk, ends the stream as broken. Nothing is skipped: a skipped
  event may be text that the reader would miss without a sign.
- An error anywhere (`"error"`, object or string, an `event: error`, finish_reason "abort" or "error") ends it as
  broken, even if a normal `[DONE]` follows.
- The end of the body without `[DONE]` is a good end only if every choice has given its finish_reason.
- Comments and events without data are dropped; an event with data keeps its comments.
- Where the bytes are cut into reads makes no difference to anything.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Raw

from router.core.request import TokenUsage
from router.providers.chat_shapes import (
    ABSENT,
    BAD_ENDINGS,
    NOTHING,
    NULL,
    UNREADABLE,
    Chunk,
    ChunkChoice,
    decode_chunk,
    without_surrogates,
)
from router.providers.usage import usage_from

MAX_EVENT_BYTES = 8 * 1024 * 1024

_USAGE_NULL = b',"usage":null'
_MALFORMED = "an event of the stream is malformed"
_CR = 13
_END = re.compile(rb"\n\r?\n")
# Words, with a short number behind them or alone: what a key never looks like, should an upstream quote ours.
_PLAIN_WORD = re.compile(r"(?=.{1,64}\Z)(?:[A-Za-z]+(?:[._-][A-Za-z]+)*(?:[._-]?\d{1,4})?|\d{1,5})", re.ASCII)

# What the text of a delta may hold for the event to be known without decoding it: nothing that JSON escapes.
_match_plain_text = re.compile(rb"[ !#-\[\]-~]+").match
_CONTENT = b'"content":'
TEMPLATES = 8
"""Times that a stream's usual event is learnt; a host that writes every event differently is decoded each time."""

_decode_members = msgspec.json.Decoder(dict[str, Raw]).decode
_encode = msgspec.json.encode


class SseScanner:
    """Reads one stream. `feed` it bytes, `finish` it at the end of the body, and look at `done` and `failure` after.

    `include_usage`: the client asked for usage, so `"usage":null` stays on its chunks. `usage_on_chunks`: it asked for
    running usage on every chunk too. `choices`: how many choices must finish (the request's `n`). `templates`: how
    often the stream's usual event is learnt, so that those that differ in nothing but their text need no decoding.
    """

    __slots__ = (
        "_blank_usage",
        "_max_event_bytes",
        "_saw_chunk",
        "_searched",
        "_tail",
        "_template",
        "_templates_left",
        "_unfinished",
        "_usage_on_chunks",
        "_usage_payload",
        "done",
        "failure",
        "finish_reason",
        "output_events",
    )

    def __init__(
        self,
        *,
        include_usage: bool,
        usage_on_chunks: bool = False,
        choices: int = 1,
        max_event_bytes: int = MAX_EVENT_BYTES,
        templates: int = TEMPLATES,
    ) -> None:
        self.output_events = 0
        self.done = False
        self.failure: str | None = None
        self.finish_reason: str | None = None
        self._blank_usage = not include_usage
        self._usage_on_chunks = include_usage and usage_on_chunks
        self._max_event_bytes = max_event_bytes + 2  # the blank line does not count
        self._tail = bytearray()
        self._searched = 0
        self._unfinished = set(range(choices))
        self._saw_chunk = False
        self._usage_payload: bytes | None = None
        # What comes before and after the text in the last event that carried nothing but text.
        self._template: tuple[bytes, bytes] | None = None
        self._templates_left = templates

    @property
    def ended(self) -> bool:
        """Every choice has said why it ended; only usage and `[DONE]` may still come."""
        return not self._unfinished

    @property
    def usage_event(self) -> Mapping[str, Any] | None:
        """The usage-only chunk, decoded; built from the chunk that carried usage where the host sends none."""
        if self._usage_payload is None:
            return None
        try:
            chunk: dict[str, Any] = msgspec.json.decode(without_surrogates(self._usage_payload))
        except UNREADABLE:  # such as a number beyond all numbers: as good as none
            return None
        chunk["choices"] = []
        return chunk

    @property
    def usage(self) -> TokenUsage | None:
        """What the host has reported last; `None` if nothing usable."""
        return self.usage_in(self.usage_event)

    def usage_in(self, usage_event: Mapping[str, Any] | None) -> TokenUsage | None:
        """The same for a `usage_event` at hand."""
        return None if usage_event is None else usage_from(usage_event["usage"], saw_output=self.output_events > 0)

    def feed(self, data: bytes) -> bytes | None:
        """The events that `data` completes, ready to be relayed, or `None` if there are none.

        What precedes a failure or `[DONE]` is still returned; what follows is ignored.
        """
        if self._over():
            return None
        tail = self._tail
        search_from = 0
        if tail:
            search_from = self._searched
            tail += data
            if tail.find(b"\n", search_from) < 0:  # no event can end here
                self._keep(tail)
                return None
            data = bytes(tail)
            tail.clear()
        with_cr = _CR in data
        start = kept_from = 0
        pieces: list[bytes] | None = None
        size = len(data)
        while start < size:
            if self._template is not None:
                start = self._past_same_again(data, start, self._template)
                if start == size:
                    continue
            end = _event_end(data, max(search_from, start), with_cr)
            if end < 0:
                break
            event = data if end == size and start == 0 else data[start:end]
            relayed = self._event(event)
            if relayed is not event:
                pieces = [] if pieces is None else pieces
                pieces.append(data[kept_from:start])
                if relayed is not None:
                    pieces.append(relayed)
                kept_from = end
            start = end
            if self._over():
                break
        else:
            return data if pieces is None else b"".join((*pieces, data[kept_from:])) or None
        if not self._over():
            tail += data[start:]
            self._keep(tail)
        whole = data[kept_from:start] if pieces is None else b"".join((*pieces, data[kept_from:start]))
        return whole or None

    def finish(self) -> bytes | None:
        """The body has ended: the last event if only its blank line was missing. Sets `done` or `failure`."""
        if self._over():
            return None
        relayed = None
        if self._tail.strip():
            relayed = self._event(bytes(self._tail) + b"\n\n")
            if self._malformed():  # half an event; once every choice has finished it can only have been usage
                self.failure = "the stream was cut within an event" if self._unfinished else None
        if not self._over():
            if self._unfinished:
                self.failure = "the stream was cut: it ended without a finish reason and without [DONE]"
            else:
                self.done = True
        return relayed

    def fail(self, reason: str) -> None:
        """Give the stream up for a reason found outside its bytes; the first reason stands."""
        if not self._over():
            self.failure = reason

    def _over(self) -> bool:
        return self.done or self.failure is not None

    def _malformed(self) -> bool:
        return self.failure == _MALFORMED

    def _keep(self, tail: bytearray) -> None:
        """Remember where the next search starts: a terminator may straddle the reads by two bytes."""
        self._searched = max(0, len(tail) - 2)
        if len(tail) > self._max_event_bytes:
            self._fail_size()

    def _fail_size(self) -> None:
        self._tail.clear()
        self.failure = f"an event is larger than {self._max_event_bytes - 2} bytes"

    def _event(self, event: bytes) -> bytes | None:
        """One whole event: itself if it is to be relayed, another if it was rewritten, `None` if it is held back."""
        if len(event) > self._max_event_bytes:
            self._fail_size()
            return None
        if event.startswith(b"data: {"):
            try:
                payload = event[6:-2]
                chunk = decode_chunk(payload)
            except UNREADABLE:
                return self._odd_event(event)
            return self._chunk(event, payload, chunk)
        return self._odd_event(event)

    def _odd_event(self, event: bytes) -> bytes | None:
        """Anything but a single `data: {…}` line that decodes at once."""
        lines = _lines(event)
        if lines is None:
            self.failure = _MALFORMED
            return None
        kind, payload = lines
        if kind == b"error":
            self.failure = "the upstream sent an error in the stream"
        if payload is None or self.failure is not None:
            return None
        if payload.strip() == b"[DONE]":
            self.done = self._saw_chunk
            self.failure = None if self._saw_chunk else "the stream ended before it began"
            return None
        try:
            chunk = decode_chunk(without_surrogates(payload))
        except UNREADABLE:
            self.failure = _MALFORMED
            return None
        return self._chunk(event, payload, chunk)

    def _past_same_again(self, data: bytes, start: int, template: tuple[bytes, bytes]) -> int:
        """Where the events from `start` on end that differ from the template in nothing but their text."""
        before, after = template
        while data.startswith(before, start):
            text = _match_plain_text(data, start + len(before))
            if text is None or not data.startswith(after, text.end()):
                break
            end = text.end() + len(after)
            if end - start > self._max_event_bytes:
                break
            start = end
            self.output_events += 1
        return start

    def _learn_template(self, event: bytes, choice: ChunkChoice) -> None:
        """`event` carries text in its one choice and ends nothing: the next ones will probably look the same."""
        if choice.delta is None or choice.finish_reason is not None or choice.delta.carries_more():
            return
        if self._template is not None and event.startswith(self._template[0]):
            return  # only its text was one to be decoded
        text = bytes(choice.delta.content)
        at = event.find(b'"', event.find(_CONTENT) + len(_CONTENT))
        if event.count(_CONTENT) == 1 and text[:1] == b'"' and event.startswith(text, at):
            self._templates_left -= 1
            self._template = event[: at + 1], event[at + len(text) - 1 :]

    def _chunk(self, event: bytes, payload: bytes, chunk: Chunk) -> bytes | None:
        if chunk.error not in NOTHING or chunk.object == "error":
            self.failure = f"the upstream sent an error in the stream{_error_kind(chunk.error)}"
            return None
        choices = chunk.choices
        if choices:
            self._saw_chunk = True
            carried = False
            for choice in choices:
                delta = choice.delta
                if delta is not None and (delta.content not in NOTHING or delta.carries_more()):
                    carried = True
                if choice.finish_reason is not None:
                    self._finish(choice.index, choice.finish_reason)
            if self.failure is not None:
                return None
            if carried:
                self.output_events += 1
                if self._templates_left and len(choices) == 1 and chunk.usage == ABSENT:
                    self._learn_template(event, choices[0])
        return event if chunk.usage == ABSENT else self._with_usage(event, payload, chunk)

    def _finish(self, index: int, reason: str) -> None:
        self.finish_reason = reason
        self._unfinished.discard(index)
        if reason in BAD_ENDINGS:
            self.failure = f"the upstream gave up: finish_reason {reason!r}"

    def _with_usage(self, event: bytes, payload: bytes, chunk: Chunk) -> bytes | None:
        """A chunk with a `usage` member: keep what it says, and show the client what it asked for."""
        if chunk.usage == NULL:
            return _without_null(event, payload) if self._blank_usage else event
        self._usage_payload = payload
        if not chunk.choices:
            return None
        return event if self._usage_on_chunks else _without_member(event, payload)


def _event_end(data: bytes, search_from: int, with_cr: bool) -> int:
    """Where the event ends (after its blank line), or -1."""
    if with_cr:
        match = _END.search(data, search_from)
        return match.end() if match else -1
    found = data.find(b"\n\n", search_from)
    return found + 2 if found >= 0 else -1


def _lines(event: bytes) -> tuple[bytes | None, bytes | None] | None:
    """(event name, data lines joined); data is `None` where there are none. `None`: not an event at all."""
    name: bytes | None = None
    data: list[bytes] = []
    for line in event.removeprefix(b"\xef\xbb\xbf").split(b"\n"):
        field, _, value = line.rstrip(b"\r").partition(b":")
        if field == b"data":
            data.append(value.removeprefix(b" "))
        elif field == b"event":
            name = value.strip()
        elif field == b"error":  # llama.cpp's own way to report a failure in mid-stream
            return b"error", None
        elif field not in (b"", b"id", b"retry"):
            return None
    return name, b"\n".join(data) if data else None


def _without_null(event: bytes, payload: bytes) -> bytes:
    """`event` without its top-level `"usage":null`, which on many hosts stands on every chunk."""
    shorter = event.replace(_USAGE_NULL, b"")
    if len(event) - len(shorter) == len(_USAGE_NULL):  # no JSON string can hold these bytes, so it is the member
        return shorter
    return _without_member(event, payload)


def _without_member(event: bytes, payload: bytes) -> bytes:
    """`event` without its top-level `usage`."""
    newline = b"\r\n" if event.endswith(b"\r\n") else b"\n"
    return b"data: " + _rest(payload) + newline * 2


def _rest(payload: bytes) -> bytes:
    try:
        members = _decode_members(payload)
        members.pop("usage", None)
        return _encode(members)
    except UNREADABLE:  # unpaired surrogates, which the standard library carries through, or no UTF-8
        loose = json.loads(payload.decode("utf-8", "replace"))
        loose.pop("usage", None)
        return json.dumps(loose, separators=(",", ":")).encode()


def _error_kind(error: Raw) -> str:
    """Type and code of an error object, where they are plain words: a message may hold anything."""
    try:
        body = msgspec.json.decode(error)
    except UNREADABLE:
        return ""
    if not isinstance(body, dict):
        return ""
    words = [f"{key} {body[key]}" for key in ("type", "code") if _PLAIN_WORD.fullmatch(str(body.get(key) or ""))]
    return f" ({', '.join(words)})" if words else ""
