"""A throw-away Postgres on a unix socket, for as long as a test needs it."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg


def binaries() -> Path | None:
    """Where `initdb` and `pg_ctl` are: on the PATH or where Debian puts them; `None` without a Postgres."""
    on_path = shutil.which("initdb")
    folders = [Path(on_path).resolve().parent] if on_path else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda p: p.parent.name, reverse=True)
    return next((f for f in folders if (f / "initdb").exists() and (f / "pg_ctl").exists()), None)


def _plain_user() -> str | None:
    """Postgres refuses to run as root; then it runs as somebody who may do less."""
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return next(name for name in ("postgres", "nobody") if name in names)


class Cluster:
    """One server with one database a test; can be stopped, frozen and started again."""

    def __init__(self, bin_dir: Path, home: Path) -> None:
        self._bin, self._home, self._user = bin_dir, home, _plain_user()
        self._databases = 0
        self._run("initdb", "-D", str(home / "data"), "-U", "ledger", "-A", "trust", "--no-sync", "-E", "UTF8")

    def _run(self, name: str, *arguments: str) -> None:
        done = subprocess.run(
            [self._bin / name, *arguments],
            user=self._user,
            cwd=self._home,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"},
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"{name} failed: {done.stdout.decode(errors='replace')}")

    def start(self) -> None:
        """Listen on a unix socket only; nothing else is reachable."""
        options = f"-c listen_addresses='' -c unix_socket_directories={self._home} -c fsync=off"
        log = str(self._home / "log")
        self._run("pg_ctl", "-D", str(self._home / "data"), "-l", log, "-w", "-t", "60", "-o", options, "start")

    def stop(self) -> None:
        """As a machine that goes down: connections are cut."""
        self._run("pg_ctl", "-D", str(self._home / "data"), "-w", "-m", "immediate", "stop")

    def freeze(self) -> None:
        """Every process of the server stops answering, connections stay open."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Go on after `freeze`."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        postmaster = int((self._home / "data" / "postmaster.pid").read_text().split()[0])
        children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()
        for pid in (postmaster, *map(int, children)):
            with contextlib.suppress(ProcessLookupError):  # a backend may end between the look and the signal
                os.kill(pid, number)

    def copies(self, url: str, count: int) -> list[str]:
        """`count` copies of a database that nobody is connected to; their URLs."""
        original = url.partition("@/")[2].partition("?")[0]
        return [self.new_database(f" TEMPLATE {original}") for _ in range(count)]

    def new_database(self, like: str = "") -> str:
        """An empty database; its URL."""
        self._databases += 1
        name = f"ledger_{self._databases}"
        with psycopg.connect(f"host={self._home} user=ledger dbname=postgres", autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}{like}")  # type: ignore[arg-type]
        return f"postgresql+psycopg://ledger@/{name}?host={self._home}"


@contextmanager
def cluster(bin_dir: Path) -> Iterator[Cluster]:
    """A running server, gone with its files at the end."""
    home = Path(tempfile.mkdtemp(prefix="ledger-pg-"))
    try:
        user = _plain_user()
        if user is not None:
            entry = pwd.getpwnam(user)
            os.chown(home, entry.pw_uid, entry.pw_gid)
        server = Cluster(bin_dir, home)
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(home, ignore_errors=True)


def cluster_if_any() -> Iterator[Cluster | None]:
    """What a fixture yields: a running server, or `None` on a machine without Postgres."""
    found = binaries()
    if found is None:
        yield None
        return
    with cluster(found) as server:
        yield server
