"""Which memory is worth huge pages."""

from __future__ import annotations

import mmap
import os

from router.memory import full_ranges, use_huge_pages

MIB = 2**20


def area(start: int, size: int, rss: int, *, mode: str = "rw-p", name: str = "") -> list[str]:
    return [
        f"{start:x}-{start + size:x} {mode} 00000000 00:00 0 {name}".rstrip(),
        f"Size:           {size // 1024} kB",
        f"Rss:            {rss // 1024} kB",
        "VmFlags: rd wr mr mw me ac",
    ]


def test_full_heap_is_taken_in_whole_huge_pages_only() -> None:
    start = 0x55D3EF458000
    found = list(full_ranges(area(start, 9 * MIB, 9 * MIB, name="[heap]")))
    assert found == [(0x55D3EF600000, 0x55D3EFC00000)]
    assert all(bound % (2 * MIB) == 0 for bound in found[0])


def test_empty_stacks_files_and_small_areas_are_left_alone() -> None:
    smaps = [
        *area(16 * MIB, 8 * MIB, 64 * 1024),  # the stack of a thread: nearly nothing of it is there
        *area(32 * MIB, 8 * MIB, 8 * MIB, name="/usr/lib/libfull.so"),
        *area(48 * MIB, 8 * MIB, 8 * MIB, mode="r-xp"),
        *area(64 * MIB, 8 * MIB, 8 * MIB, mode="rw-s"),
        *area(81 * MIB, 2 * MIB, 2 * MIB),  # full, but no huge page fits between its bounds
    ]
    assert list(full_ranges(smaps)) == []


def test_memory_holds_what_it_held_before() -> None:
    size = 8 * MIB
    held = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    pattern = os.urandom(4096)
    for at in range(0, size, 4096):
        held[at : at + 4096] = pattern
    use_huge_pages()
    assert held[:] == pattern * (size // 4096)
