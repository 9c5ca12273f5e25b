"""The hours of the local tier's hardware: what was invoiced, what its work absorbed, and what stayed unabsorbed. Pure.

A period is a UTC hour, cut where the asset's rate changed within it. Once closed it never changes: what comes late is
booked in the first open period and says which one it adjusts. Times are integer microseconds since 1970 UTC, amounts
integer nano-dollars, ranges half-open.

    invoice    = rate * on-time                   powered is what counts, not serving; measured energy at what it was
    absorbed   = sum of the standard costs booked in the period
    unabsorbed = invoice - absorbed               idle cost, or (below 0) over-absorption; never clipped (IAS 2.13)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Context, Decimal
from enum import StrEnum

from router.core.charges import apportion, largest_remainder
from router.core.energy import EnergyBasis, EnergyTerms, EnergyUse, Stretch, energy_use
from router.core.hardware import invoice_nanousd
from router.core.vocabulary import NANO_PER_USD, Outcome

HOUR_US = 3_600_000_000
GRACE_US = 120_000_000
"""How long after its end a period is closed: what is still on its way gets in."""

ENERGY_LINE = "energy"

_CONTEXT = Context(prec=40, rounding=ROUND_HALF_EVEN)


class OnMode(StrEnum):
    """When the hardware is paid for."""

    ALWAYS = "always"  # from the first start on, also while the gateway is down
    WHILE_ENGINE_RUNS = "while_engine_runs"  # while the engine is up, loading its model included


@dataclass(frozen=True, slots=True)
class AssetTerms:
    """What is paid for one asset. `cost_lines` are USD per hour by name and add up to `usd_per_hour`.

    `version` names the rate; it is part of the price version of every charge made at it. `energy` is set for hardware
    that is owned: its line is then invoiced at what was measured, as far as that was. `shared_engine` names an engine
    that several gateways may use, and pay for once; `None`: nobody else can be on this hardware.
    """

    asset: str
    kind: str  # rented | owned
    on: OnMode
    usd_per_hour: Decimal
    practical_capacity_ratio: Decimal
    cost_lines: tuple[tuple[str, Decimal], ...]
    version: str
    energy: EnergyTerms | None = None
    shared_engine: str | None = None


@dataclass(frozen=True, slots=True)
class Rate:
    """What an hour of the asset costs from `from_us` on, until the next rate."""

    from_us: int
    usd_per_hour: Decimal
    version: str
    cost_lines: tuple[tuple[str, Decimal], ...] = ()
    energy: EnergyTerms | None = None

    @property
    def without_energy(self) -> Decimal:
        """USD per hour of all lines but energy."""
        return self.usd_per_hour - sum((usd for name, usd in self.cost_lines if name == ENERGY_LINE), Decimal(0))


@dataclass(frozen=True, slots=True)
class OnInterval:
    """When the asset was on; `to_us` is `None` while it is on until further notice."""

    from_us: int
    to_us: int | None


@dataclass(frozen=True, slots=True)
class Span:
    """A period as the calendar and the rates cut it."""

    start_us: int
    end_us: int
    rate: Rate


@dataclass(frozen=True, slots=True)
class Period:
    """One period of one asset. While it is open, invoice and absorbed are what has come together so far.

    `energy` is set for hardware whose energy is a line of its own, and says how it is known.
    """

    asset: str
    start_us: int
    end_us: int
    on_us: int
    usd_per_hour: Decimal
    rate_version: str
    invoice_nanousd: int
    absorbed_nanousd: int
    work_gpu_ns: int = 0
    closed: bool = True
    cost_lines: tuple[tuple[str, Decimal], ...] = ()
    energy: EnergyUse | None = None

    @property
    def unabsorbed_nanousd(self) -> int:
        """Idle cost; below 0 it is the variance of an hour in which more was sold than the standard says it holds."""
        return self.invoice_nanousd - self.absorbed_nanousd

    @property
    def loading_factor(self) -> Decimal | None:
        """Invoice over absorbed: what a dollar of standard cost really cost; `None` where nothing was absorbed."""
        return loading_factor(self.invoice_nanousd, self.absorbed_nanousd)

    def invoice_lines(self) -> dict[str, int]:
        """The invoice by cost line, adding up to it exactly; energy at what it was, as far as it was measured."""
        lines, rest = self.cost_lines, self.invoice_nanousd
        measured = {}
        if self.energy is not None and self.energy.basis is not EnergyBasis.MODELLED:
            measured = {ENERGY_LINE: self.energy.nanousd}
            lines, rest = tuple(line for line in lines if line[0] != ENERGY_LINE), rest - self.energy.nanousd
        weights = [int(usd * NANO_PER_USD) for _, usd in lines]
        if sum(weights) == 0:
            return measured if measured and rest == 0 else {"rent": rest} | measured
        return dict(zip((name for name, _ in lines), apportion(rest, weights), strict=True)) | measured


@dataclass(frozen=True, slots=True)
class Posting:
    """A part of an attempt's charge as it stands in a period.

    `part` numbers the parts of one attempt from 0; `done_us` is when that work was finished; `adjusts_us` is the start
    of the closed period in which it was done, where it came too late for that.
    """

    request_id: str
    number: int
    part: int
    period_us: int
    adjusts_us: int | None
    done_us: int
    work_gpu_ns: int
    amount_nanousd: int


def hour_of(at_us: int) -> int:
    """Start of the UTC hour of a moment."""
    return at_us - at_us % HOUR_US


def span_at(rates: Sequence[Rate], at_us: int) -> Span:
    """The period of a moment. `rates` ascend and are not empty; the first one also holds before its start."""
    start, end = hour_of(at_us), hour_of(at_us) + HOUR_US
    rate = rates[0]
    for later in rates[1:]:
        if later.from_us <= at_us:
            rate = later
            start = max(start, later.from_us)
        else:
            end = min(end, later.from_us)
            break
    return Span(start, end, rate)


def spans(rates: Sequence[Rate], from_us: int, until_us: int) -> Iterator[Span]:
    """The periods from the one of `from_us` on that end at `until_us` or before."""
    at_us = from_us
    while (span := span_at(rates, at_us)).end_us <= until_us:
        yield span
        at_us = span.end_us


def on_us(intervals: Iterable[OnInterval], start_us: int, end_us: int) -> int:
    """Microseconds of [`start_us`, `end_us`) in which the asset was on; what overlaps counts once."""
    cut = sorted(
        (max(i.from_us, start_us), end_us if i.to_us is None else min(i.to_us, end_us))
        for i in intervals
        if i.from_us < end_us and (i.to_us is None or i.to_us > start_us)
    )
    total, reached = 0, start_us
    for begin, end in cut:
        total += max(0, end - max(begin, reached))
        reached = max(reached, end)
    return total


def settle_period(
    asset: str,
    span: Span,
    *,
    on_for_us: int,
    absorbed_nanousd: int,
    work_gpu_ns: int,
    closed: bool = True,
    until_us: int | None = None,
    stretches: Iterable[Stretch] = (),
) -> Period:
    """The period's account: its invoice for `on_for_us`, and what its work absorbed.

    `stretches` are what was measured of its energy, `until_us` is how far an open period has come.
    """
    invoice, energy = invoice_nanousd(span.rate.usd_per_hour, on_for_us * 1000), None
    if span.rate.energy is not None:
        end_us = span.end_us if until_us is None else min(until_us, span.end_us)
        energy = energy_use(stretches, span.rate.energy, start_us=span.start_us, end_us=end_us, on_for_us=on_for_us)
        if energy.basis is not EnergyBasis.MODELLED:
            invoice = invoice_nanousd(span.rate.without_energy, on_for_us * 1000) + energy.nanousd
    return Period(
        asset=asset,
        start_us=span.start_us,
        end_us=span.end_us,
        on_us=on_for_us,
        usd_per_hour=span.rate.usd_per_hour,
        rate_version=span.rate.version,
        invoice_nanousd=invoice,
        absorbed_nanousd=absorbed_nanousd,
        work_gpu_ns=work_gpu_ns,
        closed=closed,
        cost_lines=span.rate.cost_lines,
        energy=energy,
    )


def due(rates: Sequence[Rate], closed_until_us: int, now_us: int, grace_us: int = GRACE_US) -> Iterator[Span]:
    """The periods to be closed now, in order: those that ended `grace_us` ago or earlier."""
    return spans(rates, closed_until_us, now_us - grace_us)


def place(rates: Sequence[Rate], done_us: int, closed_until_us: int) -> tuple[int, int | None]:
    """(start of the period that work done at `done_us` is booked in, start of the closed one that it adjusts)."""
    span = span_at(rates, done_us)
    if span.end_us > closed_until_us:
        return span.start_us, None
    return span_at(rates, closed_until_us).start_us, span.start_us


def next_part(
    request_id: str,
    number: int,
    *,
    total_nanousd: int,
    total_gpu_ns: int,
    earlier: tuple[int, int, int],
    done_us: int,
    rates: Sequence[Rate],
    closed_until_us: int,
) -> Posting | None:
    """What is not booked yet of an attempt that has cost `total_nanousd` by `done_us`; `None` if nothing is.

    `earlier` is (parts, nano-dollars, GPU-nanoseconds) of the parts booked before. Since a part is the total less
    those, nothing is booked twice, however often it is told; a total that turns out lower is booked as a minus.
    """
    parts, booked_nanousd, booked_gpu_ns = earlier
    amount, work = total_nanousd - booked_nanousd, total_gpu_ns - booked_gpu_ns
    if parts and amount == 0 and work == 0:
        return None
    period_us, adjusts_us = place(rates, done_us, closed_until_us)
    return Posting(request_id, number, parts, period_us, adjusts_us, done_us, work, amount)


def status_of(outcome: Outcome) -> str:
    """How a charge came about: ok | aborted (by the caller or our own end) | failed | lost (the gateway died)."""
    if outcome is Outcome.OK:
        return "ok"
    if outcome in (Outcome.CLIENT_GONE, Outcome.SHUTDOWN):
        return "aborted"
    return "lost" if outcome is Outcome.LOST else "failed"


def loading_factor(invoice: int, absorbed: int) -> Decimal | None:
    """Invoice over absorbed, or `None` where nothing was absorbed."""
    return _CONTEXT.divide(Decimal(invoice), Decimal(absorbed)) if absorbed > 0 else None


def fully_loaded(invoice: int, amounts: Sequence[int]) -> list[int] | None:
    """`amounts` times the loading factor, adding up to `invoice` exactly (largest remainder).

    `None` where the amounts add up to nothing: an idle hour has nobody to be loaded on. For closed periods only.
    """
    absorbed = sum(amounts)
    if absorbed <= 0:
        return None
    return largest_remainder([divmod(invoice * amount, absorbed) for amount in amounts], invoice)
