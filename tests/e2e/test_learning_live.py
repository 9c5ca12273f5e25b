"""The whole loop on the gateway's own log, while it serves: feedback, labels, training, evaluation, promotion, and then
other tiers for the same questions, without a restart."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest
import yaml

from router.cli import main
from tests.gateway import BIG_PRICE, CHEAP_PRICE, RunningGateway, running, until
from tests.patience import PATIENCE_S
from tests.upstream import FakeUpstream, ok

TENANTS = [f"team{i}" for i in range(6)]
LIMITS = httpx.Limits(
    keepalive_expiry=1.0
)  # sooner than the gateway hangs up on who is silent while a model is trained
ENVIRONMENT = {"API_KEY": "sk-up", **{f"KEY_{t.upper()}": f"sk-{t}" for t in TENANTS}}
# In this house the cheap model writes poems as well as the big one does, and cannot prove a thing.
CHEAPEST_GOOD = {"poem": "cheap", "proof": "premium"}
_WORDS = ("river", "garden", "window", "letter", "station", "winter", "mirror", "harbour", "ladder", "candle")


def prompt(kind: str, number: int) -> str:
    about = " and ".join(Random(f"{kind}{number}").sample(_WORDS, 3))
    if kind == "poem":
        return f"Write a poem in four lines about {about}, please, with rhymes."
    return f"Give a proof of the theorem about sets called {about}, with lemmas."


def is_good(kind: str, tier: str, number: int) -> bool:
    return number % 20 != 7 if tier == "premium" else kind == "poem"


async def command(*arguments: object) -> int:
    """Run a command as its own user would, beside the gateway; its exit code."""

    def run() -> int:
        with pytest.raises(SystemExit) as left:
            main([str(a) for a in arguments])
        return int(left.value.code or 0)

    return await asyncio.to_thread(run)


async def live(
    client: httpx.AsyncClient, front: RunningGateway, count: int, *, of: str | None = None, first: int = 0
) -> set[str]:
    """`count` requests; whoever asked says how good the answer was. `of`: one tenant, which always says bad."""

    async def one(number: int) -> str:
        kind = "poem" if number % 2 else "proof"
        head = {"authorization": f"Bearer sk-{of or TENANTS[number % len(TENANTS)]}"}
        body = {"model": "auto", "messages": [{"role": "user", "content": prompt(kind, number)}]}
        answer = await client.post("/v1/chat/completions", json=body, headers=head)
        assert answer.status_code == 200, answer.text
        score = 0.0 if of is not None else float(is_good(kind, answer.headers["x-router-tier"], number))
        await front.gateway.ledger.flush()
        given = {"request_id": answer.headers["x-request-id"], "score": score}
        assert (await client.post("/v1/feedback", json=given, headers=head)).status_code < 300
        return str(given["request_id"])

    asked: set[str] = set()
    for start in range(first, first + count, 20):
        asked.update(await asyncio.gather(*(one(number) for number in range(start, min(start + 20, first + count)))))
    return asked


def ids_of(labels: Path) -> set[str]:
    return {json.loads(line)["request_id"] for line in labels.read_text().splitlines()}


async def right(client: httpx.AsyncClient) -> float:
    """Share of questions that would go to the cheapest tier that answers them well; nothing is called."""
    hits = 0
    for number in range(1_000, 1_030):
        for kind, tier in CHEAPEST_GOOD.items():
            body = {"model": "auto", "messages": [{"role": "user", "content": prompt(kind, number)}]}
            head = {"authorization": "Bearer sk-team0"}
            told = (await client.post("/v1/route/explain", json=body, headers=head)).json()
            hits += told["chosen"]["tier"] == tier if isinstance(told["chosen"], dict) else tier in str(told["chosen"])
    return hits / 60


def config_of(tmp_path: Path, cheap: FakeUpstream, big: FakeUpstream) -> dict[str, Any]:
    return {
        "server": {
            "data_dir": str(tmp_path / "data"),
            "store_prompts": True,
            "auth": {"keys": [{"tenant": t, "key_env": f"KEY_{t.upper()}"} for t in TENANTS]},
        },
        "tiers": {
            tier: {"model": f"openai/{tier}-model", "api_base": up.base_url, "api_key_env": "API_KEY", "price": price}
            for tier, up, price in (("cheap", cheap, CHEAP_PRICE), ("premium", big, BIG_PRICE))
        }
        | {"local": {"engine": "none"}},
        "policy": {"exploration_ratio": 0.3},
    }


async def test_a_model_learnt_from_the_gateways_own_log_changes_its_routing_while_it_serves(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    async with AsyncExitStack() as stack:
        cheap, big = [await stack.enter_async_context(FakeUpstream(api_key="sk-up")) for _ in range(2)]
        cheap.default = big.default = ok(text="There you are.")
        config = config_of(tmp_path, cheap, big)
        file = tmp_path / "router.yaml"
        file.write_text(yaml.safe_dump(config))
        without = config | {"learning": {"exclude_tenants": TENANTS[:1]}}
        (tmp_path / "without.yaml").write_text(yaml.safe_dump(without))
        front = await stack.enter_async_context(running(config, ENVIRONMENT))
        client = await stack.enter_async_context(httpx.AsyncClient(base_url=front.url, timeout=PATIENCE_S))
        await live(client, front, 260)
        assert await right(client) < 0.8

        labels, model, report = tmp_path / "labels.jsonl", tmp_path / "model", tmp_path / "report"
        assert await command("export-labels", "--out", labels, "--config", file) == 0
        told = json.loads(capsys.readouterr().out)
        assert told["rows"] >= 250 and told["explored_rows"] > 40 and told["capped_by_judge"] == {}
        assert await command("train", "--labels", labels, "--out", model) == 0
        capsys.readouterr()
        asked = ("--labels", labels, "--model", model, "--out", report, "--include-seen")
        assert await command("evaluate", *asked) == 0
        assert (report / "report.md").is_file()
        capsys.readouterr()
        assert await command("promote", model, "--config", file) == 0
        version = json.loads(capsys.readouterr().out)["version"]

        served = asyncio.create_task(live(client, front, 20))  # nobody notices the exchange
        await until(lambda: front.gateway.state.snapshot().scorer_version == version)
        await served
        assert await right(client) > 0.95

        await poisoned(client, front, file, tmp_path, capsys)
        assert front.gateway.state.snapshot().scorer_version == version, "what was in force stays"
        assert await right(client) > 0.95

        assert await command("rollback", "--config", file) == 0
        await until(lambda: front.gateway.state.snapshot().scorer_version != version)
        assert await right(client) < 0.8


async def poisoned(
    client: httpx.AsyncClient, front: RunningGateway, file: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One key votes down whatever it gets, more often than all others vote: it is capped and named, and the
    model that its votes have made worse does not pass the gate on fresh labels of the others."""
    votes, fresh, model = folder / "votes.jsonl", folder / "fresh.jsonl", folder / "poisoned"
    theirs = await live(client, front, 300, of=TENANTS[0], first=4_000)
    capsys.readouterr()
    assert await command("export-labels", "--out", votes, "--config", file) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["judgements"]["feedback"] > 550 and told["capped_by_judge"][TENANTS[0]] > 180
    rows = ids_of(votes)
    assert 0.1 * len(rows) < len(rows & theirs) < 0.3 * len(rows)
    assert await command("train", "--labels", votes, "--out", model) == 0
    await live(client, front, 100, first=6_000)
    assert await command("export-labels", "--out", fresh, "--config", folder / "without.yaml") == 0
    assert ids_of(fresh).isdisjoint(theirs)
    capsys.readouterr()
    assert await command("promote", model, "--labels", fresh, "--config", file) == 1
    assert "not promoted: " in capsys.readouterr().err
