"""The model API and the load generator in Python, for a machine without a C compiler.

The same arguments, the same wire and the same report as `c/upstream.c` and `c/load.c`; see there.

    python bench/python_tools.py upstream PORT
    python bench/python_tools.py load [-c N] [-d SECONDS | -n REQUESTS] [-w N] [-k KEY] [-s]
        [-p PATH] [-H 'NAME: VALUE']... PORT BODY_FILE
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import re
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qsl, urlsplit

import uvloop

NAMES = '"id":"chatcmpl-bench00000000000000000000","created":1700000000,"model":"bench-model"'
ANSWER = (
    "{" + NAMES + ',"object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"Paris is '
    "the capital of France. It lies on the Seine, in the north of the country, and has been its largest city for "
    'centuries."},"logprobs":null,"finish_reason":"stop"}],'
    '"usage":{"prompt_tokens":50,"completion_tokens":30,"total_tokens":80}}'
)
EVENT = "data: {" + NAMES + ',"object":"chat.completion.chunk","choices":'
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nCache-Control: no-cache\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
SERIAL = b"serial:0000000000"
SERIAL_DIGITS = 10
TICK_BYTES = 24


def http_body(body: str) -> bytes:
    """A JSON answer."""
    data = body.encode()
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(data), data)


def http_event(choices_and_rest: str) -> bytes:
    """An SSE event as one HTTP chunk."""
    data = (EVENT + choices_and_rest + "}\n\n").encode()
    return b"%x\r\n%s\r\n" % (len(data), data)


class UpstreamConnection(asyncio.Protocol):
    """One connection to the model API."""

    behaviour: ClassVar[dict[str, int]] = {"delay_us": 0, "gap_us": 0, "chunks": 200}
    requests_seen: ClassVar[int] = 0

    def connection_made(self, transport: Any) -> None:
        """Begin."""
        self.transport = transport
        self.received = b""

    def data_received(self, data: bytes) -> None:
        """Answer every whole request."""
        self.received += data
        while (end := self.received.find(b"\r\n\r\n")) >= 0:
            length = LENGTH.search(self.received, 0, end + 2)
            whole = end + 4 + (int(length[1]) if length else 0)
            if len(self.received) < whole:
                return
            head, body = self.received[:end], self.received[end + 4 : whole]
            self.received = self.received[whole:]
            if head.startswith(b"GET "):
                self.control(head)
            else:
                self.answer(body)

    def control(self, head: bytes) -> None:
        """GET /set and /stats."""
        url = urlsplit(head.split(b" ", 2)[1].decode())
        self.behaviour.update({name: int(value) for name, value in parse_qsl(url.query)})
        self.transport.write(http_body(json.dumps({"requests": UpstreamConnection.requests_seen, **self.behaviour})))

    def answer(self, body: bytes) -> None:
        """A chat completion, now or after the set delay."""
        UpstreamConnection.requests_seen += 1
        compact = body[-300:].replace(b" ", b"") + body[:300].replace(b" ", b"")
        begin = partial(self.transport.write, http_body(ANSWER))
        if b'"stream":true' in compact:
            left, gap_s = self.behaviour["chunks"], self.behaviour["gap_us"] / 1e6
            begin = partial(self.delta, True, left, left, gap_s, b'"include_usage":true' in compact)
        delay_s = self.behaviour["delay_us"] / 1e6
        if delay_s:
            asyncio.get_running_loop().call_later(delay_s, begin)
        else:
            begin()

    def delta(self, first: bool, left: int, total: int, gap_s: float, usage: bool) -> None:
        """The next delta of a stream, or its end."""
        if self.transport.is_closing():
            return
        out = b""
        if first:
            opening = http_event('[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]')
            out = STREAM_HEAD + opening
        if left:
            tick = f"tick:{time.monotonic_ns():019d}"
            out += http_event('[{"index":0,"delta":{"content":"' + tick + '"},"finish_reason":null}]')
            loop = asyncio.get_running_loop()
            following = partial(self.delta, False, left - 1, total, gap_s, usage)
            if gap_s:
                loop.call_later(gap_s, following)
            else:
                loop.call_soon(following)
        else:
            out += http_event('[{"index":0,"delta":{},"finish_reason":"stop"}]')
            if usage:
                counts = {"prompt_tokens": 50, "completion_tokens": total, "total_tokens": total + 50}
                out += http_event('[],"usage":' + json.dumps(counts))
            out += b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
        self.transport.write(out)


class Load:
    """The state that all connections of the load generator share."""

    def __init__(self, options: argparse.Namespace) -> None:
        body = Path(options.body_file).read_bytes()
        more = "".join(f"{header}\r\n" for header in options.headers)
        head = (
            f"POST {options.path} HTTP/1.1\r\nHost: 127.0.0.1:{options.port}\r\nAuthorization: Bearer "
            f"{options.key}\r\n{more}Content-Type: application/json\r\nAccept: */*\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        self.options = options
        self.request = bytearray(head.encode() + body)
        self.serial_at = self.request.find(SERIAL)
        self.latency_us: list[float] = []
        self.first_delta_us: list[float] = []
        self.transit_us: list[float] = []
        self.begun = self.failed = self.refused = self.reads_with_deltas = 0
        self.first_refusal = ""
        self.measured_from_ns = self.last_ns = 0
        self.open = 0
        self.over = asyncio.get_running_loop().create_future()

    def next_request(self) -> bytes | None:
        """What to send, or `None` when enough has been sent."""
        warm = self.begun >= self.options.warm_up
        if self.options.seconds > 0:
            took_ns = time.monotonic_ns() - self.measured_from_ns
            if self.measured_from_ns and took_ns >= self.options.seconds * 1e9:
                return None
        elif self.begun >= self.options.requests + self.options.warm_up:
            return None
        if warm and not self.measured_from_ns:
            self.measured_from_ns = time.monotonic_ns()
        if self.serial_at >= 0:
            digits = self.serial_at + len(SERIAL) - SERIAL_DIGITS
            self.request[digits : digits + SERIAL_DIGITS] = b"%010d" % self.begun
        self.begun += 1
        return bytes(self.request)

    def report(self) -> dict[str, Any]:
        """As the C program prints it."""

        def series(values: list[float]) -> dict[str, float] | None:
            if not values:
                return None
            ordered = sorted(values)
            at = {
                name: ordered[round((len(ordered) - 1) * q)] for name, q in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))
            }
            return {"n": len(ordered), **at, "max": ordered[-1]}

        took_s = (self.last_ns - self.measured_from_ns) / 1e9
        done = len(self.latency_us)
        return {
            "latency_us": series(self.latency_us),
            "first_delta_us": series(self.first_delta_us),
            "transit_us": series(self.transit_us),
            "begun": self.begun,
            "done": done,
            "failed": self.failed,
            "refused": self.refused,
            "reads_with_deltas": self.reads_with_deltas,
            "seconds": took_s,
            "requests_per_s": done / took_s if took_s > 0 else 0.0,
            "first_refusal": self.first_refusal,
        }


class LoadConnection(asyncio.Protocol):
    """One connection of the load generator."""

    def __init__(self, load: Load) -> None:
        self.load = load
        load.open += 1

    def connection_made(self, transport: Any) -> None:
        """Send the first request."""
        self.transport = transport
        self.send_next()

    def send_next(self) -> None:
        """The next request, or hang up."""
        self.counted = self.load.begun >= self.load.options.warm_up
        request = self.load.next_request()
        self.received, self.scanned, self.saw_delta, self.busy = b"", 0, False, request is not None
        if request is None:
            self.transport.close()
            return
        self.sent_ns = time.monotonic_ns()
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        """Look for deltas and for the end of the answer."""
        now_ns = time.monotonic_ns()
        self.received += data
        head_end = self.received.find(b"\r\n\r\n")
        if head_end < 0:
            return
        if self.load.options.streaming and self.counted:
            self.read_ticks(now_ns)
        length = LENGTH.search(self.received, 0, head_end + 2)
        if length is None:
            whole = self.received.endswith(b"\r\n0\r\n\r\n")
        else:
            whole = len(self.received) >= head_end + 4 + int(length[1])
        if whole:
            self.finish(now_ns)

    def read_ticks(self, now_ns: int) -> None:
        """How long each new delta was under way."""
        before = len(self.load.transit_us)
        while (at := self.received.find(b"tick:", self.scanned)) >= 0 and at + TICK_BYTES <= len(self.received):
            if not self.saw_delta:
                self.saw_delta = True
                self.load.first_delta_us.append((now_ns - self.sent_ns) / 1e3)
            self.load.transit_us.append((now_ns - int(self.received[at + 5 : at + TICK_BYTES])) / 1e3)
            self.scanned = at + TICK_BYTES
        self.load.reads_with_deltas += len(self.load.transit_us) > before

    def finish(self, now_ns: int) -> None:
        """Note the answer."""
        self.load.last_ns = now_ns
        if not self.received.startswith(b"HTTP/1.1 200"):
            self.load.refused += 1
            self.load.first_refusal = self.load.first_refusal or self.received[:240].decode(errors="replace")
        elif self.counted:
            self.load.latency_us.append((now_ns - self.sent_ns) / 1e3)
        self.send_next()

    def connection_lost(self, _exc: Exception | None) -> None:
        """Closed by us at the end, or too early by the other side."""
        self.load.failed += self.busy
        self.load.open -= 1
        if not self.load.open and not self.load.over.done():
            self.load.over.set_result(None)


async def serve_upstream(port: int) -> None:
    """Serve until killed."""
    server = await asyncio.get_running_loop().create_server(UpstreamConnection, "127.0.0.1", port)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


async def generate_load(options: argparse.Namespace) -> None:
    """Run the load and print the report."""
    load = Load(options)
    loop = asyncio.get_running_loop()
    for _ in range(options.connections):
        await loop.create_connection(lambda: LoadConnection(load), "127.0.0.1", options.port)
    await load.over
    print(json.dumps(load.report()))


def main() -> None:
    """`upstream PORT` or `load ...`."""
    if sys.argv[1] == "upstream":
        gc.freeze()
        uvloop.run(serve_upstream(int(sys.argv[2])))
        return
    parser = argparse.ArgumentParser(prog="load")
    parser.add_argument("-c", dest="connections", type=int, default=1)
    parser.add_argument("-d", dest="seconds", type=float, default=0.0)
    parser.add_argument("-n", dest="requests", type=int, default=1000)
    parser.add_argument("-w", dest="warm_up", type=int, default=0)
    parser.add_argument("-k", dest="key", default="none")
    parser.add_argument("-s", dest="streaming", action="store_true")
    parser.add_argument("-p", dest="path", default="/v1/chat/completions")
    parser.add_argument("-H", dest="headers", action="append", default=[])
    parser.add_argument("port", type=int)
    parser.add_argument("body_file")
    gc.disable()  # a short life, and no pauses of our own in the figures
    uvloop.run(generate_load(parser.parse_args(sys.argv[2:])))


if __name__ == "__main__":
    main()
