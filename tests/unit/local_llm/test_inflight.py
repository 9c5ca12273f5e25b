"""The in-flight count: exact under any order of events, and back to nothing after every one of them."""

from __future__ import annotations

import math

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from local_llm.coefficients import PRESETS
from local_llm.datamodels import EngineCoefficients, SloTargets
from local_llm.inflight import Inflight, Ticket

H100 = PRESETS["h100-8b-fp16"]


def engine(row: EngineCoefficients = H100) -> Inflight:
    return Inflight(row, SloTargets())


def test_a_request_moves_from_waiting_to_streaming_to_gone() -> None:
    inflight = engine()
    ticket = inflight.enter(1.0, 1000, 200)
    state = inflight.state(1.0)
    assert (state.n, state.waiting_prompt_tokens, state.streaming, state.reserved_tokens) == (1, 1000, 0, 1200)
    ticket.first_token(1.1)
    ticket.token(4)
    state = inflight.state(1.2)
    assert (state.n, state.waiting_prompt_tokens, state.streaming, state.context_tokens) == (1, 0, 1, 1005)
    ticket.end(1.3)
    state = inflight.state(1.3)
    assert (state.n, state.streaming, state.context_tokens, state.reserved_tokens) == (0, 0, 0, 0)


def test_an_answer_longer_than_expected_reserves_more_as_it_grows() -> None:
    inflight = engine()
    ticket = inflight.enter(0.0, 1000, 200)
    ticket.first_token(0.1)
    ticket.token(199)
    assert inflight.state(0.2).reserved_tokens == 1200
    ticket.token(1)
    assert inflight.state(0.2).reserved_tokens == 1201 + 100
    ticket.token(50)
    assert inflight.state(0.2).reserved_tokens == 1301
    ticket.end(0.3)
    assert inflight.state(0.3).reserved_tokens == 0


def test_an_end_before_the_first_token_leaves_nothing_waiting() -> None:
    inflight = engine()
    ticket = inflight.enter(0.0, 500, 10)
    ticket.end(0.1)
    ticket.end(0.2)
    ticket.first_token(0.3)
    ticket.token(7)
    state = inflight.state(1.0)
    assert (state.n, state.waiting_prompt_tokens, state.context_tokens, state.bucket_s) == (0, 0, 0, 0.0)


def test_the_bucket_fills_with_prefill_work_and_drains_by_what_decode_leaves() -> None:
    row = EngineCoefficients(name="r", t0_s=0.009, c_seq_s=0.0, c_kv_s=0.0, c_prefill_s=1e-4, c_att_s=2e-8)
    inflight = engine(row)
    inflight.enter(0.0, 2000, 10)
    assert inflight.state(0.0).bucket_s == pytest.approx(0.2 + 0.04)
    # the step takes 9 of the 30 ms that the promise leaves, so prefill gets 70 %
    assert inflight.state(0.1).bucket_s == pytest.approx(0.24 - 0.07)
    assert inflight.state(10.0).bucket_s == 0.0


def test_the_bucket_drains_a_little_even_when_decode_takes_everything() -> None:
    row = EngineCoefficients(name="r", t0_s=1.0, c_seq_s=0.0, c_kv_s=0.0, c_prefill_s=1e-4)
    inflight = engine(row)
    inflight.enter(0.0, 1000, 10)
    assert inflight.state(1.0).bucket_s == pytest.approx(0.1 - 0.05)


def test_the_share_of_prefill_rises_with_first_tokens_and_forgets_in_five_seconds() -> None:
    inflight = engine()
    ticket = inflight.enter(0.0, 10_000, 10)
    ticket.first_token(1.0)
    at_once = H100.c_prefill_s * 10_000 / 5
    assert inflight.state(1.0).prefill_share == pytest.approx(at_once)
    assert inflight.state(6.0).prefill_share == pytest.approx(at_once * math.exp(-1))


def test_a_plain_call_counts_as_read_once_its_first_token_is_due() -> None:
    inflight = engine()
    ticket = inflight.enter(0.0, 2000, 200, streamed=False)
    assert inflight.state(0.01).waiting_prompt_tokens == 2000
    state = inflight.state(1.0)
    assert (state.waiting_prompt_tokens, state.streaming, state.context_tokens) == (0, 1, 2100)
    ticket.end(1.5)
    assert inflight.state(1.5).context_tokens == 0


def test_plain_calls_are_read_in_the_order_they_came() -> None:
    inflight = engine()
    inflight.enter(0.0, 20_000, 10, streamed=False)
    inflight.enter(0.0, 1, 10, streamed=False)
    assert inflight.state(0.1).streaming == 0
    assert inflight.state(2.0).streaming == 2


def test_load_by_others_fills_the_bucket_too() -> None:
    inflight = engine()
    inflight.unseen_factor = 3.0
    inflight.enter(0.0, 1000, 10)
    alone = engine()
    alone.enter(0.0, 1000, 10)
    assert inflight.state(0.0).bucket_s == pytest.approx(3 * alone.state(0.0).bucket_s)


class AnyInterleaving(RuleBasedStateMachine):
    """Tickets in any order and at any time, also after their end, and with a clock that may stand or step back."""

    tickets = Bundle("tickets")

    def __init__(self) -> None:
        super().__init__()
        self.inflight = engine()
        self.now_s = 0.0
        self.open: dict[int, Ticket] = {}

    @rule(seconds=st.floats(-1, 30))
    def time_passes(self, seconds: float) -> None:
        self.now_s += seconds

    @rule(target=tickets, prompt=st.integers(-5, 50_000), out=st.integers(-5, 5_000), streamed=st.booleans())
    def dispatch(self, prompt: int, out: int, streamed: bool) -> Ticket:
        ticket = self.inflight.enter(self.now_s, prompt, out, streamed=streamed)
        self.open[id(ticket)] = ticket
        return ticket

    @rule(ticket=tickets)
    def first_token(self, ticket: Ticket) -> None:
        ticket.first_token(self.now_s)

    @rule(ticket=tickets, count=st.integers(-3, 100))
    def tokens_come(self, ticket: Ticket, count: int) -> None:
        ticket.token(count)

    @rule(target=tickets, ticket=consumes(tickets), again=st.booleans())
    def end(self, ticket: Ticket, again: bool) -> object:
        ticket.end(self.now_s)
        self.open.pop(id(ticket), None)
        return ticket if again else multiple()

    @rule(factor=st.floats(1, 10))
    def others_come_and_go(self, factor: float) -> None:
        self.inflight.unseen_factor = factor

    @invariant()
    def nothing_is_negative_and_everything_is_counted(self) -> None:
        state = self.inflight.state(self.now_s)
        assert state.n == len(self.open) == self.inflight.n
        assert 0 <= state.streaming <= state.n
        assert state.waiting_prompt_tokens >= 0
        assert state.context_tokens >= 0
        assert state.reserved_tokens >= 0
        assert state.bucket_s >= 0
        assert 0 <= state.prefill_share <= 1

    def teardown(self) -> None:
        for ticket in self.open.values():
            ticket.end(self.now_s)
        state = self.inflight.state(self.now_s)
        assert (state.n, state.streaming) == (0, 0)
        assert (state.waiting_prompt_tokens, state.context_tokens, state.reserved_tokens) == (0, 0, 0)
        assert state.bucket_s == 0.0


AnyInterleaving.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestAnyInterleaving = AnyInterleaving.TestCase


def test_plain_and_streamed_requests_are_told_apart_until_they_end() -> None:
    inflight = engine()
    plain, streamed = inflight.enter(0.0, 10, 10, streamed=False), inflight.enter(0.0, 10, 10)
    assert (inflight.n, inflight.streamed_n) == (2, 1)
    plain.end(1.0)
    assert (inflight.n, inflight.streamed_n) == (1, 1)
    streamed.end(1.0)
    assert (inflight.n, inflight.streamed_n) == (0, 0)


def test_only_tokens_and_good_ends_are_signs_of_life() -> None:
    inflight = engine()
    good, bad = inflight.enter(0.0, 10, 10), inflight.enter(0.0, 10, 10)
    assert inflight.progress == 0
    good.first_token(0.1)
    good.token(3)
    assert inflight.progress == 2
    good.end(0.2, ok=True)
    good.end(0.3, ok=True)
    assert inflight.progress == 3
    bad.end(9.0, ok=False)
    assert inflight.progress == 3
