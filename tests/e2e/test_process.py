"""The process as operators meet it: what it says, what it refuses to start with, and how it ends."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from tests.e2e.conftest import EASY
from tests.gateway import BIG_PRICE, CHEAP_PRICE
from tests.patience import PATIENCE_S
from tests.process import GatewayProcess, gateway_process, run_command, until
from tests.upstream import FakeUpstream, ok, stall

KEYS = {"CHEAP_KEY": "sk-cheap-4711", "BIG_KEY": "sk-big-4712"}
HOUSE_KEY = "house-key-0815-long-enough"
BODY: dict[str, Any] = {"model": "auto", "messages": EASY}


@pytest.fixture
async def upstream() -> AsyncIterator[FakeUpstream]:
    async with FakeUpstream(api_key=None) as upstream:
        yield upstream


def two_tiers(api_base: str, **server: Any) -> dict[str, Any]:
    """Cheap and premium on one loopback host, no local tier."""
    cheap = {"model": "openai/cheap-model", "api_key_env": "CHEAP_KEY", "price": CHEAP_PRICE, "api_base": api_base}
    big = {"model": "openai/big-model", "api_key_env": "BIG_KEY", "price": BIG_PRICE, "api_base": api_base}
    return {
        "server": {"data_dir": "data", **server},
        "timeouts": {"connect_s": 30, "first_byte_s": 60, "idle_s": 60},
        "tiers": {"local": {"engine": "none"}, "cheap": cheap, "premium": big},
    }


def write(folder: Path, config: Any) -> str:
    path = folder / "wrong.yaml"
    path.write_text(config if isinstance(config, str) else yaml.safe_dump(config))
    return path.name


def session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))


async def tell(gateway: GatewayProcess, *lines: str, body: bytes = b"") -> tuple[int, dict[str, str], bytes]:
    """A request byte for byte; (status, headers, body) of the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    try:
        head = "\r\n".join((*lines, f"content-length: {len(body)}", "connection: close", "", ""))
        writer.write(head.encode("latin-1") + body)
        raw = await asyncio.wait_for(reader.read(), PATIENCE_S)
    finally:
        writer.close()
    top, _, rest = raw.partition(b"\r\n\r\n")
    first, *fields = top.decode("latin-1").split("\r\n")
    return int(first.split()[1]), {k.lower(): v.strip() for k, _, v in (f.partition(":") for f in fields)}, rest


# --- start-up ------------------------------------------------------------------------------------------------------


async def test_the_banner_shows_every_tier_and_why_one_is_missing(upstream: FakeUpstream, tmp_path: Path) -> None:
    environ = {"CHEAP_KEY": KEYS["CHEAP_KEY"]}
    async with gateway_process(two_tiers(upstream.base_url), tmp_path, environ=environ) as gateway:
        assert "  cheap: ready (openai/cheap-model)" in gateway.banner
        assert "  premium: unavailable, BIG_KEY is not set (openai/big-model)" in gateway.banner
        await gateway.readiness_is("ready")  # what was never set up is no fault
    assert upstream.requests == []


async def test_with_a_key_in_the_environment_the_shipped_tiers_are_live(tmp_path: Path) -> None:
    # Nothing is asked of them, so their host is never called.
    environ = {"OPENAI_API_KEY": "sk-nobody-0000", "ROUTER_TIERS__LOCAL__ENGINE": "none"}
    async with gateway_process(None, tmp_path, environ=environ) as gateway:
        assert "  cheap: ready (openai/gpt-6-luna)" in gateway.banner
        assert "  premium: ready (openai/gpt-6.1-sol)" in gateway.banner
        assert (tmp_path / "data").is_dir()


def test_check_config_names_every_mistake_with_its_line(tmp_path: Path) -> None:
    name = write(
        tmp_path,
        """\
server:
  port: 99999
  max_body_byte: 5
tiers:
  local:
    engine: embeded
  cheap:
    model: openai/gpt-6-luna
    api_key: sk-in-the-file-123
  premium:
    models:
      - model: openai/gpt-6.1-sol
        api_key_env: OPENAI_API_KEY
        context_window_tokens: -1
policy:
  budget_usd_per_day: lots
""",
    )
    checked = run_command("check-config", name, folder=tmp_path)
    assert checked.returncode == 1
    told = {tuple(line.split(": ")[:2]) for line in checked.stderr.splitlines()}
    assert told == {
        (f"{name}:2", "server.port"),
        (f"{name}:3", "server.max_body_byte"),
        (f"{name}:6", "tiers.local.engine"),
        (f"{name}:9", "tiers.cheap.api_key"),
        (f"{name}:14", "tiers.premium.models[0].context_window_tokens"),
        (f"{name}:16", "policy.budget_usd_per_day"),
    }
    assert "did you mean 'max_body_bytes'?" in checked.stderr
    assert "write api_key_env" in checked.stderr
    assert "sk-in-the-file-123" not in checked.stderr
    served = run_command("serve", "--config", name, folder=tmp_path)
    assert (served.returncode, served.stderr) == (1, checked.stderr)


def test_a_config_that_is_not_there_is_wrong_use(tmp_path: Path) -> None:
    assert run_command("check-config", "missing.yaml", folder=tmp_path).returncode == 2
    assert run_command("serve", "--config", "missing.yaml", folder=tmp_path).returncode == 2


def test_an_api_model_without_a_price_is_refused_by_name_and_line(tmp_path: Path) -> None:
    config = two_tiers("http://127.0.0.1:9/v1")
    del config["tiers"]["cheap"]["price"]
    config["tiers"]["cheap"]["model"] = "openai/our-finetune-7"
    name = write(tmp_path, config)
    line = 1 + (tmp_path / name).read_text().splitlines().index("    model: openai/our-finetune-7")
    for command in (("serve", "--port", "0", "--config", name), ("check-config", name)):
        refused = run_command(*command, folder=tmp_path, environ=KEYS)
        assert refused.returncode == 1
        assert refused.stderr.startswith(
            f"{name}:{line}: tiers.cheap.model: no price for model 'openai/our-finetune-7'"
        )
        assert "`price:`" in refused.stderr
        assert len(refused.stderr.splitlines()) == 1
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_the_outside_is_not_listened_to_without_a_key(host: str, tmp_path: Path) -> None:
    name = write(tmp_path, two_tiers("http://127.0.0.1:9/v1"))
    refused = run_command("serve", "--port", "0", "--host", host, "--config", name, folder=tmp_path, environ=KEYS)
    assert refused.returncode == 1
    assert "ROUTER_API_KEY" in refused.stderr
    assert host in refused.stderr
    name = write(tmp_path, two_tiers("http://127.0.0.1:9/v1", auth={"required": False}))
    environ = {**KEYS, "ROUTER_API_KEY": HOUSE_KEY}
    refused = run_command("serve", "--port", "0", "--host", host, "--config", name, folder=tmp_path, environ=environ)
    assert refused.returncode == 1
    assert "required" in refused.stderr


def test_a_port_that_is_taken_is_told_in_one_line(tmp_path: Path) -> None:
    name = write(tmp_path, two_tiers("http://127.0.0.1:9/v1"))
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        refused = run_command("serve", "--port", str(port), "--config", name, folder=tmp_path, environ=KEYS)
    assert refused.returncode == 1
    assert refused.stdout == ""
    assert len(refused.stderr.splitlines()) == 1
    assert f"127.0.0.1:{port}: address already in use" in refused.stderr
    assert not (tmp_path / "data").exists()


async def test_a_second_gateway_on_the_same_sqlite_is_refused_and_the_first_goes_on(
    upstream: FakeUpstream, tmp_path: Path
) -> None:
    async with gateway_process(two_tiers(upstream.base_url), tmp_path, environ=KEYS) as first:
        second = GatewayProcess(two_tiers(upstream.base_url), tmp_path, environ=KEYS)
        assert await second.ended() == 1
        assert second.banner == ""
        (line,) = second.log.splitlines()
        assert "Another gateway writes to" in line
        assert "server.database_url" in line
        async with session() as client, client.post(f"{first.v1}/chat/completions", json=BODY) as answer:
            assert answer.status == 200
        await first.readiness_is("ready")


# --- who may come in -----------------------------------------------------------------------------------------------


async def test_with_a_key_it_listens_everywhere_and_lets_nobody_else_in(upstream: FakeUpstream, tmp_path: Path) -> None:
    environ = {**KEYS, "ROUTER_API_KEY": HOUSE_KEY}
    arguments = ("--host", "0.0.0.0")
    body = json.dumps(BODY).encode()
    async with gateway_process(two_tiers(upstream.base_url), tmp_path, environ=environ, arguments=arguments) as gateway:
        assert "$ROUTER_API_KEY" in gateway.banner
        assert HOUSE_KEY not in gateway.banner
        wrong = (
            [],
            ["authorization: Bearer wrong"],
            ["authorization: Bearer ' OR 1=1--"],
            ["authorization: Bearer "],
            ["authorization: Basic aG91c2U6a2V5"],
            ["x-api-key: ' OR 1=1--"],
            [f"authorization: Bearer {HOUSE_KEY[:-1]}"],
            [f"authorization: Bearer {HOUSE_KEY}x"],
            [f"authorization: Bearer {'k' * 20_000}"],
            ["authorization: Bearer caf\u00e9"],
            ["x-forwarded-user: admin", "x-router-tier: premium"],
        )
        for headers in wrong:
            for method, path in (
                ("POST", "/v1/chat/completions"),
                ("GET", "/v1/models"),
                ("GET", "/v1/usage"),
                ("POST", "/v1/route/explain"),
                ("POST", "/v1/feedback"),
            ):
                lines = (f"{method} {path} HTTP/1.1", "host: x", "content-type: application/json", *headers)
                given = body if path != "/v1/feedback" else b'{"request_id": "req_1", "score": 1}'
                status, told, raw = await tell(gateway, *lines, body=given if method == "POST" else b"")
                assert status == 401, (path, headers, raw)
                error = json.loads(raw)["error"]
                assert set(error) == {"message", "type", "param", "code"}
                assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")
                assert told["x-request-id"].startswith("req_")
                assert told["www-authenticate"] == "Bearer"
                assert HOUSE_KEY not in raw.decode()
        assert upstream.requests == []
        for good in (f"authorization: Bearer {HOUSE_KEY}", f"x-api-key: {HOUSE_KEY}"):
            status, told, _ = await tell(gateway, "POST /v1/chat/completions HTTP/1.1", "host: x", good, body=body)
            assert status == 200
            assert told["x-request-id"].startswith("req_")
        assert len(upstream.chats) == 2
        assert HOUSE_KEY not in "".join(str(r.headers) for r in upstream.requests)


async def test_a_forged_host_opens_no_door_and_a_huge_header_does_no_harm(
    upstream: FakeUpstream, tmp_path: Path
) -> None:
    environ = {**KEYS, "ROUTER_API_KEY": HOUSE_KEY}
    body = json.dumps(BODY).encode()
    async with gateway_process(two_tiers(upstream.base_url), tmp_path, environ=environ) as gateway:
        for host in ("x/health?", "x/health/liveness?", "127.0.0.1/metrics#", "@/health", ""):
            status, told, raw = await tell(gateway, "POST /v1/chat/completions HTTP/1.1", f"host: {host}", body=body)
            assert status in {400, 401}, (host, raw)
            if status == 401:
                assert told["x-request-id"].startswith("req_")
        resident_kb = memory_kb(gateway.pid)
        for _ in range(20):
            try:
                status, _, raw = await tell(
                    gateway, "POST /v1/chat/completions HTTP/1.1", "host: x", f"authorization: Bearer {'k' * 2**20}"
                )
            except ConnectionError:  # cut off while it was still talking
                continue
            assert status in {400, 401, 431}, raw
        assert memory_kb(gateway.pid) < resident_kb + 30_000
        assert upstream.requests == []
        assert (await gateway.get("/health/liveness"))[0] == 200


def memory_kb(pid: int) -> int:
    """Resident memory of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise AssertionError("no VmRSS")


# --- the end -------------------------------------------------------------------------------------------------------


async def read_stream(client: aiohttp.ClientSession, gateway: GatewayProcess, begun: asyncio.Queue[None]) -> bytes:
    """A whole stream; `begun` hears of its first bytes."""
    async with client.post(f"{gateway.v1}/chat/completions", json={**BODY, "stream": True}) as answer:
        assert answer.status == 200
        raw = await answer.content.readany()
        begun.put_nowait(None)
        return raw + await answer.read()


async def test_told_to_stop_it_finishes_fifty_streams_and_takes_nothing_new(
    upstream: FakeUpstream, tmp_path: Path
) -> None:
    told = asyncio.Event()
    upstream.default = replace(ok("word " * 60), held_at=3, held=told)
    begun: asyncio.Queue[None] = asyncio.Queue()
    config = two_tiers(upstream.base_url, drain_grace_s=10 * PATIENCE_S)
    async with gateway_process(config, tmp_path, environ=KEYS) as gateway, session() as client, session() as late:
        # A connection that was open before, as clients keep them.
        async with late.get(gateway.url + "/health/liveness") as kept:
            assert kept.status == 200
        streams = [asyncio.create_task(read_stream(client, gateway, begun)) for _ in range(50)]
        for _ in streams:
            await asyncio.wait_for(begun.get(), PATIENCE_S)
        gateway.terminate()
        async with asyncio.timeout(PATIENCE_S):
            while True:
                async with late.post(f"{gateway.v1}/chat/completions", json=BODY) as answer:
                    if answer.status == 503:
                        break
        assert not any(stream.done() for stream in streams)
        for path, method in (("/v1/chat/completions", "POST"), ("/v1/models", "GET"), ("/health/readiness", "GET")):
            async with session() as fresh, fresh.request(method, gateway.url + path, json=BODY) as answer:
                assert answer.status == 503
                assert answer.headers["connection"].lower() == "close"
                assert answer.headers["x-request-id"].startswith("req_")
                assert (await answer.json())["error"]["code"] == "service_unavailable"
        async with late.get(gateway.url + "/health/liveness") as still:
            assert still.status == 200
        told.set()
        for raw in await asyncio.gather(*streams):
            assert raw.endswith(b"data: [DONE]\n\n")
            assert raw.count(b"word") == 60
        assert await gateway.ended() == 0  # long before the grace is over
    assert "Traceback" not in gateway.log
    totals = gateway.costs(KEYS)["totals"]
    assert totals["requests"] == totals["attempts"] == len(upstream.chats)
    assert totals["open_reservations"] == 0


async def test_what_outlives_the_grace_is_cut_off_honestly_and_booked(upstream: FakeUpstream, tmp_path: Path) -> None:
    upstream.script(ok("word " * 20_000, gap_s=0.05), stall())
    begun: asyncio.Queue[None] = asyncio.Queue()
    config = two_tiers(upstream.base_url, drain_grace_s=0.5)
    async with gateway_process(config, tmp_path, environ=KEYS) as gateway, session() as client:
        stream = asyncio.create_task(read_stream(client, gateway, begun))
        await asyncio.wait_for(begun.get(), PATIENCE_S)
        plain = asyncio.create_task(ask(client, gateway))
        await until(lambda: len(upstream.chats) == 2)
        gateway.terminate()
        events = (await stream).decode().rstrip("\n").split("\n\n")
        assert json.loads(events[-1].removeprefix("data: "))["error"]["code"] == "service_unavailable"
        assert "data: [DONE]" not in events
        status, connection, told = await plain
        assert (status, connection, told["error"]["code"]) == (503, "close", "service_unavailable")
        assert await gateway.ended() == 0
    assert all(line["level"] != "error" for line in map(json.loads, gateway.log.splitlines()))
    totals = gateway.costs(KEYS)["totals"]
    assert (totals["requests"], totals["attempts"], totals["open_reservations"]) == (2, 2, 0)
    assert totals["cost_nanousd"] > 0
    assert outcomes(tmp_path) == ["shutdown", "shutdown"], "nobody hung up"


async def test_a_second_signal_ends_it_at_once_with_the_books_in_order(upstream: FakeUpstream, tmp_path: Path) -> None:
    upstream.default = ok("word " * 20_000, gap_s=0.05)
    begun: asyncio.Queue[None] = asyncio.Queue()
    config = two_tiers(upstream.base_url, drain_grace_s=10 * PATIENCE_S)
    async with gateway_process(config, tmp_path, environ=KEYS) as gateway, session() as client:
        stream = asyncio.create_task(read_stream(client, gateway, begun))
        await asyncio.wait_for(begun.get(), PATIENCE_S)
        gateway.terminate()
        await until_draining(gateway)
        gateway.signal(signal.SIGINT)
        assert b"[DONE]" not in await stream
        assert await gateway.ended() == 0
    assert all(line["level"] != "error" for line in map(json.loads, gateway.log.splitlines()))
    totals = gateway.costs(KEYS)["totals"]
    assert (totals["requests"], totals["attempts"], totals["open_reservations"]) == (1, 1, 0)


def outcomes(data_dir: Path) -> list[str]:
    """How the requests in the books ended."""
    (books,) = data_dir.rglob("*.db")
    with closing(sqlite3.connect(books)) as connection:
        return [row[0] for row in connection.execute("SELECT outcome FROM request ORDER BY received_at_us")]


async def ask(client: aiohttp.ClientSession, gateway: GatewayProcess) -> tuple[int, str | None, Any]:
    """(status, connection header, body) of a plain call."""
    async with client.post(f"{gateway.v1}/chat/completions", json=BODY) as answer:
        return answer.status, answer.headers.get("connection"), await answer.json()


async def until_draining(gateway: GatewayProcess) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while (await gateway.get("/v1/models"))[0] != 503:  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.01)
