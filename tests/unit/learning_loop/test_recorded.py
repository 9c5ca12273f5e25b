"""A stream that is kept while it is relayed: handed over once, whole, and only after a good end."""

from __future__ import annotations

import asyncio

import pytest

from router.core.request import TokenUsage
from router.errors import UpstreamBroken
from router.learning_loop.answers import MAX_ANSWER_BYTES
from router.learning_loop.recorded import RecordedStream


class Blocks:
    """A `StreamReply` of given blocks; an exception among them is raised."""

    def __init__(self, *blocks: bytes | Exception) -> None:
        self.output_events = 0
        self.saw_output = False
        self.usage: TokenUsage | None = None
        self.usage_event = None
        self.closed = 0
        self._blocks = list(blocks)

    async def next_block(self) -> bytes | None:
        if not self._blocks:
            self.usage = TokenUsage(3, 2)
            return None
        block = self._blocks.pop(0)
        if isinstance(block, Exception):
            raise block
        self.output_events += 1
        self.saw_output = True
        return block

    async def close(self) -> None:
        self.closed += 1


def relayed(stream: RecordedStream) -> list[bytes]:
    async def run() -> list[bytes]:
        found = []
        try:
            while (block := await stream.next_block()) is not None:
                found.append(block)
        finally:
            await stream.close()
        return found

    return asyncio.run(run())


def test_what_is_relayed_is_kept_and_the_caller_sees_the_same_stream() -> None:
    whole: list[tuple[list[bytes], int | None]] = []
    inner = Blocks(b"b", b"c")
    stream = RecordedStream(inner, [b"a"], lambda *kept: whole.append(kept))
    assert relayed(stream) == [b"b", b"c"]
    assert whole == [([b"a", b"b", b"c"], 2)] and inner.closed == 1
    assert (stream.output_events, stream.saw_output, stream.usage) == (2, True, TokenUsage(3, 2))


def test_a_stream_that_breaks_or_is_left_is_handed_to_nobody() -> None:
    whole: list[object] = []
    stream = RecordedStream(Blocks(b"b", UpstreamBroken("cut")), [], lambda *kept: whole.append(kept))
    with pytest.raises(UpstreamBroken):
        relayed(stream)
    left = RecordedStream(Blocks(b"b", b"c"), [], lambda *kept: whole.append(kept))
    asyncio.run(left.next_block())
    asyncio.run(left.close())
    assert stream.output_events == 1 and whole == []


def test_an_answer_that_is_too_long_is_relayed_but_not_kept() -> None:
    whole: list[object] = []
    stream = RecordedStream(Blocks(b"x" * MAX_ANSWER_BYTES, b"y"), [b"a"], lambda *kept: whole.append(kept))
    assert len(relayed(stream)) == 2 and whole == []


def test_a_stream_that_had_ended_before_is_handed_over_when_it_is_out() -> None:
    whole: list[tuple[list[bytes], int | None]] = []
    stream = RecordedStream(Blocks(), [b"a"], lambda *kept: whole.append(kept), ended=True)
    assert whole == []
    asyncio.run(stream.close())
    asyncio.run(stream.close())
    assert whole == [([b"a"], None)]
