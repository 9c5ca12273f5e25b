"""An app's view: the OpenAI SDK in front, three loopback upstreams behind, and everything that can go wrong between."""

from __future__ import annotations

import json

import openai
import pytest

from tests.e2e.conftest import EASY, HARD, IMPATIENT, KEYS, WEATHER, House
from tests.gateway import until
from tests.upstream import (
    stall,
    status,
    tools,
    with_usage,
)
from tests.upstream_answers import tool_call


async def test_an_easy_prompt_stays_at_home(house: House):
    answer, headers = await house.ask(EASY)
    assert house.calls == {"local": 1, "cheap": 0, "big": 0}
    assert headers["x-router-tier"] == "local"
    assert headers["x-router-reason"] == "LOCAL_IDLE_FREE"
    assert headers["x-router-model"] == answer.model == "house-model"
    assert float(headers["x-router-cost-usd"]) > 0
    assert headers["x-router-cost-basis"] == "observed"
    assert headers["x-router-attempts"] == "1"
    assert headers["x-router-cache"] == "off"
    assert float(headers["x-router-overhead-ms"]) > 0
    assert headers["x-request-id"].startswith("req_")


async def test_a_hard_prompt_goes_to_premium_and_costs_what_its_tokens_cost(house: House):
    house.big.script(with_usage({"prompt_tokens": 1000, "completion_tokens": 300, "total_tokens": 1300}))
    answer, headers = await house.ask(HARD)
    assert headers["x-router-tier"] == "premium"
    assert headers["x-router-reason"] == "PREMIUM_QUALITY_FLOOR"
    assert headers["x-router-cost-usd"] == "0.005"
    assert answer.usage.prompt_tokens == 1000
    report = await house.front.costs()
    assert [(r.tier, r.model, r.requests, r.attempts, r.cost_nanousd) for r in report.rows] == [
        ("premium", "big-model", 1, 1, 5_000_000)
    ]
    assert report.totals.open_reservations == 0


async def test_a_prompt_too_long_for_home_goes_to_the_cheapest_that_can_hold_it(house: House):
    _, headers = await house.ask(
        [{"role": "user", "content": "word " * 5000 + "."}], extra_headers={"x-router-quality": "0"}
    )
    assert headers["x-router-tier"] == "cheap"


async def test_a_prompt_too_long_for_everybody_is_refused_by_name_and_costs_nothing(house: House):
    with pytest.raises(openai.BadRequestError) as refused:
        await house.ask([{"role": "user", "content": "word " * 90_000}])
    assert refused.value.code == "context_length_exceeded"
    assert "64000" in refused.value.message
    assert house.calls == {"local": 0, "cheap": 0, "big": 0}
    assert (await house.front.costs()).totals.cost_nanousd == 0


async def test_tools_go_where_tools_are_understood_and_come_back_whole(house: House):
    call = tool_call("weather", {"city": "Zürich"})
    house.big.default = house.cheap.default = tools(call)
    answer, headers = await house.ask(EASY, tools=[WEATHER])
    assert headers["x-router-tier"] in {"cheap", "premium"}
    assert json.loads(answer.choices[0].message.tool_calls[0].function.arguments) == {"city": "Zürich"}
    chosen = house.cheap if headers["x-router-tier"] == "cheap" else house.big
    assert chosen.chats[0].json["tools"] == [WEATHER]


async def test_a_prompt_that_must_stay_home_stays_home(house: House):
    for how in (
        {"model": "auto:local"},
        {"extra_headers": {"x-router-locality": "local"}},
        {"extra_body": {"router": {"locality": "local"}}},
    ):
        _, headers = await house.ask(HARD, **how)
        assert headers["x-router-reason"] == "LOCAL_ONLY_POLICY"
    assert house.calls == {"local": 3, "cheap": 0, "big": 0}


async def test_a_prompt_that_must_stay_home_makes_no_cloud_call_even_when_home_is_dead(house: House):
    house.local.default = status(500)
    with pytest.raises(openai.InternalServerError):
        await house.ask(EASY, model="auto:local")
    await house.local.stop()
    with pytest.raises(openai.InternalServerError):
        await house.ask(EASY, model="auto:local")
    assert house.calls["cheap"] == house.calls["big"] == 0


async def test_a_dead_tier_is_fallen_back_from_and_every_attempt_is_a_row(house: House):
    await house.local.stop()
    _, headers = await house.ask(EASY)
    assert headers["x-router-tier"] == "cheap"
    assert headers["x-router-reason"] == "FALLBACK_AFTER_ERROR"
    assert headers["x-router-attempts"] == "2"
    record = await house.front.record(headers["x-request-id"])
    assert [(a.tier, a.outcome) for a in record.attempts] == [("local", "unavailable"), ("cheap", "ok")]


async def test_a_429_spills_to_another_tier_at_once(house: House):
    house.big.script(status(429, headers=[("retry-after", "3600")]))
    _, headers = await house.ask(HARD)
    assert headers["x-router-tier"] == "cheap"
    assert headers["x-router-attempts"] == "2"
    _, later = await house.ask(HARD)
    assert later["x-router-tier"] == "cheap"
    assert later["x-router-attempts"] == "1"
    assert house.calls["big"] == 1


async def test_a_short_retry_after_is_waited_for_where_there_is_nowhere_else_to_go(house: House):
    house.big.script(status(429, headers=[("retry-after", "1")]))
    _, headers = await house.ask(HARD, model="big-model")
    assert headers["x-router-attempts"] == "2"
    assert house.big.chats[1].received_at_s - house.big.chats[0].received_at_s >= 1.0


async def test_a_server_error_is_tried_again_and_then_elsewhere(house: House):
    house.big.default = status(500)
    _, headers = await house.ask(HARD)
    assert headers["x-router-tier"] == "cheap"
    assert headers["x-router-attempts"] == "3"
    assert house.calls == {"local": 0, "cheap": 1, "big": 2}
    assert house.front.alerts("upstream_left_alone") == 0
    await house.ask(HARD)
    assert house.front.alerts("upstream_left_alone") == 1
    await house.ask(HARD)
    assert house.front.alerts("upstream_left_alone") == 1


@pytest.mark.parametrize("house", [IMPATIENT], indirect=True)
async def test_silence_before_the_headers_falls_back(house: House):
    house.big.default = stall()
    _, headers = await house.ask(HARD)
    assert headers["x-router-tier"] == "cheap"
    await until(lambda: house.big.chats[0].disconnected_at_s is not None)


async def test_a_callers_own_error_is_passed_through_without_another_call(house: House):
    house.big.script(
        status(400, {"error": {"message": "bad tool", "type": "invalid_request_error", "param": "tools", "code": "x"}})
    )
    with pytest.raises(openai.BadRequestError) as refused:
        await house.ask(HARD)
    assert refused.value.param == "tools"
    assert house.calls == {"local": 0, "cheap": 0, "big": 1}


async def test_a_key_that_the_provider_refuses_is_our_fault_and_not_the_callers(house: House):
    house.big.api_key = "sk-another"
    with pytest.raises(openai.InternalServerError) as failed:
        await house.ask(HARD, model="big-model")
    assert failed.value.status_code == 502
    assert failed.value.code == "upstream_credentials_exhausted"
    assert KEYS["BIG_KEY"] not in str(failed.value.body)


async def test_a_model_that_its_host_has_retired_is_answered_for_by_another_and_told_of(house: House):
    house.big.script(status(404, {"error": {"message": "no such model", "type": "invalid_request_error"}}))
    _, headers = await house.ask(HARD)
    assert (headers["x-router-tier"], headers["x-router-attempts"]) == ("cheap", "2")
    _, headers = await house.ask(HARD)
    assert (headers["x-router-tier"], headers["x-router-attempts"]) == ("cheap", "1")
    assert house.calls["big"] == 1


async def test_keys_go_to_their_own_host_only(house: House):
    await house.ask(EASY)
    await house.ask(HARD)
    seen = {name: {r.headers.get("authorization") for r in getattr(house, name).chats} for name in ("local", "big")}
    assert seen == {"local": {None}, "big": {f"Bearer {KEYS['BIG_KEY']}"}}


async def test_a_client_cannot_say_where_a_request_goes(house: House):
    for name in ("api_base", "base_url", "api_key"):
        with pytest.raises(openai.BadRequestError) as refused:
            await house.ask(EASY, extra_body={name: "http://169.254.169.254"})
        assert refused.value.param == name
    assert house.calls == {"local": 0, "cheap": 0, "big": 0}


async def test_unknown_fields_reach_the_upstream_untouched(house: House):
    odd = {"reasoning_effort": "low", "my_field": {"deep": [1, 2.50, None, "ü"]}, "seed": 7}
    await house.ask(HARD, extra_body=odd, logprobs=True, top_logprobs=2, n=2)
    sent = house.big.chats[0].json
    assert {key: sent[key] for key in odd} == odd
    assert (sent["logprobs"], sent["top_logprobs"], sent["n"], sent["model"]) == (True, 2, 2, "big-model")


async def test_an_unknown_model_is_404(house: House):
    with pytest.raises(openai.NotFoundError) as missing:
        await house.ask(EASY, model="gpt-nonsense")
    assert missing.value.code == "model_not_found"


async def test_a_tier_and_a_real_model_can_be_named(house: House):
    for name, tier in (
        ("cheap", "cheap"),
        ("premium", "premium"),
        ("local", "local"),
        ("openai/big-model", "premium"),
        ("cheap-model", "cheap"),
    ):
        _, headers = await house.ask(EASY, model=name)
        assert (headers["x-router-tier"], headers["x-router-reason"]) == (tier, "PINNED_BY_CLIENT")


async def test_the_cost_cap_keeps_a_hard_prompt_off_premium(house: House):
    _, headers = await house.ask(HARD, extra_headers={"x-router-max-cost-usd": "0.0005"}, max_tokens=100)
    assert headers["x-router-tier"] == "cheap"


async def test_debug_shows_what_was_weighed_and_nothing_internal(house: House):
    _, headers = await house.ask(HARD, extra_headers={"x-router-debug": "true"})
    weighed = json.loads(headers["x-router-decision"])
    assert {a["tier"] for a in weighed["alternatives"]} == {"local", "cheap", "premium"}
    assert "127.0.0.1" not in headers["x-router-decision"]
