"""One connection fed by hand: every way in which an answer can be cut into reads, end, or go wrong."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.providers.http_answer import Answer, BadResponse, Reset, TimedOut
from router.providers.http_connection import HIGH_WATER_BYTES, MAX_BODYLESS_BYTES
from tests.http_wire import OK, House, Message, cut, messages


@given(data=st.data(), message=messages())
def test_where_an_answer_is_cut_into_reads_makes_no_difference(data: st.DataObject, message: Message) -> None:
    house = House()
    for _ in range(2):  # and again on the same connection
        house.feed(*data.draw(st.composite(cut)(message.raw)))  # type: ignore[arg-type]
        if message.framing == "close":
            house.connection.eof_received()
        assert house.step()
        answer = house.answer
        assert (answer.status, answer.body, answer.truncated, answer.ended) == (200, message.body, False, True)
        assert answer.header(b"x-request-id") == answer.headers["x-request-id"] == "r1"
        if message.framing == "close":
            assert house.wire.aborted
            assert house.free == []
            return
        assert house.free.pop() is house.connection
        house.ask()
    assert not house.wire.aborted


@given(data=st.data(), message=messages())
def test_a_stream_read_at_any_pace_is_the_same_bytes(data: st.DataObject, message: Message) -> None:
    house = House(stream=True)
    seen = b""
    for part in data.draw(st.composite(cut)(message.raw)):  # type: ignore[arg-type]
        house.feed(part)
        if house.answer.status and not house.answer.ended and data.draw(st.booleans()):
            seen += house.connection.take() or b""
    if message.framing == "close":
        house.connection.eof_received()
    assert house.step()
    while piece := read_now(house.answer):
        seen += piece
    assert seen == message.body
    assert bool(house.free) == (message.framing != "close")


def read_now(answer: Answer) -> bytes:
    """A read that has no reason to wait."""
    reading = answer.read()
    try:
        reading.send(None)
    except StopIteration as end:
        data: bytes = end.value
        return data
    raise AssertionError("it waits")


@given(data=st.data(), message=messages(), reset=st.booleans())
def test_an_answer_cut_short_is_never_taken_for_whole(data: st.DataObject, message: Message, reset: bool) -> None:
    end = data.draw(st.integers(0, len(message.raw) - 1))
    house = House()
    house.feed(*([message.raw[:end]] if end else []))
    if reset:
        house.connection.connection_lost(ConnectionResetError())
    else:
        house.connection.eof_received()
        house.connection.connection_lost(None)
    assert house.free == []
    assert house.gone == [house.connection]
    if message.framing == "close" and not reset and end >= message.head_size:
        assert house.step()  # such a body ends where it ends
        return
    error = house.error()
    assert isinstance(error, Reset)
    assert error.in_body == (end >= message.head_size)
    assert house.answer.heard == (end > 0)
    assert not house.answer.ended


@pytest.mark.parametrize(
    "raw",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/2 200 OK\r\n\r\n",
        b"HTTP/1.1 abc OK\r\n\r\n",
        OK + b"no colon\r\n\r\n",
        OK + b"content-length: 1\r\ncontent-length: 2\r\n\r\n",
        OK + b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n",
        OK + b"content-length: -1\r\n\r\n",
        OK + b"transfer-encoding: chunked\r\n\r\nxyz\r\n",
        OK + b"transfer-encoding: chunked\r\n\r\n2\r\nhi!\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\nabc",
    ],
)
def test_what_is_not_http_is_refused_and_the_connection_closed(raw: bytes) -> None:
    house = House()
    house.feed(raw)
    assert isinstance(house.error(), BadResponse)
    assert house.wire.aborted


@pytest.mark.parametrize(
    ("start", "more"),
    [
        (OK, b"x-filler: " + b"x" * 1000 + b"\r\n"),
        (OK + b"x-endless: ", b"x" * 1000),
        (OK + b"transfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n", b"x-trailer: " + b"x" * 1000 + b"\r\n"),
        (OK + b"transfer-encoding: chunked\r\n\r\n2;e=", b"x" * 1000),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 40),
    ],
)
def test_bytes_that_are_no_body_are_bounded(start: bytes, more: bytes) -> None:
    house = House()
    house.feed(*([start] if start else []))
    fed_bytes = 0
    while not house.wire.aborted:
        house.feed(more)
        fed_bytes += len(more)
        assert fed_bytes <= MAX_BODYLESS_BYTES + 2 * len(more)
    assert isinstance(house.error(), BadResponse)


@pytest.mark.parametrize(
    "raw",
    [
        OK + b"content-length: 2\r\n\r\nhiHTTP/1.1 500 No\r\ncontent-length: 3\r\n\r\nbye",
        OK + b"content-length: 2\r\n\r\nhiHTT",
        OK + b"content-length: 2\r\n\r\nhi\0\0",
        OK + b"connection: close\r\ncontent-length: 2\r\n\r\nhi",
        OK + b"connection: close\r\ncontent-length: 2\r\n\r\nhi and more",
        b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nhi",
    ],
)
def test_a_connection_that_says_more_or_goodbye_is_not_used_again(raw: bytes) -> None:
    house = House()
    house.feed(raw)
    assert house.step()
    assert (house.answer.status, house.answer.body, house.answer.ended) == (200, b"hi", True)
    assert house.wire.aborted
    assert house.free == []


def test_a_connection_with_a_request_half_sent_is_not_used_again() -> None:
    house = House()
    house.wire.unsent_bytes = 1
    house.feed(b"HTTP/1.1 413 Too Large\r\ncontent-length: 0\r\n\r\n")
    assert house.step()
    assert house.answer.status == 413
    assert house.wire.aborted


def test_words_between_two_requests_close_the_connection() -> None:
    house = House()
    house.feed(OK + b"content-length: 0\r\n\r\n")
    house.feed(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
    assert house.wire.aborted
    assert house.answer.status == 200


@pytest.mark.parametrize("status", [204, 304])
def test_answers_without_a_body_end_with_their_headers(status: int) -> None:
    house = House()
    house.feed(b"HTTP/1.1 %d X\r\n\r\n" % status)
    assert house.step()
    assert house.answer.ended
    assert house.free == [house.connection]


@pytest.mark.parametrize(("status", "limit_bytes"), [(200, 50), (500, 20)])
def test_a_body_beyond_its_limit_is_cut_and_the_connection_closed(status: int, limit_bytes: int) -> None:
    house = House(body_bytes=50, error_bytes=20)
    house.feed(b"HTTP/1.1 %d X\r\ncontent-length: 1000\r\n\r\n" % status, *[b"0123456789"] * 6)
    assert house.step()
    assert house.answer.truncated
    assert not house.answer.ended
    assert len(house.answer.body) == limit_bytes
    assert house.wire.aborted
    whole = House(body_bytes=50, error_bytes=20)
    whole.feed(b"HTTP/1.1 %d X\r\ncontent-length: 100\r\n\r\n" % status + b"x" * 100)  # in one read
    assert whole.step()
    assert (whole.answer.truncated, len(whole.answer.body)) == (True, limit_bytes)


def test_a_slow_reader_stops_the_upstream_at_the_high_water_mark() -> None:
    house = House(stream=True)
    house.feed(OK + b"transfer-encoding: chunked\r\n\r\n")
    assert house.step()
    chunk = b"1000\r\n" + b"x" * 4096 + b"\r\n"
    fed = 0
    while not house.wire.paused:
        house.feed(chunk)
        fed += 1
        assert fed * 4096 <= HIGH_WATER_BYTES + 4096
    assert len(read_now(house.answer)) == fed * 4096
    assert not house.wire.paused
    house.feed(chunk, b"0\r\n\r\n")
    assert house.free == [house.connection]
    assert len(read_now(house.answer)) == 4096
    assert read_now(house.answer) == b""


def test_bytes_before_a_cut_are_read_before_the_error() -> None:
    house = House(stream=True)
    house.feed(OK + b"transfer-encoding: chunked\r\n\r\n2\r\nhi\r\n")
    assert house.step()
    house.connection.connection_lost(ConnectionResetError())
    assert read_now(house.answer) == b"hi"
    for _ in range(2):
        with pytest.raises(Reset):
            read_now(house.answer)


def test_an_answer_keeps_its_bytes_when_its_connection_serves_the_next() -> None:
    house = House(stream=True)
    house.feed(OK + b"content-length: 3\r\n\r\none")
    assert house.step()
    first = house.answer
    house.free.pop()
    house.ask(stream=True)
    first.abort()  # too late to hurt anyone
    first.finish_aside(1.0)
    house.feed(OK + b"content-length: 3\r\n\r\ntwo")
    assert house.step()
    assert (read_now(first), read_now(house.answer)) == (b"one", b"two")
    assert not house.wire.aborted


def test_the_rest_of_a_finished_answer_is_read_aside_but_not_for_long() -> None:
    for late in (False, True):
        house = House(stream=True)
        house.feed(OK + b"transfer-encoding: chunked\r\n\r\n2\r\nhi\r\n")
        assert house.step()
        house.answer.finish_aside(1.0)
        house.feed(b"4\r\nmore\r\n")
        house.clock.to(102.0 if late else 100.5)
        house.feed(*([] if late else [b"0\r\n\r\n"]))
        assert house.wire.aborted == late
        assert bool(house.free) != late


# -- deadlines


def test_no_headers_no_bytes_and_no_end_in_time() -> None:
    silent = House()
    silent.clock.to(109.9)
    assert not silent.wire.aborted
    silent.clock.to(110.1)
    error = silent.error()
    assert isinstance(error, TimedOut)
    assert error.phase == "headers"
    assert silent.wire.aborted

    stuck = House()
    stuck.feed(OK + b"content-length: 9\r\n\r\n")
    stuck.clock.to(103.0)
    stuck.feed(b"x")
    stuck.clock.to(106.9)
    assert not stuck.wire.aborted
    stuck.clock.to(107.1)
    error = stuck.error()
    assert isinstance(error, TimedOut)
    assert error.phase == "body"

    endless = House()
    endless.feed(OK + b"content-length: 99\r\n\r\n")
    for second in range(1, 30):
        endless.clock.to(100.0 + second)
        endless.feed(b"x")
    assert not endless.wire.aborted
    endless.clock.to(130.1)
    assert isinstance(endless.error(), TimedOut)


def test_one_timer_serves_many_requests() -> None:
    house = House()
    for _ in range(1000):
        house.clock.to(house.clock.now_s + 0.001)
        house.feed(OK + b"content-length: 0\r\n\r\n")
        assert house.step()
        house.ask()
    assert house.clock.timers_set == 1
    house.clock.to(house.clock.now_s + 9.9)
    assert not house.wire.aborted
    house.clock.to(house.clock.now_s + 0.2)
    assert isinstance(house.error(), TimedOut)


def test_when_we_stood_still_what_has_come_is_read_before_anyone_is_given_up() -> None:
    house = House()
    when, look = house.clock.timers.pop()
    house.clock.now_s = when + 3.0
    look()
    assert not house.wire.aborted
    house.feed(OK + b"content-length: 2\r\n\r\nhi")
    assert house.step()
    assert house.answer.body == b"hi"
    silent = House()
    silent.clock.to(115.0, late_s=3.0)  # late every time: the second look counts
    assert isinstance(silent.error(), TimedOut)


def test_hanging_up_is_idempotent_and_lasts() -> None:
    house = House(stream=True)
    house.feed(OK + b"transfer-encoding: chunked\r\n\r\n")
    assert house.step()
    house.answer.abort()
    house.answer.abort()
    house.answer.interrupt(ValueError())
    assert house.wire.aborted
    house.connection.connection_lost(None)
    with pytest.raises(Reset):
        read_now(house.answer)
