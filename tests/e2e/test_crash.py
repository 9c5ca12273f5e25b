"""kill -9 of the gateway under load, at any moment, again and again: the books hold every call, and each only once."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from router.core.attempts import RoutingRecord
from router.core.vocabulary import NANO_PER_USD, Flag, Outcome, Tier
from router.stores import queries
from router.stores.engines import read_engine
from tests.gateway import three_tiers
from tests.patience import until
from tests.postgres import Cluster
from tests.process import GatewayProcess, gateway_process
from tests.upstream import FakeUpstream, ok, status

KEYS = {"CHEAP_KEY": "sk-cheap-4711", "BIG_KEY": "sk-big-4712"}
LIVES = 4
CALLERS = 12
PROMPTS = ("Name a colour.", "Explain why the proof fails, and analyze what would have to change in it.")


@dataclass
class Answered:
    """What callers have seen: request id to what the answer cost, `None` where its end was never told."""

    costs: dict[str, int | None] = field(default_factory=dict)
    asked: int = 0


def messages_of(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def prompt_hash(messages: Any) -> str:
    """As the books name a prompt: the hash of its bytes, which `json.dumps` writes alike here and there."""
    return sha256(json.dumps(messages).encode()).hexdigest()


async def caller(gateway: GatewayProcess, seen: Answered, luck: random.Random, name: str) -> None:
    """Asks on and on, plain and streaming, until the gateway dies."""
    async with aiohttp.ClientSession() as session:
        while True:
            seen.asked += 1
            stream = luck.random() < 0.5
            body: dict[str, Any] = {
                "model": "auto",
                "messages": messages_of(f"{luck.choice(PROMPTS)} {name}-{seen.asked}"),
            }
            if stream:
                body |= {"stream": True, "stream_options": {"include_usage": True}}
            try:
                async with session.post(f"{gateway.v1}/chat/completions", json=body) as answer:
                    assert answer.status == 200, await answer.text()
                    request_id = answer.headers["x-request-id"]
                    seen.costs[request_id] = None
                    raw = await answer.read()
            except (aiohttp.ClientError, ConnectionError):
                return
            if not stream:
                seen.costs[request_id] = nanousd(answer.headers["x-router-cost-usd"])
            elif raw.endswith(b"data: [DONE]\n\n"):
                last = json.loads(raw.split(b"\n\n")[-3].removeprefix(b"data: "))
                seen.costs[request_id] = nanousd(last["usage"]["cost"])


def nanousd(usd: str | float) -> int:
    return round(float(usd) * NANO_PER_USD)


async def live_and_die(config: dict[str, Any], folder: Path, seen: Answered, luck: random.Random, life: int) -> None:
    gateway = GatewayProcess(config, folder, environ=KEYS)
    try:
        await gateway.up()
        callers = [asyncio.create_task(caller(gateway, seen, luck, f"{life}-{i}")) for i in range(CALLERS)]
        death_at = len(seen.costs) + luck.randrange(6, 40)
        await until(lambda: len(seen.costs) >= death_at)
        gateway.kill()
        await asyncio.gather(*callers)
    finally:
        gateway.stop()


def check_books(records: dict[str, RoutingRecord], seen: Answered) -> None:
    """Each answer is booked at what its caller was told, or as lost at no less."""
    assert set(seen.costs) <= set(records)
    for request_id, record in records.items():
        numbers = [a.number for a in record.attempts]
        assert numbers == list(range(1, len(numbers) + 1))
        assert record.cost_nanousd == sum(a.charge.amount_nanousd for a in record.attempts)
        told = seen.costs.get(request_id)
        if record.outcome is Outcome.LOST:
            for attempt in record.attempts:
                assert Flag.LOST_IN_CRASH in attempt.charge.flags
                assert attempt.charge.amount_nanousd >= 0
                assert (attempt.charge.amount_nanousd > 0) == (attempt.tier is not Tier.LOCAL)
            if told is not None and all(a.tier is not Tier.LOCAL for a in record.attempts):
                assert record.cost_nanousd >= told
        elif told is not None:
            assert record.outcome is Outcome.OK
            assert record.cost_nanousd == told


def check_calls(records: dict[str, RoutingRecord], upstreams: dict[Tier, FakeUpstream]) -> None:
    """Each call that left the house is an attempt in the books: by its prompt where that is known, else by number."""
    for tier, upstream in upstreams.items():
        made = Counter(prompt_hash(call.json["messages"]) for call in upstream.chats)
        booked: Counter[str] = Counter()
        lost = 0
        for record in records.values():
            for attempt in record.attempts:
                if attempt.tier is tier:
                    if attempt.outcome is Outcome.LOST:
                        lost += 1
                    else:
                        booked[record.prompt_sha256] += 1
        assert booked <= made
        unbooked = sum((made - booked).values())
        assert unbooked <= lost, f"{unbooked} calls to {tier} stand behind {lost} lost attempts"


@pytest.mark.parametrize("kind", ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
async def test_whenever_it_dies_the_books_hold_every_call_once(
    kind: str, tmp_path: Path, postgres: Cluster | None
) -> None:
    if kind == "postgres" and postgres is None:
        pytest.skip("no PostgreSQL server binaries on this machine")
    luck = random.Random(f"crash {kind}")
    seen = Answered()
    async with (
        FakeUpstream(api_key=None) as local,
        FakeUpstream(api_key=KEYS["CHEAP_KEY"]) as cheap,
        FakeUpstream(api_key=KEYS["BIG_KEY"]) as big,
    ):
        local.default = ok(tokens=6, gap_s=0.003)
        cheap.default = ok(tokens=6, gap_s=0.003)
        config = three_tiers(tmp_path, local=local.base_url, cheap=cheap.base_url, big=big.base_url)
        url = (
            f"sqlite:///{tmp_path}/data/router.db" if postgres is None or kind == "sqlite" else postgres.new_database()
        )
        config["server"]["database_url"] = url
        for life in range(LIVES):
            # Some lives have a premium host that fails now and then, so that requests of two attempts die too.
            big.default = ok(tokens=6, gap_s=0.003)
            big.queue.clear()
            if life % 2:
                big.script(*(status(503) if luck.random() < 0.3 else ok(tokens=6) for _ in range(5_000)))
            await live_and_die(config, tmp_path, seen, luck, life)
        async with gateway_process(config, tmp_path, environ=KEYS) as heir:
            await heir.readiness_is("ready")
            report = heir.costs(KEYS)
        upstreams = {Tier.LOCAL: local, Tier.CHEAP: cheap, Tier.PREMIUM: big}
        found = list(queries.iterate_records(read_engine(url)))
        records = {record.request_id: record for record in found}
        assert len(records) == len(found)
        assert len(seen.costs) > 5 * LIVES, "too few answers to learn anything"
        assert any(record.outcome is Outcome.LOST for record in found)
        check_books(records, seen)
        check_calls(records, upstreams)
        totals = report["totals"]
        assert totals["open_reservations"] == 0
        assert totals["requests"] == len(found)
        assert totals["attempts"] == sum(len(record.attempts) for record in found)
        assert totals["cost_nanousd"] == sum(record.cost_nanousd for record in found)
        # A further restart finds nothing more to do.
        async with gateway_process(config, tmp_path, environ=KEYS) as again:
            assert again.costs(KEYS) == report
