"""Prompts that are hardly prompts, over HTTP to a gateway that scores with the shipped model: routed, or refused."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from classifier import registry
from tests.gateway import running, three_tiers
from tests.model_folders import version_of
from tests.upstream import FakeUpstream, ok

KEYS = {"CHEAP_KEY": "sk-cheap-4711", "BIG_KEY": "sk-big-4712"}
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
CALLED = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
}
ODD: dict[str, list[dict[str, Any]]] = {
    "empty string": [{"role": "user", "content": ""}],
    "one character": [{"role": "user", "content": "x"}],
    "only a tool's result": [CALLED, {"role": "tool", "content": "42", "tool_call_id": "c"}],
    "only an image": [{"role": "user", "content": [PICTURE]}],
    "emoji": [{"role": "user", "content": "\U0001f98a\U0001f600" * 40}],
    "two million characters in one word": [{"role": "user", "content": "a" * 2_000_000}],
    "right to left, and Chinese": [{"role": "user", "content": "שלום עולם \u202e漢字かな交じり文"}],
    "no text at all": [{"role": "user", "content": []}],
}


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(FakeUpstream(api_key=None, default=ok("Red.")))
        url = upstream.base_url
        config = three_tiers(tmp_path, local=url, cheap=url, big=url)
        del config["classifier"]
        front = await stack.enter_async_context(running(config, KEYS))
        yield await stack.enter_async_context(httpx.AsyncClient(base_url=front.url, timeout=60))


async def test_each_is_scored_and_routed_or_refused_with_a_reason(client: httpx.AsyncClient) -> None:
    statuses = {}
    for name, messages in ODD.items():
        body = {"model": "auto", "messages": messages}
        answer = await client.post("/v1/chat/completions", json=body, headers={"x-router-debug": "true"})
        statuses[name] = answer.status_code
        if answer.status_code != 200:
            assert answer.status_code == 400 and answer.json()["error"]["message"], (name, answer.text)
            continue
        weighed = json.loads(answer.headers["x-router-decision"])
        assert weighed["scorer"] == version_of(registry.shipped_folder()), name
        assert "CLASSIFIER_UNAVAILABLE" not in weighed["flags"], name
    assert sum(status == 200 for status in statuses.values()) >= 5, statuses
    answer = await client.post("/v1/chat/completions", json={"model": "auto", "messages": []})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "messages"
