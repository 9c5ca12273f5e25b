"""Every API that does not speak OpenAI's shape, through litellm; with `litellm_errors` the only files that import it.

litellm is loaded at the first call and in a thread: it takes seconds, and most installations never need it. Its own
retries, fallbacks, price map, telemetry and logs are off: one call here is one call there.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import warnings
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from router.errors import UpstreamError, UpstreamTimeout, UpstreamUnavailable
from router.ports import PlainReply, ProviderCall
from router.providers.egress import first_remote_part
from router.providers.litellm_stream import OPENED, LiteLLMStream, answer_members
from router.providers.plain_answer import read_plain
from router.providers.upstream_errors import refusal

# A list of what may pass: litellm reads dozens of keyword arguments of its own (api_base, api_key, mock_response,
# fallbacks, callbacks…), and no client may reach those.
PASSED_ON = frozenset(
    (
        *("messages", "temperature", "top_p", "top_k", "n", "stop", "max_tokens", "max_completion_tokens", "seed"),
        *("presence_penalty", "frequency_penalty", "logit_bias", "user", "response_format", "modalities", "audio"),
        *("tools", "tool_choice", "parallel_tool_calls", "functions", "function_call", "logprobs", "top_logprobs"),
        *("reasoning_effort", "thinking", "verbosity", "prediction", "service_tier", "web_search_options"),
    )
)
OURS = frozenset({"router", "model", "stream", "stream_options"})
WITHOUT_EFFECT = frozenset({"metadata", "store", "prompt_cache_key", "safety_identifier"})
# Those that litellm calls with its own HTTP handler, which can be given one of ours; the rest go through an SDK.
_HANDLER_PROVIDERS = frozenset({"anthropic", "bedrock", "cohere", "cohere_chat", "gemini", "vertex_ai"})

_SETTINGS = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # else the import fetches a price map
    "LITELLM_MODE": "PRODUCTION",  # else it reads a .env of the working directory
    "LITELLM_LOG": "CRITICAL",
}
_LOGGERS = ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy", "httpx", "openai")

_loading = threading.Lock()
_loaded: Any = None
_sdk_transport: Any = None


async def _litellm() -> Any:
    """The library, loaded in a thread at the first call. Raises `UpstreamUnavailable` if it cannot be."""
    if _loaded is None:
        try:
            await asyncio.to_thread(_load)
        except ImportError as error:
            raise UpstreamUnavailable("litellm, which this model is reached through, cannot be loaded") from error
    return _loaded


def _load() -> Any:
    """Import litellm, silence it, and let it do once what it else does within the first call."""
    global _loaded, _sdk_transport  # noqa: PLW0603 - a library is loaded once a process
    with _loading:
        if _loaded is not None:
            return _loaded
        for name, value in _SETTINGS.items():
            os.environ.setdefault(name, value)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its own warnings about its own types
            import httpx
            import litellm

            from router.providers import litellm_errors  # noqa: F401 - it imports litellm, so not on the event loop

            litellm.telemetry = False
            litellm.suppress_debug_info = True
            litellm.num_retries = 0
            litellm.drop_params = False
            litellm.callbacks = litellm.success_callback = litellm.failure_callback = []
            for name in _LOGGERS:
                logging.getLogger(name).setLevel(logging.CRITICAL)  # they tell addresses, some of which hold keys
            # The SDKs it uses beside its own handler get a client that follows no redirects either.
            from router.providers.litellm_transport import KnownTransport

            _sdk_transport = KnownTransport()
            litellm.aclient_session = httpx.AsyncClient(transport=_sdk_transport, follow_redirects=False)
            for stream in (False, True):
                warm = litellm.completion(model="anthropic/warm", messages=_WARM, mock_response="ok", stream=stream)
                for chunk in warm if stream else (warm,):
                    chunk.model_dump(exclude_none=True)
        _loaded = litellm
        return litellm


_WARM = [{"role": "user", "content": "hello"}]


class LiteLLMProvider:
    """Calls `model` (with its provider prefix, as litellm takes it).

    The key is passed with each call and `api_base` only if the config sets one; nothing a client sends reaches either.
    """

    def __init__(
        self,
        model: str,
        *,
        api_key: str | None,
        api_base: str | None = None,
        options: Mapping[str, Any] | None = None,
        now_utc: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._model = model
        self._api_key = api_key
        self._api_base = api_base
        self._options = dict(options or {})
        self._now_utc = now_utc
        self._handler: Any = None
        self._has_own_handler = model.partition("/")[0] in _HANDLER_PROVIDERS

    def __repr__(self) -> str:
        return f"LiteLLMProvider({self._model!r}, api_key={'***' if self._api_key else None})"

    async def load(self) -> None:
        """Load the library now, so that the first caller does not wait for it."""
        await _litellm()

    async def complete(self, call: ProviderCall) -> PlainReply:
        """A plain answer in OpenAI's shape."""
        arguments = self._arguments(call)
        litellm = await _litellm()
        try:
            async with asyncio.timeout(call.timeouts.total_s):
                response = await litellm.acompletion(**arguments, **self._connection(call))
        except Exception as error:
            raise self._error(error, streaming=False) from error
        return read_plain(msgspec.json.encode(answer_members(response)))

    async def open_stream(self, call: ProviderCall) -> LiteLLMStream:
        """An open stream in OpenAI's shape."""
        arguments = self._arguments(call)
        litellm = await _litellm()
        start_s = asyncio.get_running_loop().time()
        opened: list[Any] = []
        OPENED.set(opened)
        try:
            async with asyncio.timeout(min(call.timeouts.first_byte_s, call.timeouts.total_s)):
                chunks: AsyncIterator[Any] = await litellm.acompletion(
                    **arguments,
                    stream=True,
                    stream_options={"include_usage": True},
                    **self._connection(call),
                )
        except Exception as error:
            raise self._error(error, streaming=False) from error
        return LiteLLMStream(chunks, opened, call, start_s, lambda error: self._error(error, streaming=True))

    async def close(self) -> None:
        """Release connections."""
        handler, self._handler = self._handler, None
        if handler is not None:
            await handler.close()
        elif _sdk_transport is not None and not self._has_own_handler:
            await _sdk_transport.aclose()  # another provider's next call opens it again

    def _arguments(self, call: ProviderCall) -> dict[str, Any]:
        """The client's members, decoded. Raises `UpstreamRefused` for what must not, or cannot, be passed on."""
        arguments: dict[str, Any] = {}
        for name, value in call.fields.items():
            if name in PASSED_ON:
                arguments[name] = msgspec.json.decode(value) if isinstance(value, msgspec.Raw) else value
            elif name not in OURS and name not in WITHOUT_EFFECT:
                text = f"Unknown parameter: {name!r}. This model does not take it."
                raise refusal(text, param=name, code="unknown_parameter")
        place = first_remote_part(arguments.get("messages"))
        if place is not None:
            text = f"{place} points to an address. This model takes media inline only, as a data: URL."
            raise refusal(text, param=place, code="remote_media_unsupported")
        return arguments

    def _connection(self, call: ProviderCall) -> dict[str, Any]:
        import httpx

        timeouts = call.timeouts
        read_s = timeouts.total_s if call.stream else timeouts.first_byte_s  # a stream is timed as it is read
        connection = {
            **self._options,
            "model": self._model,
            "api_key": self._api_key,
            "api_base": self._api_base,
            "timeout": httpx.Timeout(timeouts.total_s, connect=timeouts.connect_s, read=read_s),
            "num_retries": 0,
            "max_retries": 0,
            "drop_params": False,
            "_skip_mcp_handler": True,  # tools are the client's business; else they need a package we do not have
        }
        if self._has_own_handler:
            connection["client"] = self._client()
        return connection

    def _client(self) -> Any:
        """Our own HTTP handler: no redirects, since a key in a header would follow them to any host."""
        if self._handler is None:
            from litellm.llms.custom_httpx.http_handler import AsyncHTTPHandler

            from router.providers.litellm_transport import KnownTransport

            self._handler = AsyncHTTPHandler(transport=KnownTransport(), follow_redirects=False)
        return self._handler

    def _error(self, error: Exception, *, streaming: bool) -> UpstreamError:
        if isinstance(error, UpstreamError):
            return error
        if type(error) is TimeoutError:
            return UpstreamTimeout("The upstream did not answer in time")
        from router.providers.litellm_errors import error_from_litellm

        return error_from_litellm(error, streaming=streaming, secret=self._api_key, now_utc=self._now_utc())
