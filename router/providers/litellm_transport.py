"""How litellm's calls leave the house: over a session like all others, and each answer known to who asked for it."""

from __future__ import annotations

import httpx
from litellm.llms.custom_httpx.aiohttp_transport import LiteLLMAiohttpTransport

from router.providers.http_session import new_session
from router.providers.litellm_stream import OPENED


class KnownTransport(LiteLLMAiohttpTransport):  # type: ignore[misc]
    """Notes every answer in `OPENED`: litellm's streams have no way to close theirs."""

    def __init__(self) -> None:
        super().__init__(client=new_session)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send one request."""
        response: httpx.Response = await super().handle_async_request(request)
        opened = OPENED.get()
        if opened is not None:
            opened.append(response)
        return response
