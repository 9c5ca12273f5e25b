"""Beside the requests: shadow runs, a judge and exact checks on a real gateway, and everything they must not do."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from router.commands import savings
from router.commands.output import Format
from router.commands.ranges import Range
from router.core.attempts import RoutingRecord
from router.core.judgements import JUDGE_TENANT, SHADOW_TENANT, JudgedAnswer
from router.core.vocabulary import Outcome
from router.stores import label_sources, queries
from tests.gateway import BIG_PRICE, CHEAP_PRICE, RunningGateway, running, until
from tests.patience import PATIENCE_S
from tests.upstream import FakeUpstream, ok, stall, status

KEY = {"API_KEY": "sk-up"}
ASKED = {"model": "auto", "messages": [{"role": "user", "content": "Name a colour."}]}
JSON_ASKED = {**ASKED, "response_format": {"type": "json_object"}}


@dataclass
class Bench:
    """A gateway over a local engine and a cheap tier of two models, the second of which judges."""

    front: RunningGateway
    local: FakeUpstream
    cheap: FakeUpstream
    judge: FakeUpstream
    client: httpx.AsyncClient

    async def ask(self, body: dict[str, Any] = ASKED, **headers: str) -> httpx.Response:
        answer = await self.client.post("/v1/chat/completions", json=body, headers=headers)
        assert answer.status_code == 200, answer.text
        return answer

    def counted(self, kind: str, outcome: str) -> int:
        labels = {"kind": kind, "outcome": outcome}
        registry = self.front.gateway.telemetry.registry
        return int(registry.get_sample_value("router_learning_calls_total", labels) or 0)

    async def settle(self) -> None:
        """Until nothing is looked at any more and all is booked."""
        beside = self.front.gateway.beside
        assert beside is not None
        await until(lambda: beside.busy == 0)
        await self.front.gateway.ledger.flush()

    async def judgements(self) -> list[JudgedAnswer]:
        await self.settle()
        return list(label_sources.judgements(self.front.gateway.ledger.read_engine, None, None))

    async def records(self, tenant: str) -> list[RoutingRecord]:
        await self.settle()
        return list(queries.iterate_records(self.front.gateway.ledger.read_engine, tenant=tenant))


Start = Callable[..., Any]


@pytest.fixture
def bench(tmp_path: Path) -> Start:
    """`async with bench(learning={…}, policy={…}) as b:`"""

    @asynccontextmanager
    async def start(learning: dict[str, Any], **policy: Any) -> AsyncIterator[Bench]:
        async with AsyncExitStack() as stack:
            local, cheap, judge = [
                await stack.enter_async_context(FakeUpstream(api_key=k)) for k in (None, "sk-up", "sk-up")
            ]
            local.default, cheap.default = ok(text="Red, probably."), ok(text="A colour is blue.")
            models = [
                {"model": f"openai/{name}", "api_base": up.base_url, "api_key_env": "API_KEY", "price": price}
                for name, up, price in (("cheap-model", cheap, CHEAP_PRICE), ("judge-model", judge, BIG_PRICE))
            ]
            engine = {
                "engine": "external", "api_base": local.base_url, "model": "house-model",
                "context_window_tokens": 4096, "coefficients": "h100-8b-fp16",
                "hardware": {"kind": "rented", "usd_per_hour": 2.50},
            }  # fmt: skip
            config = {
                "server": {"data_dir": str(tmp_path / "data")},
                "timeouts": {"connect_s": 30, "first_byte_s": 60, "idle_s": 60},
                "tiers": {"local": engine, "cheap": {"models": models}},
                "policy": policy,
                "learning": learning,
                "classifier": {"model": "heuristic"},
            }
            front = await stack.enter_async_context(running(config, KEY))
            client = await stack.enter_async_context(httpx.AsyncClient(base_url=front.url, timeout=PATIENCE_S))
            yield Bench(front, local, cheap, judge, client)

    return start


ALWAYS = {"shadow": {"ratio": 1.0}, "judge": {"model": "openai/judge-model"}}


@pytest.mark.parametrize("stream", [False, True])
async def test_both_answers_are_judged_blind_in_both_orders_and_booked_as_overhead(bench: Start, stream: bool) -> None:
    async with bench(ALWAYS) as b:
        b.judge.script(ok(text='{"A": 2, "B": 9}'), ok(text='Hm. {"A": 10, "B": 4}'))
        answer = await b.ask({**ASKED, "stream": stream})
        request_id = answer.headers["x-request-id"]
        found = {said.tier: said for said in await b.judgements()}
        assert {tier: said.quality_ratio for tier, said in found.items()} == pytest.approx(
            {"local": 0.3, "cheap": 0.95}
        )
        assert {said.request_id for said in found.values()} == {request_id}
        assert {said.judge for said in found.values()} == {"openai/judge-model"}
        assert found["local"].model == "house-model" and found["cheap"].model == "cheap-model"
        assert found["cheap"].action_probability == 1.0 and found["local"].output_tokens is not None
        shown = [call.json["messages"][1]["content"] for call in b.judge.chats]
        assert all("Red, probably." in text and "A colour is blue." in text for text in shown)
        assert shown[0].index("Red,") < shown[0].index("A colour is blue.")
        assert shown[1].index("Red,") > shown[1].index("A colour is blue.")
        assert not any(word in text for text in shown for word in ("house-model", "cheap", "premium"))
        (shadow,), judged = await b.records(SHADOW_TENANT), await b.records(JUDGE_TENANT)
        assert shadow.requested_model == "overhead:shadow" and shadow.session == request_id
        assert [record.requested_model for record in judged] == ["overhead:judge"] * 2
        assert all(record.cost_nanousd > 0 and record.prompt_text is None for record in (shadow, *judged))
        costs = await b.front.costs()
        assert {row.tenant: row.requests for row in costs.rows} == {"default": 1, SHADOW_TENANT: 0, JUDGE_TENANT: 0}
        assert costs.totals.open_reservations == 0
        asked = b.front.gateway.telemetry.registry.get_sample_value
        assert asked("router_decisions_total", {"reason": "PINNED_BY_CLIENT"}) in (None, 0.0)


async def test_the_savings_waterfall_sums_with_overhead_as_a_step_of_its_own(
    bench: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with bench(ALWAYS) as b:
        b.judge.default = ok(text='{"A": 5, "B": 5}')
        await b.ask()
        await b.settle()
        side_calls = [*await b.records(SHADOW_TENANT), *await b.records(JUDGE_TENANT)]
        overhead = sum(record.cost_nanousd for record in side_calls)
        config = tmp_path / "router.yaml"
        config.write_text(
            f"server: {{data_dir: {tmp_path / 'data'}}}\ntiers:\n  local: {{engine: embedded}}\n"
            "  cheap: {model: openai/x, price: {input_usd_per_mtok: 1, output_usd_per_mtok: 2}}\n"
        )
        savings.run(config, Format.JSON, Range(), now_utc=datetime.now(UTC))
        found = json.loads(capsys.readouterr().out)
        assert found["requests"] == 1 and found["steps_nanousd"]["classifier_overhead"] == -overhead < 0
        assert found["always_premium_nanousd"] - sum(found["steps_nanousd"].values()) == found["spent_nanousd"]


async def test_a_broken_shadow_or_an_unreadable_judge_costs_a_label_and_nothing_else(bench: Start) -> None:
    async with bench(ALWAYS) as b:
        b.cheap.script(status(400), ok(text="Blue."))
        b.judge.script(ok(text="I like both."))
        for _ in range(2):
            await b.ask()
            await b.settle()
        assert await b.judgements() == []
        assert b.counted("shadow", "refused") == 1 and b.counted("judge", "unreadable") == 1
        assert [record.outcome for record in await b.records(SHADOW_TENANT)] == [Outcome.REFUSED, Outcome.OK]
        assert b.front.gateway.budgets.reserved_nanousd == 0


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (ASKED, {"x-router-locality": "local"}),
        ({**ASKED, "model": "auto:local"}, {}),
        ({**ASKED, "model": "local"}, {}),
        ({**ASKED, "model": "openai/cheap-model"}, {}),
    ],
)
async def test_what_must_stay_at_home_or_was_chosen_by_the_caller_is_never_shadowed(
    bench: Start, body: dict[str, Any], headers: dict[str, str]
) -> None:
    async with bench({**ALWAYS, "exact_checks": True}) as b:
        await b.ask(body, **headers)
        await b.settle()
        pinned = body["model"].startswith("openai")
        assert (len(b.local.chats), len(b.cheap.chats), len(b.judge.chats)) == (not pinned, pinned, 0)


async def test_excluded_tenants_are_left_alone(bench: Start) -> None:
    async with bench({**ALWAYS, "exclude_tenants": ["default"]}) as b:
        await b.ask()
        await b.settle()
        assert b.cheap.chats == []


async def test_the_answer_waits_for_nobody_and_what_would_be_too_much_is_dropped(bench: Start) -> None:
    async with bench({"shadow": {"ratio": 1.0, "max_concurrent": 1}, "exact_checks": True}) as b:
        b.cheap.default = stall()
        for _ in range(3):
            await b.ask()
        await until(lambda: len(b.cheap.chats) == 1)
        assert b.counted("shadow", "no_place") == 2 and len(b.local.chats) == 3
        beside = b.front.gateway.beside
        assert beside is not None
        await beside.stop()  # as at the end: what hangs is ended and booked
        assert beside.busy == 0
        (record,) = await b.records(SHADOW_TENANT)
        assert record.outcome is Outcome.CLIENT_GONE
        await b.ask()
        assert len(b.cheap.chats) == 1
    assert b.front.gateway.budgets.reserved_nanousd == 0


async def test_a_gateway_that_drains_begins_nothing_new(bench: Start) -> None:
    async with bench(ALWAYS) as b:
        beside = b.front.gateway.beside
        assert beside is not None
        beside.draining = lambda: True
        await b.ask()
        await b.settle()
        assert b.cheap.chats == []


async def test_a_budget_that_is_spent_ends_shadow_runs_for_the_day_also_after_a_restart(bench: Start) -> None:
    tight = {"shadow": {"ratio": 1.0, "budget_usd_per_day": 0.00002}, "exact_checks": True}
    short = {**ASKED, "max_tokens": 20}
    async with bench(tight) as b:
        for _ in range(6):
            await b.ask(short)
            await b.settle()
        done = b.counted("shadow", "ok")
        assert 0 < done < 6 and b.counted("shadow", "budget") == 6 - done
        spent = sum(record.cost_nanousd for record in await b.records(SHADOW_TENANT))
    async with bench(tight) as b:
        beside = b.front.gateway.beside
        assert beside is not None
        (state,) = beside.shadow_budget.states(datetime.now(UTC))
        assert state.spent_nanousd == spent > 0


async def test_a_policy_budget_that_runs_low_is_kept_for_requests(bench: Start) -> None:
    async with bench({"shadow": {"ratio": 1.0}, "exact_checks": True}, budget_usd_per_day=1) as b:
        b.front.gateway.budgets.settle(reserved_nanousd=0, spent_nanousd=950_000_000)
        await b.ask()
        await b.settle()
        assert b.cheap.chats == [] and b.counted("shadow", "budget") == 1


async def test_a_form_that_was_asked_for_is_checked_without_any_call(bench: Start) -> None:
    async with bench({"exact_checks": True}) as b:
        b.local.script(ok(text='{"colour": "red"}'), ok(text="red"), ok(text='{"colour": "red"}'))
        for body in (JSON_ASKED, JSON_ASKED, {**JSON_ASKED, "stream": True}, ASKED):
            await b.ask(body)
            await b.settle()
        found = await b.judgements()
        assert [said.quality_ratio for said in found] == [1.0, 0.0, 1.0]
        assert {(said.provenance, said.judge, said.label_probability) for said in found} == {
            ("exact_check", "json", 1.0)
        }
        assert b.cheap.chats == [] and len(b.local.chats) == 4


async def test_the_result_of_a_calculation_is_checked(bench: Start) -> None:
    async with bench({"exact_checks": True}) as b:
        b.local.script(ok(text="17 * 23 = 391"), ok(text="That makes 381."))
        for stream in (False, True):
            await b.ask({**ASKED, "messages": [{"role": "user", "content": "What is 17 * 23?"}], "stream": stream})
            await b.settle()
        found = [(said.provenance, said.judge, said.quality_ratio) for said in await b.judgements()]
        assert found == [("exact_check", "arithmetic", 1.0), ("exact_check", "arithmetic", 0.0)]


async def test_probabilities_say_why_a_request_is_among_the_labels(bench: Start) -> None:
    """A verdict puts every such request there, and the other tier is seen now and then; else the dice have drawn it."""
    async with bench({**ALWAYS, "shadow": {"ratio": 0.9999999}, "exact_checks": True}) as b:
        b.judge.default = ok(text='{"A": 5, "B": 5}')
        b.local.script(ok(text='{"colour": "red"}'), ok(text='"red"'))
        b.cheap.script(ok(text='{"colour": "blue"}'), ok(text='"blue"'))
        unchecked = {"name": "x", "schema": {"type": "string", "pattern": "(a+)+$"}}
        for body in (JSON_ASKED, {**ASKED, "response_format": {"type": "json_schema", "json_schema": unchecked}}):
            await b.ask(body)
            await b.settle()
        found = [(said.provenance, said.tier, said.action_probability) for said in await b.judgements()]
        first, second = found[:-2], found[-2:]
        assert {(p, t) for p, t, _ in first} == {(p, t) for p in ("exact_check", "judge") for t in ("local", "cheap")}
        for _, tier, probability in first:
            assert probability == pytest.approx(0.9999999 if tier == "cheap" else 1.0, abs=1e-9)
        assert sorted(second) == [("judge", "cheap", 1.0), ("judge", "local", 1.0)]


async def test_no_answer_and_no_prompt_is_left_on_disk(bench: Start, tmp_path: Path) -> None:
    async with bench(ALWAYS) as b:
        b.local.default = ok(text="canary-4711-answer")
        b.judge.default = ok(text='{"A": 5, "B": 5}')
        await b.ask({**ASKED, "messages": [{"role": "user", "content": "canary-4711-prompt"}]})
        assert len(await b.judgements()) == 2
    for folder, _, names in os.walk(tmp_path):
        for name in names:
            assert b"canary-4711" not in (Path(folder) / name).read_bytes()


async def test_learning_that_is_off_is_not_there(bench: Start) -> None:
    async with bench({}) as b:
        assert b.front.gateway.beside is None and b.front.gateway.deps.learner is None
        await b.ask()
        assert b.cheap.chats == []
