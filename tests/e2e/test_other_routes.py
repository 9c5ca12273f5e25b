"""The routes beside the chat, on three loopback upstreams: models, explain, estimate, feedback, usage, health."""

from __future__ import annotations

import openai
import pytest

from tests.e2e.conftest import EASY, HARD, House
from tests.upstream import (
    with_usage,
)


async def test_models_lists_virtual_and_real_ones_with_limits(house: House):
    cards = {m.id: m.model_dump() for m in (await house.client.models.list()).data}
    assert {"auto", "auto:cheap", "auto:quality", "auto:local", "house-model", "cheap-model", "big-model"} <= set(cards)
    assert cards["auto"]["max_input_tokens"] == 64_000
    assert cards["auto:local"]["max_input_tokens"] == 4096


async def post(house: House, path: str, body: dict, **headers: str):
    import aiohttp

    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{house.front.url}{path}", json=body, headers=headers) as r,
    ):
        return r.status, await r.json()


async def test_explain_decides_as_the_call_would_and_calls_nobody(house: House):
    code, told = await post(house, "/v1/route/explain", {"model": "auto", "messages": HARD})
    assert code == 200
    assert (told["chosen"]["tier"], told["reason"]) == ("premium", "PREMIUM_QUALITY_FLOOR")
    assert {a["tier"]: a["reasons_against"] for a in told["alternatives"]}["local"] == ["QUALITY_BELOW_FLOOR"]
    assert house.calls == {"local": 0, "cheap": 0, "big": 0}
    _, headers = await house.ask(HARD)
    assert headers["x-router-tier"] == told["chosen"]["tier"]


async def test_estimate_tells_the_price_before_the_call(house: House):
    code, told = await post(house, "/v1/estimate", {"model": "auto", "messages": HARD, "max_tokens": 50})
    assert code == 200
    assert told["expected_cost_usd"] > 0
    code, told = await post(house, "/v1/estimate", {"model": "big-model", "input_tokens": 1000, "output_tokens": 300})
    assert (code, told["expected_cost_nanousd"]) == (200, 5_000_000)


async def test_estimate_tells_the_standard_cost_of_the_local_tier_and_the_range_of_auto(house: House):
    counts = {"input_tokens": 1000, "output_tokens": 300}
    code, local = await post(house, "/v1/estimate", {"model": "local", **counts})
    assert (code, local["basis"], local["tier"]) == (200, "standard cost", "local")
    assert local["expected_cost_nanousd"] > 0
    code, auto = await post(house, "/v1/estimate", {"model": "auto", **counts})
    assert (code, auto["expected_cost_usd"]) == (200, None)
    assert (auto["min_cost_nanousd"], auto["max_cost_nanousd"]) == (local["expected_cost_nanousd"], 5_000_000)
    assert "how full the local engine is" in auto["depends_on"]
    code, told = await post(house, "/v1/estimate", {"model": "no-such-model", **counts})
    assert (code, told["error"]["code"]) == (404, "model_not_found")


async def test_feedback_is_kept_for_requests_that_exist(house: House):
    _, headers = await house.ask(EASY)
    code, told = await post(
        house, "/v1/feedback", {"request_id": headers["x-request-id"], "score": 0.5, "comment": "so so"}
    )
    assert (code, told["status"]) == (200, "stored")
    code, told = await post(house, "/v1/feedback", {"request_id": "req_nobody", "score": 0.5})
    assert (code, told["error"]["code"]) == (404, "request_not_found")
    code, told = await post(house, "/v1/feedback", {"request_id": headers["x-request-id"], "score": 7})
    assert (code, told["error"]["param"]) == (400, "score")


async def test_usage_shows_spend_by_day_tenant_tier_and_model(house: House):
    await house.ask(EASY)
    await house.ask(HARD)
    import aiohttp

    async with aiohttp.ClientSession() as session, session.get(f"{house.front.v1}/usage") as r:
        told = await r.json()
    assert {row["tier"] for row in told["rows"]} == {"local", "premium"}
    assert told["totals"]["requests"] == 2


async def test_health_and_metrics_call_nobody(house: House):
    import aiohttp

    async with aiohttp.ClientSession() as session:
        for path in ("/health/liveness", "/health/liveliness", "/health/readiness", "/metrics"):
            async with session.get(house.front.url + path) as r:
                assert r.status == 200
                body = await r.text()
    assert "router_requests_total" in body
    assert house.calls == {"local": 0, "cheap": 0, "big": 0}


async def test_an_unknown_route_answers_in_the_envelope(house: House):
    code, told = await post(house, "/v1/nonsense", {})
    assert code == 404
    assert set(told["error"]) == {"message", "type", "param", "code"}


async def test_an_idempotency_key_makes_one_call_of_two(house: House):
    for _ in range(2):
        _, headers = await house.ask(HARD, extra_headers={"idempotency-key": "k-1"})
    assert headers["x-router-idempotent-replay"] == "true"
    assert house.calls["big"] == 1
    with pytest.raises(openai.ConflictError) as conflict:
        await house.ask(EASY, extra_headers={"idempotency-key": "k-1"})
    assert conflict.value.code == "idempotency_conflict"
    with pytest.raises(openai.ConflictError):
        await house.ask(HARD, extra_headers={"idempotency-key": "k-1", "x-router-locality": "local"})
    assert (await house.front.costs()).totals.requests == 1


@pytest.mark.parametrize("house", [{"budget_usd_per_day": 0.02}], indirect=True)
async def test_an_exhausted_budget_keeps_everything_at_home(house: House):
    house.big.default = with_usage({"prompt_tokens": 1000, "completion_tokens": 1900, "total_tokens": 2900})
    _, first = await house.ask(HARD)
    _, then = await house.ask(HARD)
    assert (first["x-router-tier"], then["x-router-tier"]) == ("premium", "local")


async def test_what_a_request_was_decided_on_can_be_replayed_from_its_record(house: House):
    from router.core.policy import decide
    from router.core.replay import restore

    _, headers = await house.ask(HARD)
    record = await house.front.record(headers["x-request-id"])
    again = decide(*restore(record.world, record.moment))
    assert again.inputs_hash == record.decision.inputs_hash
    assert again.chosen.name == record.attempts[0].candidate
