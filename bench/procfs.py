"""What the kernel knows of a process tree: exact CPU time, proportional memory, open descriptors."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

PROC = Path("/proc")


def process_tree(root_pid: int) -> list[int]:
    """`root_pid` and all that descend from it, as of now."""
    children: dict[int, list[int]] = {}
    for entry in PROC.iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                # the command name may hold spaces and brackets: the fields start after its last bracket
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                children.setdefault(int(fields[1]), []).append(int(entry.name))
    found, waiting = [], [root_pid]
    while waiting:
        pid = waiting.pop()
        found.append(pid)
        waiting += children.get(pid, [])
    return found


def cpu_s(root_pid: int) -> float:
    """CPU seconds that all living threads of the tree have used, from the scheduler's own nanosecond count.

    0.0 where the kernel keeps no such count.
    """
    total_ns = 0
    for pid in process_tree(root_pid):
        with contextlib.suppress(OSError):
            for thread in (PROC / str(pid) / "task").iterdir():
                total_ns += int((thread / "schedstat").read_text().split()[0])
    return total_ns / 1e9


def pss_mb(root_pid: int) -> float:
    """Proportional set size of the tree in MB (10^6 bytes): pages shared by n processes count 1/n each."""
    total_kib = 0
    for pid in process_tree(root_pid):
        with contextlib.suppress(OSError):
            for line in (PROC / str(pid) / "smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total_kib += int(line.split()[1])
    return total_kib * 1024 / 1e6


def core_busy_s(core: int) -> float:
    """CPU seconds that anybody has used on `core` since boot (a coarse clock: ticks of 10 ms)."""
    for line in (PROC / "stat").read_text().splitlines():
        fields = line.split()
        if fields and fields[0] == f"cpu{core}":
            user, nice, system, _idle, _iowait, irq, softirq, steal = (int(value) for value in fields[1:9])
            return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    return 0.0
