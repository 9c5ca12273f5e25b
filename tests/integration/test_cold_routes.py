"""The routes beside the chat route, over a whole gateway: bounds, keys, ids, dates."""

from __future__ import annotations

import gzip
import json
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from tests.gateway import running, three_tiers

KEYS = {"CHEAP_KEY": "sk-cheap-4711", "BIG_KEY": "sk-big-4712", "ROUTER_API_KEY": "rk-4713", "ACME_KEY": "rk-4714"}
KNOWN = {"authorization": "Bearer rk-4713"}
NOBODY = "http://127.0.0.1:9/v1"


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a gateway that wants a key and takes bodies of 2,000 bytes."""
    config = three_tiers(tmp_path, local=None, cheap=NOBODY, big=NOBODY)
    config["server"] |= {
        "max_body_bytes": 2_000,
        "auth": {"required": True, "keys": [{"tenant": "acme", "key_env": "ACME_KEY"}]},
    }
    async with running(config, KEYS) as front, httpx.AsyncClient(base_url=front.url, trust_env=False) as client:
        yield client


@pytest.mark.parametrize(
    "path", ["/v1/models", "/v1/models/cheap-model", "/v1/usage", "/health/liveness", "/health/readiness", "/metrics"]
)
async def test_every_answer_has_an_id(client: httpx.AsyncClient, path: str) -> None:
    answers = [await client.get(path, headers=KNOWN) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert len({answer.headers["x-request-id"] for answer in answers}) == 2


async def test_an_answer_that_has_an_id_keeps_its_own_only(client: httpx.AsyncClient) -> None:
    answer = await client.get("/v1/nowhere", headers=KNOWN)
    assert answer.status_code == 404
    assert len(answer.headers.get_list("x-request-id")) == 1


async def test_the_address_itself_lists_the_routes_and_a_wrong_one_says_where_to_go(client: httpx.AsyncClient) -> None:
    told = (await client.get("/")).json()["routes"]
    routes = {entry["route"]: entry["does"] for entry in told}
    assert next(iter(routes)) == "POST /v1/chat/completions"
    assert routes["POST /v1/chat/completions"] == "A chat completion in OpenAI's shape, plain or streaming."
    assert {
        "GET /v1/models",
        "GET /v1/models/{name}",
        "POST /v1/route/explain",
        "GET /v1/usage",
        "GET /metrics",
    } <= set(routes)
    assert all(routes.values())
    for path in ("/v1/responses", "/v1/v1/chat/completions"):
        message = (await client.post(path, headers=KNOWN, json={})).json()["error"]["message"]
        assert message.startswith(f"There is no route POST {path}. Chat goes to POST /v1/chat/completions")
    # no page that would load scripts of somebody else
    assert [(await client.get(path)).status_code for path in ("/docs", "/redoc")] == [404, 404]


@pytest.mark.parametrize("body", [b"{}", b"no json", b"x" * 100_000])
async def test_feedback_without_a_key_is_not_even_read(client: httpx.AsyncClient, body: bytes) -> None:
    answer = await client.post("/v1/feedback", content=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")


@pytest.mark.parametrize(
    ("body", "headers", "status", "code"),
    [
        (b'{"request_id": "r", "score": 1, "comment": "%s"}' % (b"x" * 3_000), {}, 413, "body_too_large"),
        (gzip.compress(b"x" * 100_000, mtime=0), {"content-encoding": "gzip"}, 413, "body_too_large"),
        (b'{"request_id": "r", "score": 1, "score": 0}', {}, 400, "duplicate_key"),
        (b'{"request_id": "r", "score": 1, "comment": "a\\u0000"}', {}, 400, "invalid_json"),
        (b'{"request_id": "r", "score": 1, "comment": "\\ud800"}', {}, 400, "invalid_json"),
        (b'{"request_id": "r", "score": NaN}', {}, 400, "invalid_json"),
        (b'{"request_id": "r", "score": 1.5}', {}, 400, "invalid_request"),
        (b'{"request_id": "r", "score": 1, "more": 1}', {}, 400, "invalid_request"),
        (b'{"request_id": "r", "score": 1}', {}, 404, "request_not_found"),
    ],
)
async def test_feedback_is_read_as_strictly_as_a_chat(
    client: httpx.AsyncClient, body: bytes, headers: dict[str, str], status: int, code: str
) -> None:
    answer = await client.post("/v1/feedback", content=body, headers=KNOWN | headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


async def test_feedback_names_the_field_that_is_wrong(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/feedback", content=b'{"request_id": "r", "score": "high"}', headers=KNOWN)
    assert answer.json()["error"]["param"] == "score"


async def test_a_tenant_may_ask_for_its_own_usage_and_for_nobody_elses(client: httpx.AsyncClient) -> None:
    acme = {"authorization": "Bearer rk-4714"}
    for params in ({}, {"tenant": "acme"}):
        assert (await client.get("/v1/usage", params=params, headers=acme)).status_code == 200
    others = await client.get("/v1/usage", params={"tenant": "default"}, headers=acme)
    assert others.status_code == 403
    assert (others.json()["error"]["code"], others.json()["error"]["param"]) == ("forbidden", "tenant")
    assert (await client.get("/v1/usage", params={"tenant": "acme"}, headers=KNOWN)).status_code == 200


async def test_usage_takes_the_last_day_there_is_and_says_which_day_is_none(client: httpx.AsyncClient) -> None:
    whole = await client.get("/v1/usage", params={"from": "0001-01-01", "to": "9999-12-31"}, headers=KNOWN)
    assert whole.json()["totals"]["requests"] == 0
    wrong = await client.get("/v1/usage", params={"from": "yesterday"}, headers=KNOWN)
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "from")
    assert (await client.get("/v1/usage", params={"from": "yesterday"})).status_code == 401


async def test_who_pins_a_tier_without_a_key_is_told_which_one(tmp_path: Path) -> None:
    config = three_tiers(tmp_path, local=None, cheap=NOBODY, big=NOBODY)
    body = json.dumps({"model": "premium", "messages": [{"role": "user", "content": "Hi"}]})
    async with running(config, {"CHEAP_KEY": "sk"}) as front, httpx.AsyncClient(trust_env=False) as client:
        answer = await client.post(f"{front.v1}/chat/completions", content=body)
    assert answer.status_code == 503
    assert "BIG_KEY is not set" in answer.json()["error"]["message"]
    assert "NOT_ALLOWED" not in answer.json()["error"]["message"]
