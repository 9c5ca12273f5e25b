"""Logging to stderr: JSON lines, or plain lines on a terminal; nothing that is secret, and never a prompt.

Redaction works on the finished line, so it covers arguments, extra fields and whatever a library logs. Messages of
foreign exceptions are left out, since libraries like to quote the request in them; their type and frames are enough.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import traceback
from abc import ABC, abstractmethod
from collections.abc import Iterable
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, TextIO

from router.errors import RouterError

MASK = "***"
MAX_LINE_CHARS = 8_000
_MAX_FRAMES = 20
_MIN_SECRET_CHARS = 4

# Key shapes of the providers we speak to, and the headers they travel in.
_PATTERNS = (
    (re.compile(r"(?i)\b(bearer|basic)(\s+|%20)[\w.~+/=:%-]{4,}"), rf"\1 {MASK}"),
    (
        re.compile(
            r"""(?i)((?:proxy-)?authorization|(?:x-)?api[-_]?key|x-goog-api-key)(\\?["']?\s*[:=,]\s*(?:b?\\?["'])?)(?!bearer|basic)[^\s"',;)}\\]+"""
        ),
        rf"\1\2{MASK}",
    ),
    (re.compile(r"\b(?:sk|rk|pk|gsk|hf|xai|nvapi|pplx|fw|csk|r8)[-_][\w-]{8,}"), MASK),
    (re.compile(r"\bAIza[\w-]{20,}"), MASK),
    (re.compile(r"(://)[^/\s:@]*:[^/\s@]+@"), rf"\1{MASK}@"),
)

# At these levels our dependencies log whole requests, so they never get lower than this.
_TALKATIVE = ("LiteLLM", "litellm", "openai", "httpx", "httpcore", "aiohttp", "sqlalchemy", "asyncio", "uvicorn")


class Redactor:
    """Removes known secrets and whatever looks like one from a text."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        forms: set[str] = set()
        for secret in secrets:
            if len(secret) >= _MIN_SECRET_CHARS:
                forms |= {secret, json.dumps(secret)[1:-1], repr(secret)[1:-1]}
        ordered = sorted(forms, key=len, reverse=True)  # a secret that holds another one goes first
        self._known = re.compile("|".join(map(re.escape, ordered))) if ordered else None

    def __call__(self, text: str) -> str:
        """`text` without secrets."""
        if self._known is not None:
            text = self._known.sub(MASK, text)
        for pattern, mask in _PATTERNS:
            text = pattern.sub(mask, text)
        return text


class _Formatter(logging.Formatter, ABC):
    """Shared by both forms: one line, redacted, bounded."""

    def __init__(self, redactor: Redactor) -> None:
        super().__init__()
        self._redactor = redactor

    def format(self, record: logging.LogRecord) -> str:
        return self._redactor(self.line(record))

    @abstractmethod
    def line(self, record: logging.LogRecord) -> str:
        """The record as one line, secrets and all."""

    def parts(self, record: logging.LogRecord) -> dict[str, Any]:
        """Time, level, logger, message, our own fields, and the exception if there is one."""
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        parts: dict[str, Any] = {
            "time": when.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage()[:MAX_LINE_CHARS],
        }
        fields = getattr(record, "fields", None)
        if isinstance(fields, dict):
            parts |= {str(key): str(value)[:1_000] for key, value in fields.items() if str(key) not in parts}
        if record.exc_info and record.exc_info[0] is not None:
            parts["exception"] = describe_exception(record.exc_info[1], record.exc_info[2])
        return parts


class JsonFormatter(_Formatter):
    """One JSON object a line."""

    def line(self, record: logging.LogRecord) -> str:
        """The record as JSON."""
        return json.dumps(self.parts(record), ensure_ascii=False)


class HumanFormatter(_Formatter):
    """A plain line for a terminal; line breaks and escape sequences of a message are shown, not obeyed."""

    def line(self, record: logging.LogRecord) -> str:
        """Time, level, message, `key=value` fields; an exception follows indented."""
        parts = self.parts(record)
        exception = parts.pop("exception", None)
        head = f"{parts.pop('time')[11:23]} {parts.pop('level'):<7} {_visible(parts.pop('message'))}"
        head += "".join(f" {key}={_visible(value)}" for key, value in parts.items() if key != "logger")
        if exception is not None:
            told = f": {_visible(exception['message'])}" if "message" in exception else ""
            head += f"\n    {exception['type']}{told}" + "".join(f"\n      {frame}" for frame in exception["frames"])
        return head


def describe_exception(error: BaseException | None, trace: TracebackType | None) -> dict[str, Any]:
    """Type and frames; the message only of our own errors and the system's, which hold no prompt."""
    frames = traceback.extract_tb(trace)[-_MAX_FRAMES:]
    described: dict[str, Any] = {
        "type": f"{type(error).__module__}.{type(error).__qualname__}",
        "frames": [f"{_short(frame.filename)}:{frame.lineno} {frame.name}" for frame in frames],
    }
    if isinstance(error, RouterError | OSError):
        described["message"] = str(error)[:1_000]
    cause = error.__cause__ if error is not None else None
    if cause is not None:
        described["cause"] = f"{type(cause).__module__}.{type(cause).__qualname__}"
    return described


def configure_logging(
    *,
    secrets: Iterable[str] = (),
    level: int | str = logging.INFO,
    stream: TextIO | None = None,
    human: bool | None = None,
) -> logging.Handler:
    """Make `stream` (default stderr) the only place the process logs to; `human` defaults to whether it is a terminal.

    Returns the handler, so that a caller can take it away again.
    """
    target = sys.stderr if stream is None else stream
    redactor = Redactor(secrets)
    plain = target.isatty() if human is None else human
    handler = logging.StreamHandler(target)
    handler.setFormatter(HumanFormatter(redactor) if plain else JsonFormatter(redactor))
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level)
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)
    return handler


def _visible(value: object) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(value))


def _short(filename: str) -> str:
    """The path below site-packages or the installed folder: enough to find it, without the machine's layout."""
    parts = filename.replace("\\", "/").split("/")
    return "/".join(parts[parts.index("site-packages") + 1 :] if "site-packages" in parts else parts[-3:])
