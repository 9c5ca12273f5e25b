"""An engine that is not ours alone: others who send to it past the gateway, and several gateways that share it.

Neither is known to a gateway but from the engine's own gauges, a scrape a second, as with a real one.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from decimal import Decimal

from router.simulation.policies import Gauges, Policy, Running, Untracked
from router.simulation.runner import Run
from router.simulation.traces import TraceRequest


def others_of(trace: Sequence[TraceRequest], ratio: float, seed: int) -> frozenset[int]:
    """Places in `trace` of the requests that are others'."""
    dice = random.Random(3_000 + seed)
    return frozenset(place for place in range(len(trace)) if dice.random() < ratio)


class Company:
    """Implements `Policy`: `gateways` take turns, and a request of the others is in the engine without being asked for.

    `others_ratio` is the share of the requests that are others', thrown by `seed`.
    """

    def __init__(
        self, gateways: Sequence[Policy], trace: Sequence[TraceRequest], others_ratio: float, seed: int
    ) -> None:
        self.others = others_of(trace, others_ratio, seed)
        self.watches_tokens = any(gateway.watches_tokens for gateway in gateways)
        self._gateways = gateways
        self._place: Mapping[int, int] = {id(request): place for place, request in enumerate(trace)}

    def admit(self, request: TraceRequest, now_s: float) -> Running | None:
        """By the gateway whose turn it is."""
        place = self._place[id(request)]
        return Untracked() if place in self.others else self._of(place).admit(request, now_s)

    def scraped(self, gauges: Gauges, now_s: float) -> None:
        """Every gateway looks for itself."""
        for gateway in self._gateways:
            gateway.scraped(gauges, now_s)

    def answered_elsewhere(self, request: TraceRequest) -> None:
        """Seen by the gateway that sent it there."""
        self._of(self._place[id(request)]).answered_elsewhere(request)

    def _of(self, place: int) -> Policy:
        return self._gateways[place % len(self._gateways)]

    def ours(self, played: Run, costs_usd: Sequence[Decimal]) -> tuple[Run, list[Decimal]]:
        """What came of the requests that are not others', and what each of those would cost at the API."""
        kept = [place for place in range(len(played.stays)) if place not in self.others]
        return replace(played, stays=[played.stays[place] for place in kept]), [costs_usd[place] for place in kept]
