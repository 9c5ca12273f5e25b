"""A stream whose events are kept while they are relayed: only of requests that are looked at."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from router.core.request import TokenUsage
from router.learning_loop.answers import MAX_ANSWER_BYTES
from router.ports import StreamReply


class RecordedStream:
    """A `StreamReply` over another; `whole(blocks, output tokens)` is called once, if it comes to a good end.

    An answer that grows too long is kept no further, and nobody is called. One that had `ended` before it was relayed
    is handed over when it is closed: when it is out.
    """

    def __init__(
        self,
        inner: StreamReply,
        blocks: list[bytes],
        whole: Callable[[list[bytes], int | None], None],
        *,
        ended: bool = False,
    ) -> None:
        self._ended = ended
        self._inner = inner
        self._blocks: list[bytes] | None = blocks
        self._bytes = sum(map(len, blocks))
        self._whole = whole
        self.output_events = 0
        self.saw_output = False
        self.usage_event: Mapping[str, Any] | None = None
        self._follow()

    def _follow(self) -> None:
        inner = self._inner
        self.output_events, self.saw_output = inner.output_events, inner.saw_output
        self.usage_event = inner.usage_event

    @property
    def usage(self) -> TokenUsage | None:
        """What the upstream has told so far."""
        return self._inner.usage

    async def next_block(self) -> bytes | None:
        """The next events, noted; at the end the whole is handed over."""
        try:
            block = await self._inner.next_block()
        finally:
            self._follow()
        if block is None:
            self._finish()
        elif self._blocks is not None:
            self._bytes += len(block)
            if self._bytes > MAX_ANSWER_BYTES:
                self._blocks = None
            else:
                self._blocks.append(block)
        return block

    def _finish(self) -> None:
        blocks, self._blocks = self._blocks, None
        if blocks is not None:
            usage = self._inner.usage
            self._whole(blocks, usage.output_tokens if usage is not None else None)

    async def close(self) -> None:
        """Stop."""
        if self._ended:
            self._finish()
        self._blocks = None
        await self._inner.close()
