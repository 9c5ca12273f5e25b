"""Out of the box: the shipped config, the real engine, a real model's words, and the clients people use."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from langchain_openai import ChatOpenAI
from openai import AsyncOpenAI, OpenAI

from router.server import ENGINE_PATIENCE_S
from tests.gateway import CHEAP_PRICE
from tests.patience import PATIENCE_S
from tests.process import GatewayProcess, alive, descendants, gateway_process, run_command, until
from tests.upstream import FakeUpstream

MODEL = "smollm2-135m-instruct"
CAPITAL: list[Any] = [{"role": "user", "content": "What is the capital of Japan?"}]
SAME: dict[str, Any] = {"model": "auto", "messages": CAPITAL, "max_tokens": 16, "temperature": 0, "seed": 7}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """As `make run` starts it: no config, no key."""
    gateway = GatewayProcess(None, tmp_path_factory.mktemp("embedded"))
    try:
        gateway.wait_up()
        asyncio.run(gateway.readiness_is("ready"))
        yield gateway
    finally:
        gateway.stop()


@pytest.fixture
def client(gateway: GatewayProcess) -> Iterator[OpenAI]:
    with OpenAI(base_url=gateway.v1, api_key="unused", max_retries=0, timeout=PATIENCE_S) as client:
        yield client


@pytest.fixture
async def async_client(gateway: GatewayProcess) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=gateway.v1, api_key="unused", max_retries=0, timeout=PATIENCE_S) as client:
        yield client


def test_the_banner_tells_the_state_of_every_tier(gateway: GatewayProcess) -> None:
    assert f"  local: ready ({MODEL})" in gateway.banner or gateway.up_after_s > ENGINE_PATIENCE_S
    assert "  cheap: unavailable, OPENAI_API_KEY is not set (openai/gpt-6-luna)" in gateway.banner
    assert "  premium: unavailable, OPENAI_API_KEY is not set (openai/gpt-6.1-sol)" in gateway.banner
    assert f"curl -i {gateway.v1}/chat/completions" in gateway.banner


def test_the_model_knows_the_capital_of_japan_and_the_headers_say_who_answered(client: OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(**SAME)
    answer = raw.parse()
    assert "Tokyo" in (answer.choices[0].message.content or "")
    assert answer.model == MODEL
    assert answer.usage is not None
    assert 0 < answer.usage.completion_tokens <= 16
    shown = {name: raw.headers[f"x-router-{name}"] for name in ("tier", "model", "reason", "attempts", "cache")}
    assert shown == {"tier": "local", "model": MODEL, "reason": "LOCAL_IDLE_FREE", "attempts": "1", "cache": "off"}
    assert raw.headers["x-router-cost-usd"] == "0"  # no hardware is priced in the shipped config
    assert raw.headers["x-router-cost-basis"] == "observed"
    assert raw.headers["x-request-id"].startswith("req_")
    assert float(raw.headers["x-router-overhead-ms"]) > 0


async def test_an_async_client_gets_the_same_words(client: OpenAI, async_client: AsyncOpenAI) -> None:
    plain = client.chat.completions.create(**SAME)
    answer = await async_client.chat.completions.create(**SAME)
    assert answer.choices[0].message.content == plain.choices[0].message.content


async def test_a_stream_says_the_same_words_one_by_one_and_its_usage_comes_last(
    client: OpenAI, async_client: AsyncOpenAI
) -> None:
    plain = client.chat.completions.create(**SAME)
    stream = await async_client.chat.completions.create(**SAME, stream=True, stream_options={"include_usage": True})
    chunks = [chunk async for chunk in stream]
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == plain.choices[0].message.content
    assert plain.usage is not None
    assert len([c for c in chunks if c.choices]) >= plain.usage.completion_tokens
    assert [c for c in chunks if c.usage is not None] == [chunks[-1]]
    last = chunks[-1].usage
    assert last is not None
    assert (last.prompt_tokens, last.completion_tokens) == (plain.usage.prompt_tokens, plain.usage.completion_tokens)
    assert last.model_extra is not None
    assert last.model_extra["cost"] == 0


def test_a_stream_carries_no_usage_that_nobody_asked_for(client: OpenAI) -> None:
    chunks = list(client.chat.completions.create(**SAME, stream=True))
    assert chunks[-1].choices[0].finish_reason in {"stop", "length"}
    assert all(chunk.usage is None for chunk in chunks)


def test_json_mode_gives_json(client: OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"capital": {"type": "string", "enum": ["Tokyo", "Paris"]}},
        "required": ["capital"],
        "additionalProperties": False,
    }
    answer = client.chat.completions.create(
        model="auto",
        messages=CAPITAL,
        max_tokens=40,
        temperature=0,
        response_format={"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}},
    )
    assert json.loads(answer.choices[0].message.content or "")["capital"] in {"Tokyo", "Paris"}
    answer = client.chat.completions.create(
        model="auto",
        messages=[{"role": "user", "content": 'Reply with the JSON object {"ok": true} and nothing else.'}],
        max_tokens=200,
        temperature=0,
        response_format={"type": "json_object"},
    )
    assert answer.choices[0].finish_reason == "stop"
    assert isinstance(json.loads(answer.choices[0].message.content or ""), dict)


def test_langchain_works_unmodified(gateway: GatewayProcess) -> None:
    chat = ChatOpenAI(model="auto", base_url=gateway.v1, api_key="unused", max_tokens=16, temperature=0, max_retries=0)  # type: ignore[call-arg,arg-type]
    answer = chat.invoke("What is the capital of Japan?")
    assert "Tokyo" in answer.text
    assert answer.response_metadata["model_name"] == MODEL
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["output_tokens"] <= 16
    pieces = [piece.text for piece in chat.stream("What is the capital of Japan?")]
    assert len(pieces) > 3
    assert "".join(pieces) == answer.text


def test_a_prompt_too_long_for_the_house_that_may_not_leave_it_is_refused(client: OpenAI) -> None:
    before = {m.id: m.model_dump() for m in client.models.list().data}["auto:local"]["max_input_tokens"]
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="auto:local", messages=[{"role": "user", "content": "word " * 20_000}])
    assert refused.value.code == "context_length_exceeded"
    assert str(before) in refused.value.message


def test_every_answer_is_a_row_of_the_report_while_the_gateway_runs(gateway: GatewayProcess, client: OpenAI) -> None:
    report = ("report", "costs", "--format", "json")

    def local() -> tuple[int, int, int]:
        done = run_command(*report, folder=gateway.folder)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert set(found) == {"rows", "totals"}
        assert found["totals"]["open_reservations"] == 0
        rows = [row for row in found["rows"] if row["tier"] == "local"]
        assert {row["model"] for row in rows} <= {MODEL}
        return tuple(sum(row[key] for row in rows) for key in ("requests", "attempts", "cost_nanousd"))  # type: ignore[return-value]

    requests, attempts, _ = local()
    for _ in range(2):
        client.chat.completions.create(**{**SAME, "max_tokens": 2})
    assert local() == (requests + 2, attempts + 2, 0)


async def test_an_engine_that_is_killed_is_missed_but_not_for_long_and_leaves_no_orphan(tmp_path: Path) -> None:
    async with FakeUpstream(api_key="sk-cheap-4711") as cheap:
        model = {"model": "openai/cheap-model", "api_base": cheap.base_url, "api_key_env": "CHEAP_KEY"}
        tiers = {"local": {"engine": "embedded"}, "cheap": {**model, "price": CHEAP_PRICE}}
        config = {"server": {"data_dir": "data"}, "tiers": tiers}
        async with (
            gateway_process(config, tmp_path, environ={"CHEAP_KEY": "sk-cheap-4711"}) as gateway,
            AsyncOpenAI(base_url=gateway.v1, api_key="unused", max_retries=0, timeout=PATIENCE_S) as client,
        ):

            async def tier() -> str:
                raw = await client.chat.completions.with_raw_response.create(**{**SAME, "max_tokens": 2})
                return raw.headers["x-router-tier"]

            await gateway.readiness_is("ready")
            assert await tier() == "local"
            guardian, engine = descendants(gateway.pid)
            os.kill(engine, signal.SIGKILL)
            await gateway.readiness_is("degraded")
            assert await tier() == "cheap"
            await gateway.readiness_is("ready")
            assert await tier() == "local"
            family = descendants(gateway.pid)
            assert len(family) == 2
            assert not alive(engine)
            gateway.terminate()
            assert await gateway.ended() == 0
            await until(lambda: not any(alive(pid) for pid in (guardian, *family)))
        assert gateway.costs()["totals"]["requests"] == 3
