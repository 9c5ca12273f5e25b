"""Energy as it was measured, in real books; and hardware that belongs to one gateway."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal

import pytest
from sqlalchemy import select, text

from router.core.energy import Basis, CardLook, EnergyTerms, Stretch
from router.core.periods import GRACE_US, HOUR_US, AssetTerms, OnMode
from router.stores.claims import AssetInUse
from router.stores.engines import parse_url, read_engine, write_engine
from router.stores.periods import PeriodStore
from router.stores.reports import hours
from router.stores.rows import from_us
from router.stores.schema import asset_on
from tests.hours import GPU, H0, MINUTE_US, RENTED, Books

OWNED = AssetTerms(
    GPU,
    "owned",
    OnMode.ALWAYS,
    Decimal("1.6528"),
    Decimal(1),
    (("capital", Decimal("1.5475")), ("energy", Decimal("0.1053"))),
    "owned-1.6528",
    EnergyTerms(Decimal("0.9"), Decimal("0.117")),
)
BOOT = "b00f"


def stretch(from_min: int, to_min: int, kwh: str, card: str = "A", counter_mj: int = 0) -> Stretch:
    energy = int(Decimal(kwh) * 3_600_000_000)
    return Stretch(
        card, H0 + from_min * MINUTE_US, H0 + to_min * MINUTE_US, energy, Basis.COUNTER, counter_mj or energy, 1
    )


@pytest.fixture
def books(url: str) -> Iterator[Books]:
    kept = Books(url, terms=OWNED)
    yield kept
    kept.close()


def energy(books: Books) -> list[tuple[int, int, str]]:
    """(invoice, energy line, how it is known) of every period, open ones too."""
    found = hours(read_engine(books.url), from_us(books.now_us))
    assert all(sum(p.invoice_lines().values()) == p.invoice_nanousd for p in found.periods)
    return [(p.invoice_nanousd, p.invoice_lines()["energy"], p.energy.basis.value) for p in found.periods if p.energy]


def test_an_hour_is_invoiced_at_the_energy_that_was_measured_in_it(books: Books) -> None:
    books.store.note_energy(GPU, [stretch(0, 20, "0.1")], BOOT)
    books.store.note_energy(GPU, [stretch(0, 60, "0.4")], BOOT)  # it has grown
    books.store.note_energy(GPU, [stretch(0, 40, "0.2")], BOOT)  # an older word, arriving late
    books.advance(H0 + 2 * HOUR_US + GRACE_US)
    assert energy(books)[:2] == [
        (1_547_500_000 + 46_800_000, 46_800_000, "measured"),
        (1_652_800_000, 105_300_000, "modelled"),
    ]


def test_half_an_hour_without_a_reading_is_modelled_and_said_so(books: Books) -> None:
    books.store.note_energy(GPU, [stretch(0, 15, "0.1"), stretch(45, 60, "0.1")], BOOT)
    books.advance(H0 + HOUR_US + GRACE_US)
    half_modelled = 23_400_000 + 105_300_000 // 2
    assert energy(books)[0] == (1_547_500_000 + half_modelled, half_modelled, "partly_measured")


def test_what_the_counter_tells_of_a_night_without_a_gateway_is_spread_over_its_hours(books: Books) -> None:
    books.store.note_energy(GPU, [stretch(0, 30, "0.2", counter_mj=5_000)], BOOT)
    assert books.store.last_looks(GPU, BOOT) == [CardLook("A", H0 + 30 * MINUTE_US, 5_000, None)]
    assert books.store.last_looks(GPU, "another start") == []
    books.restart(after_us=3 * HOUR_US)
    books.store.note_energy(GPU, [stretch(30, 180, "1.0")], BOOT)
    books.advance(H0 + 3 * HOUR_US + GRACE_US)
    assert [line for _, line, _ in energy(books)[:3]] == [46_800_000, 46_800_000, 46_800_000]
    assert {basis for _, _, basis in energy(books)[:3]} == {"measured"}


def test_energy_told_after_the_hour_was_closed_changes_nothing_that_is_closed(books: Books) -> None:
    books.advance(H0 + HOUR_US + GRACE_US)
    before = books.hours()
    books.store.note_energy(GPU, [stretch(0, 90, "1.5")], BOOT)
    books.advance(H0 + 2 * HOUR_US + GRACE_US)
    assert books.hours()[:1] == before
    assert energy(books)[1] == (1_547_500_000 + 58_500_000 + 52_650_000, 111_150_000, "partly_measured")


def test_hardware_whose_rate_is_older_than_metering_is_metered_from_the_next_start_on(books: Books) -> None:
    with books.store.engine.begin() as connection:
        connection.execute(text("UPDATE asset_rate SET power_kw = NULL, wall_usd_per_kwh = NULL"))
    books.restart(after_us=30 * MINUTE_US)
    books.store.note_energy(GPU, [stretch(30, 60, "0.1")], BOOT)
    books.advance(H0 + HOUR_US + GRACE_US)
    assert [basis for _, _, basis in energy(books)] == ["measured", "modelled"]  # the second is the open hour
    assert len(books.hours()) == 2


# --- whose it is ---------------------------------------------------------------------------------------------------

EXTERNAL = replace(RENTED, shared_engine="gpu-host:8000/v1")


@pytest.fixture
def first(postgres_url: str) -> Iterator[Books]:
    kept = Books(postgres_url, home="first")
    yield kept
    kept.close()


@pytest.fixture
def store(postgres_url: str) -> Iterator[PeriodStore]:
    kept = PeriodStore(postgres_url)
    yield kept
    kept.close()


@pytest.mark.postgres
def test_a_second_gateway_with_hardware_of_the_same_name_is_refused_until_the_first_has_gone(
    first: Books, store: PeriodStore
) -> None:
    with pytest.raises(AssetInUse, match=r"'gpu0' is kept by another gateway.*hardware\.asset"):
        store.register([RENTED], "second", H0)
    store.register([replace(RENTED, asset="gpu1")], "second", H0)
    first.close()
    store.register([RENTED, replace(RENTED, asset="gpu1")], "second", H0)


@pytest.mark.postgres
def test_a_refused_gateway_has_changed_nothing(first: Books, store: PeriodStore) -> None:
    with pytest.raises(AssetInUse):
        store.register([replace(RENTED, usd_per_hour=Decimal(9), version="dear")], "second", H0)
    first.advance(H0 + HOUR_US + GRACE_US)
    assert first.hours() == [(0, 2_500_000_000, 0, 2_500_000_000)]


@pytest.mark.postgres
def test_gateways_that_use_one_external_engine_share_its_hours(postgres_url: str, store: PeriodStore) -> None:
    first = Books(postgres_url, terms=EXTERNAL, home="first")
    store.register([EXTERNAL], "second", H0)
    first.advance(H0 + HOUR_US + GRACE_US)
    assert store.advance(GPU, H0 + HOUR_US + GRACE_US) is False
    assert first.hours() == [(0, 2_500_000_000, 0, 2_500_000_000)]
    # the second one gives it up: the first goes on paying
    store.register([], "second", H0 + HOUR_US + 5 * MINUTE_US)
    with read_engine(postgres_url).connect() as connection:
        assert connection.scalars(select(asset_on.c.to_us)).all() == [None]
    first.close()


@pytest.mark.postgres
@pytest.mark.parametrize(
    ("other", "told"),
    [
        (replace(EXTERNAL, shared_engine="elsewhere:8000/v1"), "for the engine at gpu-host:8000/v1"),
        (replace(EXTERNAL, usd_per_hour=Decimal("4.00"), version="dear"), "at 2.50 USD an hour, here it costs 4.00"),
        (RENTED, "is kept by another gateway"),
    ],
)
def test_what_is_not_the_same_engine_at_the_same_price_is_not_shared(
    postgres_url: str, store: PeriodStore, other: AssetTerms, told: str
) -> None:
    first = Books(postgres_url, terms=EXTERNAL, home="first")
    with pytest.raises(AssetInUse, match=told):
        store.register([other], "second", H0)
    first.close()


@pytest.mark.postgres
def test_a_claim_that_was_cut_is_taken_anew_or_told_lost(first: Books, store: PeriodStore) -> None:
    admin = write_engine(parse_url(first.url))

    def cut() -> None:
        others = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        with admin.begin() as connection:
            connection.execute(text(f"SELECT pg_terminate_backend(pid) {others}"))

    cut()
    first.store.renew_claims()
    with pytest.raises(AssetInUse):
        store.register([RENTED], "second", H0)
    cut()
    store.register([RENTED], "second", H0)  # quicker than its owner
    with pytest.raises(AssetInUse):
        first.store.renew_claims()
    admin.dispose()
