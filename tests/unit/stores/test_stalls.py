"""When a database counts as one that does not answer."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from router.stores.stalls import TICKS_PER_STALL, StallClock

STALL_S = 0.25
TICK_S = STALL_S / TICKS_PER_STALL


def ticks(clock: StallClock, gaps_s: list[float], steps: list[int], *, oldest_s: float = 0.0) -> int | None:
    """The number of the first tick at which the database is blamed, `None` for never."""
    loop_s = 0.0
    for number, (gap_s, step) in enumerate(zip(gaps_s, steps, strict=True), start=1):
        loop_s += gap_s
        clock.tick(loop_s, step)
        if clock.stalled(oldest_s):
            return number
    return None


def armed(steps: int = 0) -> StallClock:
    clock = StallClock(STALL_S)
    clock.arm(0.0, steps)
    return clock


def test_a_database_that_answers_nothing_is_blamed_after_the_stall_time() -> None:
    assert ticks(armed(), [TICK_S] * 10, [0] * 10) == TICKS_PER_STALL


def test_one_late_tick_is_no_reason_to_blame_it() -> None:
    assert ticks(armed(), [30.0, TICK_S, TICK_S], [0] * 3) is None


def test_on_a_machine_without_cpu_it_has_as_many_ticks_to_answer_as_on_an_idle_one() -> None:
    assert ticks(armed(), [0.4] * 10, [0] * 10) == TICKS_PER_STALL


def test_every_answer_to_a_statement_begins_the_wait_anew() -> None:
    steps = [0, 0, 0, 1, 1, 1, 1, 1, 1, 1]
    assert ticks(armed(), [TICK_S] * 10, steps) == 4 + TICKS_PER_STALL


def test_one_that_answers_statements_but_never_gets_through_is_blamed_in_the_end() -> None:
    assert ticks(armed(), [TICK_S] * 100, list(range(100))) == 4 * TICKS_PER_STALL


def test_one_that_gets_through_again_and_again_is_never_blamed() -> None:
    clock = armed()
    for n in range(1, 200):
        clock.tick(TICK_S * n, n)
        assert not clock.stalled(TICK_S * (n - 2))


def test_what_has_only_just_come_has_not_waited() -> None:
    clock = armed()
    for n in range(1, 20):
        clock.tick(TICK_S * n, 0)
        assert not clock.stalled(TICK_S * n)


def test_the_clock_stands_still_while_the_loop_does() -> None:
    clock = armed()
    before_s = clock.now_s(0.0)
    clock.tick(100.0, 0)
    assert clock.now_s(100.0) - before_s == TICK_S
    clock.arm(200.0, 0)  # between two waits it goes with the loop's
    assert clock.now_s(200.0) - clock.now_s(100.0) == 100.0


@given(
    st.lists(
        st.tuples(st.floats(0.0, 5.0), st.integers(0, 1)),
        min_size=1,
        max_size=TICKS_PER_STALL - 1,
    )
)
def test_fewer_ticks_than_a_stall_has_never_blame_it(seen: list[tuple[float, int]]) -> None:
    total, steps = 0, []
    for _, more in seen:
        total += more
        steps.append(total)
    assert ticks(armed(), [gap_s for gap_s, _ in seen], steps) is None
