"""A uvicorn server inside the test, with the HTTP protocol under test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn


@asynccontextmanager
async def serving_by(http: Any, asgi: Any, **options: Any) -> AsyncIterator[int]:
    """`asgi` behind the protocol class `http`, on a free port of loopback; its port. `options` are uvicorn's."""
    config = uvicorn.Config(asgi, http=http, lifespan="off", log_config=None, port=0, ws="none", **options)
    server = uvicorn.Server(config)
    running = asyncio.create_task(server._serve())
    async with asyncio.timeout(60):
        while not server.started:  # noqa: ASYNC110 - uvicorn tells it by a flag only
            await asyncio.sleep(0.005)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        await running
