"""Plain OpenAI-style HTTP: the local engine and every API that speaks it. The fast path.

Bytes in, bytes out: the client's members are spliced undecoded, answers are relayed as they came. One call is one
request to the one host this provider was built for; nothing a client sends can change where it goes.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from router import __version__
from router.errors import UpstreamBroken, UpstreamError, UpstreamTimeout, UpstreamUnavailable
from router.ports import PlainReply, ProviderCall
from router.providers.http_answer import Answer, BadResponse, HttpError, TimedOut
from router.providers.http_client import HttpClient, Target
from router.providers.http_stream import TRICKLE_WINDOW_S, HttpStream, Inflater, StreamLimits
from router.providers.plain_answer import read_plain
from router.providers.sse_scan import SseScanner
from router.providers.upstream_errors import error_for_answer

MAX_ANSWER_BYTES = 64 * 1024 * 1024
MAX_ERROR_BYTES = 64 * 1024

_USAGE_PLEASE = msgspec.Raw(b'{"include_usage":true}')
_TRUE = msgspec.Raw(b"true")


class OpenAICompatibleProvider:
    """Calls `{base_url}/chat/completions`.

    `base_url` is http, https, or `http+unix://%2Fpath%2Fto%2Fsocket/v1`. `headers` go with every call.
    `ask_for_usage=False` is for hosts that refuse `stream_options`. `trust_env` lets the environment's proxies apply.
    `tls` replaces the default context. `now_utc` is for Retry-After dates. Raises ValueError for a bad address, key or
    header, without repeating it.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        ask_for_usage: bool = True,
        trust_env: bool = False,
        tls: ssl.SSLContext | None = None,
        max_answer_bytes: int = MAX_ANSWER_BYTES,
        trickle_window_s: float = TRICKLE_WINDOW_S,
        now_utc: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._api_key = api_key.strip() if api_key else None
        self._ask_for_usage = ask_for_usage
        self._max_answer_bytes = max_answer_bytes
        self._trickle_window_s = trickle_window_s
        self._now_utc = now_utc
        self._client = HttpClient(
            _endpoint(base_url),
            _headers(self._api_key, headers or {}),
            body_bytes=max_answer_bytes,
            error_bytes=MAX_ERROR_BYTES,
            trust_env=trust_env,
            tls=tls,
        )

    def __repr__(self) -> str:
        return f"OpenAICompatibleProvider(api_key={'***' if self._api_key else None})"

    async def complete(self, call: ProviderCall) -> PlainReply:
        """A plain answer, its body untouched."""
        answer = await self._ask(call)
        if answer.status != 200:
            raise self._refused(answer)
        return read_plain(self._body(answer, self._max_answer_bytes))

    async def open_stream(self, call: ProviderCall) -> HttpStream:
        """An open stream: the upstream has answered 200 with events to come."""
        start_s = asyncio.get_running_loop().time()
        answer = await self._ask(call)
        if answer.status != 200:
            raise self._refused(answer)
        return self._stream(answer, call, start_s)

    async def close(self) -> None:
        """Close all connections."""
        await self._client.close()

    async def _ask(self, call: ProviderCall) -> Answer:
        """`from None`: a library's errors may carry the address."""
        body = wire_body(call, ask_for_usage=self._ask_for_usage)
        try:
            return await self._client.post(body, call.timeouts, stream=call.stream)
        except HttpError as error:
            raise _as_upstream_error(error) from None

    @staticmethod
    def _body(answer: Answer, limit_bytes: int) -> bytes:
        """The whole body; an error's body is cut at 64 kB, since nobody reads on."""
        if answer.truncated and answer.status == 200:
            raise UpstreamBroken(f"The upstream's answer is larger than {limit_bytes} bytes")
        encoding = answer.header(b"content-encoding")
        return answer.body if not encoding else Inflater(encoding, limit_bytes).whole(answer.body)

    def _stream(self, answer: Answer, call: ProviderCall, start_s: float) -> HttpStream:
        kind = answer.header(b"content-type").partition(";")[0].strip().lower()
        if kind in ("application/json", "text/html"):
            answer.abort()
            raise UpstreamBroken(f"The upstream answered {kind} where a stream was asked for")
        encoding = answer.header(b"content-encoding")
        try:
            inflater = Inflater(encoding, MAX_ANSWER_BYTES) if encoding else None
        except UpstreamBroken:
            answer.abort()
            raise
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
            inflater=inflater,
        )

    def _refused(self, answer: Answer) -> UpstreamError:
        body = self._body(answer, MAX_ERROR_BYTES)
        return error_for_answer(answer.status, answer.headers, body, now_utc=self._now_utc(), secret=self._api_key)


def _as_upstream_error(error: HttpError) -> UpstreamError:
    if isinstance(error, TimedOut):
        if error.phase == "connect":
            return UpstreamTimeout("The upstream could not be connected to in time")
        return UpstreamTimeout(
            "The upstream went silent in its answer" if error.phase == "body" else "The upstream did not answer in time"
        )
    if error.in_body:
        return UpstreamBroken(f"The upstream's answer was cut ({error})")
    if isinstance(error, BadResponse):
        return UpstreamBroken(f"The upstream does not speak HTTP ({error})")
    return UpstreamUnavailable(f"The upstream cannot be reached ({error})")


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


def _endpoint(base_url: str) -> Target:
    """The chat route below `base_url`. Raises ValueError; the text never holds secrets."""
    try:
        return Target.parse(base_url).below("/chat/completions")
    except ValueError as error:
        raise ValueError(f"an API base cannot be used: {error}") from None


def _headers(api_key: str | None, extra: Mapping[str, str]) -> dict[str, str]:
    headers = {
        "content-type": "application/json",
        "accept": "application/json, text/event-stream",
        "accept-encoding": "identity",
        "user-agent": f"hybrid-llm-router/{__version__}",
    }
    if api_key:
        headers["authorization"] = f"Bearer {api_key}"
    headers.update((name.lower(), value) for name, value in extra.items())
    return headers
