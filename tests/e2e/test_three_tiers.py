"""An app's view: the OpenAI SDK in front, three loopback upstreams behind, and everything that can go wrong between."""

from __future__ import annotations

import json
from dataclasses import replace

import openai
import pytest

from tests.e2e.conftest import EASY, HARD, IMPATIENT, KEYS, House
from tests.gateway import until
from tests.upstream import (
    aborted,
    cut,
    error_frame,
    malformed,
    no_usage,
    ok,
    silence,
    stall,
    stall_after_headers,
    status,
    tools,
    trickle,
    usage_on_last_chunk,
    with_usage,
)
from tests.upstream_answers import tool_call

WEATHER = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}


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


# --- streams -------------------------------------------------------------------------------------------------------


async def text_of(stream) -> tuple[str, list]:
    """Joined text and all chunks."""
    chunks = [chunk async for chunk in stream]
    return "".join(c.choices[0].delta.content or "" for c in chunks if c.choices), chunks


async def stream(house: House, messages=HARD, **options):
    options.setdefault("model", "auto")
    return await house.client.chat.completions.create(messages=messages, stream=True, **options)


async def test_a_stream_arrives_as_it_was_sent_without_usage_nobody_asked_for(house: House):
    house.big.default = ok("Grüße aus 東京 🎌 und so weiter")
    text, chunks = await text_of(await stream(house))
    assert text == "Grüße aus 東京 🎌 und so weiter"
    assert all(c.usage is None for c in chunks)
    assert house.big.chats[0].json["stream_options"] == {"include_usage": True}


async def test_a_stream_and_a_plain_answer_cost_the_same(house: House):
    house.big.default = ok("The same words in both of them.")
    _, headers = await house.ask(HARD)
    _, chunks = await text_of(await stream(house, stream_options={"include_usage": True}))
    assert chunks[-1].usage.cost == pytest.approx(float(headers["x-router-cost-usd"]))
    report = await house.front.costs()
    assert report.totals.requests == 2
    assert report.totals.cost_nanousd == 2 * round(float(headers["x-router-cost-usd"]) * 1e9)


@pytest.mark.parametrize(
    ("house", "trouble"),
    [(IMPATIENT, stall()), (IMPATIENT, stall_after_headers())]
    + [({}, trouble) for trouble in (status(503), malformed(0), error_frame(0), cut(1))],
    indirect=["house"],
)
async def test_trouble_before_the_first_token_falls_back_unseen(house: House, trouble):
    house.big.default = trouble
    text, chunks = await text_of(await stream(house))
    assert text
    assert {c.model for c in chunks} == {"cheap-model"}


@pytest.mark.parametrize(
    ("house", "trouble"),
    [({}, trouble) for trouble in (cut(40), cut(40, "eof"), error_frame(40, tokens=60), malformed(40, tokens=60))]
    + [(IMPATIENT, silence(40))],
    indirect=["house"],
)
async def test_trouble_after_the_first_token_is_told_in_band_and_billed_once(house: House, trouble):
    house.big.default = trouble
    events = []
    with pytest.raises(openai.APIError) as failed:
        async for chunk in await stream(house):
            events.append(chunk)  # noqa: PERF401 - what came before the error counts
    assert len(events) >= (39 if trouble.cut_how != "reset" else 1)  # a reset may overtake what was sent before it
    assert failed.value.code in {"upstream_broken", "upstream_timeout", "upstream_unavailable"}
    assert house.calls == {"local": 0, "cheap": 0, "big": 1}
    report = await house.front.costs()
    assert (report.totals.attempts, report.totals.open_reservations) == (1, 0)
    assert report.totals.cost_nanousd >= (len(events) - 1) * 10_000  # the tokens that came, at 10 dollars per million


async def test_after_an_error_there_is_no_done(house: House):
    house.big.default = error_frame(20, tokens=60)
    import aiohttp

    async with aiohttp.ClientSession() as session:
        body = {"model": "auto", "messages": HARD, "stream": True}
        async with session.post(f"{house.front.v1}/chat/completions", json=body) as response:
            raw = await response.read()
    events = raw.decode().strip().split("\n\n")
    assert "error" in json.loads(events[-1].removeprefix("data: "))
    assert b"[DONE]" not in raw


async def test_an_abort_by_the_operator_is_a_failure(house: House):
    house.big.default = aborted()
    with pytest.raises(openai.APIError):
        await text_of(await stream(house))


@pytest.mark.parametrize("house", [{"timeouts": {"total_s": 2}}], indirect=True)
async def test_a_trickle_is_cut_off(house: House):
    house.big.default = replace(trickle(gap_s=0.45), tokens=600)
    with pytest.raises(openai.APIError):
        await text_of(await stream(house))


@pytest.mark.parametrize(
    "how", [no_usage(), with_usage({"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0})]
)
async def test_missing_usage_is_estimated_and_says_so(house: House, how):
    house.big.default = how
    for chunks in [(await text_of(await stream(house, stream_options={"include_usage": True})))[1]]:
        assert chunks[-1].usage.estimated is True
        assert chunks[-1].usage.completion_tokens >= 5
    await house.ask(HARD)
    report = await house.front.costs()
    assert report.totals.requests == 2
    assert report.totals.cost_nanousd > 0


async def test_usage_that_contradicts_itself_is_clamped(house: House):
    usage = {
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "total_tokens": 15,
        "prompt_tokens_details": {"cached_tokens": 50},
    }
    house.big.default = with_usage(usage)
    _, headers = await house.ask(HARD)
    record = await house.front.record(headers["x-request-id"])
    assert record.usage.cached_input_tokens == 10
    assert "USAGE_INCONSISTENT" in record.attempts[0].charge.flags


async def test_usage_on_the_last_chunk_is_found_and_moved(house: House):
    house.big.default = usage_on_last_chunk()
    _, chunks = await text_of(await stream(house, stream_options={"include_usage": True}))
    assert chunks[-1].usage.prompt_tokens > 0
    assert chunks[-1].choices == []


async def test_tool_calls_split_over_chunks_come_together(house: House):
    calls = [tool_call("weather", {"city": city}, number) for number, city in enumerate(("Oslo", "São Paulo"))]
    house.big.default = house.cheap.default = tools(*calls)
    pieces: dict[int, str] = {}
    async for chunk in await stream(house, tools=[WEATHER]):
        for call in (chunk.choices[0].delta.tool_calls or []) if chunk.choices else []:
            pieces[call.index] = pieces.get(call.index, "") + (call.function.arguments or "")
    assert [json.loads(pieces[i])["city"] for i in sorted(pieces)] == ["Oslo", "São Paulo"]


@pytest.mark.parametrize("after", [1, 10])
async def test_a_caller_who_leaves_stops_the_upstream_and_pays_for_what_came(house: House, after: int):
    house.big.default = ok("word " * 5000, gap_s=0.02)
    answer = await stream(house)
    seen = 0
    async for _ in answer:
        seen += 1
        if seen > after:
            break
    await answer.close()
    await until(lambda: house.big.chats[0].disconnected_at_s is not None)
    await until(lambda: house.front.gateway.in_flight.count == 0)
    report = await house.front.costs()
    assert (report.totals.requests, report.totals.attempts, report.totals.open_reservations) == (1, 1, 0)
    assert report.totals.cost_nanousd > 0


async def test_a_caller_who_leaves_a_plain_call_stops_the_upstream_too(house: House):
    house.big.default = stall()
    with pytest.raises(openai.APITimeoutError):
        await house.client.with_options(timeout=1.0).chat.completions.create(model="auto", messages=HARD)
    await until(lambda: house.big.chats[0].disconnected_at_s is not None)
    await until(lambda: house.front.gateway.in_flight.count == 0)
    report = await house.front.costs()
    assert (report.totals.requests, report.totals.open_reservations) == (1, 0)


# --- the other routes ----------------------------------------------------------------------------------------------


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
