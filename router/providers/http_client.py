"""An HTTP/1.1 client for POSTs to one URL: the way to the models on the hot path.

It does what calling a model needs and nothing else: no redirects, no cookies, no decoding, no retries but one. Every
header but the length is fixed when the client is made. See docs/decisions/0006-own-http-client.md.

The one retry: a host may close an idle connection at the moment we choose it. A request whose connection ends within
a second, before any byte of an answer, is sent once more if the connection had been used before, on a new one.
"""

from __future__ import annotations

import asyncio
import functools
import os
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, replace
from urllib.parse import unquote, urlsplit

import aiohappyeyeballs

from router.ports import CallTimeouts
from router.providers.http_answer import Answer, ConnectFailed, Deadlines, Reset, SizeLimits, TimedOut
from router.providers.http_connection import Connection
from router.providers.http_proxy import Proxy, proxy_for, tunnel

KEEP_ALIVE_S = 15.0
STALE_WITHIN_S = 1.0
HAPPY_EYEBALLS_DELAY_S = 0.25
DNS_CACHE_S = 30.0
CLOSE_WITHIN_S = 1.0

_FRAMING = frozenset({"connection", "content-length", "expect", "te", "trailer", "transfer-encoding", "upgrade"})

_Address = tuple[int, int, int, str, tuple[object, ...]]


@dataclass(frozen=True, slots=True)
class Target:
    """Where the requests of a client go. `unix_path` replaces host and port as the way there."""

    secure: bool
    host: str
    port: int
    path: str
    unix_path: str | None = None

    @classmethod
    def parse(cls, url: str) -> Target:
        """From http://, https:// or http+unix://%2Fpath%2Fto%2Fsocket/path. Raises ValueError without repeating it."""
        parts = urlsplit(url)
        path = parts.path or "/"
        if not (path.isascii() and path.isprintable()) or " " in path:
            raise ValueError("a path is printable ASCII; anything else in it is percent-encoded")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError("an address here has no user, password, query or fragment")
        if parts.scheme == "http+unix" and parts.netloc:
            return cls(False, "localhost", 80, path, unquote(parts.netloc))
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("an address starts with http://HOST, https://HOST or http+unix://%2Fpath%2Fto%2Fsocket")
        secure = parts.scheme == "https"
        host = parts.hostname
        try:
            host = host if host.isascii() else host.encode("idna").decode()
        except UnicodeError:
            raise ValueError("a host is a name of the domain name system") from None
        try:
            port = parts.port
        except ValueError:
            raise ValueError("a port is a number from 0 to 65535") from None
        return cls(secure, host, port or (443 if secure else 80), path)

    def below(self, path: str) -> Target:
        """The same place with `path` appended."""
        return replace(self, path=self.path.rstrip("/") + path)

    @property
    def authority(self) -> str:
        """As in the Host header: the port only where it is not the scheme's own."""
        return self._host if self.port == (443 if self.secure else 80) else f"{self._host}:{self.port}"

    @property
    def host_and_port(self) -> str:
        """As a proxy wants it: always with the port."""
        return f"{self._host}:{self.port}"

    @property
    def _host(self) -> str:
        return f"[{self.host}]" if ":" in self.host else self.host


class HttpClient:
    """POSTs to `target` with `headers`, over a pool of connections that are kept for `keep_alive_s`.

    A used connection that ends within `stale_within_s` of a request had been closed before it: see above.

    The most recently used connection is taken first. There is no limit on their number: admission is decided before
    the call, and a pool that queues would hide it. `trust_env` lets HTTP_PROXY, HTTPS_PROXY and NO_PROXY apply, and
    never to loopback addresses. `tls` replaces the default context (which honours SSL_CERT_FILE and SSL_CERT_DIR).
    All calls are made from one event loop. Raises ValueError for headers that HTTP forbids.
    """

    def __init__(
        self,
        target: Target,
        headers: Mapping[str, str],
        *,
        body_bytes: int,
        error_bytes: int,
        trust_env: bool = False,
        tls: ssl.SSLContext | None = None,
        keep_alive_s: float = KEEP_ALIVE_S,
        stale_within_s: float = STALE_WITHIN_S,
    ) -> None:
        self._target = target
        self._proxy = proxy_for(secure=target.secure, host=target.host, port=target.port) if trust_env else None
        if target.unix_path is not None:
            self._proxy = None
        self._head = _request_head(target, headers, self._proxy)
        self._sizes = SizeLimits(body_bytes, error_bytes)
        self._tls = (tls or _default_tls()) if target.secure else None
        self._keep_alive_s = keep_alive_s
        self._stale_within_s = stale_within_s
        self._idle: list[Connection] = []  # the most recently used last
        self._all: set[Connection] = set()
        self._sweep: asyncio.TimerHandle | None = None
        self._addresses: list[_Address] = []
        self._addresses_until_s = 0.0
        self._deadlines: Deadlines | None = None
        self._closed = False
        self._emptied: asyncio.Future[None] | None = None

    @property
    def connections(self) -> int:
        """How many are open, in use or not."""
        return len(self._all)

    async def post(self, body: bytes, timeouts: CallTimeouts, *, stream: bool = False) -> Answer:
        """Send `body` and wait for the answer, read whole; with `stream` a 200 is returned at its headers.

        `timeouts.first_byte_s` bounds the wait for the headers, `idle_s` each silence after them and `total_s` all of
        it. Raises HttpError; cancelled at any moment, it hangs up.
        """
        deadlines = self._deadlines or self._start()
        loop = deadlines.loop
        start_s = loop.time()
        connection = self._idle_connection(start_s)
        used_before = connection is not None
        while True:
            if connection is None:
                connection = await self._connected(
                    start_s + min(timeouts.connect_s, timeouts.first_byte_s, timeouts.total_s)
                )
            answer = Answer(timeouts, start_s, self._sizes, deadlines, stream=stream)
            connection.send(answer, b"%b%d\r\n\r\n" % (self._head, len(body)), body)
            try:
                await answer.opened()
            except Reset:
                stale = used_before and not answer.heard and loop.time() - start_s < self._stale_within_s
                if not stale or self._closed:
                    raise
            else:
                return answer
            connection, used_before = None, False

    async def close(self) -> None:
        """Close every connection, whatever is under way; later calls fail."""
        self._closed = True
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        for connection in tuple(self._all):
            connection.close()
        if self._deadlines is not None:
            self._deadlines.stop()
        if self._all:
            self._emptied = asyncio.get_running_loop().create_future()
            await asyncio.wait((self._emptied,), timeout=CLOSE_WITHIN_S)

    def _start(self) -> Deadlines:
        self._deadlines = Deadlines(asyncio.get_running_loop())
        return self._deadlines

    # -- connections

    def _idle_connection(self, now_s: float) -> Connection | None:
        idle = self._idle
        while idle:
            connection = idle.pop()
            if connection.usable and now_s - connection.idle_since_s < self._keep_alive_s:
                return connection
            connection.close()
        return None

    async def _connected(self, until_s: float) -> Connection:
        """A new connection. Raises ConnectFailed, TimedOut."""
        try:
            async with asyncio.timeout_at(until_s):
                connection = await self._connect()
        except TimeoutError:
            raise TimedOut("connect") from None
        except (OSError, UnicodeError) as error:
            self._addresses_until_s = 0.0
            raise ConnectFailed(type(error).__name__) from None
        if self._closed or not connection.usable:
            connection.close()
            raise ConnectFailed("closed by us" if self._closed else "closed at once")
        self._all.add(connection)  # not before: a loop that is told to stop connecting need not say that it has
        return connection

    async def _connect(self) -> Connection:
        if self._closed:
            raise ConnectFailed("closed by us")
        loop, target, proxy = asyncio.get_running_loop(), self._target, self._proxy
        connection = Connection(self)
        name = target.host if target.secure else None
        if target.unix_path is not None:
            await loop.create_unix_connection(lambda: connection, target.unix_path)
            return connection
        sock = await aiohappyeyeballs.start_connection(
            await self._resolved(), happy_eyeballs_delay=HAPPY_EYEBALLS_DELAY_S, interleave=1, loop=loop
        )
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if proxy is not None and self._tls is not None:
            await tunnel(sock, proxy, target.host_and_port, connection, tls=self._tls, host=target.host)
        else:
            await loop.create_connection(lambda: connection, sock=sock, ssl=self._tls, server_hostname=name)
        return connection

    async def _resolved(self) -> list[_Address]:
        loop = asyncio.get_running_loop()
        if not self._addresses or loop.time() >= self._addresses_until_s:
            there = self._proxy or self._target
            found = await loop.getaddrinfo(there.host, there.port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
            self._addresses = list(found)
            self._addresses_until_s = loop.time() + DNS_CACHE_S
        return self._addresses

    # -- told by connections

    def release(self, connection: Connection) -> None:
        """Free for the next request."""
        if self._deadlines is None or self._closed:
            connection.close()
            return
        loop = self._deadlines.loop
        connection.idle_since_s = loop.time()
        self._idle.append(connection)
        if self._sweep is None:
            self._sweep = loop.call_later(self._keep_alive_s, self._close_expired)

    def lost(self, connection: Connection) -> None:
        """Gone."""
        self._all.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        if not self._all and self._emptied is not None and not self._emptied.done():
            self._emptied.set_result(None)

    def _close_expired(self) -> None:
        self._sweep = None
        loop = asyncio.get_running_loop()
        oldest_kept_s = loop.time() - self._keep_alive_s
        while self._idle and self._idle[0].idle_since_s <= oldest_kept_s:
            self._idle.pop(0).close()
        if self._idle:
            self._sweep = loop.call_later(max(0.01, self._idle[0].idle_since_s - oldest_kept_s), self._close_expired)


def _request_head(target: Target, headers: Mapping[str, str], proxy: Proxy | None) -> bytes:
    """Everything up to the number in Content-Length."""
    all_headers = {"host": target.authority, **{name.lower(): value for name, value in headers.items()}}
    where = target.path
    if proxy is not None and not target.secure:
        where = f"http://{target.authority}{target.path}"
        if proxy.authorization is not None:
            all_headers["proxy-authorization"] = proxy.authorization
    for name, value in all_headers.items():
        if not value.isprintable():
            raise ValueError("a key or header holds a line break or another character that HTTP forbids")
        if name in _FRAMING or not name or not all(c.isalnum() or c in "!#$%&'*+-.^_`|~" for c in name):
            raise ValueError(f"a header cannot be named {name!r} here")
    lines = [f"POST {where} HTTP/1.1", *(f"{name}: {value}" for name, value in all_headers.items()), "content-length: "]
    return "\r\n".join(lines).encode()


def _default_tls() -> ssl.SSLContext:
    return _tls_for(os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR"))


@functools.cache
def _tls_for(_cert_file: str | None, _cert_dir: str | None) -> ssl.SSLContext:
    """One context for all clients of the process, since reading the CAs takes 20 ms; OpenSSL reads the environment."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context
