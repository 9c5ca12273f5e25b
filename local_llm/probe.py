"""Small bounded calls of an engine's own pages, over aiohttp."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import aiohttp


class ProbeError(Exception):
    """The engine did not answer; the message says how, in a few words."""


@dataclass(frozen=True, slots=True)
class Page:
    """An answer. `body` is cut at what was asked for; `complete` tells whether that was all."""

    status: int
    body: bytes
    complete: bool = True


class Get(Protocol):
    """GET `url`; at most `max_bytes` of it, within `timeout_s`. Raises `ProbeError`."""

    async def __call__(self, url: str, *, headers: Mapping[str, str], timeout_s: float, max_bytes: int) -> Page:
        """One page."""
        ...


class AiohttpGet:
    """`Get` with one session of its own, opened on first use. Never follows redirects: an engine has none."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None

    async def __call__(self, url: str, *, headers: Mapping[str, str], timeout_s: float, max_bytes: int) -> Page:
        """One page. Raises `ProbeError`."""
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        try:
            async with self._opened().get(url, headers=headers, timeout=timeout, allow_redirects=False) as response:
                body = bytearray()
                async for chunk in response.content.iter_chunked(65536):
                    body += chunk
                    if len(body) > max_bytes:
                        return Page(response.status, bytes(body[:max_bytes]), complete=False)
                return Page(response.status, bytes(body))
        except TimeoutError as error:
            raise ProbeError(f"no answer within {timeout_s:g} s") from error
        except aiohttp.ClientConnectorError as error:
            raise ProbeError("connection refused") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise ProbeError(type(error).__name__) from error

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False)
        return self._session

    async def one_token(self, base_url: str, *, model: str, headers: Mapping[str, str], timeout_s: float) -> bool:
        """Whether the engine at `base_url` (with /v1) generates a token within `timeout_s`. Raises `ProbeError`."""
        body = {"model": model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        try:
            async with self._opened().post(
                f"{base_url}/chat/completions", json=body, headers=headers, timeout=timeout, allow_redirects=False
            ) as response:
                await response.read()
                return response.status == 200
        except TimeoutError as error:
            raise ProbeError(f"no token within {timeout_s:g} s") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise ProbeError(type(error).__name__) from error

    async def post(self, url: str, *, headers: Mapping[str, str], timeout_s: float) -> int:
        """The status of a POST without a body. Raises `ProbeError`."""
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        try:
            async with self._opened().post(url, headers=headers, timeout=timeout, allow_redirects=False) as response:
                return response.status
        except TimeoutError as error:
            raise ProbeError(f"no answer within {timeout_s:g} s") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise ProbeError(type(error).__name__) from error

    async def close(self) -> None:
        """Close the session; it opens again on the next use."""
        if self._session is not None:
            await self._session.close()
            self._session = None
