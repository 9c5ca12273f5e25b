"""A pass-through as most people would write it first: a FastAPI route with `Request` and `Response`, and aiohttp.

Nothing is decoded, counted or recorded; `passthrough.py` does the same on the raw ASGI endpoint that the gateway uses.

    python bench/fastapi_proxy.py PORT UPSTREAM_BASE
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse

HEADERS = {"content-type": "application/json", "authorization": "Bearer upstream"}


def create_app(upstream_base: str) -> FastAPI:
    """The app in front of `upstream_base` (ending in /v1)."""
    url = f"{upstream_base}/chat/completions"

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=60)) as session:
            app.state.session = session
            yield

    app = FastAPI(lifespan=lifespan)

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        reply = await app.state.session.post(url, data=await request.body(), headers=HEADERS)
        if reply.content_type != "text/event-stream":
            async with reply:
                return Response(await reply.read(), reply.status, media_type="application/json")

        async def blocks() -> AsyncIterator[bytes]:
            async with reply:
                async for block in reply.content.iter_any():
                    yield block

        return StreamingResponse(blocks(), reply.status, media_type="text/event-stream")

    return app


if __name__ == "__main__":
    uvicorn.run(
        create_app(sys.argv[2]),
        host="127.0.0.1",
        port=int(sys.argv[1]),
        loop="uvloop",
        http="httptools",
        log_level="warning",
        access_log=False,
    )
