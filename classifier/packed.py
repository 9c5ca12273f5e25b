"""Many dot products of the same numbers at once, in one integer with a lane for each. Pure.

A count (how many commas, whether there is an image) takes few values, and what it adds to all dot products is looked
up as one packed integer: its logarithm, scaling and clipping are paid for once per value, not per request. Other
numbers multiply a packed column of weights. Sums are exact in any order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from operator import getitem, mul, sub
from struct import Struct

from classifier.serving import ServingModel
from classifier.textstats import COUNT_NAMES, COUNT_PLACES, VALUE_PLACES, counted

Terms = Callable[[int, float], Sequence[float]]

# Fixed point: a lane has 112 bits, 92 of them below the point. The 6 bytes that are never read keep the rounding of
# products (a factor of 46 such bits each) far below 1e-12.
_LANE_BYTES = 14
_UNREAD_BYTES = 6
FACTOR_ONE = 1 << 46
_ONE = FACTOR_ONE * FACTOR_ONE
_BIAS = 1 << (8 * _LANE_BYTES - 1)
_READ_BIAS = _BIAS >> (8 * _UNREAD_BYTES)
_READ_UNIT = 2.0 ** (8 * _UNREAD_BYTES) / _ONE
_MOST = _BIAS / _ONE / 4
_REMEMBERED = 256  # values of one count whose rows are kept; what is not is computed


class OutOfRange(ValueError):
    """Weights so large that their sums would not fit a lane."""


class RowsByCount(dict[int, int]):
    """The packed row of each value a count has had, made when it is first asked for."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[[int], int]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, count: int) -> int:
        row = self._make(count)
        if len(self) < _REMEMBERED:
            self[count] = row
        return row


class Scaling:
    """Standardised and clipped numbers, so that no single one can run away."""

    def __init__(self, model: ServingModel) -> None:
        self.limits = self._low, self._high = -model.clip, model.clip
        self._mean, self._inverse = model.mean, tuple(1.0 / s for s in model.scale)
        self._value_means = [self._mean[d] for d in VALUE_PLACES]
        self._value_inverses = [self._inverse[d] for d in VALUE_PLACES]

    def values(self, values: Sequence[float]) -> list[float]:
        """The numbers of `VALUE_NAMES`."""
        low, high = self._low, self._high
        return [
            low if z < low else (high if z > high else z)  # noqa: FURB136 - min() costs three times as much here
            for z in map(mul, map(sub, values, self._value_means), self._value_inverses)
        ]

    def count(self, at: int, count: int) -> float:
        """The number of `COUNT_NAMES[at]`."""
        d = COUNT_PLACES[at]
        z = (counted(COUNT_NAMES[at], count) - self._mean[d]) * self._inverse[d]
        return min(max(z, self._low), self._high)


class Sums:
    """Sums, one per lane: `constants`, over counts `terms(place among all numbers, scaled number)`, and over any other
    factors the factor times its weights (`columns`, a row of weights by factor). Lanes beyond a row's get nothing.

    Raises `OutOfRange`.
    """

    def __init__(
        self, scaling: Scaling, terms: Terms, columns: Sequence[Sequence[float]], constants: Sequence[float]
    ) -> None:
        _check_range(scaling.limits, terms, columns, constants)
        at_zero = [terms(d, scaling.count(at, 0)) for at, d in enumerate(COUNT_PLACES)]
        lane_count = len(constants)
        self._bytes = _LANE_BYTES * lane_count
        self._unpack = Struct("<" + f"{_UNREAD_BYTES}xQ" * lane_count).unpack
        # A prompt lacks most of what is counted: what 0 adds is in the base, and skipped later.
        self._base = sum(map(_pack, at_zero)) + _pack(constants) + _pack([_BIAS / _ONE] * lane_count)
        self._rows = [self._rows_of(scaling, terms, at, zero) for at, zero in enumerate(at_zero)]
        self._columns = [_pack(column, FACTOR_ONE) for column in columns]

    def _rows_of(self, scaling: Scaling, terms: Terms, at: int, zero: Sequence[float]) -> RowsByCount:
        base, place = _pack(zero), COUNT_PLACES[at]
        return RowsByCount(lambda count: _pack(terms(place, scaling.count(at, count))) - base)

    def of(self, counts: Sequence[int], factors: Iterable[int]) -> list[float]:
        """One sum per lane; `factors` are scaled numbers in units of 1 / `FACTOR_ONE`."""
        total = sum(filter(None, map(getitem, self._rows, counts)), self._base)
        total = sum(map(mul, factors, self._columns), total)
        return [(lane - _READ_BIAS) * _READ_UNIT for lane in self._unpack(total.to_bytes(self._bytes, "little"))]


def _pack(lanes: Sequence[float], one: int = _ONE) -> int:
    return sum(round(value * one) << (8 * _LANE_BYTES * i) for i, value in enumerate(lanes))


def _check_range(
    limits: Sequence[float], terms: Terms, columns: Sequence[Sequence[float]], constants: Sequence[float]
) -> None:
    """Even with every number at the limit where it adds most, a sum must fit its lane."""
    at_limits = [[terms(d, z) for z in limits] for d in COUNT_PLACES]
    for lane, constant in enumerate(constants):
        counted_ = sum(max(abs(row[lane]) for row in rows) for rows in at_limits)
        most = abs(constant) + counted_ + sum(abs(c[lane]) for c in columns if lane < len(c)) * max(limits)
        if not most < _MOST:  # NaN too
            raise OutOfRange(f"weights add up to {most:.3g}; below {_MOST:.3g} they can be served")
