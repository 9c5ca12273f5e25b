"""Limits of a key through a whole gateway: exact with 200 at once, told on every answer, given back on every exit."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.gateway import RunningGateway, running, three_tiers
from tests.patience import PATIENCE_S, until
from tests.upstream import FakeUpstream, cut, ok, status, with_usage

NOBODY = "http://127.0.0.1:9/v1"
KEYS = {"CHEAP_KEY": "sk-cheap-4711", "BIG_KEY": "sk-big-4712", "ROUTER_API_KEY": "rk-admin-1", "ACME_KEY": "rk-acme-1"}
PARALLEL = 200
LIMIT_HEADERS = ("limit", "remaining", "reset")


@dataclass
class Place:
    """A gateway whose key of `acme` has limits, and the only host behind it."""

    front: RunningGateway
    cheap: FakeUpstream
    client: httpx.AsyncClient

    async def ask(self, key: str = "rk-acme-1", headers: dict[str, str] | None = None, **body: Any) -> httpx.Response:
        """A completion of the cheap model."""
        asked = {"model": "cheap", "messages": [{"role": "user", "content": "Name a colour."}], **body}
        return await self.client.post(
            "/v1/chat/completions", json=asked, headers={"authorization": f"Bearer {key}", **(headers or {})}
        )

    async def refusals(self, limit: str) -> float:
        """How many requests of acme `/metrics` says that `limit` kept out."""
        sample = self.front.gateway.telemetry.registry.get_sample_value(
            "router_limit_refusals_total", {"tenant": "acme", "limit": limit}
        )
        return sample or 0.0

    @property
    def running(self) -> int:
        """Seats taken, of all keys."""
        return sum(limiter.running for _, limiter in self.front.gateway.access.limiters)


@asynccontextmanager
async def place(tmp_path: Path, limits: dict[str, Any], **server: Any) -> AsyncIterator[Place]:
    async with AsyncExitStack() as stack:
        cheap = await stack.enter_async_context(FakeUpstream(api_key=KEYS["CHEAP_KEY"]))
        config = three_tiers(tmp_path, local=None, cheap=cheap.base_url, big=NOBODY)
        auth = {"keys": [{"tenant": "acme", "key_env": "ACME_KEY", "limits": limits}]} | server.pop("auth", {})
        config["server"] |= {"auth": auth, **server}
        front = await stack.enter_async_context(running(config, KEYS))
        client = httpx.AsyncClient(
            base_url=front.url, trust_env=False, timeout=PATIENCE_S, limits=httpx.Limits(max_connections=None)
        )
        yield Place(front, cheap, await stack.enter_async_context(client))


def told(answer: httpx.Response, unit: str) -> list[str | None]:
    """What an answer says of the limits in `unit`."""
    return [answer.headers.get(f"x-ratelimit-{what}-{unit}") for what in LIMIT_HEADERS]


async def test_of_200_requests_at_once_exactly_as_many_pass_as_may(tmp_path: Path):
    async with place(tmp_path, {"requests_per_hour": 10}) as at:
        answers = await asyncio.gather(*(at.ask() for _ in range(PARALLEL)))
        assert Counter(answer.status_code for answer in answers) == {200: 10, 429: PARALLEL - 10}
        assert len(at.cheap.chats) == 10
        refused = next(answer for answer in answers if answer.status_code == 429)
        error = refused.json()["error"]
        assert (error["type"], error["code"], error["param"]) == ("rate_limit_error", "rate_limit_exceeded", None)
        assert "10 requests per hour (requests_per_hour in the gateway's server.auth)" in error["message"]
        assert 3500 < int(refused.headers["retry-after"]) <= 3630
        assert told(refused, "requests")[:2] == ["10", "0"]
        assert refused.headers["x-request-id"]
        assert await at.refusals("requests_per_hour") == PARALLEL - 10
        totals = (await at.front.costs()).totals
        assert (totals.requests, totals.open_reservations) == (10, 0)


@pytest.mark.parametrize("stream", [False, True])
async def test_of_200_requests_at_once_no_more_are_under_way_than_seats(tmp_path: Path, stream: bool):
    async with place(tmp_path, {"concurrency_max": 7}) as at:
        go_on = asyncio.Event()
        at.cheap.default = replace(ok(), held=go_on)
        asked = [asyncio.create_task(at.ask(stream=stream)) for _ in range(PARALLEL)]
        await until(lambda: sum(task.done() for task in asked) == PARALLEL - 7 and len(at.cheap.chats) == 7)
        assert at.running == 7
        go_on.set()
        answers = await asyncio.gather(*asked)
        assert Counter(answer.status_code for answer in answers) == {200: 7, 429: PARALLEL - 7}
        refused = next(answer for answer in answers if answer.status_code == 429)
        assert refused.headers["retry-after"] == "1"
        assert told(refused, "concurrency") == ["7", "0", None]
        assert at.running == 0


async def test_of_200_requests_at_once_as_many_pass_as_have_tokens(tmp_path: Path):
    async with place(tmp_path, {"tokens_per_min": 500}) as at:
        body = {"model": "cheap", "max_tokens": 40, "messages": [{"role": "user", "content": "Name a colour."}]}
        known = {"authorization": "Bearer rk-acme-1"}
        estimate = (await at.client.post("/v1/estimate", json=body, headers=known)).json()
        need = estimate["input_tokens"] + estimate["output_tokens_p90"]
        assert estimate["output_tokens_p90"] == 40
        go_on = asyncio.Event()
        at.cheap.default = replace(with_usage({"prompt_tokens": 10, "completion_tokens": 5}), held=go_on)
        asked = [asyncio.create_task(at.ask(max_tokens=40)) for _ in range(PARALLEL)]
        let_in = 500 // need
        await until(lambda: sum(task.done() for task in asked) == PARALLEL - let_in)
        go_on.set()
        answers = await asyncio.gather(*asked)
        assert Counter(answer.status_code for answer in answers) == {200: let_in, 429: PARALLEL - let_in}
        # what the answers did not use is free again, what they used is not
        (standing,) = at.front.gateway.access.limiters[0][1].standings()
        assert standing.left == 500 - 15 * let_in


async def test_every_answer_tells_how_the_limits_stand(tmp_path: Path):
    async with place(tmp_path, {"requests_per_min": 50, "tokens_per_min": 5_000}) as at:
        at.cheap.default = with_usage({"prompt_tokens": 100, "completion_tokens": 20})
        plain = await at.ask(max_tokens=40)
        assert told(plain, "requests")[:2] == ["50", "49"]
        assert told(plain, "tokens")[:2] == ["5000", "4880"]
        assert plain.headers["x-ratelimit-reset-requests"].endswith("s")
        streamed = await at.ask(max_tokens=40, stream=True)
        assert told(streamed, "requests")[:2] == ["50", "48"]
        assert int(streamed.headers["x-ratelimit-remaining-tokens"]) < 4_880 - 40  # by the estimate, as it begins
        assert b"[DONE]" in streamed.content
        wrong = await at.ask(temperature="hot")
        assert wrong.status_code == 400
        assert told(wrong, "requests")[:2] == ["50", "47"]
        assert told(wrong, "tokens")[:2] == ["5000", "4760"]
        at.cheap.default = status(500)
        failed = await at.ask()
        assert failed.status_code >= 500
        assert told(failed, "requests")[:2] == ["50", "46"]
        assert told(failed, "tokens")[1] == "4760"


async def test_a_prompt_beyond_the_limit_is_not_worth_another_try(tmp_path: Path):
    async with place(tmp_path, {"tokens_per_min": 100}) as at:
        async with openai.AsyncOpenAI(base_url=at.front.v1, api_key="rk-acme-1", max_retries=5) as client:
            with pytest.raises(openai.RateLimitError) as refused:
                await client.chat.completions.create(
                    model="cheap", messages=[{"role": "user", "content": "word " * 300}]
                )
        assert "Send a shorter prompt" in refused.value.message
        assert "retry-after" not in refused.value.response.headers
        assert await at.refusals("tokens_per_min") == 1
        assert len(at.cheap.chats) == 0


async def test_a_seat_falls_free_however_a_request_ends(tmp_path: Path):
    async with place(tmp_path, {"concurrency_max": 1}) as at:
        for behaviour, stream in [(status(400), False), (cut(2), True), (ok(), True), (ok(), False)]:
            at.cheap.script(behaviour)
            assert (await at.ask(stream=stream)).status_code != 429
            assert at.running == 0
        never = asyncio.Event()
        at.cheap.script(replace(ok(), held=never), replace(ok(), held=never, held_at=2))
        leaving = asyncio.create_task(at.ask())
        await until(lambda: at.running == 1 and len(at.cheap.chats) == 5)
        leaving.cancel()
        await until(lambda: at.running == 0)
        body = {"model": "cheap", "stream": True, "messages": [{"role": "user", "content": "Hi"}]}
        known = {"authorization": "Bearer rk-acme-1"}
        async with at.client.stream("POST", "/v1/chat/completions", json=body, headers=known) as streamed:
            await anext(streamed.aiter_raw())
            assert at.running == 1
        await until(lambda: at.running == 0)
        assert (await at.ask()).status_code == 200


async def test_a_caller_who_asks_one_after_the_other_needs_one_seat(tmp_path: Path):
    async with place(tmp_path, {"concurrency_max": 1}) as at:
        for number in range(30):
            assert (await at.ask(stream=bool(number % 2))).status_code == 200


async def test_a_repeated_answer_counts_as_a_request_and_uses_no_tokens(tmp_path: Path):
    async with place(tmp_path, {"requests_per_min": 50, "tokens_per_min": 5_000, "concurrency_max": 1}) as at:
        at.cheap.default = with_usage({"prompt_tokens": 100, "completion_tokens": 20})
        first, again = [await at.ask(headers={"idempotency-key": "k1"}) for _ in range(2)]
        assert again.headers["x-router-idempotent-replay"] == "true"
        assert (told(first, "requests")[1], told(again, "requests")[1]) == ("49", "48")
        assert again.headers.get_list("x-ratelimit-remaining-requests") == ["48"]
        assert (told(first, "tokens")[1], told(again, "tokens")[1]) == ("4880", "4880")
        assert told(again, "concurrency") == ["1", "1", None]


async def test_limits_are_each_keys_own_and_explaining_costs_none_of_them(tmp_path: Path):
    async with place(tmp_path, {"requests_per_min": 1}) as at:
        body = {"model": "cheap", "messages": [{"role": "user", "content": "Hi"}]}
        for path in ("/v1/route/explain", "/v1/estimate"):
            told_how = await at.client.post(path, json=body, headers={"authorization": "Bearer rk-acme-1"})
            assert told_how.status_code == 200
            assert told(told_how, "requests") == [None, None, None]
        assert [(await at.ask()).status_code for _ in range(2)] == [200, 429]
        unlimited = await at.ask(key="rk-admin-1")
        assert unlimited.status_code == 200
        assert told(unlimited, "requests") == [None, None, None]
        assert (await at.ask(key="rk-nobody")).status_code == 401


async def test_two_gateways_together_give_out_no_more_than_the_limit(tmp_path: Path):
    limits = {"requests_per_hour": 11}
    async with place(tmp_path / "1", limits, gateways=2) as one, place(tmp_path / "2", limits, gateways=2) as two:
        answers = await asyncio.gather(*((one, two)[number % 2].ask() for number in range(60)))
        assert Counter(answer.status_code for answer in answers) == {200: 10, 429: 50}
        refused = await two.ask()
        assert told(refused, "requests")[:2] == ["5", "0"]
        assert "server.auth, of which this gateway gives out 1/2)" in refused.json()["error"]["message"]


async def test_where_no_key_is_asked_for_the_default_holds_for_all_together(tmp_path: Path):
    auth = {"required": False, "default_limits": {"requests_per_hour": 2}}
    async with place(tmp_path, {}, auth=auth) as at:
        assert [(await at.ask(key=key)).status_code for key in ("rk-acme-1", "rk-x", "rk-y")] == [200, 200, 429]


async def test_metrics_show_how_full_limits_are_and_may_have_a_key_of_their_own(tmp_path: Path):
    auth = {"default_limits": {"concurrency_max": 5}, "metrics_key_env": "ACME_KEY", "keys": []}
    async with place(tmp_path, {}, auth=auth) as at:
        at_metrics = [
            (await at.client.get("/metrics", headers=headers)).status_code
            for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Bearer rk-acme-1"})
        ]
        assert at_metrics == [401, 401, 200]
        page = await at.client.get("/metrics", headers={"x-api-key": "rk-admin-1"})
        assert 'router_limit_used_ratio{limit="concurrency_max",tenant="default"} 0.0' in page.text
        assert (await at.ask(key="rk-acme-1")).status_code == 401  # a key for metrics opens nothing else


async def test_a_tenants_key_may_not_read_the_figures_of_others(tmp_path: Path):
    async with place(tmp_path, {}, auth={"metrics_key_env": "BIG_KEY"}) as at:
        answer = await at.client.get("/metrics", headers={"authorization": "Bearer rk-acme-1"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "forbidden")


async def test_a_key_that_the_environment_lacks_is_an_alert_and_stands_in_readiness(tmp_path: Path):
    keys = [{"tenant": "acme", "key_env": "ACME_KEY"}, {"tenant": "lost", "key_env": "LOST_KEY"}]
    async with place(tmp_path, {}, auth={"keys": keys}) as at:
        access = (await at.client.get("/health/readiness")).json()["access"]
        assert access == {"key_required": True, "keys_unset": ["LOST_KEY"]}
        assert at.front.alerts("auth_key_unset") == 1
