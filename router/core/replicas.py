"""Which of several engines that would serve a request equally well? Pure, and the same at every look.

Replicas of a model cost the same until one of them is nearly full, so cost alone would send everything to the first of
them. Without a session the one with most room gets the request. A session stays where its conversation has been read
already, as long as that engine is not much fuller than the emptiest: rendezvous hashing gives every session an order
of the engines (Thaler and Ravishankar 1998) that does not change for the others when one goes away, and the bound on
the difference keeps one busy engine from holding back what another could answer at once (Mirrokni et al. 2018).
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

STAY_WITHIN_U = 0.25
"""How much tighter its own engine may be for a session to stay: a quarter of what is promised."""
NEAR_RATIO = 0.1
"""Engines whose marginal costs differ by less count as equal: the work of a request is not known better than that."""


def choose_engine(engines: Sequence[tuple[str, float]], session: str | None) -> str:
    """The name of one of `engines` (name, tightness), at least one, for a request of `session`."""
    least_u, emptiest = min((u, name) for name, u in engines)
    if session is None:
        return emptiest
    near = [name for name, u in engines if u <= least_u + STAY_WITHIN_U]
    return max(near, key=lambda name: (_weight(session, name), name))


def _weight(session: str, engine: str) -> bytes:
    return blake2b(f"{len(session)}:{session}{engine}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
