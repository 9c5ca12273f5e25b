"""Checks that the builders of settings share: secrets, addresses, names."""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path as FilePath
from urllib.parse import urlsplit, urlunsplit

from pydantic import SecretStr

from router.settings_yaml import Path

RESERVED_NAMES = frozenset({"auto", "local", "cheap", "premium"})
_NAME = re.compile(r"[!-~]{1,200}")

Note = Callable[[Path, str], None]
NoteVariable = Callable[[str, str], None]


class Secrets:
    """Reads secrets from the environment: NAME itself, or the file that NAME_FILE names. Never shows a value."""

    def __init__(self, environ: Mapping[str, str], note: NoteVariable) -> None:
        self._environ = environ
        self._note = note

    def read(self, name: str) -> SecretStr | None:
        """The secret, or `None` where it is not set. An unreadable file or a broken value is a mistake."""
        value = self._environ.get(name, "").strip()
        file_name = self._environ.get(f"{name}_FILE", "").strip()
        if value and file_name:
            self._note(name, f"is set, and so is {name}_FILE; unset one of them")
        elif file_name:
            try:
                value = FilePath(file_name).read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                reason = error.strerror if isinstance(error, OSError) else "not a text file"
                self._note(f"{name}_FILE", f"{file_name} cannot be read: {reason}")
                return None
        if not value:
            return None
        if not re.fullmatch(r"[!-~]+", value):
            self._note(name, "holds spaces, line breaks or non-ASCII characters; a key has none")
            return None
        return SecretStr(value)


def is_loopback(host: str) -> bool:
    """Whether `host` can be reached from this machine only."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def mask_password(url: str) -> str:
    """`url` with its password, if it has one, as `***`."""
    parts = urlsplit(url)
    if parts.password is None:
        return url
    return urlunsplit(parts._replace(netloc=f"{parts.username or ''}:***@{parts.netloc.rpartition('@')[2]}"))


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` or nothing."""
    close = difflib.get_close_matches(word.lower(), list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def check_name(name: str, path: Path, note: Note) -> None:
    """A model's name must be printable ASCII and none of the gateway's own."""
    if name.lower() in RESERVED_NAMES or name.lower().startswith("auto:"):
        note(path, f"{name!r} is a name that the gateway uses itself; give the model another `name`")
    elif not _NAME.fullmatch(name):
        note(path, f"{name!r} holds spaces or non-ASCII characters; it travels in headers, so use neither")


def check_base(url: str, path: Path, note: Note, *, loopback_only: bool = False) -> None:
    """An address must be plain http(s), without credentials."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        note(path, "is not a URL; write http://HOST:PORT/v1")
        return
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        note(path, "holds credentials or a query; give the plain address, and the key through api_key_env")
    elif parts.scheme not in {"http", "https"} or not host:
        note(path, f"{url!r} is not an http address; write http://HOST:PORT/v1")
    elif loopback_only and not is_loopback(host):
        note(path, f"{host} is not this machine, where vllm is started; use 127.0.0.1, or engine: external")
