"""Ports for servers that take no 0: a number which nobody gets by chance between our choice and their listening."""

from __future__ import annotations

import random
import socket
from pathlib import Path

_BELOW = min(32_768, int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0]))
_dice = random.SystemRandom()


def free_port() -> int:
    """A free loopback port below those that the system gives to whoever asks for any."""
    while True:
        port = _dice.randrange(max(1_024, _BELOW - 16_000), _BELOW)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
