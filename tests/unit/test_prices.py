"""The price book against the packaged list: exact figures, dates, hours, hosts; our own rows on top."""

import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal

import pytest
from genai_prices import Usage, calc_price
from genai_prices.data_snapshot import get_snapshot
from hypothesis import given
from hypothesis import strategies as st

from router.core.pricing import cost_nanousd, estimate_usd
from router.core.request import TokenUsage
from router.core.vocabulary import Flag
from router.errors import ConfigError
from router.listed_prices import listed_context_window_tokens
from router.prices import PriceBook, PriceUnknown

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)  # a Monday
LUNA = {"input_usd_per_mtok": "0.08", "output_usd_per_mtok": "0.4"}


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.fixture(scope="module")
def book() -> PriceBook:
    return PriceBook.load()


# The figures a bill is checked against, by hand, and once more with the list's own arithmetic.
EXACT = [
    ("google/gemini-4-argon", "2026-11-30T23:59:59", 1000, 0, 300, "0.005"),
    ("google/gemini-4-argon", "2026-12-01T00:00:00", 1000, 0, 300, "0.010"),
    ("openai/gpt-6.1-sol", "2026-11-23T12:00:00", 272_000, 0, 500, "0.549"),
    ("openai/gpt-6.1-sol", "2026-11-23T12:00:00", 272_001, 0, 500, "1.095504"),
    ("openai/gpt-6.1-sol", "2026-11-23T12:00:00", 272_000, 0, 0, "0.544"),
    ("openai/gpt-6.1-sol", "2026-11-23T12:00:00", 272_001, 0, 0, "1.088004"),
    ("deepseek/deepseek-v4-flash", "2026-11-23T12:00:00", 1000, 0, 300, "0.00033"),
    ("deepseek/deepseek-v4-flash", "2026-11-23T02:00:00", 1000, 0, 300, "0.00066"),
    ("openai/gpt-6-luna", "2026-11-23T12:00:00", 1000, 0, 300, "0.00025"),
    ("anthropic/claude-sonnet-5.5", "2026-11-23T12:00:00", 20_000, 18_000, 500, "0.0108"),
    ("anthropic/claude-haiku-5.5", "2026-11-23T12:00:00", 100_000, 0, 0, "0.01"),
    ("anthropic/claude-haiku-5.5", "2026-11-23T12:00:00", 100_001, 0, 0, "0.0500005"),
    ("groq/llama-3.1-8b-instant", "2026-11-23T12:00:00", 512, 0, 256, "0.00004608"),
    ("novita/meta-llama/llama-3.1-8b-instruct", "2026-11-23T12:00:00", 512, 0, 256, "0.00002304"),
]


@pytest.mark.parametrize(("model", "when", "i", "cached", "o", "usd"), EXACT)
def test_a_request_costs_exactly_what_the_bill_says(book, model, when, i, cached, o, usd):
    row = book.row(model, at(when))
    assert estimate_usd(row, i, o, cached) == Decimal(usd)
    assert cost_nanousd(row, TokenUsage(i, o, cached_input_tokens=cached)) == int(Decimal(usd) * 10**9)
    host, name = model.split("/", 1)
    usage = Usage(input_tokens=i, cache_read_tokens=cached, output_tokens=o)
    own = calc_price(usage, name, provider_id=host, genai_request_timestamp=at(when))
    assert own.total_price == Decimal(usd)


def test_batch_costs_half(book):
    row = book.row("openai/gpt-6-luna", NOON, processing="batch")
    assert estimate_usd(row, 1000, 300) == Decimal("0.000125")
    assert row.version.endswith("+batch")
    usage = Usage(input_tokens=1000, output_tokens=300)
    own = calc_price(
        usage,
        "gpt-6-luna",
        provider_id="openai",
        genai_request_timestamp=NOON,
        price_context={"processing": "batch"},
    )
    assert own.total_price == Decimal("0.000125")


def test_priority_and_flex_have_prices_of_their_own(book):
    costs = {p: estimate_usd(book.row("gpt-6-luna", NOON, processing=p), 1000, 0) for p in ("flex", "priority")}
    assert costs == {"flex": Decimal("0.00005"), "priority": Decimal("0.0002")}


def test_a_kind_of_processing_without_a_price_is_unknown_and_never_the_full_price(book):
    with pytest.raises(PriceUnknown, match="no batch price"):
        book.row("deepseek/deepseek-v4-flash", NOON, processing="batch")
    with pytest.raises(PriceUnknown, match="no batch price"):  # borrowed from its maker: standard price only
        book.row("azure/claude-sonnet-5-5", NOON, processing="batch")
    with pytest.raises(ValueError, match="processing"):
        book.row("gpt-6-luna", NOON, processing="bulk")


def test_our_arithmetic_agrees_with_the_list_for_every_model_of_the_big_hosts(book):
    compared = 0
    for host in get_snapshot().providers:
        if host.id not in {"openai", "anthropic", "google", "deepseek", "groq", "novita", "mistral", "together"}:
            continue
        for entry in host.models:
            try:
                row = book.row(f"{host.id}/{entry.id}", NOON)
            except PriceUnknown:
                continue
            if row.model != entry.id:  # another entry of the host answers to this name
                continue
            for i, cached, o in ((1000, 0, 300), (150_000, 100_000, 700), (300_001, 5, 9)):
                usage = Usage(input_tokens=i, cache_read_tokens=cached, output_tokens=o)
                theirs = entry.calc_price(usage, host, genai_request_timestamp=NOON)
                assert estimate_usd(row, i, o, cached) == theirs.total_price, (host.id, entry.id, i)
                compared += 1
    assert compared > 500


def test_a_row_names_its_model_host_source_and_version(book):
    row = book.row("openai/gpt-6-luna", NOON)
    assert (row.model, row.provider) == ("gpt-6-luna", "openai")
    assert row.source == "genai-prices 0.2.3: openai/gpt-6-luna"
    assert row.version == "genai-prices-0.2.3/openai/gpt-6-luna"
    assert [t.from_input_tokens for t in row.tiers] == [0, 272_001]


def test_rows_of_different_dates_and_hours_have_different_versions(book):
    argon = [book.row("google/gemini-4-argon", at(d)).version for d in ("2026-11-30", "2026-12-01")]
    assert argon[0] != argon[1]
    assert argon[1].endswith("@2026-12-01")
    flash = [book.row("deepseek/deepseek-v4-flash", at(f"2026-11-23T{h}:30")).version for h in ("02", "05", "07")]
    assert len(set(flash)) == 3


@pytest.mark.parametrize(
    ("when", "until", "peak"),
    [
        ("2026-11-23T00:00:00", "2026-11-23T01:00:00", False),
        ("2026-11-23T01:00:00", "2026-11-23T04:00:00", True),
        ("2026-11-23T03:59:59", "2026-11-23T04:00:00", True),
        ("2026-11-23T04:00:00", "2026-11-23T06:00:00", False),
        ("2026-11-23T06:00:00", "2026-11-23T10:00:00", True),
        ("2026-11-23T10:00:00", "2026-11-24T01:00:00", False),
        ("2026-11-23T23:59:59", "2026-11-24T01:00:00", False),
    ],
)
def test_a_row_holds_until_the_next_peak_hour_begins_or_ends(book, when, until, peak):
    row = book.row("deepseek/deepseek-v4-flash", at(when))
    assert row.valid_until_utc == at(until)
    assert row.effective_from_utc <= at(when)
    assert (Flag.PEAK_HOURS in row.flags) == peak


def test_a_row_holds_until_the_next_dated_change_and_then_for_ever(book):
    assert book.row("google/gemini-4-argon", NOON).valid_until_utc == at("2026-12-01")
    assert book.row("google/gemini-4-argon", at("2026-12-01")).valid_until_utc is None
    assert book.row("openai/gpt-6-luna", NOON).valid_until_utc is None


def test_the_row_is_right_at_every_moment_up_to_its_end_and_changes_there(book):
    moment = at("2026-11-23T00:30:00")
    for _ in range(20):
        row = book.row("deepseek/deepseek-v4-flash", moment)
        last = row.valid_until_utc - timedelta(microseconds=1)
        fresh = PriceBook.load().row("deepseek/deepseek-v4-flash", last)
        assert fresh.tiers == row.tiers
        assert book.row("deepseek/deepseek-v4-flash", row.valid_until_utc).tiers != row.tiers
        moment = row.valid_until_utc


@given(st.lists(st.datetimes(datetime(2026, 8, 1), datetime(2027, 2, 1), timezones=st.just(UTC)), max_size=12))  # noqa: DTZ001
def test_whatever_was_asked_before_the_row_is_that_of_the_moment(book, moments):
    for moment in moments:
        for host, name in (("deepseek", "deepseek-v4-flash"), ("google", "gemini-4-argon")):
            row = book.row(f"{host}/{name}", moment)
            usage = Usage(input_tokens=1000, output_tokens=300)
            theirs = calc_price(usage, name, provider_id=host, genai_request_timestamp=moment)
            assert estimate_usd(row, 1000, 300) == theirs.total_price
            assert row.effective_from_utc <= moment
            assert row.valid_until_utc is None or moment < row.valid_until_utc


def test_the_same_row_object_is_given_while_it_holds(book):
    assert book.row("gpt-6-luna", NOON) is book.row("gpt-6-luna", NOON + timedelta(days=5))


def test_a_moment_in_another_zone_is_taken_as_the_instant_it_is(book):
    tokyo = datetime(2026, 12, 1, 8, 59, tzinfo=timezone(timedelta(hours=9)))  # still November in UTC
    assert book.row("google/gemini-4-argon", tokyo).tiers[0].input_usd_per_mtok == 2


def test_a_naive_moment_is_refused(book):
    with pytest.raises(ValueError, match="aware"):
        book.row("gpt-6-luna", datetime(2026, 11, 23))  # noqa: DTZ001


@pytest.mark.parametrize(
    "name",
    ["anthropic/claude-sonnet-5.5", "anthropic/claude-sonnet-5-5", "claude-sonnet-5.5", "claude-sonnet-5-5"],
)
def test_a_model_is_found_under_each_of_its_spellings(book, name):
    assert book.row(name, NOON).version == "genai-prices-0.2.3/anthropic/claude-sonnet-5-5"


@pytest.mark.parametrize(
    ("model", "provider", "found"),
    [
        ("gemini/gemini-2.5-pro", None, "google/gemini-2.5-pro"),
        ("llama-3.1-8b-instant", "groq", "groq/llama-3.1-8b-instant"),
        ("groq/llama-3.1-8b-instant", "groq", "groq/llama-3.1-8b-instant"),
        ("openrouter/openai/gpt-6-luna", None, "openrouter/openai/gpt-6-luna"),
        ("openai/gpt-6-luna", "openrouter", "openrouter/openai/gpt-6-luna"),
        ("deepinfra-not-listed/x", None, None),
    ],
)
def test_the_host_decides_whose_price_it_is(book, model, provider, found):
    if found is None:
        with pytest.raises(PriceUnknown):
            book.row(model, NOON, provider=provider)
    else:
        assert book.row(model, NOON, provider=provider).version.startswith(f"genai-prices-0.2.3/{found}")


def test_an_open_model_without_a_host_has_no_price_and_the_error_names_hosts(book):
    with pytest.raises(PriceUnknown, match=r"depends on the host.*novita"):
        book.row("meta-llama/llama-3.1-8b-instruct", NOON)


@pytest.mark.parametrize("model", ["openai/gpt-99", "gpt-6-lunatic", "nobody/knows", "nobody", "", "/", "openai/"])
def test_an_unknown_model_raises_and_names_model_and_cure(book, model):
    with pytest.raises(PriceUnknown, match="`price:` override") as raised:
        book.row(model, NOON)
    assert repr(model) in str(raised.value)
    assert isinstance(raised.value, LookupError)


def test_what_is_not_sold_by_tokens_has_no_row(book):
    with pytest.raises(PriceUnknown, match="input and output tokens"):
        book.row("openai/whisper-1", NOON)


def test_a_fee_per_call_is_part_of_the_row(book):
    row = book.row("perplexity/sonar", NOON)
    own = calc_price(
        Usage(input_tokens=10, output_tokens=10), "sonar", provider_id="perplexity", genai_request_timestamp=NOON
    )
    assert row.request_usd > 0
    assert estimate_usd(row, 10, 10) == own.total_price


def test_the_users_row_comes_first_and_changes_nothing_else():
    book = PriceBook.load({"openai/gpt-6-luna": LUNA})
    row = book.row("gpt-6-luna", NOON)
    assert estimate_usd(row, 1000, 300) == Decimal("0.0002")
    assert row.source.startswith("override")
    assert row.version.startswith("override/openai/gpt-6-luna#")
    assert book.row("openai/gpt-6.1-sol", NOON).source.startswith("genai-prices")


def test_a_users_row_prices_what_no_list_has():
    book = PriceBook.load({"my-host/llama": {**LUNA, "cached_input_usd_per_mtok": 0.01}})
    assert book.row("my-host/llama", NOON).tiers[0].cached_input_usd_per_mtok == Decimal("0.01")
    assert book.row("llama", NOON, provider="my-host").provider == "my-host"


def test_a_users_row_with_another_price_has_another_version():
    versions = {PriceBook.load({"m": {**LUNA, "input_usd_per_mtok": price}}).row("m", NOON).version for price in (1, 2)}
    assert len(versions) == 2


def test_a_users_dated_row_takes_over_on_its_day_and_the_list_answers_before():
    book = PriceBook.load({"openai/gpt-6-luna": [{"effective_from": "2026-12-01", **LUNA}]})
    before = book.row("openai/gpt-6-luna", at("2026-11-30T23:59:59"))
    after = book.row("openai/gpt-6-luna", at("2026-12-01"))
    assert before.source.startswith("genai-prices")
    assert before.valid_until_utc == at("2026-12-01") == after.effective_from_utc
    assert after.source.startswith("override")


def test_batch_of_a_users_row_is_not_taken_from_another_source():
    book = PriceBook.load({"openai/gpt-6-luna": LUNA})
    with pytest.raises(PriceUnknown, match="processing: batch"):
        book.row("openai/gpt-6-luna", NOON, processing="batch")
    both = PriceBook.load({"openai/gpt-6-luna": [LUNA, {**LUNA, "processing": "batch", "input_usd_per_mtok": "0.04"}]})
    assert both.row("openai/gpt-6-luna", NOON, processing="batch").tiers[0].input_usd_per_mtok == Decimal("0.04")


def test_an_override_file_is_read_with_its_decimals_as_typed(tmp_path):
    path = tmp_path / "prices.yaml"
    path.write_text("prices:\n  a/b: {input_usd_per_mtok: 0.1, output_usd_per_mtok: 0.30000000000000004}\n")
    tier = PriceBook.load(path).row("a/b", NOON).tiers[0]
    assert (tier.input_usd_per_mtok, tier.output_usd_per_mtok) == (Decimal("0.1"), Decimal("0.30000000000000004"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("prices: [", "not YAML"),
        ("prices: {a: {input_usd_per_mtok: 1, input_usd_per_mtok: 2, output_usd_per_mtok: 1}}", "given twice"),
        ("models: {}", "expected the keys"),
        ("prices: 3", "expected a mapping"),
    ],
)
def test_a_broken_override_file_is_refused_with_its_cause(tmp_path, text, said):
    path = tmp_path / "prices.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said):
        PriceBook.load(path)


def test_a_missing_override_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        PriceBook.load(tmp_path / "nowhere.yaml")


def test_an_absurd_price_is_refused_with_its_value():
    with pytest.raises(ConfigError, match="100000 is absurd"):
        PriceBook.load({"openai/gpt-6-luna": {**LUNA, "input_usd_per_mtok": 100_000}})


OLD_LISTS = [
    ("openai/gpt-4o", "2.50", "10"),
    ("openai/gpt-4o-mini", "0.15", "0.60"),
    ("anthropic/claude-3-5-sonnet", "3", "15"),
    ("anthropic/claude-3-5-haiku", "0.80", "4"),
    ("google/gemini-1.5-pro", "1.25", "5"),
    ("google/gemini-1.5-flash", "0.075", "0.30"),
    ("openai/gpt-4-turbo", "10", "30"),
    ("openai/gpt-3.5-turbo", "0.5", "1.5"),
    ("openai/text-embedding-ada-002", "0.10", "0"),
    ("anthropic/claude-3-opus", "15", "75"),
    ("anthropic/claude-3-sonnet", "3", "15"),
    ("anthropic/claude-3-haiku", "0.25", "1.25"),
]


@pytest.mark.parametrize(("model", "i", "o"), OLD_LISTS)
def test_a_log_of_january_2025_is_priced_as_it_was_then(book, model, i, o):
    row = book.row(model, at("2025-01-15"))
    assert row.source.startswith("shipped")
    assert (row.tiers[0].input_usd_per_mtok, row.tiers[0].output_usd_per_mtok) == (Decimal(i), Decimal(o))


def test_gpt_4o_has_two_prices_each_from_its_own_date(book):
    prices = [book.row("gpt-4o", at(d)).tiers[0].input_usd_per_mtok for d in ("2024-10-01", "2024-10-02")]
    assert prices == [5, Decimal("2.5")]
    assert book.row("gpt-4o", NOON).source.startswith("genai-prices")


def test_check_names_gaps_changes_to_come_clashes_and_remarks(book):
    notes = book.check(["openai/gpt-99", "google/gemini-4-argon", "deepseek/deepseek-v4-flash"], NOON)
    by_kind = {kind: [n for n in notes if n.kind == kind] for kind in ("gap", "change", "clash", "remark")}
    assert [n.model for n in by_kind["gap"]] == ["openai/gpt-99"]
    argon = next(n for n in by_kind["change"] if n.model == "google/gemini-4-argon")
    assert "2/10 (cached 0.1) until 2026-12-01 00:00 UTC, then 4/20 (cached 0.2)" in argon.text
    gpt_4o = next(n for n in by_kind["clash"] if n.model == "openai/gpt-4o")
    assert "5/15" in gpt_4o.text
    assert "2.5/10" in gpt_4o.text
    assert [n.model for n in by_kind["remark"]] == ["deepseek/deepseek-v4-flash"]


def test_check_warns_where_an_override_differs_from_the_list():
    notes = PriceBook.load({"openai/gpt-6-luna": LUNA}).check(["openai/gpt-6-luna"], NOON)
    clash = next(n for n in notes if n.kind == "clash" and n.model == "openai/gpt-6-luna")
    assert "0.08/0.4" in clash.text
    assert "0.1/0.5" in clash.text


def test_check_remarks_on_a_model_that_costs_nothing():
    free = {"input_usd_per_mtok": 0, "output_usd_per_mtok": 0}
    notes = PriceBook.load({"h/free": free}).check(["h/free"], NOON)
    assert [n.kind for n in notes if n.model == "h/free"] == ["remark"]


def test_versions_tell_the_package_and_digests_of_our_own_rows(book):
    assert book.versions()["genai-prices"] == "0.2.3"
    assert book.versions()["overrides"] == "none"
    assert book.versions()["shipped"] == PriceBook.load().versions()["shipped"]
    assert PriceBook.load({"m": LUNA}).versions()["overrides"] != PriceBook.load({"n": LUNA}).versions()["overrides"]


def test_the_context_window_is_known_where_the_list_tells_it_and_none_elsewhere():
    assert listed_context_window_tokens("openai/gpt-6.1-sol") == 1_050_000
    assert listed_context_window_tokens("openai/gpt-99") is None


def test_importing_and_loading_the_book_does_not_import_the_list():
    code = "import sys; from router.prices import PriceBook; PriceBook.load(); sys.exit('genai_prices' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
