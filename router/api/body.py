"""The body of a request, read within bounds of size and time, and unpacked within the same bound of size."""

from __future__ import annotations

import asyncio
import types
import zlib
from collections.abc import Coroutine, Generator, Mapping
from typing import Any

from starlette.types import Receive

from router.errors import BadRequest, BodyTooLarge, BodyTooSlow

_GZIP_WINDOW = 16 + zlib.MAX_WBITS


class ClientDisconnected(Exception):
    """The client left before its body was complete: there is nobody to answer."""


async def read_body(receive: Receive, headers: Mapping[str, str], *, max_bytes: int, timeout_s: float) -> bytes:
    """The whole body, unpacked if it came as gzip or deflate. `headers` have lower-case names.

    `max_bytes` bounds what is sent and what it unpacks to, `timeout_s` the time until its last byte. Raises
    `BodyTooLarge`, `BodyTooSlow`, `BadRequest` (unknown or broken encoding) and `ClientDisconnected`.
    """
    encoding = _announced(headers, max_bytes)
    reading = _receive_all(receive, max_bytes)
    try:
        waits_for = reading.send(None)
    except StopIteration as end:  # it had come with the headers, as most do: no clock was needed
        body: bytes = end.value
        return body if encoding is None else _unpack(body, encoding, max_bytes)
    timeout = asyncio.timeout(timeout_s)
    try:
        async with timeout:
            body = await _rest(reading, waits_for)
    except TimeoutError:
        if not timeout.expired():  # somebody else's, from within `receive`
            raise
        raise BodyTooSlow(
            f"the body did not arrive within {timeout_s:g} s (server.body_timeout_s); send it faster or shorten it"
        ) from None
    return body if encoding is None else _unpack(body, encoding, max_bytes)


def _announced(headers: Mapping[str, str], max_bytes: int) -> str | None:
    """The encoding to undo, `None` for a plain body. Refuses a body that says itself that it is too large."""
    length = headers.get("content-length")
    if length is not None:
        if not (length.isascii() and length.isdigit()) or len(length) > 20:
            raise BadRequest("content-length must be a number", param="content-length")
        if int(length) > max_bytes:
            raise _too_large(max_bytes)
    given = headers.get("content-encoding")
    if given is None:
        return None
    encodings = [part.strip().lower() for part in given.split(",")]
    encodings = [encoding for encoding in encodings if encoding not in ("", "identity")]
    if not encodings:
        return None
    if len(encodings) > 1 or encodings[0] not in ("gzip", "x-gzip", "deflate"):
        raise BadRequest(
            "content-encoding must be gzip, deflate or absent; send the body as plain JSON",
            code="unsupported_content_encoding",
            param="content-encoding",
        )
    return encodings[0]


@types.coroutine
def _rest(reading: Coroutine[Any, Any, bytes], waits_for: Any) -> Generator[Any, Any, bytes]:
    """What is left of a coroutine that has been started and now waits."""
    try:
        yield waits_for
    except BaseException as error:
        reading.throw(error)
        raise
    body: bytes = yield from reading
    return body


async def _receive_all(receive: Receive, max_bytes: int) -> bytes:
    body: bytes | bytearray = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnected
        chunk: bytes = message.get("body", b"")
        if len(body) + len(chunk) > max_bytes:
            raise _too_large(max_bytes)
        if not message.get("more_body", False):
            return bytes(body + chunk) if body else bytes(chunk)
        if not isinstance(body, bytearray):
            body = bytearray()
        body += chunk


def _unpack(body: bytes, encoding: str, max_bytes: int) -> bytes:
    if encoding != "deflate":
        return _inflate(body, _GZIP_WINDOW, max_bytes)
    # "deflate" means zlib's frame; some senders leave the frame out.
    framed = len(body) >= 2 and body[0] & 0x0F == 8 and int.from_bytes(body[:2], "big") % 31 == 0
    return _inflate(body, zlib.MAX_WBITS if framed else -zlib.MAX_WBITS, max_bytes)


def _inflate(body: bytes, window: int, max_bytes: int) -> bytes:
    """Never makes more than `max_bytes` + 1, whatever the input promises."""
    unpacker = zlib.decompressobj(window)
    try:
        plain = unpacker.decompress(body, max_bytes + 1)
    except zlib.error:
        raise _broken_packing("is damaged") from None
    if len(plain) > max_bytes:
        raise _too_large(max_bytes)
    if not unpacker.eof:
        raise _broken_packing("is cut short")
    if unpacker.unused_data:
        raise _broken_packing("is followed by other bytes")
    return plain


def _broken_packing(what: str) -> BadRequest:
    return BadRequest(f"the packed body {what}", code="invalid_content_encoding", param="content-encoding")


def _too_large(max_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(
        f"the body, as sent or unpacked, exceeds {max_bytes} bytes (server.max_body_bytes); send less", param="body"
    )
