"""Marked secrets and prompts go in; afterwards nothing that stays behind, and no error, holds a trace of them."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from local_llm.launch import EMBEDDED_KEY_ENV
from router.stores.spool import FOLDER
from tests.gateway import BIG_PRICE, CHEAP_PRICE
from tests.process import GatewayProcess, descendants, gateway_process, until
from tests.upstream import Behaviour, FakeUpstream, cut, error_frame, malformed, ok, status

PROMPT = "prompt-canary-7f3a9c"
ANSWER = "answer-canary-51be02"
SECRETS = {
    "ROUTER_API_KEY": "house-canary-11d2a8e4",
    "TENANT_KEY": "tenant-canary-77c0ffee",
    "CHEAP_KEY": "sk-cheap-canary-0badcafe",
    "BIG_KEY": "weirdly-shaped/canary+deadbeef==",
}
GUESSED = "guessed-canary-900d1dea"
TOOL = {"type": "function", "function": {"name": "look_up", "description": PROMPT, "parameters": {"type": "object"}}}


def config_of(cheap: FakeUpstream, big: FakeUpstream, **server: Any) -> dict[str, Any]:
    """The embedded engine and two loopback hosts; a tenant beside the admin."""
    auth = {"keys": [{"tenant": "team-a", "key_env": "TENANT_KEY"}]}
    return {
        "server": {"data_dir": "data", "auth": auth, **server},
        "timeouts": {"connect_s": 30, "first_byte_s": 60, "idle_s": 60, "total_s": 90},
        "tiers": {
            "local": {"engine": "embedded"},
            "cheap": {
                "model": "openai/cheap-model",
                "api_base": cheap.base_url,
                "api_key_env": "CHEAP_KEY",
                "price": CHEAP_PRICE,
            },
            "premium": {
                "model": "openai/big-model",
                "api_base": big.base_url,
                "api_key_env": "BIG_KEY",
                "price": BIG_PRICE,
            },
        },
    }


@dataclass
class Mouth:
    """Sends what it is told and keeps every error it hears."""

    gateway: GatewayProcess
    session: aiohttp.ClientSession
    errors: list[str] = field(default_factory=list)
    seen: dict[int, int] = field(default_factory=dict)

    async def post(self, body: Any, *, key: str = SECRETS["TENANT_KEY"], path: str = "/v1/chat/completions") -> str:
        """The answer's text; `body` is sent as it is if it is bytes."""
        headers = {"authorization": f"Bearer {key}", "content-type": "application/json", "x-request-id": PROMPT}
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with self.session.post(self.gateway.url + path, data=data, headers=headers) as answer:
            text = await answer.text(errors="replace")
            self.seen[answer.status] = self.seen.get(answer.status, 0) + 1
            if answer.status >= 400:
                self.errors.append(f"{dict(answer.headers)} {text}")
            elif "text/event-stream" in answer.headers["content-type"] and "[DONE]" not in text:
                self.errors.append(text.rstrip().rpartition("\n\n")[2])
            return text

    async def chat(self, model: str, **options: Any) -> str:
        """A request full of canaries."""
        messages = [{"role": "system", "content": f"Be {PROMPT}."}, {"role": "user", "content": f"Say {PROMPT}."}]
        return await self.post({"model": model, "messages": messages, "max_tokens": 16, "user": PROMPT, **options})

    async def leave(self, model: str) -> None:
        """Begin a stream and hang up."""
        body = {"model": model, "stream": True, "messages": [{"role": "user", "content": PROMPT}]}
        headers = {"authorization": f"Bearer {SECRETS['TENANT_KEY']}"}
        async with self.session.post(f"{self.gateway.v1}/chat/completions", json=body, headers=headers) as answer:
            await answer.content.readany()


@asynccontextmanager
async def speaking_to(gateway: GatewayProcess) -> AsyncIterator[Mouth]:
    async with aiohttp.ClientSession() as session:
        yield Mouth(gateway, session)


def troubles(key: str) -> Iterator[Behaviour]:
    """Hosts that quote our key and the prompt in whatever goes wrong."""
    said = {"message": quoting(key), "type": "x", "param": None, "code": quoting(key)}
    for code in (400, 422, 500, 503):
        yield status(code, {"error": said})
    yield status(429, {"error": said}, [("retry-after", "0")])
    yield status(500, f"<html>{quoting(key)}</html>".encode())
    yield Behaviour(body=f"not json {quoting(key)}".encode(), headers=(("content-type", "application/json"),))


def stream_troubles(key: str) -> Iterator[Behaviour]:
    """The same within a stream."""
    yield error_frame(3, {"message": quoting(key), "type": "x", "param": None, "code": key})
    yield error_frame(0, quoting(key))
    yield malformed(4)
    yield cut(3, tokens=8)


def quoting(key: str) -> str:
    return f"your key {key} (Authorization: Bearer {key}) and your prompt {PROMPT}"


async def suffer(mouth: Mouth, upstream: FakeUpstream, model: str, key: str, last_code: int) -> None:
    """Every trouble of one host, a good answer after each so that the host stays in use; the last code ends that."""
    for options, all_of in (({}, troubles(key)), ({"stream": True}, stream_troubles(key))):
        for trouble in all_of:
            before = len(upstream.chats)
            upstream.default = trouble
            await mouth.chat(model, **options)
            assert len(upstream.chats) > before
            upstream.default = ok(ANSWER)
            assert ANSWER in await mouth.chat(model)
    upstream.default = status(last_code, {"error": {"message": quoting(key), "type": "x", "param": None, "code": key}})
    await mouth.chat(model)


async def make_a_mess(mouth: Mouth, cheap: FakeUpstream, big: FakeUpstream) -> None:
    """Good and bad requests of every kind, on every tier."""
    await mouth.chat("auto:local")
    await mouth.chat("auto:local", stream=True)
    for model in ("cheap", "premium"):
        await mouth.chat(model)
        await mouth.chat(model, stream=True, stream_options={"include_usage": True})
    await mouth.chat("auto", tools=[TOOL], tool_choice="auto")
    big.default = ok(f"{ANSWER} " * 200, gap_s=0.02)
    await mouth.leave("premium")
    big.default = ok(ANSWER)
    await suffer(mouth, cheap, "cheap", SECRETS["CHEAP_KEY"], 401)
    await suffer(mouth, big, "premium", SECRETS["BIG_KEY"], 404)
    for key in ("", GUESSED, f"{GUESSED} ' OR 1=1--", SECRETS["TENANT_KEY"] + "x", SECRETS["CHEAP_KEY"]):
        await mouth.post({"model": "auto", "messages": []}, key=key)
        await mouth.post({"model": "auto"}, key=key, path="/v1/route/explain")
    for raw in (
        f'{{"model": "auto", "messages": [{{"role": "user", "content": "{PROMPT}"'.encode(),
        f'{{"model": "auto", "messages": "{PROMPT}"}}'.encode(),
        f'{{"model": "auto", "messages": [{{"role": "{PROMPT}", "content": 1}}]}}'.encode(),
        f'{{"model": "auto", "model": "auto", "messages": ["{PROMPT}"]}}'.encode(),
        f'{{"model": "auto", "messages": [{{"role": "user", "content": "{PROMPT}"}}], "n": -1}}'.encode(),
        f'{{"model": "auto", "messages": [{{"role": "user", "content": "{PROMPT}"}}], "api_key": "x"}}'.encode(),
    ):
        await mouth.post(raw)
    await mouth.chat("no-such-model")
    await mouth.chat("auto:local", messages=[{"role": "user", "content": f"{PROMPT} " * 9_000}])
    for path in ("/v1/route/explain", "/v1/estimate"):
        await mouth.post({"model": "auto", "messages": [{"role": "user", "content": PROMPT}]}, path=path)
    await mouth.post({"request_id": "req_nobody", "score": 0.5}, path="/v1/feedback")
    await mouth.post({"messages": PROMPT}, path="/v1/no/such/route")


def engine_key(gateway: GatewayProcess) -> str:
    """The key that gateway and engine have agreed on."""
    for pid in descendants(gateway.pid):
        for line in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            name, _, value = line.decode().partition("=")
            if name == EMBEDDED_KEY_ENV and value:
                return value
    raise AssertionError("the engine has no key")


def texts_of(database: Path) -> str:
    """Everything that stands in a SQLite file, row by row: a page may cut a text in two."""
    connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
    try:
        return "\n".join(connection.iterdump())
    finally:
        connection.close()


def left_behind(gateway: GatewayProcess) -> dict[str, str]:
    """All that stays: log, banner, every file of the data folder."""
    traces = {"log": gateway.log, "banner": gateway.banner}
    data = gateway.folder / "data"
    for path in (p for p in data.rglob("*") if p.is_file()):
        traces[str(path.relative_to(data))] = path.read_bytes().decode("latin-1")
    traces["rows"] = texts_of(data / "router.db")
    return traces


def found_in(traces: Mapping[str, str], canaries: Mapping[str, str]) -> list[tuple[str, str]]:
    """(where, which canary)."""
    return sorted(
        (where, name) for where, text in traces.items() for name, canary in canaries.items() if canary in text
    )


async def test_no_key_and_no_prompt_is_left_anywhere(tmp_path: Path) -> None:
    async with FakeUpstream(api_key=SECRETS["CHEAP_KEY"]) as cheap, FakeUpstream(api_key=SECRETS["BIG_KEY"]) as big:
        cheap.default = big.default = ok(ANSWER)
        options = {"environ": SECRETS, "arguments": ("--log-level", "debug")}
        async with (
            gateway_process(config_of(cheap, big), tmp_path, **options) as gateway,
            speaking_to(gateway) as mouth,
        ):
            keys = {**SECRETS, "engine": engine_key(gateway), "guessed": GUESSED, "header": "Authorization: Bearer"}
            await make_a_mess(mouth, cheap, big)
            assert {200, 400, 401, 404, 422, 429, 502} <= set(mouth.seen)
            everything = {**keys, "prompt": PROMPT, "answer": ANSWER}

            # What a database that is away leaves on disk for a while.
            with locked(tmp_path / "data" / "router.db"):
                await mouth.chat("auto:local")
                await until(lambda: spooled(tmp_path))
                waiting = {str(path): path.read_text() for path in spooled(tmp_path)}
            assert found_in(waiting, everything) == []
            await until(lambda: not spooled(tmp_path))

            pages = {"metrics": (await gateway.get("/metrics"))[1], "readiness": str(await gateway.get("/health"))}
            assert "router_requests_total" in pages["metrics"]
            assert found_in(pages, everything) == []
            running = left_behind(gateway)
            assert "router.db-wal" in running
            assert "engine.log" in running
            assert found_in(running, everything) == []
        after = left_behind(gateway)
        assert found_in(after, everything) == []
        assert after["rows"].count("req_") > 20
        assert {json.loads(line)["message"] for line in after["log"].splitlines()} >= {
            "upstream_credentials_refused",
            "ledger_degraded",
            "ledger_recovered",
        }
        # A host's 400 is passed on as it came, our key apart: the prompt in it is the caller's own.
        said = {str(number): text for number, text in enumerate(mouth.errors)}
        assert found_in(said, {**SECRETS, "engine": keys["engine"], "guessed": GUESSED}) == []
        ours = {where: text for where, text in said.items() if "your prompt" not in text}
        assert len(ours) > 20
        assert found_in(ours, {"prompt": PROMPT, "answer": ANSWER}) == []


def spooled(folder: Path) -> list[Path]:
    """Files of the spool that hold something."""
    return [p for p in (folder / "data" / FOLDER).rglob("[0-9]*.jsonl") if p.stat().st_size > 0]


@contextmanager
def locked(database: Path) -> Iterator[None]:
    """Somebody else is in a long transaction."""
    other = sqlite3.connect(database, isolation_level=None)
    try:
        other.execute("BEGIN EXCLUSIVE")
        yield
        other.execute("ROLLBACK")
    finally:
        other.close()


async def test_prompts_are_kept_where_that_is_asked_for_and_then_only_in_the_books(tmp_path: Path) -> None:
    """Also shows that the search of the other test finds what is there."""
    async with FakeUpstream(api_key=SECRETS["CHEAP_KEY"]) as cheap, FakeUpstream(api_key=SECRETS["BIG_KEY"]) as big:
        cheap.default = big.default = ok(ANSWER)
        config = config_of(cheap, big, store_prompts=True)
        config["tiers"]["local"] = {"engine": "none"}
        async with gateway_process(config, tmp_path, environ=SECRETS) as gateway, speaking_to(gateway) as mouth:
            await mouth.chat("cheap")
        found = found_in(left_behind(gateway), {**SECRETS, "prompt": PROMPT, "answer": ANSWER})
        assert found == [("router.db", "prompt"), ("rows", "prompt")]


@pytest.mark.parametrize("name", ["cheap", "premium"])
async def test_a_key_reaches_its_own_host_and_no_other(name: str, tmp_path: Path) -> None:
    async with FakeUpstream(api_key=None) as cheap, FakeUpstream(api_key=None) as big:
        config = config_of(cheap, big)
        config["tiers"]["local"] = {"engine": "none"}
        async with gateway_process(config, tmp_path, environ=SECRETS) as gateway, speaking_to(gateway) as mouth:
            await asyncio.gather(*(mouth.chat(name) for _ in range(3)))
        sent = {
            "cheap": str([(r.headers, r.body) for r in cheap.requests]),
            "big": str([(r.headers, r.body) for r in big.requests]),
        }
        own = ("cheap", "CHEAP_KEY") if name == "cheap" else ("big", "BIG_KEY")
        assert found_in(sent, SECRETS) == [own]
