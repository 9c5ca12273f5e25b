"""How likely an answer is to be judged by its users: by the tier that gave it and by how hard its prompt looked. Pure.

Who judges is not known, only how often it is done; and it is done more often where answers of one tier disappoint, or
where the stakes are high, which is rarely the same for easy prompts and hard ones. So the share is taken within fifths
of the complexity that the scorer saw, and drawn to that of the whole tier where a fifth holds few answers. What it
takes for granted: within a fifth of a tier, who judges does not depend on how good the answer was.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import sqrt

BINS = 5
SHRINKAGE_ROWS = 5.0
MIN_BIN_ROWS = 30
SURE = 3.0  # standard errors between two shares that are not the same
Cell = tuple[str, int]


@dataclass(frozen=True, slots=True)
class JudgedShare:
    """P(judged) by tier and bin of complexity.

    `edges` are the inner quintiles of complexity; requests without a score have a bin of their own.
    """

    edges: tuple[float, ...] = ()
    answered: Mapping[Cell, int] = field(default_factory=dict)
    judged: Mapping[Cell, int] = field(default_factory=dict)

    def bin_of(self, complexity_ratio: float | None) -> int:
        """0 (easiest) to `BINS` - 1; -1 without a score."""
        return -1 if complexity_ratio is None else bisect_right(self.edges, complexity_ratio)

    def of_tier(self, tier: str) -> float | None:
        """Share of all answers of `tier` that were judged; `None` where none was."""
        answered = sum(n for (name, _), n in self.answered.items() if name == tier)
        judged = sum(n for (name, _), n in self.judged.items() if name == tier)
        return min(1.0, judged / answered) if answered and judged else None

    def of(self, tier: str, complexity_ratio: float | None) -> float | None:
        """P(an answer of `tier` to such a prompt is judged); `None` where no answer of the tier was."""
        usual = self.of_tier(tier)
        if usual is None:
            return None
        cell = (tier, self.bin_of(complexity_ratio))
        judged = self.judged.get(cell, 0) + SHRINKAGE_ROWS * usual
        return min(1.0, judged / (self.answered.get(cell, 0) + SHRINKAGE_ROWS))

    def uneven(self) -> str | None:
        """What to tell people where prompts of one kind are judged clearly more often than others."""
        shares = []
        for b in range(BINS):
            answered = sum(n for (_, at), n in self.answered.items() if at == b)
            judged = min(answered, sum(n for (_, at), n in self.judged.items() if at == b))
            if answered >= MIN_BIN_ROWS:
                share = judged / answered
                shares.append((share, b, sqrt(max(share * (1.0 - share), 1.0 / answered) / answered)))
        if len(shares) < 2:
            return None
        (low, low_bin, low_error), (high, high_bin, high_error) = min(shares), max(shares)
        if high - low <= SURE * sqrt(low_error**2 + high_error**2):
            return None
        names = {0: "easiest", BINS - 1: "hardest"}
        return (
            f"users judge {low:.0%} of the answers to the {names.get(low_bin, f'{low_bin + 1}.')} fifth of the prompts "
            f"and {high:.0%} of the {names.get(high_bin, f'{high_bin + 1}.')} one"
        )


def judged_share(answered: Iterable[tuple[str, str, float | None]], judged: Iterable[tuple[str, str]]) -> JudgedShare:
    """From (request id, tier, complexity) of all answers, and (request id, tier) of those that were judged."""
    known = {request_id: (tier, complexity) for request_id, tier, complexity in answered}
    scored = sorted(complexity for _, complexity in known.values() if complexity is not None)
    edges = tuple(scored[len(scored) * k // BINS] for k in range(1, BINS)) if len(scored) >= BINS else ()
    empty = JudgedShare(edges)
    cells = {request_id: (tier, empty.bin_of(complexity)) for request_id, (tier, complexity) in known.items()}
    told = Counter(cells[request_id] for request_id, tier in set(judged) if cells.get(request_id, ("", 0))[0] == tier)
    return JudgedShare(edges, Counter(cells.values()), told)
