"""The window of value densities: what goes in, when it tells, and what it forgets."""

from __future__ import annotations

from dataclasses import replace

import pytest

from router.core.decision import Alternative, Decision
from router.core.densities import POINTS, REFRESH_EVERY, WINDOW, DensityWindow
from router.core.vocabulary import Reject, Tier


def decision(usd: float | None, work_gpu_s: float | None = 1.0) -> Decision:
    """Local work of `work_gpu_s`, beside an API of `usd` (`None`: not eligible) and a dearer one."""
    local = Alternative("local", Tier.LOCAL, (), objective_usd=0.0, work_gpu_s=work_gpu_s)
    apis = ()
    if usd is not None:
        cheap = Alternative("cheap", Tier.CHEAP, (Reject.DOMINATED,), expected_cost_usd=usd, objective_usd=usd)
        apis = (replace(cheap, name="dear", expected_cost_usd=99.0, objective_usd=99.0), cheap)
    return Decision((), (local, *apis), None, 0, None, "", "1")


def test_the_quantiles_are_of_the_cheapest_api_over_the_local_work() -> None:
    window = DensityWindow()
    told = [window.note(decision(float(usd), 2.0)) for usd in range(1, REFRESH_EVERY + 1)]
    assert told == [False] * (REFRESH_EVERY - 1) + [True]
    assert len(window.quantiles) == POINTS
    assert window.quantiles[0] == 0.5
    assert window.quantiles[-1] == REFRESH_EVERY / 2
    assert list(window.quantiles) == sorted(window.quantiles)


def test_nothing_is_told_before_enough_has_been_seen() -> None:
    window = DensityWindow()
    for _ in range(REFRESH_EVERY - 1):
        window.note(decision(1.0))
    assert window.quantiles == ()


@pytest.mark.parametrize("nothing_to_compare", [decision(None), decision(1.0, None), decision(1.0, 0.0)])
def test_a_decision_with_one_side_only_says_nothing(nothing_to_compare: Decision) -> None:
    window = DensityWindow()
    assert not any(window.note(nothing_to_compare) for _ in range(2 * REFRESH_EVERY))
    assert window.quantiles == ()


def test_what_is_older_than_the_window_is_forgotten() -> None:
    window = DensityWindow()
    for _ in range(REFRESH_EVERY):
        window.note(decision(1000.0))
    for _ in range(WINDOW):
        window.note(decision(1.0))
    assert set(window.quantiles) == {1.0}
