"""Run a gateway: uvicorn on uvloop and httptools, a banner for people, and an orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import os
import signal
import socket
import sys
from collections.abc import Iterator

import uvicorn
import uvloop

from router import __version__
from router.api.app import create_app
from router.api.bounded_http import bounded_http
from router.bootstrap import build
from router.errors import RouterError
from router.gateway import Gateway
from router.memory import give_memory_back, save_memory, use_huge_pages
from router.settings_types import Settings

ENGINE_PATIENCE_S = 10.0
_GC_THRESHOLD = 20_000
_CUT_S = 1.0  # for those who are cut off to be told and booked
_BACKLOG = 2048
_COLLAPSE_AFTER_S = 2.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_NOT_ON_THIS_MACHINE = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT})


class CannotListen(RouterError):
    """The address is taken, not ours, or not allowed."""

    code = "cannot_listen"


class _Server(uvicorn.Server):
    """The first signal drains: requests under way finish, new ones get 503. The second one cuts them off.

    What is cut off, at the second signal or at the end of the grace, is told so and is booked.
    """

    def __init__(self, config: uvicorn.Config, gateway: Gateway) -> None:
        super().__init__(config)
        self._gateway = gateway
        self._drain: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Ours instead of uvicorn's, which raises the signal again at the end: we have engine and books to close."""
        loop = asyncio.get_running_loop()
        for sig in _SIGNALS:
            loop.add_signal_handler(sig, self._on_signal)
        try:
            yield
        finally:
            for sig in _SIGNALS:
                loop.remove_signal_handler(sig)

    def _on_signal(self) -> None:
        if self._gateway.draining:
            self._cut_off()
            self.should_exit = self.force_exit = True
            return
        self._gateway.draining = True
        self._drain = asyncio.create_task(self._finish())

    async def _finish(self) -> None:
        await self._idle_within(self._gateway.settings.server.drain_grace_s)
        self._cut_off()
        await self._idle_within(_CUT_S)
        self.should_exit = True

    async def _idle_within(self, seconds: float) -> None:
        ends_at_s = self._gateway.clock.now_s() + seconds
        while self._gateway.in_flight.count and self._gateway.clock.now_s() < ends_at_s:  # noqa: ASYNC110 - has a deadline
            await asyncio.sleep(0.02)

    def _cut_off(self) -> None:
        self._gateway.cutting_off = True
        for task in tuple(self.server_state.tasks):
            task.cancel()


def listen(host: str, port: int) -> list[socket.socket]:
    """Bind every address that `host` stands for, all to one port (0: one that is free). Raises CannotListen."""
    bound: list[socket.socket] = []
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, address in dict.fromkeys((info[0], info[4]) for info in found):
            sock = socket.socket(family, socket.SOCK_STREAM)
            try:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                first_port = bound[0].getsockname()[1] if bound else port
                sock.bind((address[0], first_port, *address[2:]))
            except OSError as error:
                sock.close()
                # `localhost` may name an IPv6 address on a machine that has none.
                if error.errno in _NOT_ON_THIS_MACHINE and bound:
                    continue
                raise
            bound.append(sock)
    except OSError as error:
        for sock in bound:
            sock.close()
        raise _cannot_listen(host, port, error) from error
    return bound


def _cannot_listen(host: str, port: int, error: OSError) -> CannotListen:
    why = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error.strerror)
    return CannotListen(
        f"cannot listen on {host}:{port}: {why.lower()}; choose another with --host and --port (make: HOST=, PORT=), "
        "or with server.host and server.port"
    )


async def run(gateway: Gateway, *, host: str, port: int, quiet: bool = False) -> None:
    """Serve until told to stop. Raises CannotListen before anything is started."""
    sockets = listen(host, port)
    port = sockets[0].getsockname()[1]
    try:
        await _run(gateway, sockets, host=host, port=port, quiet=quiet)
    finally:
        for sock in sockets:
            sock.close()


async def _run(gateway: Gateway, sockets: list[socket.socket], *, host: str, port: int, quiet: bool) -> None:
    try:
        await gateway.start()
        try:
            for sock in sockets:
                sock.listen(_BACKLOG)
        except OSError as error:  # two that were bound at the same moment: one of them comes second
            raise _cannot_listen(host, port, error) from error
        config = uvicorn.Config(
            create_app(gateway.face()),
            loop="uvloop",
            http=bounded_http(gateway.deps.new_id),
            ws="none",
            lifespan="off",
            access_log=False,
            log_config=None,
            server_header=False,
            proxy_headers=False,  # nothing reads whom a client says it is
            timeout_keep_alive=75,
            timeout_graceful_shutdown=2,  # for last bytes on their way: requests have been waited for before
            backlog=_BACKLOG,
        )
        server = _Server(config, gateway)
        collapsing = asyncio.create_task(_collapse_later())
        announcing = asyncio.create_task(_announce(gateway, server, host, port, quiet=quiet))
        # What lives now lives for good: the collector need not look at it at every turn.
        gc.collect()
        gc.freeze()
        gc.set_threshold(_GC_THRESHOLD, 50, 50)
        give_memory_back()
        try:
            await server.serve(sockets)
        finally:
            announcing.cancel()
            collapsing.cancel()
    finally:
        await gateway.stop()


async def _collapse_later() -> None:
    """Not before the first callers have been served: it takes a tenth of a second of CPU."""
    await asyncio.sleep(_COLLAPSE_AFTER_S)
    await asyncio.to_thread(use_huge_pages)


async def _announce(gateway: Gateway, server: uvicorn.Server, host: str, port: int, *, quiet: bool) -> None:
    while not server.started:  # noqa: ASYNC110 - uvicorn tells it by a flag only
        await asyncio.sleep(0.01)
    if gateway.local is not None:
        await gateway.local.wait_ready(ENGINE_PATIENCE_S, supervised=True)
    if quiet:
        return
    shown = f"[{host}]" if ":" in host else host
    url = f"http://{shown}:{port}"
    key = ' -H "authorization: Bearer $ROUTER_API_KEY"' if gateway.settings.server.auth.required else ""
    unset = ", ".join(gateway.access.unset_env)
    lines = [
        f"hybrid-llm-router {__version__} on {url}  (config: {gateway.settings.source}; Ctrl-C stops it)",
        *(f"  {line}" for line in gateway.tier_lines()),
        *([f"  keys: {unset} not set, so who holds them cannot enter"] if unset else []),
        "Try it:",
        f"  curl -i {url}/v1/chat/completions{key} -H 'content-type: application/json' \\",
        '    -d \'{"model": "auto", "messages": [{"role": "user", "content": "What is the capital of Japan?"}]}\'',
    ]
    with contextlib.suppress(BrokenPipeError):  # whoever read it has gone; the gateway goes on
        print("\n".join(lines), flush=True)  # noqa: T201 - this is what people look at


def serve(settings: Settings) -> None:
    """Blocking; returns when everything that was started has been stopped."""
    save_memory()
    gateway = build(settings)
    uvloop.run(run(gateway, host=settings.server.host, port=settings.server.port))
    sys.stdout.flush()
