"""Token usage times a price row, exactly: integer nano-dollars to book, `Decimal` dollars to show.

Prices are USD per million tokens. A tier is a cliff: the number of input tokens, cached ones included, picks the one
tier whose prices apply to *all* tokens of the request. Prices are turned once per row into integers with a common
denominator, so a cost is a few integer products and no digit is ever lost on the way; the single rounding is half-even
to the nano-dollar, at the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Context, Decimal
from itertools import pairwise

from msgspec.structs import replace

from router.core.request import TokenUsage
from router.core.snapshot import PriceRow, PriceTier
from router.core.vocabulary import Flag

DAYS_PER_MONTH = 30
"""The month of every forecast."""

_EXACT = Context(prec=60)
_TABLES_KEPT = 1024

# (from_input_tokens, input, cached, cache write, output), in nano-dollars per token times the row's denominator
_Rates = tuple[int, int, int, int, int]
_Table = tuple[int, int, tuple[_Rates, ...]]

# A memo, not a state: the entry holds the row itself, so its id cannot be taken over by another one.
_tables: dict[int, tuple[PriceRow, _Table]] = {}


@dataclass(frozen=True, slots=True)
class CostParts:
    """What each kind of token costs, in exact USD. The parts add up to `total_usd`."""

    input_usd: Decimal
    cached_input_usd: Decimal
    cache_write_usd: Decimal
    output_usd: Decimal
    request_usd: Decimal

    @property
    def total_usd(self) -> Decimal:
        """All parts together."""
        return self.input_usd + self.cached_input_usd + self.cache_write_usd + self.output_usd + self.request_usd


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a request of `per_request_usd`, made `requests_per_day` times a day, costs in USD.

    `requests_per_day` is all calls: users times calls per user, if that is how you count.
    """

    per_request_usd: Decimal
    requests_per_day: Decimal = Decimal(1)

    @property
    def per_day_usd(self) -> Decimal:
        """`requests_per_day` calls."""
        return self.per_request_usd * self.requests_per_day

    @property
    def per_month_usd(self) -> Decimal:
        """`DAYS_PER_MONTH` such days."""
        return self.per_day_usd * DAYS_PER_MONTH


def cost_nanousd(row: PriceRow, usage: TokenUsage) -> int:
    """What `usage` costs at `row`, in nano-dollars, rounded half-even once.

    Cached tokens cost the cached price, written ones the cache-write price, either the input price where the row has
    none. Impossible counts are clamped as by `sane_usage`.
    """
    denominator, fee, tiers = _table(row)
    input_tokens, cached, written, output = (
        usage.input_tokens,
        usage.cached_input_tokens,
        usage.cache_write_tokens,
        usage.output_tokens,
    )
    if input_tokens < 0 or output < 0 or cached < 0 or written < 0 or cached + written > input_tokens:
        input_tokens, cached, written, output = _clamped(input_tokens, cached, written, output)
    scaled = fee + _scaled(tiers, input_tokens, cached, written, output)
    return scaled if denominator == 1 else divide_half_even(scaled, denominator)


def estimate_nanousd(row: PriceRow, input_tokens: int, output_tokens: int, cached: int = 0) -> int:
    """`estimate_usd` in nano-dollars, rounded half-even: the form in which money is reserved."""
    denominator, fee, tiers = _table(row)
    if input_tokens < 0 or output_tokens < 0 or not 0 <= cached <= input_tokens:
        input_tokens, cached, _, output_tokens = _clamped(input_tokens, cached, 0, output_tokens)
    scaled = fee + _scaled(tiers, input_tokens, cached, 0, output_tokens)
    return scaled if denominator == 1 else divide_half_even(scaled, denominator)


def estimate_usd(row: PriceRow, input_tokens: int, output_tokens: int, cached: int = 0) -> Decimal:
    """Exact dollars of a call not made yet; `cached` of the input tokens are expected to be read from a cache."""
    denominator, fee, tiers = _table(row)
    if input_tokens < 0 or output_tokens < 0 or not 0 <= cached <= input_tokens:
        input_tokens, cached, _, output_tokens = _clamped(input_tokens, cached, 0, output_tokens)
    # denominators are powers of ten, so this shift is exact
    digits = len(str(denominator)) - 1
    scaled = fee + _scaled(tiers, input_tokens, cached, 0, output_tokens)
    return Decimal(scaled).scaleb(-9 - digits, _EXACT)


def cost_parts(row: PriceRow, usage: TokenUsage) -> CostParts:
    """The exact cost of `usage`, kind by kind; for people, not for the hot path."""
    usage = sane_usage(usage)
    tier = tier_for(row, usage.input_tokens)
    cached_price = tier.input_usd_per_mtok if tier.cached_input_usd_per_mtok is None else tier.cached_input_usd_per_mtok
    write_price = tier.input_usd_per_mtok if tier.cache_write_usd_per_mtok is None else tier.cache_write_usd_per_mtok
    plain = usage.input_tokens - usage.cached_input_tokens - usage.cache_write_tokens
    return CostParts(
        input_usd=_usd(tier.input_usd_per_mtok, plain),
        cached_input_usd=_usd(cached_price, usage.cached_input_tokens),
        cache_write_usd=_usd(write_price, usage.cache_write_tokens),
        output_usd=_usd(tier.output_usd_per_mtok, usage.output_tokens),
        request_usd=row.request_usd,
    )


def tier_for(row: PriceRow, input_tokens: int) -> PriceTier:
    """The tier in force at `input_tokens` (cached ones included)."""
    for tier in reversed(row.tiers):
        if input_tokens >= tier.from_input_tokens:
            return tier
    return row.tiers[0]


def sane_usage(usage: TokenUsage) -> TokenUsage:
    """`usage` itself, or a clamped copy flagged USAGE_INCONSISTENT.

    No count below 0; no more cached and written tokens than there are input tokens (cached ones win, being the cheaper
    claim that hosts do report); no more reasoning tokens than output tokens.
    """
    if (
        0 <= usage.reasoning_tokens <= usage.output_tokens
        and usage.cached_input_tokens >= 0
        and 0 <= usage.cache_write_tokens <= usage.input_tokens - usage.cached_input_tokens
    ):
        return usage
    input_tokens, cached, written, output = _clamped(
        usage.input_tokens, usage.cached_input_tokens, usage.cache_write_tokens, usage.output_tokens
    )
    flagged = Flag.USAGE_INCONSISTENT in usage.flags
    return replace(
        usage,
        input_tokens=input_tokens,
        cached_input_tokens=cached,
        cache_write_tokens=written,
        output_tokens=output,
        reasoning_tokens=min(max(0, usage.reasoning_tokens), output),
        flags=usage.flags if flagged else (*usage.flags, Flag.USAGE_INCONSISTENT),
    )


def divide_half_even(numerator: int, denominator: int) -> int:
    """`numerator / denominator` rounded half-even; `denominator` > 0."""
    quotient, rest = divmod(numerator, denominator)
    twice = rest * 2
    if twice > denominator or (twice == denominator and quotient & 1):
        quotient += 1
    return quotient


def _clamped(input_tokens: int, cached: int, written: int, output: int) -> tuple[int, int, int, int]:
    input_tokens = max(0, input_tokens)
    cached = min(max(0, cached), input_tokens)
    written = min(max(0, written), input_tokens - cached)
    return input_tokens, cached, written, max(0, output)


def _scaled(tiers: tuple[_Rates, ...], input_tokens: int, cached: int, written: int, output: int) -> int:
    rates = tiers[0]
    for further in tiers[1:]:
        if input_tokens < further[0]:
            break
        rates = further
    _, input_rate, cached_rate, write_rate, output_rate = rates
    total = (input_tokens - cached - written) * input_rate + output * output_rate
    if cached:
        total += cached * cached_rate
    if written:
        total += written * write_rate
    return total


def _usd(usd_per_mtok: Decimal, tokens: int) -> Decimal:
    return _EXACT.multiply(usd_per_mtok, Decimal(tokens)).scaleb(-6, _EXACT)


def _table(row: PriceRow) -> _Table:
    entry = _tables.get(id(row))
    if entry is not None and entry[0] is row:
        return entry[1]
    table = _build_table(row)
    if len(_tables) >= _TABLES_KEPT:
        _tables.clear()
    _tables[id(row)] = (row, table)
    return table


def _build_table(row: PriceRow) -> _Table:
    if not row.tiers or row.tiers[0].from_input_tokens != 0:
        raise ValueError(f"price row {row.version}: the first tier must start at 0 input tokens")
    starts = [tier.from_input_tokens for tier in row.tiers]
    if any(later <= earlier for earlier, later in pairwise(starts)):
        raise ValueError(f"price row {row.version}: tiers must ascend, got starts {starts}")
    fee = row.request_usd.scaleb(9, _EXACT)
    prices = [_nano_per_token(tier) for tier in row.tiers]
    digits = max(0, *(-_exponent(value) for values in [(fee,), *prices] for value in values))

    def scaled(value: Decimal) -> int:
        return int(value.scaleb(digits, _EXACT))

    rates = tuple(
        (start, scaled(plain), scaled(cached), scaled(write), scaled(output))
        for start, (plain, cached, write, output) in zip(starts, prices, strict=True)
    )
    return 10**digits, scaled(fee), rates


def _nano_per_token(tier: PriceTier) -> tuple[Decimal, Decimal, Decimal, Decimal]:
    plain = tier.input_usd_per_mtok
    cached = plain if tier.cached_input_usd_per_mtok is None else tier.cached_input_usd_per_mtok
    write = plain if tier.cache_write_usd_per_mtok is None else tier.cache_write_usd_per_mtok
    # USD per million tokens is a thousand nano-dollars per token
    return (
        plain.scaleb(3, _EXACT),
        cached.scaleb(3, _EXACT),
        write.scaleb(3, _EXACT),
        tier.output_usd_per_mtok.scaleb(3, _EXACT),
    )


def _exponent(value: Decimal) -> int:
    exponent = value.as_tuple().exponent
    if not isinstance(exponent, int) or value < 0:
        raise ValueError(f"a price must be a finite number of USD, not negative: {value}")
    return exponent
