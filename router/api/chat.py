"""`POST /v1/chat/completions`, as bare ASGI: bytes in, bytes out (see docs/decisions/0001-raw-chat-endpoint.md)."""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from typing import NamedTuple

from starlette.types import Receive, Scope, Send

from router.api.answer_headers import Headers, answer_headers
from router.api.auth import Authenticator, Caller
from router.api.body import ClientDisconnected, read_body
from router.api.company import Company
from router.api.error_responses import error_response, stream_error_event
from router.api.hangups import Hangup, Hangups
from router.api.idempotency import IdempotencyStore, Recording, Replay
from router.api.limit_headers import limit_headers
from router.api.schemas import decode_chat
from router.api.sse import send_stream
from router.core.chat import ChatRequest
from router.core.limits import Allowance, KeyLimiter
from router.errors import MethodNotAllowed, RouterError, Unavailable
from router.flow import PlainAnswer, handle_chat
from router.ports import Deps

CHAT_PATHS = frozenset({"/v1/chat/completions", "/chat/completions"})
_REPLAYED = (b"x-router-idempotent-replay", b"true")
_log = logging.getLogger("router.api")


@dataclass(slots=True)
class ChatEndpoint:
    """The hot path. One instance serves all requests."""

    deps: Deps
    authenticator: Authenticator
    idempotency: IdempotencyStore
    max_body_bytes: int
    body_timeout_s: float
    draining: Callable[[], bool] = lambda: False
    hangups: Hangups = field(default_factory=Hangups)
    company: Company | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; every failure leaves as an OpenAI error envelope with a request id."""
        hangup = Hangup(receive, self.hangups)
        limiter: KeyLimiter | None = None
        try:
            headers, caller = self._who(scope)
            limiter = caller.limiter
            if limiter is None:
                await self._answer(_Visit(caller, send, hangup), headers, receive)
            else:
                with Allowance(limiter) as allowance:
                    await self._answer(_Visit(caller, send, hangup, allowance), headers, receive)
        except ClientDisconnected:
            return
        except RouterError as error:
            await send_error(send, error, self.deps.new_id, limiter)
        except asyncio.CancelledError:
            if not hangup.hung_up and not self.draining():
                raise
            # What was used is booked. Who hung up wants to hear nothing; who is cut off at the end of the grace does.
            task = asyncio.current_task()
            if task is not None:
                task.uncancel()
            if not hangup.hung_up:
                await _send_cut(send, self.deps.new_id, limiter, started=hangup.response_started)
        except Exception as error:  # noqa: BLE001 - the last stop: no traceback may reach a client
            await send_internal_error(send, error, self.deps, limiter, started=hangup.response_started)
        finally:
            hangup.stop()

    def _who(self, scope: Scope) -> tuple[dict[str, str], Caller]:
        if scope["method"] != "POST":
            raise MethodNotAllowed(f"{scope['method']} is not possible here; use POST.")
        headers = lower_headers(scope)
        return headers, self.authenticator.authenticate(headers)

    async def _answer(self, visit: _Visit, headers: dict[str, str], receive: Receive) -> None:
        body = await read_body(receive, headers, max_bytes=self.max_body_bytes, timeout_s=self.body_timeout_s)
        if self.company is not None:
            await self.company.join()
        chat = decode_chat(body, headers)
        visit.hangup.watch()
        key = headers.get("idempotency-key")
        if key is None:
            await self._fresh(chat, visit, None)
            return
        # What is asked by header (stay at home, cost no more than…) is part of the request, as it is in the body.
        asked = sha256(body + repr(chat.controls).encode()).hexdigest()
        claim = await self.idempotency.begin(visit.caller.tenant, key, asked)
        if isinstance(claim, Replay):
            if visit.allowance is not None:
                visit.allowance.settle(0)
            await _send_plain(visit.send, [*claim.headers, _REPLAYED, *visit.limits()], claim.body, claim.status)
            return
        with claim:
            await self._fresh(chat, visit, claim)

    async def _fresh(self, chat: ChatRequest, visit: _Visit, recording: Recording | None) -> None:
        answer = await handle_chat(chat, visit.caller.tenant, self.deps, visit.allowance)
        visit.hangup.response_started = True
        headers = answer_headers(answer.meta, stream=chat.stream, debug=chat.controls.debug)
        told = [*headers, *visit.limits()]  # how the limits stand now is not part of what is kept for a repetition
        if isinstance(answer, PlainAnswer):
            if recording is not None:
                recording.keep(200, headers, answer.body)
            await _send_plain(visit.send, told, answer.body)
            return
        keep: list[bytes] | None = [] if recording is not None else None
        try:
            await send_stream(visit.send, answer, told, include_usage=chat.include_usage, keep=keep)
            visit.hangup.stop()  # all has been said: who leaves now must not undo what is kept
        finally:
            await answer.close()
        if recording is not None and keep:
            recording.keep(200, headers, b"".join(keep))


class _Visit(NamedTuple):
    """Who asks, where the answer goes, and what the request takes of its key's limits."""

    caller: Caller
    send: Send
    hangup: Hangup
    allowance: Allowance | None = None

    def limits(self) -> Headers:
        """How the limits of the key stand."""
        return [] if self.allowance is None else limit_headers(self.allowance.limiter)


def lower_headers(scope: Scope) -> dict[str, str]:
    """Request headers by lower-case name; the last of several wins."""
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}


async def _send_plain(send: Send, headers: Headers, body: bytes, status: int = 200) -> None:
    headers = [*headers, (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


def shutting_down() -> Unavailable:
    """What callers hear while the gateway drains."""
    return Unavailable("The gateway is shutting down; try another replica or again in a moment.", closing=True)


async def _send_cut(send: Send, new_id: Callable[[], str], limiter: KeyLimiter | None, *, started: bool) -> None:
    """The gateway ends before the answer does: an error, in the stream where one has begun, and no `[DONE]`."""
    if not started:
        await send_error(send, shutting_down(), new_id, limiter)
        return
    await send({"type": "http.response.body", "body": stream_error_event(shutting_down()), "more_body": False})


async def send_error(
    send: Send, error: RouterError, new_id: Callable[[], str], limiter: KeyLimiter | None = None
) -> None:
    """The envelope of `error`, with the request id it carries or a new one, and how the key's limits stand."""
    headers = [(b"x-request-id", (error.request_id or new_id()).encode())]
    if error.attempts is not None:
        headers.append((b"x-router-attempts", b"%d" % error.attempts))
    if limiter is not None:
        headers += limit_headers(limiter)
    out = error_response(error)
    await _send_plain(send, [*out.headers, *headers], out.body, out.status)


async def send_internal_error(
    send: Send, error: Exception, deps: Deps, limiter: KeyLimiter | None = None, *, started: bool
) -> None:
    """Something of ours broke: an envelope without details for the caller, where it broke for the log."""
    request_id = deps.new_id()
    note_crash(error, deps, request_id)
    if started:
        raise RuntimeError("cut short") from None  # the server closes the connection: a cut is honest, an end is not
    out = error_response(error)
    limits = [] if limiter is None else limit_headers(limiter)
    await _send_plain(send, [*out.headers, (b"x-request-id", request_id.encode()), *limits], out.body, out.status)


def note_crash(error: Exception, deps: Deps, request_id: str) -> None:
    """Where it broke, for the log: only the places, not the message, which may quote what the caller sent."""
    kind = type(error).__name__
    places = [f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)][-6:]
    deps.telemetry.warn("internal_error", kind=kind)
    _log.error("internal_error", extra={"fields": {"request_id": request_id, "kind": kind, "at": places}})
