"""The way through an HTTP proxy that the environment asks for.

HTTP_PROXY, HTTPS_PROXY and NO_PROXY as everywhere (in either case; a system's own settings on macOS). Loopback
addresses are never proxied: an engine on this machine is not the proxy's. The proxy itself is spoken to in the clear;
a proxy behind TLS or SOCKS is refused when the client is made.
"""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import socket
import ssl
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from router.providers.http_connection import Connection

_WRONG = "a proxy is http://[USER:PASSWORD@]HOST[:PORT]; https and socks proxies are not supported"
_MAX_ANSWER_BYTES = 16 * 1024


@dataclass(frozen=True, slots=True)
class Proxy:
    """An HTTP proxy; `authorization` is the value of Proxy-Authorization."""

    host: str
    port: int
    authorization: str | None = None


def proxy_for(*, secure: bool, host: str, port: int) -> Proxy | None:
    """The proxy that the environment names for this origin. Raises ValueError, without repeating it, for a bad one."""
    url = getproxies().get("https" if secure else "http")
    if not url or _is_loopback(host) or proxy_bypass(f"{host}:{port}"):
        return None
    parts = urlsplit(url if "://" in url else f"http://{url}")
    try:
        proxy_port = parts.port or 80
    except ValueError:
        proxy_port = 0
    if parts.scheme != "http" or not parts.hostname or not proxy_port:
        raise ValueError(_WRONG)
    authorization = None
    if parts.username is not None:
        credentials = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        authorization = "Basic " + base64.b64encode(credentials.encode()).decode()
    return Proxy(parts.hostname, proxy_port, authorization)


async def tunnel(
    sock: socket.socket, proxy: Proxy, authority: str, connection: Connection, *, tls: ssl.SSLContext, host: str
) -> None:
    """Make the proxy at the other end of `sock` connect us to `authority`, and speak TLS with `host` through it.

    Raises OSError.
    """
    loop = asyncio.get_running_loop()
    transport, asking = await loop.create_connection(lambda: _Connect(loop), sock=sock)
    try:
        lines = [f"CONNECT {authority} HTTP/1.1", f"host: {authority}"]
        if proxy.authorization is not None:
            lines.append(f"proxy-authorization: {proxy.authorization}")
        transport.write("\r\n".join((*lines, "", "")).encode())
        await asking.connected
        secured = await loop.start_tls(transport, connection, tls, server_hostname=host)
        if secured is None:
            raise ConnectionResetError
    except BaseException:
        transport.abort()
        raise
    connection.connection_made(secured)


class _Connect(asyncio.Protocol):
    """Waits for the proxy's answer to CONNECT."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.connected: asyncio.Future[None] = loop.create_future()
        self._answer = b""

    def data_received(self, data: bytes) -> None:
        """A part of the answer."""
        self._answer += data
        head, end, rest = self._answer.partition(b"\r\n\r\n")
        if not end:
            if len(head) > _MAX_ANSWER_BYTES:
                self._refused()
            return
        words = head.split(b"\r\n")[0].split()
        if len(words) < 2 or not words[0].startswith(b"HTTP/1.") or words[1][:1] != b"2" or rest:
            self._refused()
        elif not self.connected.done():
            self.connected.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """The proxy hung up."""
        self._refused()

    def _refused(self) -> None:
        if not self.connected.done():
            self.connected.set_exception(ConnectionRefusedError("the proxy refused"))
            self.connected.exception()  # seen, even if nobody waits any more


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
