"""The waterfall against always-premium: every step a difference of booked amounts, so that it sums exactly."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from router.core.pricing import cost_nanousd
from router.core.request import TokenUsage
from router.core.savings import Tried, Waterfall, of_overhead, of_request, with_hardware
from router.core.vocabulary import Outcome, Tier
from tests.fakes import BIG, CHEAP, LOCAL, PRICES

PREMIUM = PRICES[BIG.name]
USAGE = TokenUsage(1000, 300)


def tried(candidate=CHEAP, outcome=Outcome.OK, usage=USAGE, amount=None):
    if amount is None:
        amount = cost_nanousd(PRICES[candidate.name], usage) if usage is not None else 0
    return Tried(candidate.name, candidate.tier, outcome, usage, amount)


def test_a_cheap_answer_saves_by_routing():
    found = of_request([tried()], PREMIUM, PRICES)
    assert found.always_premium_nanousd == 5_000_000
    assert found.steps == dict.fromkeys(found.steps, 0) | {"routing": 4_750_000}
    assert found.spent_nanousd == 250_000


def test_a_premium_answer_saves_nothing_but_its_cache():
    cached = replace(
        PREMIUM, tiers=(replace(PREMIUM.tiers[0], cached_input_usd_per_mtok=PREMIUM.tiers[0].input_usd_per_mtok / 10),)
    )
    usage = replace(USAGE, cached_input_tokens=800)
    found = of_request([tried(BIG, usage=usage, amount=cost_nanousd(cached, usage))], cached, {BIG.name: cached})
    assert (found.routing_nanousd, found.cache_nanousd) == (0, 1_440_000)


def test_writing_a_cache_that_is_not_read_costs_extra():
    dear = replace(
        PREMIUM, tiers=(replace(PREMIUM.tiers[0], cache_write_usd_per_mtok=PREMIUM.tiers[0].input_usd_per_mtok * 2),)
    )
    usage = replace(USAGE, cache_write_tokens=1000)
    found = of_request([tried(BIG, usage=usage, amount=cost_nanousd(dear, usage))], dear, {BIG.name: dear})
    assert found.cache_nanousd == -2_000_000


def test_a_local_answer_saves_down_to_its_standard_cost():
    found = of_request([tried(LOCAL, amount=63_889)], PREMIUM, PRICES)
    assert found.local_tier_nanousd == 5_000_000 - 63_889
    assert found.spent_nanousd == 63_889


def test_attempts_that_did_not_serve_are_a_cost_of_their_own():
    found = of_request([tried(LOCAL, Outcome.BROKEN, amount=100), tried()], PREMIUM, PRICES)
    assert (found.failed_attempts_nanousd, found.routing_nanousd) == (-100, 4_750_000)


def test_a_request_that_nobody_answered_has_no_baseline():
    found = of_request(
        [tried(LOCAL, Outcome.TIMEOUT, amount=70), tried(outcome=Outcome.BROKEN, amount=30)], PREMIUM, PRICES
    )
    assert (found.always_premium_nanousd, found.failed_attempts_nanousd, found.spent_nanousd) == (0, -100, 100)


def test_what_a_caller_left_half_way_counts_as_served():
    found = of_request([tried(outcome=Outcome.CLIENT_GONE, usage=TokenUsage(1000, 20))], PREMIUM, PRICES)
    assert found.always_premium_nanousd == 2_200_000


def test_without_a_premium_price_nothing_is_claimed():
    found = of_request([tried()], None, PRICES)
    assert (found.saved_nanousd, found.not_compared, found.spent_nanousd) == (0, 1, 250_000)


def test_idle_hardware_can_eat_all_savings():
    found = with_hardware(
        of_request([tried(LOCAL, amount=63_889)], PREMIUM, PRICES),
        invoice_nanousd=2_500_000_000,
        absorbed_nanousd=63_889,
        booked_local_nanousd=63_889,
    )
    assert found.idle_gpu_nanousd == 63_889 - 2_500_000_000
    assert found.saved_nanousd == 5_000_000 - 2_500_000_000
    assert found.spent_nanousd == 2_500_000_000


def test_what_a_judge_costs_is_overhead_and_replaces_no_answer():
    found = of_request([tried()], PREMIUM, PRICES) + of_overhead([tried(LOCAL, amount=70), tried(BIG)])
    assert (found.classifier_overhead_nanousd, found.requests) == (-5_000_070, 1)
    assert (found.always_premium_nanousd, found.spent_nanousd) == (5_000_000, 250_000 + 5_000_070)


attempts = st.builds(
    tried,
    st.sampled_from([LOCAL, CHEAP, BIG]),
    st.sampled_from(list(Outcome)),
    st.one_of(st.none(), st.builds(TokenUsage, st.integers(0, 10**6), st.integers(0, 10**5), st.integers(0, 10**6))),
    st.integers(0, 10**12),
)


@given(
    st.lists(st.tuples(st.lists(attempts, max_size=3), st.sampled_from(["compared", "not", "overhead"])), max_size=6),
    st.integers(0, 10**13),
    st.integers(-(10**10), 10**13),
)
def test_the_steps_sum_to_what_was_spent_to_the_nano_dollar(requests, invoice, absorbed):
    total = Waterfall()
    for tries, kind in requests:
        if kind == "overhead":
            total += of_overhead(tries)
        else:
            total += of_request(tries, PREMIUM if kind == "compared" else None, PRICES)
    booked = [a for tries, _ in requests for a in tries]
    local = sum(a.amount_nanousd for a in booked if a.tier is Tier.LOCAL)
    cash = sum(a.amount_nanousd for a in booked) - local
    found = with_hardware(total, invoice_nanousd=invoice, absorbed_nanousd=absorbed, booked_local_nanousd=local)
    assert found.spent_nanousd == cash + invoice
    assert found.always_premium_nanousd - sum(found.steps.values()) == found.spent_nanousd
    overhead = sum(a.amount_nanousd for tries, kind in requests if kind == "overhead" for a in tries)
    assert found.classifier_overhead_nanousd == -overhead
