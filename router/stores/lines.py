"""Events as lines of a file: `CRC32 JSON`, so that a torn or damaged one is told apart from a good one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from zlib import crc32

import msgspec

from router.stores.events import Event

_encode = msgspec.json.Encoder(decimal_format="string").encode
_decoder: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Event)


def to_line(event: Event) -> bytes:
    """One event as a checked line."""
    body = _encode(event)
    return b"%08x %s\n" % (crc32(body), body)


def from_line(line: bytes) -> Event | None:
    """The event of a line, `None` when the line is torn, damaged or not ours."""
    head, _, body = line.rstrip(b"\n").partition(b" ")
    try:
        if not line.endswith(b"\n") or int(head, 16) != crc32(body):
            return None
        return _decoder.decode(body)
    except ValueError:  # msgspec's errors are ValueErrors too
        return None


def read(path: Path) -> Iterator[tuple[bytes, Event | None]]:
    """The lines of a file with their events, `None` for those torn or damaged; room never written to is no line."""
    with path.open("rb") as file:
        for line in file:
            if line.strip(b"\0"):
                yield line, from_line(line)
