"""The reports on the books of a morning: two hours of a rented card, an API beside it, one failure."""

from __future__ import annotations

import asyncio
import csv
import io
import json
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.cli import main
from router.commands import break_even_traffic, focus, hours, savings
from router.commands.output import Format, write_rows
from router.commands.ranges import Range
from router.core.attempts import AttemptRecord, Charge
from router.core.periods import HOUR_US, AssetTerms, OnMode, Rate, Span, settle_period
from router.core.replay import world_bytes
from router.core.request import TokenUsage
from router.core.snapshot import Snapshot
from router.core.vocabulary import Outcome, Tier
from router.stores.periods import PeriodStore
from router.stores.reports import ApiHour, Hours, PostedGroup
from router.stores.rows import to_us
from router.stores.sql import SqlLedger
from tests.fakes import price
from tests.focus_rules import violations
from tests.ledger_samples import CANDIDATES, NOON, WallClock, settled, tried

GPU = "gpu0"
NINE = NOON.replace(hour=9, minute=0, second=0, microsecond=0)
TERMS = AssetTerms(
    GPU, "rented", OnMode.ALWAYS, Decimal("2.50"), Decimal(1), (("rent", Decimal("2.50")),), "rented-2.50"
)
PRICES = {"cheap/luna": price("gpt-6-luna", "0.10", "0.50"), "premium/sol": price("gpt-6.1-sol", "2", "10")}
WORLD = world_bytes(tuple(CANDIDATES.values()), Snapshot(0.0, NINE, PRICES, (), {}, {}, {}))
USAGE = TokenUsage(1000, 300)
BIG_NANOUSD, CHEAP_NANOUSD, LOCAL_NANOUSD = 5_000_000, 250_000, 63_889


def record(request_id: str, *attempts: AttemptRecord, minute: int, tenant: str = "acme") -> Any:
    at = NINE + timedelta(minutes=minute)
    timed = tuple(replace(a, number=n, started_at_utc=at, usage=USAGE) for n, a in enumerate(attempts, 1))
    return settled(request_id, *timed, at_utc=at, tenant=tenant, world=WORLD)


def local(outcome: Outcome = Outcome.OK) -> AttemptRecord:
    charge = Charge(LOCAL_NANOUSD, "rented-2.50/h100", 92_000_000, (), GPU)
    return replace(tried(tier=Tier.LOCAL, outcome=outcome), charge=charge)


def cheap() -> AttemptRecord:
    return tried(tier=Tier.CHEAP, amount_nanousd=CHEAP_NANOUSD)


async def keep_books(url: str, data_dir: Path) -> None:
    ledger = await SqlLedger.open(url, data_dir, clock=WallClock(NINE))
    store = PeriodStore(url)
    store.register([TERMS], "here", to_us(NINE))
    ledger.settle(record("a", local(), minute=5), hold_open=False)
    ledger.settle(record("b", local(), minute=10, tenant="globex"), hold_open=False)
    ledger.settle(record("c", local(Outcome.BROKEN), cheap(), minute=65), hold_open=False)
    ledger.settle(record("d", cheap(), minute=130), hold_open=False)
    await ledger.close()
    while store.advance(GPU, to_us(NINE + timedelta(hours=2, minutes=2))):
        pass
    store.close()


@pytest.fixture
def config(tmp_path: Path) -> Path:
    url = f"sqlite:///{tmp_path}/ledger.db"
    asyncio.run(keep_books(url, tmp_path))
    file = tmp_path / "router.yaml"
    file.write_text(
        f"server: {{database_url: '{url}'}}\ntiers: {{local: {{engine: external, api_base: 'http://127.0.0.1:1/v1', "
        "model: llama-3.1-8b, coefficients: h100-8b-fp16, practical_capacity_ratio: 0.85, "
        "hardware: {kind: rented, usd_per_hour: 2.50}}}\n"
    )
    return file


def shown(capsys: pytest.CaptureFixture[str], config: Path, *arguments: str) -> str:
    with pytest.raises(SystemExit) as left:
        main(["report", *arguments, "--config", str(config)])
    assert not left.value.code
    return capsys.readouterr().out


NOW = NINE + timedelta(hours=2, minutes=30)


def test_every_hour_balances_and_the_open_one_is_told_as_open(capsys: pytest.CaptureFixture[str], config: Path) -> None:
    hours.run(config, Format.JSON, Range(), now_utc=NOW)
    found = json.loads(capsys.readouterr().out)
    rows = found["rows"]
    assert [(row["state"], row["invoice_nanousd"], row["absorbed_nanousd"]) for row in rows] == [
        ("closed", 2_500_000_000, 2 * LOCAL_NANOUSD),
        ("closed", 2_500_000_000, LOCAL_NANOUSD),
        ("open", 1_250_000_000, 0),
    ]
    assert all(row["absorbed_nanousd"] + row["unabsorbed_nanousd"] == row["invoice_nanousd"] for row in rows)
    assert rows[0]["start"] == "2026-11-23T09:00:00Z"
    assert rows[0]["invoice_lines_nanousd"] == {"rent": 2_500_000_000}
    assert rows[0]["loading_factor"] == pytest.approx(2_500_000_000 / (2 * LOCAL_NANOUSD))
    assert rows[2]["loading_factor"] is None


def test_the_fully_loaded_costs_of_tenants_add_up_to_the_invoices(
    capsys: pytest.CaptureFixture[str], config: Path
) -> None:
    hours.run(config, Format.JSON, Range(), now_utc=NOW)
    loaded = json.loads(capsys.readouterr().out)["fully_loaded"]
    assert [(row["tenant"], row["fully_loaded_nanousd"]) for row in loaded] == [
        ("acme", 1_250_000_000 + 2_500_000_000),
        ("globex", 1_250_000_000),
    ]


def judged(name: str, *attempts: AttemptRecord, minute: int) -> Any:
    return replace(record(name, *attempts, minute=minute), requested_model="overhead:judge")


def test_what_the_learner_spends_is_a_step_of_its_own(capsys: pytest.CaptureFixture[str], config: Path) -> None:
    url = f"sqlite:///{config.parent}/ledger.db"
    savings.run(config, Format.JSON, Range(), now_utc=NOW)
    before = json.loads(capsys.readouterr().out)

    async def judge() -> None:
        ledger = await SqlLedger.open(url, config.parent, clock=WallClock(NINE))
        ledger.settle(judged("j1", cheap(), minute=131), hold_open=False)
        ledger.settle(judged("j2", local(), minute=132), hold_open=False)
        await ledger.close()

    asyncio.run(judge())
    store = PeriodStore(url)
    store.advance(GPU, to_us(NOW))
    store.close()
    savings.run(config, Format.JSON, Range(), now_utc=NOW)
    after = json.loads(capsys.readouterr().out)
    spent = CHEAP_NANOUSD + LOCAL_NANOUSD
    assert after["steps_nanousd"]["classifier_overhead"] == -spent
    assert (after["requests"], after["always_premium_nanousd"]) == (
        before["requests"],
        before["always_premium_nanousd"],
    )
    # the local run absorbs a part of an hour that is paid for anyway: the cash alone is more
    assert after["spent_nanousd"] == before["spent_nanousd"] + CHEAP_NANOUSD
    assert after["steps_nanousd"]["idle_gpu"] == before["steps_nanousd"]["idle_gpu"] + LOCAL_NANOUSD


def test_days_sum_their_hours(capsys: pytest.CaptureFixture[str], config: Path) -> None:
    hours.run(config, Format.CSV, Range(), by="day", now_utc=NOW)
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert (row["state"], row["invoice_nanousd"], row["requests"]) == ("open", "6250000000", "3")


def test_an_hour_of_nothing_is_loaded_on_nobody(capsys: pytest.CaptureFixture[str], config: Path) -> None:
    url = f"sqlite:///{config.parent}/ledger.db"
    store = PeriodStore(url)
    store.advance(GPU, to_us(NINE + timedelta(hours=4)))
    store.close()
    hours.run(config, Format.JSON, Range(), now_utc=NINE + timedelta(hours=3))
    found = json.loads(capsys.readouterr().out)
    assert {"tenant": None, "model": None, "standard_nanousd": 0, "fully_loaded_nanousd": 2_500_000_000} in found[
        "fully_loaded"
    ]
    loaded = sum(row["fully_loaded_nanousd"] for row in found["fully_loaded"])
    assert loaded == found["totals"]["invoice_nanousd"]


def test_the_savings_sum_to_the_nano_dollar(capsys: pytest.CaptureFixture[str], config: Path) -> None:
    savings.run(config, Format.JSON, Range(), now_utc=NOW)
    found = json.loads(capsys.readouterr().out)
    invoice = 6_250_000_000
    assert found["always_premium_nanousd"] == 4 * BIG_NANOUSD
    assert found["steps_nanousd"] == {
        "routing": 2 * (BIG_NANOUSD - CHEAP_NANOUSD),
        "local_tier": 2 * (BIG_NANOUSD - LOCAL_NANOUSD),
        "cache": 0,
        "failed_attempts": -LOCAL_NANOUSD,
        "classifier_overhead": 0,
        "idle_gpu": 3 * LOCAL_NANOUSD - invoice,
        "other_periods": 0,
    }
    assert found["spent_nanousd"] == 2 * CHEAP_NANOUSD + invoice
    assert found["always_premium_nanousd"] - sum(found["steps_nanousd"].values()) == found["spent_nanousd"]
    assert found["saved_nanousd"] < 0
    assert found["baseline_models"] == ["gpt-6.1-sol"]
    # by the scores of the samples: twice local .75, twice cheap .9, against premium .99
    assert found["predicted_quality_kept_ratio"] == pytest.approx((2 * 0.75 + 2 * 0.9) / (4 * 0.99), abs=1e-4)


def test_work_over_the_edge_of_the_range_stands_in_a_step_of_its_own(
    capsys: pytest.CaptureFixture[str], config: Path
) -> None:
    day_before = NINE.date() - timedelta(days=1)
    savings.run(config, Format.JSON, Range(None, day_before), now_utc=NOW)
    found = json.loads(capsys.readouterr().out)
    assert (found["requests"], found["spent_nanousd"]) == (0, 0)


def test_the_waterfall_as_a_table_and_another_baseline(capsys: pytest.CaptureFixture[str], config: Path) -> None:
    text = shown(capsys, config, "savings", "--from", "2026-11-23", "--to", "2026-11-23")
    assert "always premium" in text
    assert "0.020000000" in text
    assert "4 requests, compared with gpt-6.1-sol." in text
    other = json.loads(shown(capsys, config, "savings", "--baseline", "cheap/luna", "--format", "json"))
    assert other["always_premium_nanousd"] == 4 * CHEAP_NANOUSD
    with pytest.raises(SystemExit) as left:
        main(["report", "savings", "--baseline", "no/such-model", "--config", str(config)])
    assert left.value.code == 1


def test_break_even_names_what_the_local_tier_really_displaces(
    capsys: pytest.CaptureFixture[str], config: Path
) -> None:
    break_even_traffic.run(config, Format.JSON, Range())
    found = json.loads(capsys.readouterr().out)
    assert found["basis"] == "local answers"
    assert found["displaces"] == {"gpt-6-luna": 2}
    assert found["displaces_tiers"] == {"cheap": 2}
    assert found["usd_per_request"] == 0.00025
    assert found["requests_per_hour"] == 10_000
    assert found["slo_capacity_rps"] == pytest.approx(0.85 / 0.092)
    assert found["share_of_slo_capacity"] == pytest.approx(10_000 / 3600 / (0.85 / 0.092))
    assert found["verdict"] == "yes"
    assert found["observed_load_is_enough"] is False
    assert {row["what"] for row in found["sensitivity"]} == {"usd_per_hour", "api_price", "utilization"}


def test_break_even_says_so_to_people_too(capsys: pytest.CaptureFixture[str], config: Path) -> None:
    lines = [" ".join(line.split()) for line in shown(capsys, config, "break-even").splitlines()]
    assert "displaces gpt-6-luna of tier cheap (2)" in lines


def test_break_even_of_several_engines_adds_up_their_hours_and_their_capacities(
    capsys: pytest.CaptureFixture[str], config: Path
) -> None:
    one = "api_base: 'http://127.0.0.1:1/v1', "
    two = (
        "engines: [{name: a, api_base: 'http://127.0.0.1:1/v1'}, {name: b, api_base: 'http://127.0.0.1:2/v1', "
        "practical_capacity_ratio: 0.45, hardware: {kind: rented, usd_per_hour: 1.50}}], "
    )
    config.write_text(config.read_text().replace(one, two))
    break_even_traffic.run(config, Format.JSON, Range())
    found = json.loads(capsys.readouterr().out)
    assert found["usd_per_hour"] == 4
    assert found["requests_per_hour"] == 16_000
    assert found["slo_capacity_rps"] == pytest.approx((0.85 + 0.45) / 0.092)
    assert found["saturation_rps"] == pytest.approx(2 / 0.092)


def test_break_even_says_never_where_it_is_never(capsys: pytest.CaptureFixture[str], config: Path) -> None:
    found = json.loads(shown(capsys, config, "break-even", "--usd-per-hour", "40", "--format", "json"))
    assert (found["verdict"], found["usd_per_hour"]) == ("never", 40)


def test_break_even_wants_all_given_figures_or_none(capsys: pytest.CaptureFixture[str], config: Path) -> None:
    with pytest.raises(SystemExit) as left:
        main(["report", "break-even", "--input-tokens", "512", "--config", str(config)])
    assert left.value.code == 2
    assert "--saturation-rps" in capsys.readouterr().err.replace("\n", " ")


def test_tokens_by_week(capsys: pytest.CaptureFixture[str], config: Path) -> None:
    found = json.loads(shown(capsys, config, "tokens", "--format", "json"))
    assert [(row["week"], row["tier"], row["requests"], row["input_tokens"]) for row in found["rows"]] == [
        ("2026-11-23", "cheap", 2, 2000),
        ("2026-11-23", "local", 2, 3000),
    ]
    assert found["weeks"][0]["output_tokens"] == 1500


def test_every_focus_period_is_used_and_unused_as_it_was_bought(
    capsys: pytest.CaptureFixture[str], config: Path
) -> None:
    focus.run(config, Format.CSV, Range(), now_utc=NOW)
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert set(rows[0]) == set(focus.COLUMNS)
    starts = {row["ChargePeriodStart"] for row in rows if row["ChargeCategory"] == "Purchase"}
    assert starts == {"2026-11-23T09:00:00Z", "2026-11-23T10:00:00Z"}
    for start in starts:
        mine = [row for row in rows if row["ChargePeriodStart"] == start and row["CapacityReservationId"] == GPU]
        bought = sum(Decimal(row["BilledCost"]) for row in mine if row["ChargeCategory"] == "Purchase")
        statuses = {"Used": Decimal(0), "Unused": Decimal(0)}
        for row in mine:
            if row["ChargeCategory"] == "Usage":
                statuses[row["CapacityReservationStatus"]] += Decimal(row["EffectiveCost"])
                assert row["CommitmentDiscountStatus"] == row["CapacityReservationStatus"]
        assert bought == statuses["Used"] + statuses["Unused"] == Decimal("2.5")
    calls = [row for row in rows if row["ServiceName"] == "LLM API"]
    assert sum(Decimal(row["BilledCost"]) for row in calls) == Decimal("0.0005")
    assert {row["BillingPeriodEnd"] for row in rows} == {"2026-12-01T00:00:00Z"}
    assert [problem for row in rows for problem in violations(row)] == []


nano = st.integers(-(10**12), 10**13)
groups = st.lists(
    st.builds(
        PostedGroup, st.just(GPU), st.just(to_us(NINE)), st.sampled_from(["acme", "globex"]), st.just("llama"),
        st.integers(1, 99), nano, st.integers(-(10**9), 10**13), st.one_of(st.just(0), nano),
    ),
    max_size=5,
)  # fmt: skip


@given(groups, st.integers(0, HOUR_US), st.sampled_from(["2.50", "0.000000001", "123.456789012"]))
def test_focus_rows_keep_the_rules_and_add_up_to_the_nano_dollar_whatever_an_hour_was_like(
    used: list[PostedGroup], on_us: int, usd: str
) -> None:
    span = Span(to_us(NINE), to_us(NINE) + HOUR_US, Rate(0, Decimal(usd), "rented-x", (("rent", Decimal(usd)),)))
    absorbed = sum(group.amount_nanousd for group in used)
    period = settle_period(GPU, span, on_for_us=on_us, absorbed_nanousd=absorbed, work_gpu_ns=0)
    told = io.StringIO()
    write_rows(list(focus.hardware_rows(Hours((period,), tuple(used)))), focus.COLUMNS, Format.CSV, told)
    rows = list(csv.DictReader(io.StringIO(told.getvalue())))
    assert [problem for row in rows for problem in violations(row)] == []
    effective = sum(Decimal(row["EffectiveCost"]) for row in rows if row["ChargeCategory"] == "Usage")
    billed = sum(Decimal(row["BilledCost"]) for row in rows)
    assert effective == billed == Decimal(period.invoice_nanousd) / 10**9


@given(st.lists(st.builds(ApiHour, st.just(to_us(NINE)), st.just("acme"), st.just("openai"), st.just("luna"),
    st.integers(1, 99), st.integers(0, 10**9), st.integers(0, 10**12)), max_size=4))  # fmt: skip
def test_focus_rows_of_apis_keep_the_rules_and_bill_all_of_it(calls: list[ApiHour]) -> None:
    told = io.StringIO()
    write_rows(list(focus.api_rows(calls)), focus.COLUMNS, Format.CSV, told)
    rows = list(csv.DictReader(io.StringIO(told.getvalue())))
    assert [problem for row in rows for problem in violations(row)] == []
    assert sum(Decimal(row["BilledCost"]) for row in rows) == Decimal(sum(c.amount_nanousd for c in calls)) / 10**9


def test_cash_is_the_invoice_and_the_api_bills_and_a_local_answer_costs_none(
    capsys: pytest.CaptureFixture[str], config: Path
) -> None:
    focus.run(config, Format.CSV, Range(), now_utc=NOW)
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    calls = [row for row in rows if row["ServiceName"] == "LLM API"]
    assert calls and all(row["BilledCost"] == row["EffectiveCost"] for row in calls)
    answers = [row for row in rows if row["ChargeCategory"] == "Usage" and row not in calls]
    assert answers and all(Decimal(row["BilledCost"]) == 0 for row in answers)
    cash = sum(Decimal(row["BilledCost"]) for row in rows)
    assert cash == 2 * Decimal("2.5") + 2 * Decimal(CHEAP_NANOUSD) / 10**9


def test_reports_of_books_without_hours_are_empty(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "router.yaml"
    file.write_text(f"server: {{data_dir: '{tmp_path}'}}\ntiers: {{local: {{engine: embedded}}}}\n")
    assert json.loads(shown(capsys, file, "periods", "--format", "json"))["rows"] == []
    assert json.loads(shown(capsys, file, "savings", "--format", "json"))["spent_nanousd"] == 0
    assert json.loads(shown(capsys, file, "tokens", "--format", "json"))["rows"] == []
    assert shown(capsys, file, "focus").strip().split(",")[0] == "BilledCost"
    with pytest.raises(SystemExit) as left:
        main(["report", "break-even", "--config", str(file)])
    assert left.value.code == 1
    assert "tiers.local.hardware" in capsys.readouterr().err
