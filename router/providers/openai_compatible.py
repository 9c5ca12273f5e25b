"""Plain OpenAI-style HTTP: the local engine and every API that speaks it. The fast path.

Bytes in, bytes out: the client's members are spliced undecoded, answers are relayed as they came. One call is one
request to the one host this provider was built for; nothing a client sends can change where it goes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, NoReturn
from urllib.parse import unquote, urlsplit

import aiohttp
import msgspec
from multidict import CIMultiDict
from yarl import URL

from router import __version__
from router.errors import UpstreamBroken, UpstreamError, UpstreamTimeout, UpstreamUnavailable
from router.ports import CallTimeouts, PlainReply, ProviderCall
from router.providers.http_session import new_session
from router.providers.http_stream import TRICKLE_WINDOW_S, HttpStream, Inflater, StreamLimits, abort
from router.providers.plain_answer import read_plain
from router.providers.sse_scan import SseScanner
from router.providers.upstream_errors import error_for_answer

MAX_ANSWER_BYTES = 64 * 1024 * 1024
MAX_ERROR_BYTES = 64 * 1024

_USAGE_PLEASE = msgspec.Raw(b'{"include_usage":true}')
_TRUE = msgspec.Raw(b"true")


class OpenAICompatibleProvider:
    """Calls `{base_url}/chat/completions`.

    `base_url` is http, https, or `http+unix://%2Fpath%2Fto%2Fsocket/v1`. `session` is the process's shared session or
    what returns it at the first call; without it the provider makes one and closes it. `headers` go with every call.
    `ask_for_usage=False` is for hosts that refuse `stream_options`. `now_utc` is for Retry-After dates.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str | None = None,
        *,
        session: aiohttp.ClientSession | Callable[[], aiohttp.ClientSession] | None = None,
        headers: Mapping[str, str] | None = None,
        ask_for_usage: bool = True,
        trust_env: bool = False,
        max_answer_bytes: int = MAX_ANSWER_BYTES,
        trickle_window_s: float = TRICKLE_WINDOW_S,
        now_utc: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._url, self._unix_path = _endpoint(base_url)
        self._api_key = api_key.strip() if api_key else None
        self._headers = _headers(self._api_key, headers or {})
        self._ask_for_usage = ask_for_usage
        self._trust_env = trust_env
        self._max_answer_bytes = max_answer_bytes
        self._trickle_window_s = trickle_window_s
        self._now_utc = now_utc
        self._given = session if self._unix_path is None else None
        self._session: aiohttp.ClientSession | None = None
        self._drains: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"OpenAICompatibleProvider(api_key={'***' if self._api_key else None})"

    async def complete(self, call: ProviderCall) -> PlainReply:
        """A plain answer, its body untouched."""
        loop = asyncio.get_running_loop()
        start_s, timeouts = loop.time(), call.timeouts
        answer: aiohttp.ClientResponse | None = None
        try:
            async with asyncio.timeout_at(start_s + min(timeouts.first_byte_s, timeouts.total_s)) as timer:
                answer = await self._post(call)
                body = await self._read(answer, timer, start_s + timeouts.total_s, timeouts)
        except TimeoutError as error:
            abort(answer)
            self._timed_out(error, in_body=answer is not None)
        except (aiohttp.ClientError, OSError, RuntimeError) as error:
            abort(answer)
            self._failed(error, in_body=answer is not None)
        except BaseException:
            abort(answer)
            raise
        if answer.status != 200:
            raise self._refused(answer, body)
        return read_plain(body)

    async def open_stream(self, call: ProviderCall) -> HttpStream:
        """An open stream: the upstream has answered 200 with events to come."""
        loop = asyncio.get_running_loop()
        start_s, timeouts = loop.time(), call.timeouts
        answer: aiohttp.ClientResponse | None = None
        body = b""
        try:
            async with asyncio.timeout_at(start_s + min(timeouts.first_byte_s, timeouts.total_s)) as timer:
                answer = await self._post(call)
                if answer.status != 200:
                    body = await self._read(answer, timer, start_s + timeouts.total_s, timeouts)
        except TimeoutError as error:
            abort(answer)
            self._timed_out(error, in_body=answer is not None)
        except (aiohttp.ClientError, OSError, RuntimeError) as error:
            abort(answer)
            self._failed(error, in_body=answer is not None)
        except BaseException:
            abort(answer)
            raise
        if answer.status != 200:
            raise self._refused(answer, body)
        return self._stream(answer, call, start_s)

    async def close(self) -> None:
        """Release connections; a shared session is left to its owner."""
        for drain in tuple(self._drains):
            drain.cancel()
        await asyncio.gather(*self._drains, return_exceptions=True)
        session, self._session = self._session, None
        if session is not None and self._given is None:
            await session.close()

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            if self._given is None:
                self._session = new_session(unix_path=self._unix_path, trust_env=self._trust_env)
            else:
                self._session = self._given() if callable(self._given) else self._given
        return self._session

    async def _post(self, call: ProviderCall) -> aiohttp.ClientResponse:
        return await self._client().post(
            self._url,
            data=wire_body(call, ask_for_usage=self._ask_for_usage),
            headers=self._headers,
            allow_redirects=False,  # our key must not leave the host it was given for
            timeout=_connect_only(call.timeouts.connect_s),
        )

    async def _read(
        self,
        answer: aiohttp.ClientResponse,
        timer: asyncio.Timeout,
        end_at_s: float,
        timeouts: CallTimeouts,
    ) -> bytes:
        """The whole body; an error's body is cut at 64 kB, since nobody reads on."""
        loop = asyncio.get_running_loop()
        content = answer.content
        parts: list[bytes] = []
        size = 0
        limit_bytes = self._max_answer_bytes if answer.status == 200 else MAX_ERROR_BYTES
        while not content.at_eof():
            if not content.is_eof():  # as a rule all of it came with the headers
                timer.reschedule(min(loop.time() + timeouts.idle_s, end_at_s))
            part = await content.readany()
            parts.append(part)
            size += len(part)
            if size > limit_bytes:
                abort(answer)
                if answer.status == 200:
                    raise UpstreamBroken(f"The upstream's answer is larger than {limit_bytes} bytes")
                break
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        encoding = answer.headers.get("content-encoding")
        return body if not encoding else Inflater(encoding, limit_bytes).whole(body)

    def _stream(self, answer: aiohttp.ClientResponse, call: ProviderCall, start_s: float) -> HttpStream:
        kind = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind in ("application/json", "text/html"):
            abort(answer)
            raise UpstreamBroken(f"The upstream answered {kind} where a stream was asked for")
        encoding = answer.headers.get("content-encoding")
        timeouts = call.timeouts
        return HttpStream(
            answer,
            SseScanner(
                include_usage=call.include_usage,
                usage_on_chunks=bool(_member(call, "stream_options", "continuous_usage_stats")),
                choices=_choices(call.fields.get("n")),
            ),
            StreamLimits(
                first_token_at_s=start_s + timeouts.first_byte_s,
                idle_s=timeouts.idle_s,
                end_at_s=start_s + timeouts.total_s,
                min_tokens_per_s=timeouts.min_tokens_per_s,
                window_s=self._trickle_window_s,
            ),
            inflater=Inflater(encoding, MAX_ANSWER_BYTES) if encoding else None,
            drains=self._drains,
        )

    def _refused(self, answer: aiohttp.ClientResponse, body: bytes) -> UpstreamError:
        return error_for_answer(answer.status, answer.headers, body, now_utc=self._now_utc(), secret=self._api_key)

    @staticmethod
    def _timed_out(error: TimeoutError, *, in_body: bool) -> NoReturn:
        if isinstance(error, aiohttp.ConnectionTimeoutError):
            raise UpstreamTimeout("The upstream could not be connected to in time") from None
        what = "went silent in its answer" if in_body else "did not answer in time"
        raise UpstreamTimeout(f"The upstream {what}") from None

    @staticmethod
    def _failed(error: Exception, *, in_body: bool) -> NoReturn:
        """`from None`: the library's errors carry the address and, in their repr, the headers with our key."""
        name = type(error).__name__
        if isinstance(error, RuntimeError) and "closed" not in str(error).lower():
            raise error
        if in_body:
            raise UpstreamBroken(f"The upstream's answer was cut ({name})") from None
        if isinstance(error, aiohttp.ClientResponseError):
            raise UpstreamBroken(f"The upstream does not speak HTTP ({name})") from None
        raise UpstreamUnavailable(f"The upstream cannot be reached ({name})") from None


def wire_body(call: ProviderCall, *, ask_for_usage: bool = True) -> bytes:
    """The JSON sent upstream: the client's members as they came, `model` and what streaming needs set by us."""
    members = dict(call.fields)
    members.pop("router", None)
    members["model"] = call.candidate.wire_model
    if call.stream:
        members["stream"] = _TRUE
        if ask_for_usage:
            members["stream_options"] = _stream_options(members.get("stream_options"))
        else:
            members.pop("stream_options", None)
    else:
        members.pop("stream", None)
    return msgspec.json.encode(members)


def _stream_options(given: Any) -> Any:
    """The client's own options with usage switched on; what is no object is left for the upstream to refuse."""
    options = _decoded(given)
    if options is None:
        return _USAGE_PLEASE
    return {**options, "include_usage": True} if isinstance(options, dict) else given


def _decoded(value: Any) -> Any:
    """A member's value; `None` for one that only the upstream can make sense of."""
    if not isinstance(value, msgspec.Raw):
        return value
    try:
        return msgspec.json.decode(value)
    except msgspec.MsgspecError:
        return None


def _member(call: ProviderCall, name: str, inner: str) -> Any:
    value = _decoded(call.fields.get(name))
    return value.get(inner) if isinstance(value, dict) else None


def _choices(n: Any) -> int:
    count = _decoded(n)
    return count if isinstance(count, int) and 0 < count <= 1024 else 1


def _endpoint(base_url: str) -> tuple[URL, str | None]:
    """(URL of the chat route, path of the unix socket or `None`). Raises ValueError; the text never holds secrets."""
    parts = urlsplit(base_url)
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError("an API base has no user, password, query or fragment; the key has its own setting")
    path = parts.path.rstrip("/") + "/chat/completions"
    if parts.scheme == "http+unix" and parts.netloc:
        return URL(f"http://localhost{path}", encoded=True), unquote(parts.netloc)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("an API base starts with http://HOST, https://HOST or http+unix://%2Fpath%2Fto%2Fsocket")
    return URL(f"{parts.scheme}://{parts.netloc}{path}", encoded=True), None


def _headers(api_key: str | None, extra: Mapping[str, str]) -> CIMultiDict[str]:
    headers = CIMultiDict(
        {
            "content-type": "application/json",
            "accept": "application/json, text/event-stream",
            "accept-encoding": "identity",
            "user-agent": f"hybrid-llm-router/{__version__}",
        }
    )
    if api_key:
        headers["authorization"] = f"Bearer {api_key}"
    headers.update(extra)
    if any(not value.isprintable() for value in headers.values()):
        raise ValueError("a key or header holds a line break or another character that HTTP forbids")
    return headers


@lru_cache(maxsize=16)
def _connect_only(connect_s: float) -> aiohttp.ClientTimeout:
    """Only connecting is timed by the library; everything else by us, in one timer a call."""
    return aiohttp.ClientTimeout(total=None, sock_connect=connect_s)
