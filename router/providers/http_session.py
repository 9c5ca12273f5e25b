"""How our HTTP client sessions are made: one per process for all hosts, one more per unix socket."""

from __future__ import annotations

import aiohttp

DNS_CACHE_S = 30
KEEP_ALIVE_S = 15.0


def new_session(*, unix_path: str | None = None, trust_env: bool = False) -> aiohttp.ClientSession:
    """A session for calls to models; must be made inside a running event loop.

    No cookies: what one caller's answer sets must not reach the next. No limit on connections: admission is decided
    before the call, and a pool that queues would hide it. No decompression: answers are asked for as they are.
    Proxies of the environment are used only if `trust_env` says so.
    """
    connector: aiohttp.BaseConnector
    if unix_path is not None:
        connector = aiohttp.UnixConnector(unix_path, limit=0, keepalive_timeout=KEEP_ALIVE_S)
    else:
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S, ttl_dns_cache=DNS_CACHE_S)
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        timeout=aiohttp.ClientTimeout(total=None),
        trust_env=trust_env,
        read_bufsize=2**17,
    )
