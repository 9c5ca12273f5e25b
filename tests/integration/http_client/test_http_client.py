"""The HTTP client over real sockets, on both event loops: its pool, its clocks, who gets which answer."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from router.ports import CallTimeouts
from router.providers.http_answer import Answer, ConnectFailed, Reset, TimedOut
from router.providers.http_client import HttpClient, Target
from tests.loopback_http import Exchange, LoopbackServer
from tests.patience import PATIENCE_S

TIMEOUTS = CallTimeouts(connect_s=90.0, first_byte_s=90.0, idle_s=90.0, total_s=120.0)


class Server(LoopbackServer):
    """Plays one handler; by default an echo."""

    def __init__(self) -> None:
        super().__init__()
        self.play: Callable[[Exchange], Awaitable[None]] = echo

    async def handle(self, exchange: Exchange) -> None:
        await self.play(exchange)


async def echo(exchange: Exchange) -> None:
    await exchange.answer(200, exchange.request.body)


def client_of(server: Server, **options: Any) -> HttpClient:
    options = {"body_bytes": 10**8, "error_bytes": 10**4, "stale_within_s": PATIENCE_S, **options}
    return HttpClient(Target.parse(f"{server.origin}/v1/x"), {"x-key": "k1"}, **options)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with Server() as running:
        yield running


@pytest.fixture
async def client(server: Server) -> AsyncIterator[HttpClient]:
    client = client_of(server)
    yield client
    await client.close()
    assert client.connections == 0


async def text(answer: Answer) -> bytes:
    parts = []
    while data := await answer.read():
        parts.append(data)
    return b"".join(parts)


async def test_a_request_goes_out_as_it_was_given(server: Any, client: Any) -> None:
    answer = await client.post(b'{"a":1}', TIMEOUTS)
    assert (answer.status, answer.body) == (200, b'{"a":1}')
    request = server.requests[0]
    assert (request.method, request.path) == ("POST", "/v1/x")
    assert request.headers == {"host": f"127.0.0.1:{server.port}", "x-key": "k1", "content-length": "7"}


async def test_large_bodies_pass_both_ways(client: Any) -> None:
    body = os.urandom(10_000_000)
    assert (await client.post(body, TIMEOUTS)).body == body
    assert await text(await client.post(body, TIMEOUTS, stream=True)) == body
    assert client.connections == 1


async def test_the_connection_used_last_is_used_next(server: Any, client: Any) -> None:
    await asyncio.gather(*(client.post(b"%d" % n, TIMEOUTS) for n in range(5)))
    last = server.requests[-1].connection
    for _ in range(3):
        await client.post(b"x", TIMEOUTS)
    assert client.connections == 5
    assert len({request.connection for request in server.requests[-3:]}) == 1
    assert last in {request.connection for request in server.requests[:5]}


async def test_idle_connections_are_closed_in_time(server: Any) -> None:
    client = client_of(server, keep_alive_s=0.05)
    await asyncio.gather(*(client.post(b"x", TIMEOUTS) for _ in range(3)))
    await server.until(lambda: not server.connections)
    assert client.connections == 0
    await client.close()


async def test_a_connection_that_the_host_closes_meanwhile_is_forgotten(server: Any, client: Any) -> None:
    await client.post(b"x", TIMEOUTS)
    for connection in tuple(server.connections):
        connection.close()
    await server.until(lambda: client.connections == 0)
    assert client._idle == []
    assert (await client.post(b"y", TIMEOUTS)).body == b"y"


# -- the one retry


def hangs_up_on_the_second(
    how: Callable[[Exchange], None], before: bytes = b"", wait_s: float = 0.0
) -> Callable[[Exchange], Awaitable[None]]:
    seen: dict[int, int] = {}

    async def play(exchange: Exchange) -> None:
        connection = exchange.request.connection
        seen[connection] = seen.get(connection, 0) + 1
        if seen[connection] == 1:
            await echo(exchange)
            return
        await exchange.pause(wait_s)
        await exchange.raw(before)
        how(exchange)

    return play


@pytest.mark.parametrize("how", [Exchange.close, Exchange.reset])
async def test_a_request_on_a_connection_just_closed_is_sent_once_more(server: Any, client: Any, how: Any) -> None:
    server.play = hangs_up_on_the_second(how)
    await client.post(b"one", TIMEOUTS)
    assert (await client.post(b"two", TIMEOUTS)).body == b"two"
    assert [request.body for request in server.requests] == [b"one", b"two", b"two"]
    assert server.connections_made == 2


@pytest.mark.parametrize(("before", "wait_s"), [(b"HTTP/1.1 2", 0.0), (b"", 0.1)])
async def test_nothing_is_sent_twice_that_may_have_been_worked_on(server: Any, before: bytes, wait_s: float) -> None:
    client = client_of(server, stale_within_s=0.05 if wait_s else PATIENCE_S)
    server.play = hangs_up_on_the_second(Exchange.close, before, wait_s)
    await client.post(b"one", TIMEOUTS)
    with pytest.raises(Reset):
        await client.post(b"two", TIMEOUTS)
    assert len(server.requests) == 2
    await client.close()


async def test_a_new_connection_that_fails_is_not_tried_again(server: Any, client: Any) -> None:
    async def hang_up(exchange: Exchange) -> None:
        exchange.close()

    server.play = hang_up
    with pytest.raises(Reset):
        await client.post(b"x", TIMEOUTS)
    assert len(server.requests) == 1


# -- who gets which answer


async def test_cancelled_calls_never_mix_up_answers_or_leave_connections(server: Any, client: Any) -> None:
    rng = random.Random(7)

    async def slowly(exchange: Exchange) -> None:
        body = exchange.request.body
        await exchange.pause(rng.random() * 0.004)
        await exchange.head(200, (), content_length=None)
        for start in range(0, len(body), 4):
            await exchange.chunk(body[start : start + 4])
            await exchange.pause(rng.random() * 0.002)
        await exchange.end()

    server.play = slowly
    answered = 0

    async def ask(number: int) -> None:
        nonlocal answered
        body = b"<%d>" % number * 6
        stream = rng.random() < 0.5
        answer = await client.post(body, TIMEOUTS, stream=stream)
        got = await text(answer) if stream else answer.body
        assert got == body
        answered += 1

    async def ask_and_perhaps_leave(number: int) -> None:
        await asyncio.sleep(rng.random() * 0.3)
        call = asyncio.create_task(ask(number))
        if rng.random() < 0.5:
            await asyncio.sleep(rng.random() * 0.03)
            call.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await call

    await asyncio.gather(*(ask_and_perhaps_leave(number) for number in range(600)))
    assert answered > 200
    await server.until(lambda: client.connections == len(server.connections))
    assert client.connections == len(client._idle)  # what is left is idle, and good
    server.play = echo
    for number in range(client.connections + 1):
        body = b"after %d" % number
        assert (await client.post(body, TIMEOUTS)).body == body


@pytest.mark.parametrize("stream", [False, True])
async def test_descriptors_stay_flat_over_thousands_of_calls(server: Any, client: Any, stream: bool) -> None:
    async def odd(exchange: Exchange) -> None:
        number = int(exchange.request.body)
        if number % 50 == 0:
            exchange.reset()
        elif number % 50 == 1:
            await exchange.pause(float("inf"))
        elif number % 50 == 2:
            await exchange.raw(b"nonsense\r\n\r\n")
        else:
            await echo(exchange)

    server.play = odd
    faults = 0

    async def ask(numbers: range) -> None:
        nonlocal faults
        for number in numbers:
            try:
                async with asyncio.timeout(0.03 if number % 50 == 1 else 90):
                    answer = await client.post(b"%d" % number, TIMEOUTS, stream=stream)
                    assert (await text(answer) if stream else answer.body) == b"%d" % number
            except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - counted
                assert number % 50 < 3, error
                faults += 1

    def descriptors() -> int:
        return len(os.listdir("/dev/fd"))  # noqa: PTH208

    await asyncio.gather(*(ask(range(start, 300, 8)) for start in range(8)))
    before = descriptors()
    await asyncio.gather(*(ask(range(start, 3000, 8)) for start in range(8)))
    await server.until(lambda: len(server.connections) == client.connections <= 8)
    assert faults > 150
    assert descriptors() <= before + 16  # eight connections, and their other ends


# -- clocks, and leaving


async def test_connecting_is_bounded_by_itself() -> None:
    with socket.socket() as deaf, socket.socket() as first:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)  # nobody accepts, and one connection fills the queue
        first.connect(deaf.getsockname())
        client = HttpClient(Target.parse(f"http://127.0.0.1:{deaf.getsockname()[1]}/"), {}, body_bytes=1, error_bytes=1)
        with pytest.raises(TimedOut) as caught:
            await client.post(b"x", replace(TIMEOUTS, connect_s=0.1))
        assert caught.value.phase == "connect"
        await client.close()


@pytest.mark.parametrize(("headers_sent", "phase"), [(False, "headers"), (True, "body")])
async def test_silence_is_given_up_and_the_upstream_hears_of_it(
    server: Any, client: Any, headers_sent: bool, phase: str
) -> None:
    async def stall(exchange: Exchange) -> None:
        if headers_sent:
            await exchange.head(200, (), content_length=5)
        await exchange.pause(float("inf"))

    server.play = stall
    quick = {"idle_s": 0.1} if headers_sent else {"first_byte_s": 0.1}
    with pytest.raises(TimedOut) as caught:
        await client.post(b"x", replace(TIMEOUTS, **quick))
    assert caught.value.phase == phase
    await server.until(lambda: server.requests[0].disconnected_at_s is not None)
    assert client.connections == 0


async def test_a_reader_who_leaves_stops_the_upstream(server: Any, client: Any) -> None:
    async def on_and_on(exchange: Exchange) -> None:
        await exchange.head(200, (), content_length=None)
        while True:
            await exchange.chunk(b"x" * 100)
            await exchange.pause(0.005)

    server.play = on_and_on
    answer = await client.post(b"x", TIMEOUTS, stream=True)
    assert await answer.read()
    reading = asyncio.create_task(text(answer))
    await asyncio.sleep(0.02)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    await server.until(lambda: server.requests[0].disconnected_at_s is not None)
    with pytest.raises(Reset):
        await text(answer)


async def test_a_reader_who_waits_bounds_what_is_held(server: Any, client: Any) -> None:
    megabytes = 40

    async def much(exchange: Exchange) -> None:
        await exchange.head(200, (), content_length=None)
        for _ in range(megabytes * 16):
            await exchange.chunk(b"x" * 65536)
        await exchange.end()

    server.play = much
    answer = await client.post(b"x", TIMEOUTS, stream=True)
    sent = -1
    while sent != (sent := server.requests[0].chunks_sent):  # noqa: ASYNC110 - until the sender is stuck
        await asyncio.sleep(0.1)
    assert sent < megabytes * 8
    assert len(await text(answer)) == megabytes * 1_048_576
    assert server.requests[0].chunks_sent == megabytes * 16


async def test_an_answer_that_comes_before_the_request_is_out_counts(server: Any) -> None:
    answered = asyncio.Event()
    over = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1000)
        writer.write(b"HTTP/1.1 413 Too Large\r\ncontent-length: 4\r\n\r\nmuch")
        await answered.wait()
        writer.close()
        over.set()

    impatient = await asyncio.start_server(talk, "127.0.0.1", 0)
    port = impatient.sockets[0].getsockname()[1]
    client = HttpClient(Target.parse(f"http://127.0.0.1:{port}/"), {}, body_bytes=100, error_bytes=100)
    answer = await client.post(b"x" * 30_000_000, TIMEOUTS)
    assert (answer.status, answer.body) == (413, b"much")
    await server.until(lambda: client.connections == 0)  # the request was never sent whole
    answered.set()
    await over.wait()
    await client.close()
    impatient.close()
    await impatient.wait_closed()


async def test_closing_ends_what_is_under_way_and_what_comes(server: Any) -> None:
    async def stall(exchange: Exchange) -> None:
        await exchange.pause(float("inf"))

    server.play = stall
    client = client_of(server)
    call = asyncio.create_task(client.post(b"x", TIMEOUTS))
    await server.until(lambda: server.requests)
    await client.close()
    with pytest.raises(Reset):
        await call
    with pytest.raises(ConnectFailed):
        await client.post(b"x", TIMEOUTS)
    assert client.connections == 0


# -- ways there


async def test_one_dead_address_of_a_name_does_not_matter(server: Any) -> None:
    """`localhost` is ::1 as well on many machines, and there nobody listens."""
    client = HttpClient(Target.parse(f"http://localhost:{server.port}/"), {}, body_bytes=100, error_bytes=100)
    assert (await client.post(b"x", TIMEOUTS)).body == b"x"
    assert server.requests[0].headers["host"] == f"localhost:{server.port}"
    await client.close()


async def test_nobody_there_is_a_failure_to_connect(server: Any) -> None:
    gone = await Server().start()
    await gone.stop()
    for url in (f"{gone.origin}/", "http://nowhere.invalid/", "http+unix://%2Fnone%2Fengine.sock/"):
        client = HttpClient(Target.parse(url), {}, body_bytes=100, error_bytes=100)
        with pytest.raises(ConnectFailed) as caught:
            await client.post(b"x", TIMEOUTS)
        assert caught.value.__cause__ is None
        assert "127.0.0.1" not in str(caught.value)
        await client.close()


async def test_a_unix_socket_is_reached(tmp_path: Path) -> None:
    path = str(tmp_path / "engine.sock")
    server = await Server().start(unix_path=path)
    client = HttpClient(
        Target.parse("http+unix://" + path.replace("/", "%2F") + "/v1/x"), {}, body_bytes=100, error_bytes=100
    )
    for _ in range(2):
        assert (await client.post(b"hi", TIMEOUTS)).body == b"hi"
    assert server.connections_made == 1
    assert server.requests[0].path == "/v1/x"
    await client.close()
    await server.stop()
