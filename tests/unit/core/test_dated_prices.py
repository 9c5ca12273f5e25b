"""Our own price rows: every mistake is named, the right row is found."""

import re
from datetime import UTC, date, datetime
from decimal import Decimal

import pytest

from router.core.dated_prices import DatedPrices, describe_tiers, in_force, parse_dated_prices, plain

ROW = {"input_usd_per_mtok": 1, "output_usd_per_mtok": 2}
NOW = datetime(2026, 11, 23, tzinfo=UTC)


def problems(entry) -> list[str]:
    rows, found = parse_dated_prices({"h/m": entry}, "test")
    assert not rows or not found
    return [f"{path}: {text}" for _, path, text in found]


def prices(raw) -> DatedPrices:
    rows, found = parse_dated_prices(raw, "test")
    assert found == []
    return DatedPrices(rows)


def names(rows) -> list[str]:
    return [row.name for row in rows]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"input_usd_per_mtok": None}, r"input_usd_per_mtok: is missing"),
        ({"output_usd_per_mtok": None}, r"output_usd_per_mtok: is missing"),
        ({"input_usd_per_mtok": -1}, r"not negative.*-1"),
        ({"input_usd_per_mtok": "cheap"}, r"finite number.*cheap"),
        ({"input_usd_per_mtok": float("nan")}, r"finite number.*nan"),
        ({"input_usd_per_mtok": True}, r"must be a number"),
        ({"input_usd_per_mtok": [1]}, r"must be a number"),
        ({"input_usd_per_mtok": 100_000}, r"100000 is absurd"),
        ({"output_usd_per_mtok": 5e-7}, r"5e-07 is absurd.*check the unit"),
        ({"cached_input_usd_per_mtok": 1e-9}, r"1e-09 is absurd"),
        ({"request_usd": 5000}, r"5000 is absurd for USD per call"),
        ({"input_price": 3}, r"input_price: unknown key; known are"),
        ({"processing": "bulk"}, r"processing: must be one of standard"),
        ({"effective_from": "soon"}, r"effective_from: must be a date"),
        ({"effective_from": 2026}, r"effective_from: must be a date"),
        ({"effective_from": "2026-02-01", "effective_until": "2026-02-01"}, r"later than effective_from"),
        ({"tiers": 3}, r"tiers: expected a list"),
        ({"tiers": [{"from_input_tokens": 0, **ROW}]}, r"must be a whole number and ascend.*0"),
        (
            {"tiers": [{"from_input_tokens": 9, "input_usd_per_mtok": 1}]},
            r"tiers\[0\]\.output_usd_per_mtok: is missing",
        ),
        ({"tiers": [{"from_input_tokens": 9, **ROW, "from": 1}]}, r"tiers\[0\]\.from: unknown key"),
    ],
)
def test_a_mistake_is_named_with_its_place_value_and_cure(change, said):
    found = problems({**ROW, **change})
    assert len(found) == 1
    assert re.search(said, found[0])
    assert found[0].startswith("prices.h/m[0]")


@pytest.mark.parametrize("entry", [3, None, "free", [ROW, 3]])
def test_what_is_not_a_row_is_refused(entry):
    _, found = parse_dated_prices({"h/m": entry}, "test")
    assert "expected a mapping" in found[0][2]


def test_an_empty_list_and_an_empty_name_are_refused():
    assert parse_dated_prices({"h/m": []}, "test")[1]
    assert parse_dated_prices({" ": ROW}, "test")[1]
    assert parse_dated_prices({4: ROW}, "test")[1]


def test_all_mistakes_come_at_once():
    found = problems([{**ROW, "input_usd_per_mtok": -1, "x": 1}, {"output_usd_per_mtok": 2}])
    assert len(found) == 3


def test_two_rows_of_the_same_day_are_refused():
    _, found = parse_dated_prices({"h/m": [ROW, ROW]}, "test")
    assert "same date" in found[0][2]


def test_the_price_of_a_free_model_may_be_0_if_it_is_written():
    assert problems({"input_usd_per_mtok": 0, "output_usd_per_mtok": 0}) == []


def test_dates_may_be_days_instants_or_text_and_are_utc():
    starts = (date(2026, 1, 2), datetime(2026, 1, 2), "2026-01-02", "2026-01-02T09:00:00+09:00")  # noqa: DTZ001
    for start in starts:
        (row,) = prices({"m": {**ROW, "effective_from": start}}).rows()
        assert row.from_utc == datetime(2026, 1, 2, tzinfo=UTC)


def test_the_latest_row_to_have_begun_is_in_force_until_it_ends():
    rows = prices(
        {
            "m": [
                {**ROW, "effective_from": "2026-06-01", "effective_until": "2026-07-01", "input_usd_per_mtok": 7},
                {**ROW, "effective_from": "2026-01-01"},
            ]
        }
    ).of("m", None)

    def price(month: int, day: int) -> Decimal | None:
        row = in_force(rows, datetime(2026, month, day, tzinfo=UTC), "standard")
        return row.tiers[0].input_usd_per_mtok if row else None

    assert [price(5, 31), price(6, 1), price(6, 30), price(7, 1)] == [1, 7, 7, None]
    assert in_force(rows, datetime(2025, 12, 31, tzinfo=UTC), "standard") is None
    assert in_force(rows, NOW, "batch") is None


@pytest.mark.parametrize(
    ("model", "provider", "found"),
    [
        ("openai/gpt-6.1-sol", None, ["openai/gpt-6.1-sol"]),
        ("OpenAI/GPT-6-1-Sol", None, ["openai/gpt-6.1-sol"]),
        ("gpt-6.1-sol", "openai", ["openai/gpt-6.1-sol"]),
        ("openai/gpt-6.1-sol", "openai", ["openai/gpt-6.1-sol"]),
        ("gpt-6.1-sol", None, ["openai/gpt-6.1-sol"]),  # the only host known
        ("gpt-6.1-sol", "azure", []),  # another host, another price
        ("anywhere", "azure", ["anywhere"]),
        ("azure/anywhere", None, ["anywhere"]),
        ("twice", None, []),  # two hosts, none named
        ("b/twice", None, ["b/twice"]),
    ],
)
def test_a_row_is_found_by_model_and_host(model, provider, found):
    book = prices({"openai/gpt-6.1-sol": ROW, "anywhere": ROW, "a/twice": ROW, "b/twice": ROW})
    assert names(book.of(model, provider)) == found


def test_prices_are_described_for_people():
    (row,) = prices(
        {"m": {**ROW, "cached_input_usd_per_mtok": "0.10", "tiers": [{"from_input_tokens": 9, **ROW}]}}
    ).rows()
    assert describe_tiers(row.tiers) == "1/2 (cached 0.1, from 9: 1/2)"
    assert [plain(Decimal(x)) for x in ("1E+2", "10.00", "0.5")] == ["100", "10", "0.5"]
