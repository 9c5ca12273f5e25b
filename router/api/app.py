"""`create_app(face)`: FastAPI for the cold routes, the chat route in front of it as bare ASGI."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from router import __version__
from router.api.chat import CHAT_PATHS, ChatEndpoint, note_crash, send_error, shutting_down
from router.api.company import Company
from router.api.error_responses import error_response
from router.api.face import Face
from router.api.routes import cold_routes
from router.errors import BadRequest, MethodNotAllowed, NotFound, RouterError

_WHERE_TO = "Chat goes to POST /v1/chat/completions (a client's base URL ends in /v1); GET / lists what there is."
_OPEN_WHILE_DRAINING = frozenset({"/health/liveness", "/health/liveliness", "/metrics"})


class GatewayApp(FastAPI):
    """FastAPI with the hot path in front: one dictionary look-up decides which of the two a request is for."""

    def __init__(self, face: Face, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.face = face
        self.chat = ChatEndpoint(
            deps=face.deps,
            authenticator=face.authenticator,
            idempotency=face.idempotency,
            max_body_bytes=face.max_body_bytes,
            body_timeout_s=face.body_timeout_s,
            draining=face.draining,
            company=Company(lambda: face.in_flight.count),
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)
            return
        if self.face.draining() and scope["path"] not in _OPEN_WHILE_DRAINING:
            await send_error(send, shutting_down(), self.face.deps.new_id)
            return
        with self.face.in_flight:
            if scope["path"] in CHAT_PATHS:
                await self.chat(scope, receive, send)
            else:
                await super().__call__(scope, receive, _with_request_id(send, self.face))


def _with_request_id(send: Send, face: Face) -> Send:
    """`send`, with an `x-request-id` on an answer that has none of its own."""

    async def stamped(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = list(message.get("headers", ()))
            if not any(name == b"x-request-id" for name, _ in headers):
                message = {**message, "headers": [*headers, (b"x-request-id", face.deps.new_id().encode())]}
        await send(message)

    return stamped


def create_app(face: Face) -> FastAPI:
    """The ASGI application of one gateway; nothing exists at import time."""
    app = GatewayApp(
        face,
        title="hybrid-llm-router",
        version=__version__,
        description="One OpenAI-compatible endpoint over a local, a cheap and a premium tier.",
        redirect_slashes=False,
        # their pages load scripts from a third party, and are blank where there is no way out
        docs_url=None,
        redoc_url=None,
    )
    app.include_router(cold_routes(face))
    app.add_exception_handler(RouterError, _on_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(Exception, _on_crash)
    return app


def _respond(request: Request, error: Exception, request_id: str | None = None) -> Response:
    face: Face = request.app.face
    request_id = request_id or getattr(error, "request_id", None) or face.deps.new_id()
    out = error_response(error)
    headers = {name.decode(): value.decode("latin-1") for name, value in out.headers}
    return Response(out.body, out.status, {**headers, "x-request-id": request_id})


async def _on_error(request: Request, error: Exception) -> Response:
    return _respond(request, error)


async def _on_http_error(request: Request, error: Exception) -> Response:
    """Starlette's own 404 and 405 in our envelope."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    if status == 404:
        return _respond(request, NotFound(f"There is no route {request.method} {request.url.path[:200]}. {_WHERE_TO}"))
    if status == 405:
        return _respond(request, MethodNotAllowed(f"{request.method} is not possible on {request.url.path[:200]}."))
    return _respond(request, BadRequest("The request could not be read."))


async def _on_validation_error(request: Request, error: Exception) -> Response:
    first = error.errors()[0] if isinstance(error, RequestValidationError) else {"loc": ("body",), "msg": "is wrong"}
    where = ".".join(str(part) for part in first["loc"] if part != "body")
    return _respond(request, BadRequest(f"{where or 'body'}: {first['msg']}", param=where or None))


async def _on_crash(request: Request, error: Exception) -> Response:
    face: Face = request.app.face
    request_id = face.deps.new_id()
    note_crash(error, face.deps, request_id)
    return _respond(request, error, request_id)
