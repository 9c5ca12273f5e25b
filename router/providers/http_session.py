"""How the sessions of an HTTP library are made where one is used: for what litellm sends."""

from __future__ import annotations

import aiohttp

DNS_CACHE_S = 30
KEEP_ALIVE_S = 15.0


def new_session() -> aiohttp.ClientSession:
    """A session for calls to models; must be made inside a running event loop.

    No cookies: what one caller's answer sets must not reach the next. No limit on connections: admission is decided
    before the call, and a pool that queues would hide it. No decompression: answers are asked for as they are.
    """
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S, ttl_dns_cache=DNS_CACHE_S),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        timeout=aiohttp.ClientTimeout(total=None),
        read_bufsize=2**17,
    )
