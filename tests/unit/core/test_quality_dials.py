"""nu for the tiers that can answer, at the prices in force."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest

from classifier.calibrate import CalibrationRow, CalibrationSample, TokenPrices, nu_for_target
from router.core.decision import PolicyConfig
from router.core.quality_dials import marginal_prices, premium_share, reference_of, set_dials
from router.core.snapshot import AssetRate
from router.core.vocabulary import Reject
from tests.fakes import ALL, BIG, CHEAP, H100, LOCAL, PRICES, price

POLICIES = {"": PolicyConfig(), "cheap": PolicyConfig(quality_target_ratio=0.9)}


def sample(tiers: tuple[str, ...] = ("local", "cheap", "premium"), count: int = 900) -> CalibrationSample:
    """A third of the prompts is answered by all, a third not at home, a third by premium only."""
    kinds = (((0.9, 0.9, 0.95), (1, 1, 1)), ((0.2, 0.8, 0.9), (0, 1, 1)), ((0.1, 0.3, 0.9), (0, 0, 1)))
    rows = []
    for i in range(count):
        p, quality = kinds[i % 3]
        columns = [("local", "cheap", "premium").index(t.partition("/")[0]) for t in tiers]
        rows.append(
            CalibrationRow(
                tuple(p[c] for c in columns), tuple(float(quality[c]) for c in columns), 200, (100.0,) * len(tiers)
            )
        )
    return CalibrationSample(tiers, tuple(rows))


def test_a_tier_counts_at_its_cheapest_model_and_home_at_its_energy() -> None:
    second = replace(BIG, name="openai/bigger", wire_model="bigger")
    rows = {**PRICES, second.name: price("bigger", "1", "5")}
    found = marginal_prices((*ALL, second), rows, {})
    assert found["local"] == TokenPrices(0.0, 0.0)
    assert found["premium"] == found["premium/openai/bigger"] == TokenPrices(1.0, 5.0)
    owned = AssetRate("gpu", Decimal("0.001"), Decimal("0.0001"), coefficients=H100)
    energy = marginal_prices(ALL, PRICES, {LOCAL.name: owned})["local"]
    assert energy.usd(1000, 0) == pytest.approx(0.0001 * 1000 * H100.c_prefill_s)
    assert energy.output_usd_per_mtok > energy.input_usd_per_mtok


def test_what_cannot_answer_or_has_no_price_is_not_chosen_from() -> None:
    keyless = replace(BIG, unavailable=Reject.UNCONFIGURED)
    assert "premium" not in marginal_prices((LOCAL, CHEAP, keyless), PRICES, {})
    assert set(marginal_prices(ALL, {CHEAP.name: PRICES[CHEAP.name]}, {})) == {
        "local", f"local/{LOCAL.name}", "cheap", f"cheap/{CHEAP.name}",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("candidates", "reference"), [(ALL, "premium"), ((LOCAL, CHEAP), "cheap"), ((LOCAL,), "local"), ((), None)]
)
def test_quality_is_kept_against_the_best_tier_that_can_answer(
    candidates: tuple[object, ...], reference: str | None
) -> None:
    prices = marginal_prices(candidates, PRICES, {})  # type: ignore[arg-type]
    assert reference_of(sample(), prices) == reference


def test_every_preset_gets_the_nu_of_its_own_target() -> None:
    prices = marginal_prices(ALL, PRICES, {})
    policies, dials = set_dials(POLICIES, sample(), prices, confidence_ratio=0.9)
    for preset, target in (("", 0.95), ("cheap", 0.9)):
        alone = nu_for_target(sample(), prices, target_ratio=target)
        assert policies[preset].nu_usd == alone.nu_usd == dials[preset].nu_usd
    assert dials[""].certified


def test_dearer_prices_ask_for_a_larger_nu() -> None:
    dear = {name: price(name, "20", "100") if name == BIG.name else row for name, row in PRICES.items()}
    nus = [
        set_dials(POLICIES, sample(), marginal_prices(ALL, rows, {}), confidence_ratio=0.9)[0][""].nu_usd
        for rows in (PRICES, dear)
    ]
    assert nus[1] > 3 * nus[0]  # type: ignore[operator]


def test_a_target_that_cannot_be_shown_gets_the_safest_nu_and_says_so() -> None:
    policies, dials = set_dials(POLICIES, sample(count=9), marginal_prices(ALL, PRICES, {}), confidence_ratio=0.99)
    assert not dials[""].certified
    assert "9 held-out requests do not show" in dials[""].statement
    assert policies[""].nu_usd == max(dial.nu_usd for dial in dials.values())


@pytest.mark.parametrize("known", [None, CalibrationSample(("huge",), ()), CalibrationSample(("premium",), ())])
def test_without_a_usable_sample_the_target_stays_the_floor(known: CalibrationSample | None) -> None:
    assert set_dials(POLICIES, known, marginal_prices(ALL, PRICES, {}), confidence_ratio=0.9) == (POLICIES, {})


def test_a_target_of_nothing_costs_nothing() -> None:
    nothing = {"": PolicyConfig(quality_target_ratio=0.0)}
    policies, dials = set_dials(nothing, sample(), marginal_prices(ALL, PRICES, {}), confidence_ratio=0.9)
    assert (policies[""].nu_usd, dials) == (0.0, {})


def test_a_model_with_columns_of_its_own_for_two_models_of_a_tier_is_held_to_the_better() -> None:
    second = replace(BIG, name="big2", wire_model="big2")
    rows = {**PRICES, second.name: price("big2", "1", "5")}
    prices = marginal_prices((*ALL, second), rows, {})
    known = sample(("local", "premium/openai/big", "premium/big2"))
    assert reference_of(known, prices) in {"premium/openai/big", "premium/big2"}
    assert set_dials(POLICIES, known, prices, confidence_ratio=0.9)[0][""].nu_usd is not None


@pytest.mark.parametrize(
    ("nu_usd", "share"), [(0.001, 0.0), (0.0021, 0.0), (0.0023, 1 / 3), (0.013, 1 / 3), (0.014, 2 / 3), (0.03, 1.0)]
)
def test_premium_gets_those_to_whom_it_is_worth_its_price(nu_usd: float, share: float) -> None:
    # 200 tokens in and 100 out cost 0.07 thousandths of a dollar at the cheap API and 1.4 at premium
    assert premium_share(sample(), marginal_prices(ALL, PRICES, {}), nu_usd) == pytest.approx(share)


def test_where_there_is_no_premium_or_no_dial_its_share_is_not_known() -> None:
    assert premium_share(sample(), marginal_prices((LOCAL, CHEAP), PRICES, {}), 0.01) is None
    assert premium_share(sample(), marginal_prices(ALL, PRICES, {}), None) is None
    assert premium_share(None, marginal_prices(ALL, PRICES, {}), 0.01) is None
