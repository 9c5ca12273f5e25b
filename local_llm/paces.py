"""How far the slowest stream is behind the pace promised to it, from the tokens that all of them have shown."""

from __future__ import annotations

from heapq import heappop, heappush
from typing import Protocol


class Stream(Protocol):
    """One that may have ended since."""

    @property
    def open(self) -> bool:
        """Whether it still runs."""
        ...


class Paces:
    """Streams by how much time they have had for what they showed. O(log n) once a stream, O(1) a token.

    `visible` streams show their tokens; `earned_s` is the promised time that a stream which was there from the start
    would have had for the tokens shown, as the engine gives every sequence a token a step. Whoever notes a token adds
    to it.
    """

    __slots__ = ("_starts", "_streams", "earned_s", "visible")

    def __init__(self) -> None:
        self.visible = 0
        self.earned_s = 0.0
        self._starts = 0
        self._streams: list[tuple[float, int, Stream]] = []

    def start(self, stream: Stream, now_s: float) -> None:
        """Its first token has come."""
        self._starts += 1
        heappush(self._streams, (now_s - self.earned_s, self._starts, stream))

    def lag_s(self, now_s: float) -> float | None:
        """Of the stream that is furthest behind; `None` where none shows its tokens."""
        streams = self._streams
        while streams and not streams[0][2].open:
            heappop(streams)
        if not streams or not self.visible:
            return None
        return (now_s - self.earned_s) - streams[0][0]

    def clear(self) -> None:
        """Nobody is there any more."""
        self._streams.clear()
        self.earned_s = 0.0
