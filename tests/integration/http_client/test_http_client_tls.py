"""The HTTP client through TLS and through the proxies of the environment."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import pytest

from router.ports import CallTimeouts
from router.providers.http_answer import ConnectFailed, TimedOut
from router.providers.http_client import HttpClient, Target
from tests.loopback_http import Exchange, LoopbackServer

TIMEOUTS = CallTimeouts(connect_s=90.0, first_byte_s=90.0, idle_s=90.0, total_s=120.0)
NAME = "models.example"


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of its own authority for `NAME` and 127.0.0.1, and its key, in one file."""
    folder = tmp_path_factory.mktemp("tls")
    key, cert = folder / "key.pem", folder / "cert.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-days", "2", "-subj", f"/CN={NAME}", "-addext", f"subjectAltName=DNS:{NAME},IP:127.0.0.1"),
            *("-keyout", str(key), "-out", str(cert)),
        ],
        check=True,
        capture_output=True,
    )
    both = folder / "both.pem"
    both.write_bytes(cert.read_bytes() + key.read_bytes())
    return both


class TlsServer(LoopbackServer):
    """Echoes over TLS; streams the request's bytes one a chunk if it asks for that."""

    def __init__(self, certificate: Path) -> None:
        super().__init__()
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(certificate)
        self.context.set_alpn_protocols(["h2", "http/1.1"])

    async def start(self, *, unix_path: str | None = None) -> Self:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._connection, "127.0.0.1", 0, ssl=self.context)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def handle(self, exchange: Exchange) -> None:
        body = exchange.request.body
        if not body.startswith(b"stream"):
            await exchange.answer(200, body)
            return
        await exchange.head(200, (), content_length=None)
        while b"forever" in body:
            await exchange.chunk(body)
            await exchange.pause(0.002)
        for byte in body:
            await exchange.chunk(bytes([byte]))
        await exchange.end()


@pytest.fixture
async def server(certificate: Path) -> AsyncIterator[TlsServer]:
    async with TlsServer(certificate) as running:
        yield running


def client_of(url: str, **options: Any) -> HttpClient:
    return HttpClient(Target.parse(url), {"x-key": "k1"}, body_bytes=10**8, error_bytes=10**4, **options)


def trusting(certificate: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(certificate))
    context.set_alpn_protocols(["http/1.1"])
    return context


async def test_answers_come_through_tls(server: Any, certificate: Path) -> None:
    client = client_of(f"https://127.0.0.1:{server.port}/v1", tls=trusting(certificate))
    body = b"x" * 3_000_000
    assert (await client.post(body, TIMEOUTS)).body == body
    answer = await client.post(b"stream me", TIMEOUTS, stream=True)
    seen = b""
    while data := await answer.read():
        seen += data
    assert seen == b"stream me"
    assert server.connections_made == 1
    transport = next(iter(server.connections)).transport
    assert transport.get_extra_info("ssl_object").selected_alpn_protocol() == "http/1.1"
    await client.close()
    await server.until(lambda: not server.connections)
    assert client.connections == 0


async def test_hanging_up_stops_the_upstream_through_tls(server: Any, certificate: Path) -> None:
    client = client_of(f"https://127.0.0.1:{server.port}/v1", tls=trusting(certificate))
    answer = await client.post(b"stream forever", TIMEOUTS, stream=True)
    assert await answer.read()
    answer.abort()
    await server.until(lambda: not server.connections)
    await client.close()


async def test_the_environment_names_who_is_trusted(
    server: Any, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"https://127.0.0.1:{server.port}/v1"
    stranger = client_of(url)
    with pytest.raises(ConnectFailed, match="SSLCertVerificationError"):
        await stranger.post(b"x", TIMEOUTS)
    await stranger.close()
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    client = client_of(url)
    assert (await client.post(b"x", TIMEOUTS)).body == b"x"
    await client.close()


async def test_a_certificate_for_another_name_is_refused(server: Any, certificate: Path) -> None:
    client = client_of(f"https://localhost:{server.port}/v1", tls=trusting(certificate))
    with pytest.raises(ConnectFailed, match="SSLCertVerificationError"):
        await client.post(b"our key", TIMEOUTS)
    assert server.requests == []
    await client.close()


async def test_a_handshake_that_hangs_counts_as_connecting() -> None:
    over = asyncio.Event()

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            await reader.read()
        writer.close()
        over.set()

    deaf = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    client = client_of(f"https://127.0.0.1:{deaf.sockets[0].getsockname()[1]}/v1")
    with pytest.raises(TimedOut) as caught:
        await client.post(b"x", replace(TIMEOUTS, connect_s=0.1))
    assert caught.value.phase == "connect"
    await client.close()
    await over.wait()
    deaf.close()
    await deaf.wait_closed()


# -- proxies


class ProxyServer:
    """An HTTP proxy on loopback. It connects everybody to `port`, whatever name they ask for."""

    def __init__(self, port: int, refuse: bytes | None = None) -> None:
        self.there = port
        self.refuse = refuse
        self.heads: list[bytes] = []
        self.port = 0
        self._server: asyncio.Server | None = None
        self._talks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._talk, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._server is not None:
            self._server.close()
        await asyncio.gather(*self._talks)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._talks.add(task)
        head = await reader.readuntil(b"\r\n\r\n")
        self.heads.append(head)
        if self.refuse is not None:
            writer.write(self.refuse)
            writer.close()
            return
        there = await asyncio.open_connection("127.0.0.1", self.there)
        if head.startswith(b"CONNECT "):
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        else:
            there[1].write(head)
        await asyncio.gather(self._copy(reader, there[1]), self._copy(there[0], writer))

    @staticmethod
    async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
        except ConnectionError:
            pass
        writer.close()


class Echo(LoopbackServer):
    async def handle(self, exchange: Exchange) -> None:
        await exchange.answer(200, exchange.request.body)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets the proxies of the environment, and only those."""

    def set_proxies(**named: str) -> None:
        for name in ("http_proxy", "https_proxy", "no_proxy", "all_proxy"):
            monkeypatch.delenv(name, raising=False)
            monkeypatch.delenv(name.upper(), raising=False)
        for name, value in named.items():
            monkeypatch.setenv(name, value)

    return set_proxies


async def test_plain_requests_go_to_the_proxy_with_the_whole_address(environment: Any) -> None:
    async with Echo() as upstream, ProxyServer(upstream.port) as proxy:
        environment(http_proxy=f"http://us%65r:p%40ss@127.0.0.1:{proxy.port}")
        client = client_of(f"http://{NAME}/v1", trust_env=True)
        assert (await client.post(b"hi", TIMEOUTS)).body == b"hi"
        request = upstream.requests[0]
        assert request.path == f"http://{NAME}/v1"
        assert request.headers["host"] == NAME
        assert request.headers["proxy-authorization"] == "Basic dXNlcjpwQHNz"  # user:p@ss
        await client.close()


async def test_tls_goes_through_a_tunnel_and_the_proxy_sees_no_key(
    server: Any, certificate: Path, environment: Any
) -> None:
    async with ProxyServer(server.port) as proxy:
        environment(HTTPS_PROXY=f"127.0.0.1:{proxy.port}")
        client = client_of(f"https://{NAME}/v1", trust_env=True, tls=trusting(certificate))
        for body in (b"one", b"two"):
            assert (await client.post(body, TIMEOUTS)).body == body
        assert proxy.heads == [f"CONNECT {NAME}:443 HTTP/1.1\r\nhost: {NAME}:443\r\n\r\n".encode()]
        assert server.connections_made == 1
        assert "proxy-authorization" not in server.requests[0].headers
        await client.close()
        assert client.connections == 0


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n",
        b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n",
        b"SSH-2.0\r\n\r\n",
        b"",
        b"HTTP/1.1 200 OK\r\n\r\nand more",
        b"x" * 40_000,
    ],
)
async def test_a_proxy_that_will_not_is_a_failure_to_connect(
    answer: bytes, environment: Any, certificate: Path
) -> None:
    async with ProxyServer(0, refuse=answer) as proxy:
        environment(https_proxy=f"http://127.0.0.1:{proxy.port}")
        client = client_of(f"https://{NAME}/v1", trust_env=True, tls=trusting(certificate))
        with pytest.raises(ConnectFailed):
            await client.post(b"x", TIMEOUTS)
        await client.close()


async def test_loopback_the_listed_and_the_untrusting_need_no_proxy(environment: Any) -> None:
    async with Echo() as upstream, ProxyServer(upstream.port) as proxy:
        environment(http_proxy=f"http://127.0.0.1:{proxy.port}", no_proxy=f".internal.example,{NAME}")
        for url, options in (
            (f"http://127.0.0.1:{upstream.port}/", {"trust_env": True}),
            (f"http://localhost:{upstream.port}/", {"trust_env": True}),
            (f"http://127.0.0.1:{upstream.port}/", {}),
        ):
            client = client_of(url, **options)
            assert (await client.post(b"x", TIMEOUTS)).body == b"x"
            await client.close()
        listed = client_of("http://llm.internal.example/", trust_env=True)
        with pytest.raises(ConnectFailed):  # no such name
            await listed.post(b"x", TIMEOUTS)
        await listed.close()
        assert proxy.heads == []


@pytest.mark.parametrize("proxy", ["https://secret@proxy.example", "socks5://secret@proxy.example", "http://"])
def test_a_proxy_of_another_kind_is_refused_at_once_without_repeating_it(proxy: str, environment: Any) -> None:
    environment(https_proxy=proxy)
    with pytest.raises(ValueError, match="proxy is http") as caught:
        client_of(f"https://{NAME}/v1", trust_env=True)
    assert "secret" not in str(caught.value)
