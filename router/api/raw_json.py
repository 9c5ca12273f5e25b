"""Bytes -> one JSON object, strictly: what is accepted here means the same to every parser behind us.

Refused, beyond what is no JSON at all: bytes that are not UTF-8, NaN and Infinity, numbers that no parser can hold,
lone surrogates, NUL characters, a key twice in one object (at any depth), nesting deeper than `MAX_DEPTH`.
"""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec

from router.errors import BadRequest

MAX_DEPTH = 64
BIG_BODY_BYTES = 1_000_000
MAX_CONTAINERS_OF_BIG_BODY = 200_000
_LONG_TEXT_CHARS = 1_000
_LONG_BODY_BYTES = 8_000
_FEW_QUOTES = 64

_decode_any = msgspec.json.Decoder().decode
_decode_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode

_CONTAINERS = frozenset((dict, list))
# One scan for both escapes that matter: NUL is refused, and an escaped quote would upset the count of quotes.
_NUL_OR_QUOTE = re.compile(rb"\\u00(?:00|22)")
# Whole runs of backslashes: one of odd length makes an escape, an even one is escaped backslashes before plain text.
_NUL_ESCAPE = re.compile(rb"(?<!\\)(\\+)u0000")
_SURROGATE_ESCAPE = re.compile(rb"(?<!\\)(\\+)u[dD][89a-fA-F]")
_POSITION = re.compile(r"\(byte (\d+)\)")


def decode_object(body: bytes) -> tuple[dict[str, Any], dict[str, msgspec.Raw]]:
    """The JSON object in `body`, decoded, and its top-level members as they came. Raises `BadRequest`."""
    if len(body) > BIG_BODY_BYTES:
        _refuse_amplification(body)
    try:
        document = _decode_any(body)
    except UnicodeDecodeError:
        raise _not_utf8(body) from None
    except RecursionError:
        raise _too_deep() from None
    except msgspec.DecodeError as error:
        raise _malformed(body, error) from None
    if type(document) is not dict:
        raise BadRequest("the body must be a JSON object", code="invalid_json", param="body")
    _refuse_deep(document)
    _refuse_nul_and_duplicates(body, document)
    return document, _decode_members(body)


def _refuse_amplification(body: bytes) -> None:
    """A small JSON object takes some thirty times its bytes in memory: bound how many a big body may hold."""
    if body.count(b"{") + body.count(b"[") > MAX_CONTAINERS_OF_BIG_BODY:
        raise BadRequest(
            f"a body above {BIG_BODY_BYTES:,} bytes may hold at most {MAX_CONTAINERS_OF_BIG_BODY:,} opening brackets",
            code="body_too_complex",
            param="body",
        )


def _refuse_deep(document: dict[str, Any]) -> None:
    level: list[Any] = [document]
    for _ in range(MAX_DEPTH):
        level = [
            value
            for container in level
            for value in (container.values() if type(container) is dict else container)
            if type(value) in _CONTAINERS
        ]
        if not level:
            return
    raise _too_deep()


def _refuse_nul_and_duplicates(body: bytes, document: dict[str, Any]) -> None:
    """Fast for the common body: every string has two quotes, and a quote within one is escaped but still a quote.

    So re-encoding keeps the number of quotes unless a quote was written as an escape (then we look closely) or a
    string has vanished; and only a repeated key makes strings vanish.
    """
    # One byte is looked for many times as fast as two.
    escape = _NUL_OR_QUOTE.search(body) if b"\\" in body and b"\\u" in body else None
    if escape is not None:
        if _is_escaped(_NUL_ESCAPE, body):
            raise BadRequest("the body holds a NUL character (\\u0000); remove it", code="invalid_json", param="body")
    elif _count_quotes_of(body) == _count_quotes(document):
        return
    try:
        json.loads(body, object_pairs_hook=_unique)
    except ValueError as error:  # a number only this parser refuses
        raise BadRequest(f"the body is not valid JSON: {error}", code="invalid_json", param="body") from None


def _is_escaped(escape: re.Pattern[bytes], body: bytes) -> bool:
    return any(len(found[1]) % 2 for found in escape.finditer(body))


def _count_quotes_of(body: bytes) -> int:
    """`body.count(b'"')`, which looks at every byte; in a long body they are found, as long as they are few."""
    if len(body) < _LONG_BODY_BYTES:
        return body.count(b'"')
    at = -1
    for found in range(_FEW_QUOTES):
        at = body.find(b'"', at + 1)
        if at < 0:
            return found
    return _FEW_QUOTES + body.count(b'"', at + 1)


def _count_quotes(document: dict[str, Any]) -> int:
    """Quotes in `document` when encoded again; long prompts are counted where they are, not encoded."""
    messages = document.get("messages")
    if type(messages) is not list:
        return _encode(document).count(b'"')
    quotes = 0
    rest: list[Any] = []
    for message in messages:
        text = message.get("content") if type(message) is dict else None
        if type(text) is str and len(text) > _LONG_TEXT_CHARS:
            quotes += text.count('"') if '"' in text else 0
            rest.append({**message, "content": ""})
        else:
            rest.append(message)
    return quotes + _encode({**document, "messages": rest}).count(b'"')


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) == len(pairs):
        return members
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            shown = key[:100]
            raise BadRequest(
                f"the key {shown!r} appears twice in one object; send it once", code="duplicate_key", param=shown
            )
        seen.add(key)
    return members


def _too_deep() -> BadRequest:
    return BadRequest(
        f"the body is nested too deeply; at most {MAX_DEPTH} levels are accepted", code="invalid_json", param="body"
    )


def _not_utf8(body: bytes) -> BadRequest:
    where = ""
    try:
        body.decode()
    except UnicodeDecodeError as error:
        where = f" at byte {error.start}"
    return BadRequest(f"the body is not valid UTF-8{where}", code="invalid_json", param="body")


def _malformed(body: bytes, error: msgspec.DecodeError) -> BadRequest:
    """Says what and where, and never quotes the body: it may hold a prompt."""
    text = str(error)
    found = _POSITION.search(text)
    at = int(found[1]) if found else -1
    if not body.strip():
        what = "it is empty; send a JSON object"
    elif at >= 0 and body[at : at + 3] == b"NaN":
        what = f"NaN at byte {at} is not a JSON number"
    elif at >= 0 and body[at : at + 8] == b"Infinity":
        what = f"Infinity at byte {at} is not a JSON number"
    elif _is_escaped(_SURROGATE_ESCAPE, body):
        what = f"it holds an unpaired surrogate escape, or is cut short ({text})"
    else:
        what = text.removeprefix("JSON is malformed: ").partition(" - at ")[0]
    return BadRequest(f"the body is not valid JSON: {what}", code="invalid_json", param="body")
