"""The whole gateway in front of a real vLLM, through the official client."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.patience import PATIENCE_S
from tests.vllm.gateways import ROUTER_KEY, RunningGateway, api_tier, external_tier, running_gateway
from tests.vllm.vllm_servers import (
    MAX_NUM_SEQS,
    MAX_QUEUED,
    MODEL,
    WINDOW_TOKENS,
    SupervisedStart,
    VllmServer,
    wait_until,
)

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

MESSAGES: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]
ASKED: dict[str, Any] = {"messages": MESSAGES, "temperature": 0, "max_tokens": 24, "extra_body": {"ignore_eos": True}}
ENDLESS: dict[str, Any] = ASKED | {"max_tokens": 1900, "stream": True}


def client_of(gateway: RunningGateway) -> openai.OpenAI:
    """The official client, without its own retries."""
    return openai.OpenAI(base_url=gateway.base_url, api_key=ROUTER_KEY, max_retries=0, timeout=PATIENCE_S)


@pytest.fixture(scope="module")
def gateway(engine: VllmServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    """A gateway whose only tier is the engine."""
    folder = tmp_path_factory.mktemp("gateway")
    with running_gateway(folder, {"local": external_tier(engine)}, {"ENGINE_KEY": engine.api_key}) as running:
        yield running


@pytest.fixture
def client(gateway: RunningGateway, engine: VllmServer) -> Iterator[openai.OpenAI]:
    """A client of that gateway; the engine is idle when the test begins."""
    wait_until(engine.reading, lambda r: r.running_requests == 0 and r.waiting_requests == 0)
    with client_of(gateway) as opened:
        yield opened


@contextlib.contextmanager
def engine_filled_by_others(engine: VllmServer) -> Iterator[None]:
    """As many streams of others as the engine takes, queue included."""
    with engine.strangers(MAX_NUM_SEQS + MAX_QUEUED, max_tokens=WINDOW_TOKENS - 200):
        wait_until(engine.reading, lambda r: r.waiting_requests == MAX_QUEUED)
        yield


def outcome_of(client: openai.OpenAI, gateway: RunningGateway) -> str:
    """How one chat goes: `ok`, or the refusal and what the gateway says of its tiers."""
    try:
        client.chat.completions.create(model="auto", **ASKED)
    except openai.APIStatusError as refusal:
        return f"{refusal.status_code} {refusal.body} {gateway.page('/health/readiness')}"
    return "ok"


def test_a_chat_is_answered_by_the_engine_and_says_so(client: openai.OpenAI, engine: VllmServer) -> None:
    raw = client.chat.completions.with_raw_response.create(model="auto", **ASKED)
    answer = raw.parse()
    assert answer.model == MODEL
    assert answer.choices[0].message.content
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == engine.count_tokens(MESSAGES)
    assert answer.usage.completion_tokens == 24
    assert raw.headers["x-router-tier"] == "local"
    assert raw.headers["x-router-model"] == MODEL
    assert raw.headers["x-router-attempts"] == "1"


def test_a_stream_brings_the_same_text_and_no_usage_unless_asked(client: openai.OpenAI) -> None:
    plain = client.chat.completions.create(model="auto:local", **ASKED)
    chunks = list(client.chat.completions.create(model="auto:local", stream=True, **ASKED))
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == plain.choices[0].message.content
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)
    assert chunks[-1].choices[0].finish_reason == "length"


def test_a_stream_ends_with_usage_when_asked(client: openai.OpenAI) -> None:
    options: Any = {"include_usage": True}
    chunks = list(client.chat.completions.create(model="auto", stream=True, stream_options=options, **ASKED))
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 24


def test_a_client_that_hangs_up_frees_the_engine(client: openai.OpenAI, engine: VllmServer) -> None:
    before = engine.reading().output_tokens or 0
    stream = client.chat.completions.create(model="auto", **ENDLESS)
    next(iter(stream))
    stream.close()
    # Its gauges lag behind, its counter does not lie: it has stopped long before the end it was asked for.
    wait_until(engine.reading, lambda r: r.running_requests == 0 and (r.output_tokens or 0) > before)
    assert (engine.reading().output_tokens or 0) - before < ENDLESS["max_tokens"] // 2


def test_a_prompt_past_the_window_is_the_callers_to_shorten(client: openai.OpenAI) -> None:
    messages: list[Any] = [{"role": "user", "content": "zq " * 3000}]
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="auto", **(ASKED | {"messages": messages}))
    assert caught.value.code == "context_length_exceeded"


def test_a_full_engine_without_another_tier_is_an_upstream_failure(client: openai.OpenAI, engine: VllmServer) -> None:
    with engine_filled_by_others(engine), pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(model="auto", **ASKED)
    assert (caught.value.status_code, caught.value.code) == (502, "upstream_unavailable")


def test_the_gateways_own_key_is_not_the_engines(gateway: RunningGateway, engine: VllmServer) -> None:
    with (
        openai.OpenAI(base_url=gateway.base_url, api_key=engine.api_key, max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError),
    ):
        stranger.chat.completions.create(model="auto", **ASKED)


def test_a_key_that_the_engine_refuses_is_not_the_callers_fault(engine: VllmServer, tmp_path: Path) -> None:
    wrong = {"ENGINE_KEY": "sk-wrong"}
    with running_gateway(tmp_path, {"local": external_tier(engine)}, wrong) as running, client_of(running) as client:
        with pytest.raises(openai.InternalServerError) as caught:
            client.chat.completions.create(model="auto", **ASKED)
        assert caught.value.status_code == 502
        assert caught.value.code == "upstream_credentials_exhausted"
        assert "sk-wrong" not in str(caught.value.body)


def test_what_a_full_engine_turns_away_is_answered_elsewhere(
    engine: VllmServer, supervised_engine: VllmServer, tmp_path: Path
) -> None:
    tiers = {"local": external_tier(engine), "cheap": api_tier(supervised_engine)}
    keys = {"ENGINE_KEY": engine.api_key, "SECOND_KEY": supervised_engine.api_key}
    with running_gateway(tmp_path, tiers, keys) as running, client_of(running) as client:
        with engine_filled_by_others(engine):
            raw = client.chat.completions.with_raw_response.create(
                model="auto", extra_headers={"x-router-quality": "0"}, **ASKED
            )
        assert raw.parse().usage is not None
        assert raw.headers["x-router-tier"] == "cheap"
        assert float(raw.headers["x-router-cost-usd"]) > 0


def test_a_worker_killed_in_mid_stream_reaches_the_client_as_an_error_and_passes(
    supervised_engine: VllmServer, supervised_start: SupervisedStart, tmp_path: Path
) -> None:
    tiers, keys = {"local": external_tier(supervised_engine)}, {"ENGINE_KEY": supervised_engine.api_key}
    lines: list[str] = []
    starts = supervised_start.engine.starts
    with running_gateway(tmp_path, tiers, keys) as running, client_of(running) as client:
        with client.chat.completions.with_streaming_response.create(model="auto", **ENDLESS) as response:
            for line in response.iter_lines():
                lines.append(line)
                if len(lines) == 10:
                    supervised_engine.kill_worker()
        events = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
        assert "error" in json.loads(events[-1])
        assert "[DONE]" not in events
        with pytest.raises(openai.APIStatusError) as caught:
            client.chat.completions.create(model="auto", **ASKED)
        assert caught.value.status_code >= 500
        # Ready may still be said of the engine that has died: first it must have been started again.
        wait_until(lambda: supervised_start.engine.starts, lambda seen: seen > starts)
        supervised_start.wait_ready()
        wait_until(lambda: outcome_of(client, running), lambda outcome: outcome == "ok")
