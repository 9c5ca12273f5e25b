"""What the gateway asks of the allocator and the kernel. Linux and glibc; elsewhere every function does nothing."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterable, Iterator
from pathlib import Path

_SMAPS = Path("/proc/self/smaps")
_M_TRIM_THRESHOLD, _M_ARENA_MAX = -1, -8  # mallopt's numbers
_MADV_COLLAPSE = 25  # Linux 6.1
_HUGE_BYTES = 2 * 2**20
_WORTH_COLLAPSING = 0.75
"""Share of a range that is in memory already; what is not there would have to be made."""


def save_memory() -> None:
    """One arena for all threads (only one of them runs Python at a time), and what is freed goes back."""
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_ARENA_MAX, 1)
        libc.mallopt(_M_TRIM_THRESHOLD, 128 * 1024)


def give_memory_back() -> None:
    """What loading took and freed goes back to the system."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def use_huge_pages() -> None:
    """Put what lives now on huge pages: a request touches thousands of objects all over the heap.

    With pages of 4 KB each is an address to be looked up anew. Blocks for a tenth of a second; other threads go on.
    """
    with contextlib.suppress(OSError, AttributeError, LookupError, ValueError):
        madvise = ctypes.CDLL(None).madvise
        madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        for start, end in full_ranges(_SMAPS.read_text(encoding="utf-8", errors="replace").splitlines()):
            madvise(start, end - start, _MADV_COLLAPSE)  # what the kernel can not or will not do is left as it is


def full_ranges(smaps: Iterable[str]) -> Iterator[tuple[int, int]]:
    """The huge-page aligned ranges of private, writable memory without a file that are nearly all in use.

    `smaps` are the lines of /proc/PID/smaps.
    """
    start = end = 0
    ours = False
    for line in smaps:
        words = line.split()
        if not words[0].endswith(":"):
            low, high = (int(bound, 16) for bound in words[0].split("-"))
            ours = words[1].startswith("rw") and words[1].endswith("p") and (len(words) < 6 or words[5] == "[heap]")
            start, end = -(-low // _HUGE_BYTES) * _HUGE_BYTES, high // _HUGE_BYTES * _HUGE_BYTES
            size = high - low
        elif words[0] == "Rss:" and ours and start < end and int(words[1]) * 1024 >= _WORTH_COLLAPSING * size:
            yield start, end
