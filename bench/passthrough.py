"""The least a gateway on our server stack can do: take a body, post it upstream, hand back what comes.

No key is checked, nothing is decoded, counted or recorded. It shows what uvicorn, uvloop, httptools, FastAPI's routing
and the aiohttp client cost by themselves; what the gateway takes beyond it is the gateway's own.

    python bench/passthrough.py PORT UPSTREAM_BASE
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import uvicorn
from fastapi import FastAPI
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

HEADERS = {"content-type": "application/json", "authorization": "Bearer upstream"}


class PassThrough:
    """A raw ASGI endpoint: a class instance, so that Starlette hands over the connection itself."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.session: aiohttp.ClientSession | None = None

    @asynccontextmanager
    async def lifespan(self, _app: FastAPI) -> AsyncIterator[None]:
        """One client session for the whole life of the app."""
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=60)
        async with aiohttp.ClientSession(
            connector=connector, auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar()
        ) as self.session:
            yield

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if self.session is None:
            raise RuntimeError("the app has not been started")
        message = await receive()
        body: bytes = message["body"]
        while message.get("more_body"):
            message = await receive()
            body += message["body"]
        async with self.session.post(self.url, data=body, headers=HEADERS) as reply:
            kind = reply.headers.get("content-type", "application/json").encode()
            if kind.startswith(b"text/event-stream"):
                await send(
                    {"type": "http.response.start", "status": reply.status, "headers": [(b"content-type", kind)]}
                )
                async for block in reply.content.iter_any():
                    await send({"type": "http.response.body", "body": block, "more_body": True})
                await send({"type": "http.response.body", "body": b""})
                return
            answer = await reply.read()
            headers = [(b"content-type", kind), (b"content-length", b"%d" % len(answer))]
            await send({"type": "http.response.start", "status": reply.status, "headers": headers})
            await send({"type": "http.response.body", "body": answer})


def create_app(upstream_base: str) -> FastAPI:
    """The app in front of `upstream_base` (ending in /v1)."""
    endpoint = PassThrough(f"{upstream_base}/chat/completions")
    app = FastAPI(lifespan=endpoint.lifespan, openapi_url=None)
    app.router.routes.append(Route("/v1/chat/completions", endpoint, methods=["POST"]))
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
