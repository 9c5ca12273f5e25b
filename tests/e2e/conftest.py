"""Three loopback upstreams behind one gateway, and the OpenAI SDK in front of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI

from tests.gateway import RunningGateway, running, three_tiers
from tests.patience import PATIENCE_S
from tests.postgres import Cluster, cluster_if_any
from tests.upstream import FakeUpstream

KEYS = {"CHEAP_KEY": "sk-cheap-4711", "BIG_KEY": "sk-big-4712"}
EASY = [{"role": "user", "content": "Name a colour."}]
IMPATIENT = {"timeouts": {"first_byte_s": 1, "idle_s": 1}}
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}
HARD = [{"role": "user", "content": "Explain why the proof fails, and analyze what would have to change in it."}]


@pytest.fixture(scope="module")
def postgres() -> Iterator[Cluster | None]:
    """A server of the module's own, which it may stop or freeze; `None` where the machine has no Postgres."""
    yield from cluster_if_any()


@dataclass
class House:
    """Everything a test needs."""

    front: RunningGateway
    local: FakeUpstream
    cheap: FakeUpstream
    big: FakeUpstream
    client: AsyncOpenAI

    async def ask(self, messages: list[dict[str, Any]], **options: Any) -> Any:
        """(parsed answer, headers) of a plain completion, without the SDK's own retries."""
        options.setdefault("model", "auto")
        raw = await self.client.chat.completions.with_raw_response.create(messages=messages, **options)  # type: ignore[arg-type]
        return raw.parse(), raw.headers

    @property
    def calls(self) -> dict[str, int]:
        """Chat calls that reached each upstream."""
        return {"local": len(self.local.chats), "cheap": len(self.cheap.chats), "big": len(self.big.chats)}


@pytest.fixture
async def house(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[House]:
    """A house with three tiers; `@pytest.mark.parametrize("house", [{...}], indirect=True)` sets policy keys.

    `timeouts` among them are the gateway's, as `IMPATIENT` is for tests of a silent upstream.
    """
    policy = dict(getattr(request, "param", {}))
    timeouts = policy.pop("timeouts", {})
    async with AsyncExitStack() as stack:
        local = await stack.enter_async_context(FakeUpstream(api_key=None))
        cheap = await stack.enter_async_context(FakeUpstream(api_key=KEYS["CHEAP_KEY"]))
        big = await stack.enter_async_context(FakeUpstream(api_key=KEYS["BIG_KEY"]))
        config = three_tiers(tmp_path, local=local.base_url, cheap=cheap.base_url, big=big.base_url, **policy)
        config["timeouts"] |= timeouts
        front = await stack.enter_async_context(running(config, KEYS))
        client = await stack.enter_async_context(
            AsyncOpenAI(base_url=front.v1, api_key="unused", max_retries=0, timeout=PATIENCE_S)
        )
        yield House(front, local, cheap, big, client)
