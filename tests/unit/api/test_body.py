from __future__ import annotations

import asyncio
import gzip
import tracemalloc
import zlib
from collections.abc import Iterable
from typing import Any

import pytest

from router.api.body import ClientDisconnected, read_body
from router.errors import BadRequest, BodyTooLarge, BodyTooSlow

MIB = 1 << 20
HELLO = gzip.compress(b"hello", mtime=0)  # no time of day in the name of a test


class Wire:
    """What a server hands an app: chunks, then silence for ever, or a hang-up."""

    def __init__(self, *chunks: bytes, ends: bool = True, hangs_up: bool = False) -> None:
        last = len(chunks) - 1
        self.messages: list[dict[str, Any]] = [
            {"type": "http.request", "body": chunk, "more_body": not (ends and i == last)}
            for i, chunk in enumerate(chunks)
        ]
        if hangs_up:
            self.messages.append({"type": "http.disconnect"})
        self.reads = 0

    async def receive(self) -> dict[str, Any]:
        self.reads += 1
        if self.messages:
            return self.messages.pop(0)
        await asyncio.Event().wait()
        raise AssertionError("unreachable")


async def read(wire: Wire, max_bytes: int = 1000, timeout_s: float = 10.0, **headers: str) -> bytes:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return await read_body(wire.receive, named, max_bytes=max_bytes, timeout_s=timeout_s)


@pytest.mark.parametrize("chunks", [(b"",), (b"hello",), (b"hel", b"lo"), (b"", b"hel", b"", b"lo", b"")])
async def test_a_body_is_read_whole_however_it_arrives(chunks: Iterable[bytes]) -> None:
    assert await read(Wire(*chunks)) == b"".join(chunks)


async def test_a_message_without_members_is_an_empty_body() -> None:
    wire = Wire()
    wire.messages = [{"type": "http.request"}]
    assert await read(wire) == b""


async def test_a_body_of_exactly_the_limit_passes() -> None:
    assert await read(Wire(b"x" * 400, b"x" * 600), content_length="1000") == b"x" * 1000


async def test_an_announced_length_above_the_limit_is_refused_unread() -> None:
    wire = Wire(b"x" * 1001)
    with pytest.raises(BodyTooLarge, match="max_body_bytes"):
        await read(wire, content_length="1001")
    assert wire.reads == 0


async def test_an_unannounced_body_is_cut_off_at_the_limit() -> None:
    wire = Wire(*[b"x" * 300] * 100)
    with pytest.raises(BodyTooLarge):
        await read(wire)
    assert wire.reads == 4


@pytest.mark.parametrize("length", ["-1", "ten", "1e3", "", "٣", "9" * 5000])
async def test_a_length_that_is_no_number_is_refused(length: str) -> None:
    with pytest.raises(BadRequest, match="content-length"):
        await read(Wire(b"x"), content_length=length)


async def test_a_body_that_never_ends_is_given_up_in_time() -> None:
    with pytest.raises(BodyTooSlow, match="body_timeout_s"):
        await read(Wire(b"{", ends=False), timeout_s=0.01)


async def test_the_timeout_is_for_the_whole_body_not_for_each_piece() -> None:
    async def trickle() -> dict[str, Any]:
        await asyncio.sleep(0)
        return {"type": "http.request", "body": b"x", "more_body": True}

    with pytest.raises(BodyTooSlow):
        await read_body(trickle, {}, max_bytes=10**9, timeout_s=0.05)


async def test_a_timeout_of_the_server_itself_is_not_taken_for_ours() -> None:
    async def receive() -> dict[str, Any]:
        raise TimeoutError("theirs")

    with pytest.raises(TimeoutError, match="theirs"):
        await read_body(receive, {}, max_bytes=10, timeout_s=10)


async def test_a_caller_who_leaves_is_an_exception_of_its_own() -> None:
    with pytest.raises(ClientDisconnected):
        await read(Wire(b"{", ends=False, hangs_up=True))


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


@pytest.mark.parametrize(
    ("packed", "encoding"),
    [
        (HELLO, "gzip"),
        (HELLO, " GZIP "),
        (HELLO, "x-gzip"),
        (HELLO, "identity, gzip"),
        (zlib.compress(b"hello"), "deflate"),
        (raw_deflate(b"hello"), "deflate"),
        (b"hello", "identity"),
        (b"hello", ""),
    ],
)
async def test_packed_bodies_are_unpacked(packed: bytes, encoding: str) -> None:
    assert await read(Wire(packed), content_encoding=encoding) == b"hello"


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, gzip", "compress", "gzip;q=1"])
async def test_an_encoding_we_do_not_know_is_refused(encoding: str) -> None:
    with pytest.raises(BadRequest, match="content-encoding"):
        await read(Wire(b"hello"), content_encoding=encoding)


@pytest.mark.parametrize(
    "packed",
    [b"", b"hello", HELLO[:-4], HELLO + b"x", gzip.compress(b"a" * 99, mtime=0)[:-9]],
)
@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
async def test_a_damaged_packed_body_is_refused(packed: bytes, encoding: str) -> None:
    with pytest.raises(BadRequest):
        await read(Wire(packed), content_encoding=encoding)


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress, raw_deflate])
async def test_a_bomb_is_refused_and_never_unpacked(pack: Any) -> None:
    bomb = pack(bytes(64 * MIB))
    wire = Wire(bomb)
    encoding = "gzip" if pack is gzip.compress else "deflate"
    tracemalloc.start()
    try:
        with pytest.raises(BodyTooLarge):
            await read(wire, max_bytes=MIB, content_encoding=encoding)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * MIB


async def test_a_packed_body_may_unpack_to_exactly_the_limit() -> None:
    assert len(await read(Wire(gzip.compress(bytes(1000))), content_encoding="gzip")) == 1000
    with pytest.raises(BodyTooLarge):
        await read(Wire(gzip.compress(bytes(1001))), content_encoding="gzip")


async def test_a_caller_who_is_cancelled_while_the_body_comes_is_let_go() -> None:
    waiting = asyncio.Event()

    async def never() -> Any:
        waiting.set()
        await asyncio.Event().wait()

    reading = asyncio.create_task(read_body(never, {}, max_bytes=10, timeout_s=60))
    await waiting.wait()
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
