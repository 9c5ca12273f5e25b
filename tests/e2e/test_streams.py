"""Streams through three tiers: trouble before and after the first token, usage, callers who leave."""

from __future__ import annotations

import json
from dataclasses import replace

import openai
import pytest

from tests.e2e.conftest import HARD, IMPATIENT, WEATHER, House
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
