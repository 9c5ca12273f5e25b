"""A model promoted beside a running gateway: prompts go elsewhere within moments, and back again; nobody notices."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from classifier import cli, registry
from classifier.versions import Registry
from tests.gateway import three_tiers
from tests.learning_data import TIERS, rows, write
from tests.model_folders import spoil, version_of
from tests.patience import PATIENCE_S
from tests.process import GatewayProcess, gateway_process, run_command
from tests.upstream import FakeUpstream, ok

KEYS = {"CHEAP_KEY": "sk-cheap-4711", "BIG_KEY": "sk-big-4712"}
PROMPT = "please tell me in some detail about this proof thing friend the theorem number 7x7?"
AWAY = frozenset({"cheap", "premium"})
HOME = frozenset({"local"})
SHIPPED = version_of(registry.shipped_folder())


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of labels by which home answers prompts like `PROMPT` as well as any tier."""
    folder = tmp_path_factory.mktemp("promotion")
    made, rng = rows(160, seed=5), np.random.default_rng(5)
    for row in made:
        row["outcomes"] = dict.fromkeys(TIERS, float(rng.random() < 0.95))
    with threadpool_limits(1):
        labels = write(folder / "labels.jsonl", made)
        cli.train(labels, folder / "model", now_utc=datetime(2026, 1, 2, tzinfo=UTC), with_card=False)
    return folder / "model"


@dataclass
class Front:
    """A running gateway before three loopback tiers, and callers who never stop asking."""

    gateway: GatewayProcess
    api: FakeUpstream
    session: aiohttp.ClientSession
    stopping: bool = False
    answers: int = 0
    complaints: list[str] = field(default_factory=list)

    async def ask(self, **options: Any) -> tuple[str, dict[str, Any]]:
        """(tier, what was weighed) of an answer to `PROMPT`."""
        body = {"model": "auto", "messages": [{"role": "user", "content": PROMPT}], **options}
        async with self.session.post(
            f"{self.gateway.v1}/chat/completions", json=body, headers={"x-router-debug": "true"}
        ) as answer:
            text = await answer.text()
            if answer.status != 200 or ("stream" in options and not text.endswith("data: [DONE]\n\n")):
                self.complaints.append(f"{answer.status} {text[-200:]}")
            self.answers += 1
            return answer.headers["x-router-tier"], json.loads(answer.headers["x-router-decision"])

    async def goes_to(self, tiers: frozenset[str]) -> dict[str, Any]:
        """Ask until the answer comes from one of `tiers`; what was weighed then."""
        ends_at_s = time.monotonic() + PATIENCE_S
        while True:
            found, weighed = await self.ask()
            if found in tiers:
                return weighed
            assert time.monotonic() < ends_at_s, f"still {found}, not {sorted(tiers)}:\n{self.gateway.log}"

    async def _caller(self, stream: bool) -> None:
        while not self.stopping:
            await self.ask(**({"stream": True} if stream else {}))

    async def busy(self, stack: AsyncExitStack) -> None:
        """Callers from now on; at the end nobody may have had an answer other than a whole one."""
        callers = [asyncio.create_task(self._caller(stream)) for stream in (False, True)]

        async def over(*_: object) -> None:
            self.stopping = True
            await asyncio.gather(*callers)

        stack.push_async_exit(over)

    async def command(self, *arguments: str) -> dict[str, Any]:
        """A command line against the same config."""
        done = await asyncio.to_thread(
            run_command, *arguments, "--config", "test-router.yaml", folder=self.gateway.folder, environ=KEYS
        )
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout))


def config_of(folder: Path, local: FakeUpstream, api: FakeUpstream) -> dict[str, Any]:
    config = three_tiers(folder, local=local.base_url, cheap=api.base_url, big=api.base_url)
    del config["classifier"]
    return config


@pytest.fixture
async def front(tmp_path: Path) -> AsyncIterator[Front]:
    async with AsyncExitStack() as stack:
        local = await stack.enter_async_context(FakeUpstream(api_key=None, default=ok("Red.")))
        api = await stack.enter_async_context(FakeUpstream(api_key=None, default=ok("Red.")))
        config = config_of(tmp_path, local, api)
        gateway = await stack.enter_async_context(gateway_process(config, tmp_path, environ=KEYS))
        session = await stack.enter_async_context(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)))
        yield Front(gateway, api, session)


async def test_a_promotion_changes_where_a_prompt_goes_and_a_rollback_brings_it_back(front: Front, model: Path) -> None:
    weighed = await front.goes_to(AWAY)
    assert weighed["scorer"] == SHIPPED
    async with AsyncExitStack() as stack:
        await front.busy(stack)
        front.api.queue.append(ok(tokens=30, gap_s=0.1))  # under way when the model changes, and for a while after
        slow = asyncio.create_task(front.ask(stream=True))
        told = await front.command("promote", str(model))
        assert (told["version"], told["forced"]) == (version_of(model), False)
        weighed = await front.goes_to(HOME)
        assert weighed["scorer"] == version_of(model)
        assert (await slow)[1]["scorer"] == SHIPPED
        status, metrics = await front.gateway.get("/metrics")
        assert status == 200
        assert f'scored_by="current",source="promoted",version="{version_of(model)}"' in metrics

        await front.command("rollback")
        weighed = await front.goes_to(AWAY)
        assert weighed["scorer"] == SHIPPED
    assert front.complaints == []
    assert front.answers > 10


async def test_a_canary_answers_its_sessions_and_leaves_the_others_alone(front: Front, model: Path) -> None:
    await front.goes_to(AWAY)
    told = await front.command("promote", str(model), "--force", "--canary", "0.5")
    assert (told["canary_version"], told["canary_share"], told["version"]) == (version_of(model), 0.5, "shipped")
    weighed = await front.goes_to(HOME)
    assert weighed["scorer"] == version_of(model)
    assert "CANARY_MODEL" in weighed["flags"]
    # The shipped model sends the prompt away, to which of two tiers may differ with the prices of the moment.
    at_home = {
        session: {(await front.ask(router={"session": session}))[0] in HOME for _ in range(3)}
        for session in "abcdefghijklmnopqrst"
    }
    assert all(len(found) == 1 for found in at_home.values()), "a session stays with its model"
    assert 0 < sum(found == {True} for found in at_home.values()) < len(at_home)
    await front.command("rollback")
    for _ in range(3):
        assert (await front.goes_to(AWAY))["scorer"] == SHIPPED


async def test_a_start_with_a_tampered_promoted_model_is_refused_with_a_cure(tmp_path: Path, model: Path) -> None:
    books = Registry(tmp_path / "data" / "models")
    books.promote(model, now_utc=datetime(2026, 1, 2, tzinfo=UTC), reason="test")
    spoil(books.root / version_of(model) / registry.SERVING)
    async with FakeUpstream(api_key=None) as upstream:
        gateway = GatewayProcess(config_of(tmp_path, upstream, upstream), tmp_path, environ=KEYS)
        try:
            assert await gateway.ended() == 1
        finally:
            gateway.stop()
        assert "serving.bin is not the file the manifest names" in gateway.log
        assert "hybrid-llm-router rollback" in gateway.log
        assert "Traceback" not in gateway.log


async def test_serving_loads_nothing_of_what_training_needs(front: Front) -> None:
    await front.goes_to(AWAY)
    mapped = await asyncio.to_thread(Path(f"/proc/{front.gateway.pid}/maps").read_text)
    assert not [name for name in ("sklearn", "numpy", "scipy") if f"/{name}/" in mapped]
