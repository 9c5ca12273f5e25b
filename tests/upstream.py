"""`FakeUpstream`: an OpenAI-style model host on a loopback port that tells the truth unless scripted to misbehave.

    async with FakeUpstream(api_key="sk-up") as upstream:
        upstream.script(status(503), ok(text="Fine."))     # the first request fails, the second does not
        ...                                                # base URL: upstream.base_url
        assert upstream.requests[0].json["model"] == "m"

Each chat request takes the next behaviour of the queue, or `upstream.default` when it is empty. Requests are recorded
with headers, body and the moment at which the client left. `GET /v1/models` and `/health` answer too, and
`upstream.pages` holds any further ones.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from tests.loopback_http import Exchange, LoopbackServer, RecordedRequest
from tests.upstream_answers import (
    CREATED,
    Said,
    chunk,
    error_body,
    plain_answer,
    refuse,
    say,
    stream_chunks,
    usage_chunk,
    usage_of,
)

Headers = Iterable[tuple[str, str]]
JSON_TYPE = ("content-type", "application/json")


@dataclass(frozen=True, slots=True)
class Behaviour:
    """How one request is answered. The factories below name the usual ones; all knobs combine with `replace`.

    Positions (`*_at`) count data events of a stream from 0, the role-only first chunk being event 0.
    """

    text: str | None = None
    tokens: int | None = None
    tool_calls: tuple[dict[str, Any], ...] = ()
    delay_s: float = 0.0  # before the headers; inf stalls until the client leaves
    first_token_delay_s: float = 0.0  # between the headers and the first event
    gap_s: float = 0.0  # between events
    held: asyncio.Event | None = None  # an answer waits for it before the headers, a stream before event `held_at`
    held_at: int | None = None
    # what replaces the answer
    status: int = 200
    body: bytes | None = None
    headers: tuple[tuple[str, str], ...] = ()
    # what goes wrong in a stream
    cut_at: int | None = None
    cut_how: Literal["reset", "eof", "clean_end"] = "reset"
    silent_at: int | None = None
    malformed_at: int | None = None
    error_at: int | None = None
    error: Any = None
    done_after_error: bool = True
    finish_reason: str | None = None
    omit_done: bool = False
    linger_s: float = 0.0  # between [DONE] and the end of the body
    # usage
    usage: Mapping[str, Any] | None = None
    no_usage: bool = False
    usage_on_last_chunk: bool = False
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    # how it is written
    newline: bytes = b"\n"
    comments_before: int = 0
    comment_gap_s: float = 0.0
    write_bytes: int | None = None
    gzipped: bool = False
    pad_bytes: int = 0


def ok(text: str | None = None, *, tokens: int | None = None, delay_s: float = 0.0, gap_s: float = 0.0) -> Behaviour:
    """A good answer: `text`, or `tokens` tokens, or an echo of the last message."""
    return Behaviour(text=text, tokens=tokens, delay_s=delay_s, gap_s=gap_s)


def status(code: int, body: Any = None, headers: Headers = ()) -> Behaviour:
    """An HTTP error. `body` is bytes as they are, anything else as JSON, `None` OpenAI's envelope."""
    if body is None:
        body = error_body(f"The server said {code}.", "server_error" if code >= 500 else "invalid_request_error")
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    listed = tuple(headers)
    if not any(name.lower() == "content-type" for name, _ in listed):
        listed = (*listed, JSON_TYPE if raw[:1] in (b"{", b'"', b"[") else ("content-type", "text/html"))
    return Behaviour(status=code, body=raw, headers=listed)


def answer(raw: bytes, content_type: str = "application/json") -> Behaviour:
    """200 with `raw` as the body, whatever it is."""
    return Behaviour(body=raw, headers=(("content-type", content_type),))


def redirect(location: str, code: int = 307) -> Behaviour:
    """A redirection to `location`."""
    return Behaviour(status=code, body=b"", headers=(("location", location), ("content-type", "text/plain")))


def stall() -> Behaviour:
    """Accept the request and say nothing."""
    return Behaviour(delay_s=math.inf)


def stall_after_headers() -> Behaviour:
    """200, then nothing."""
    return Behaviour(first_token_delay_s=math.inf)


def cut(at: int, how: Literal["reset", "eof", "clean_end"] = "reset", *, tokens: int = 60) -> Behaviour:
    """End a stream before event `at`: by RST, by FIN without the closing chunk, or by an orderly end without [DONE]."""
    return Behaviour(tokens=tokens, cut_at=at, cut_how=how)


def silence(at: int, *, tokens: int = 60) -> Behaviour:
    """Stop sending before event `at` and keep the socket open."""
    return Behaviour(tokens=tokens, silent_at=at)


def malformed(at: int, *, tokens: int = 10) -> Behaviour:
    """Event `at` is not JSON; the rest goes on."""
    return Behaviour(tokens=tokens, malformed_at=at)


def error_frame(at: int, error: Any = None, *, done: bool = True, tokens: int = 10) -> Behaviour:
    """An error event instead of event `at`, then (as vLLM does) a normal [DONE], or just the end."""
    default = {"message": "EngineCore encountered an issue.", "type": "InternalServerError", "param": None, "code": 500}
    return Behaviour(tokens=tokens, error_at=at, error=default if error is None else error, done_after_error=done)


def aborted(*, tokens: int = 5) -> Behaviour:
    """The engine gives up the request: finish_reason "abort"."""
    return Behaviour(tokens=tokens, finish_reason="abort")


def no_usage(*, tokens: int = 5) -> Behaviour:
    """A good answer without any usage."""
    return Behaviour(tokens=tokens, no_usage=True)


def with_usage(usage: Mapping[str, Any], *, tokens: int = 5) -> Behaviour:
    """A good answer with this usage object instead of the true one."""
    return Behaviour(tokens=tokens, usage=usage)


def usage_on_last_chunk(*, tokens: int = 5) -> Behaviour:
    """Usage on the chunk that carries the finish reason, asked for or not."""
    return Behaviour(tokens=tokens, usage_on_last_chunk=True)


def trickle(gap_s: float = 5.0, *, tokens: int = 60) -> Behaviour:
    """One token every `gap_s` seconds."""
    return Behaviour(tokens=tokens, gap_s=gap_s)


def split_writes(text: str, write_bytes: int = 1) -> Behaviour:
    """The stream in TCP writes of `write_bytes` bytes, which tear events, lines and characters apart."""
    return Behaviour(text=text, write_bytes=write_bytes)


def tools(*calls: dict[str, Any], text: str | None = None) -> Behaviour:
    """Tool calls (see `upstream_answers.tool_call`); streamed, their arguments come in pieces."""
    return Behaviour(text=text, tool_calls=calls)


def crlf(text: str | None = None) -> Behaviour:
    """A stream whose lines end in CR LF."""
    return Behaviour(text=text, newline=b"\r\n")


def keep_alives(count: int, gap_s: float = 0.0, *, tokens: int = 5) -> Behaviour:
    """`count` comment lines, `gap_s` apart, before the first event."""
    return Behaviour(tokens=tokens, comments_before=count, comment_gap_s=gap_s)


def gzipped(text: str | None = None) -> Behaviour:
    """A compressed answer, although none was asked for."""
    return Behaviour(text=text, gzipped=True)


def huge(pad_bytes: int) -> Behaviour:
    """An answer padded to `pad_bytes`; in a stream all of it in one event."""
    return Behaviour(tokens=5, pad_bytes=pad_bytes)


class FakeUpstream(LoopbackServer):
    """An OpenAI-style host. `api_key=None` accepts any key; `models=None` any model."""

    def __init__(
        self,
        *,
        api_key: str | None = "sk-upstream",
        models: Iterable[str] | None = None,
        context_tokens: int | None = None,
        default: Behaviour | None = None,
    ) -> None:
        super().__init__()
        self.api_key = api_key
        self.models = None if models is None else frozenset(models)
        self.context_tokens = context_tokens
        self.default = default or ok()
        self.queue: deque[Behaviour] = deque()
        self.pages: dict[str, tuple[int, bytes, str]] = {}

    @property
    def base_url(self) -> str:
        """What a client is configured with: `http://127.0.0.1:PORT/v1`."""
        return f"{self.origin}/v1"

    @property
    def chats(self) -> list[RecordedRequest]:
        """The chat requests among `requests`."""
        return [r for r in self.requests if r.path.endswith("/chat/completions")]

    def script(self, *behaviours: Behaviour) -> None:
        """Append behaviours, one per coming chat request."""
        self.queue.extend(behaviours)

    async def handle(self, exchange: Exchange) -> None:
        """Route one request."""
        request = exchange.request
        path = request.path.partition("?")[0]
        if path in self.pages:
            code, body, kind = self.pages[path]
            await exchange.answer(code, body, [("content-type", kind)])
        elif path == "/health":
            await exchange.answer(200, b"")
        elif not self._authorized(request):
            text = "Incorrect API key provided: sk-****. You can find your API key in your account."
            await self._json(exchange, 401, error_body(text, "invalid_request_error", code="invalid_api_key"))
        elif path == "/v1/models":
            names = sorted(self.models or ("loopback-model",))
            rows = [{"id": name, "object": "model", "created": CREATED, "owned_by": "loopback"} for name in names]
            await self._json(exchange, 200, {"object": "list", "data": rows})
        elif path == "/v1/chat/completions" and request.method == "POST":
            await self._chat(exchange)
        else:
            text = f"Invalid URL ({request.method} {path})"
            await self._json(exchange, 404, error_body(text, "invalid_request_error"))

    def _authorized(self, request: RecordedRequest) -> bool:
        return self.api_key is None or request.headers.get("authorization") == f"Bearer {self.api_key}"

    async def _json(self, exchange: Exchange, code: int, body: Any) -> None:
        await exchange.answer(code, json.dumps(body, ensure_ascii=False).encode(), [JSON_TYPE])

    async def _chat(self, exchange: Exchange) -> None:
        behaviour = self.queue.popleft() if self.queue else self.default
        await exchange.pause(behaviour.delay_s)
        if behaviour.held is not None and behaviour.held_at is None:
            await behaviour.held.wait()
        if behaviour.body is not None:
            await exchange.answer(behaviour.status, behaviour.body, behaviour.headers)
            return
        try:
            body = exchange.request.json
        except ValueError:
            body = None
        refused = refuse(body, self.models, self.context_tokens)
        if refused is not None:
            await self._json(exchange, *refused)
            return
        number = len(self.requests)
        text = "tok " * behaviour.tokens if behaviour.tokens is not None else behaviour.text
        said = say(body, text.rstrip() if text is not None else None, behaviour.tool_calls)
        if behaviour.finish_reason is not None:
            said = replace(said, finish_reason=behaviour.finish_reason)
        if body.get("stream"):
            await _Stream(behaviour, body, said, number).write(exchange)
        else:
            await self._plain(exchange, behaviour, body, said, number)

    async def _plain(self, exchange: Exchange, behaviour: Behaviour, body: Any, said: Said, number: int) -> None:
        whole = plain_answer(body, said, number=number, usage=true_usage(behaviour, body, said))
        if behaviour.pad_bytes:
            whole["padding"] = "x" * behaviour.pad_bytes
        raw = json.dumps(whole, ensure_ascii=False).encode()
        headers = [JSON_TYPE, ("x-request-id", f"req_{number}"), *behaviour.headers]
        if behaviour.gzipped:
            raw = gzip.compress(raw)
            headers.append(("content-encoding", "gzip"))
        if behaviour.cut_at is None and behaviour.silent_at is None and not behaviour.first_token_delay_s:
            await exchange.answer(behaviour.status, raw, headers)
            return
        await exchange.head(behaviour.status, headers, content_length=len(raw))
        await exchange.pause(behaviour.first_token_delay_s)
        await exchange.raw(raw[: len(raw) // 2])
        if behaviour.silent_at is not None:
            await exchange.pause(math.inf)
        if behaviour.cut_how == "reset":
            exchange.reset()
        else:
            exchange.close()


def true_usage(behaviour: Behaviour, body: Any, said: Said) -> dict[str, Any] | None:
    """The usage object that the answer carries, or `None` if it is to carry none."""
    if behaviour.no_usage:
        return None
    if behaviour.usage is not None:
        return dict(behaviour.usage)
    count = said.completion_tokens * (body.get("n") or 1) + behaviour.reasoning_tokens
    return usage_of(body, count, cached=behaviour.cached_tokens, reasoning=behaviour.reasoning_tokens)


class _Stream:
    """Writes one streamed answer."""

    def __init__(self, behaviour: Behaviour, body: dict[str, Any], said: Said, number: int) -> None:
        self.behaviour = behaviour
        self.usage = true_usage(behaviour, body, said)
        self.asked = bool((body.get("stream_options") or {}).get("include_usage"))
        self.body, self.number = body, number
        self.chunks = stream_chunks(body, said, number)

    def events(self) -> list[bytes]:
        """The stream as it is meant to be, one entry an event, without [DONE]."""
        behaviour = self.behaviour
        usage_only = self.usage is not None and self.asked and not behaviour.usage_on_last_chunk
        chunks = [{**c, "usage": None} for c in self.chunks] if usage_only else self.chunks
        if behaviour.usage_on_last_chunk and self.usage is not None:
            chunks = [*chunks[:-1], {**chunks[-1], "usage": self.usage}]
        if usage_only and self.usage is not None:
            chunks = [*chunks, usage_chunk(self.body, self.number, self.usage)]
        if behaviour.pad_bytes:
            pad = {"index": 0, "delta": {"content": "x" * behaviour.pad_bytes}, "finish_reason": None}
            chunks = [chunks[0], chunk(self.body, self.number, [pad]), *chunks[1:]]
        return [self.event(json.dumps(c, ensure_ascii=False, separators=(",", ":")).encode()) for c in chunks]

    def event(self, data: bytes) -> bytes:
        """One event in the framing of this stream."""
        newline = self.behaviour.newline
        return b"data: " + data + newline * 2

    async def write(self, exchange: Exchange) -> None:
        """Everything from the headers to the end, or to the fault."""
        behaviour = self.behaviour
        headers = [("content-type", "text/event-stream; charset=utf-8"), ("x-request-id", f"req_{self.number}")]
        if behaviour.gzipped:
            headers.append(("content-encoding", "gzip"))
            await exchange.head(200, headers, content_length=None)
            await exchange.chunk(gzip.compress(b"".join(self.events()) + self.event(b"[DONE]")))
            await exchange.end()
            return
        await exchange.head(200, headers, content_length=None)
        await exchange.pause(behaviour.first_token_delay_s)
        for _ in range(behaviour.comments_before):
            await exchange.chunk(b": keep-alive" + behaviour.newline * 2)
            await exchange.pause(behaviour.comment_gap_s)
        for position, event in enumerate(self.events()):
            if not await self._one(exchange, position, event):
                return
        if not behaviour.omit_done:
            await self._send(exchange, self.event(b"[DONE]"))
        await exchange.pause(behaviour.linger_s)
        await exchange.end()

    async def _one(self, exchange: Exchange, position: int, event: bytes) -> bool:
        """Write event `position`, or the fault scripted for it; False once the stream is over."""
        behaviour = self.behaviour
        if position == behaviour.cut_at:
            if behaviour.cut_how == "reset":
                exchange.reset()
            elif behaviour.cut_how == "eof":
                exchange.close()
            else:
                await exchange.end()
            return False
        if position == behaviour.silent_at:
            await exchange.pause(math.inf)
        if position == behaviour.error_at:
            await exchange.chunk(self.event(json.dumps({"error": behaviour.error}).encode()))
            if behaviour.done_after_error:
                await exchange.chunk(self.event(b"[DONE]"))
            await exchange.end()
            return False
        if position == behaviour.malformed_at:
            event = self.event(b'{"id":"chatcmpl-broken","choices":[{"index":0,"del')
        if position == behaviour.held_at and behaviour.held is not None:
            await behaviour.held.wait()
        if position:
            await exchange.pause(behaviour.gap_s)
        await self._send(exchange, event)
        return True

    async def _send(self, exchange: Exchange, event: bytes) -> None:
        size = self.behaviour.write_bytes
        if size is None:
            await exchange.chunk(event)
            return
        framed = b"%x\r\n%b\r\n" % (len(event), event)
        for start in range(0, len(framed), size):
            await exchange.raw(framed[start : start + size])
            await asyncio.sleep(0)  # lets a reader on this loop see every write by itself
        exchange.request.chunks_sent += 1
