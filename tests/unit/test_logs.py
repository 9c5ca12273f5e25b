"""Logs hold no key and no prompt, whoever writes them."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from router.errors import BadRequest
from router.logs import MAX_LINE_CHARS, Redactor, configure_logging

CANARY = 'canary"secret\\value'


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """The root logger, put back as it was."""
    logger = logging.getLogger()
    handlers, level = logger.handlers[:], logger.level
    yield logger
    logger.handlers[:] = handlers
    logger.setLevel(level)


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


@pytest.fixture
def out(root: logging.Logger) -> io.StringIO:
    stream = io.StringIO()
    configure_logging(secrets=[CANARY], stream=stream, human=False)
    return stream


@pytest.mark.parametrize(
    "text",
    [
        "Authorization: Bearer canary-0123456789",
        "{'authorization': 'Bearer canary-0123456789'}",
        '{"Authorization": "Bearer canary-0123456789"}',
        "authorization=Basic canarycanarycanary==",
        "(b'authorization', b'Bearer canary-0123456789')",
        "bearer%20canary-0123456789",
        "key sk-canary0123456789 was refused",
        "sk-proj-canary_0123456789-abc",
        "sk-ant-api03-canary0123456789",
        "gsk_canary0123456789",
        "xai-canary0123456789",
        "hf_canary0123456789",
        "x-api-key: canary0123456789",
        "api_key='canary0123456789'",
        '"api-key": "canary0123456789"',
        "AIzacanary0123456789012345678901234",
        "postgresql://user:canary@host/db",
        f"it was {CANARY}",
        f"repr {CANARY!r}",
        json.dumps({"key": CANARY}),
    ],
)
def test_nothing_that_looks_like_a_secret_gets_through(text: str) -> None:
    assert "canary" not in Redactor([CANARY])(text)


@pytest.mark.parametrize("text", ["task-12345678 done", "the desk-calendar-app", "tokens: 300", "https://h:8000/v1"])
def test_plain_words_stay(text: str) -> None:
    assert Redactor([])(text) == text


def test_arguments_fields_and_exceptions_are_covered(out: io.StringIO) -> None:
    log = logging.getLogger("router.test")
    log.warning("key %s", CANARY, extra={"fields": {"header": "Bearer canary-0123456789"}})
    try:
        raise BadRequest(f"bad key {CANARY}")
    except BadRequest:
        log.exception("failed")
    assert "canary" not in out.getvalue() and "secret" not in out.getvalue()
    first, second = lines(out)
    assert (first["level"], first["logger"], first["message"]) == ("warning", "router.test", "key ***")
    assert first["header"] == "Bearer ***" and str(first["time"]).endswith("Z")
    assert second["exception"]["message"] == "bad key ***"  # type: ignore[index]


def test_a_foreign_exception_says_its_type_and_place_but_never_its_text(out: io.StringIO) -> None:
    try:
        try:
            raise KeyError("prompt-canary")
        except KeyError as error:
            raise ValueError("prompt-canary in the body") from error
    except ValueError:
        logging.getLogger("router.test").exception("handling failed")
    told = lines(out)[0]["exception"]
    assert isinstance(told, dict)
    assert told["type"] == "builtins.ValueError" and told["cause"] == "builtins.KeyError"
    assert "test_logs.py" in told["frames"][-1]
    assert "prompt-canary" not in out.getvalue()


@pytest.mark.parametrize("library", ["LiteLLM", "openai", "httpx", "aiohttp", "sqlalchemy", "asyncio"])
def test_libraries_that_log_whole_requests_are_kept_from_it(root: logging.Logger, library: str) -> None:
    stream = io.StringIO()
    configure_logging(level=logging.DEBUG, stream=stream, human=False)
    logging.getLogger(f"{library}.sub").debug("POST with prompt-canary")
    logging.getLogger(library).info("POST with prompt-canary")
    assert stream.getvalue() == ""


def test_a_message_cannot_forge_lines_or_move_the_cursor(root: logging.Logger) -> None:
    stream = io.StringIO()
    configure_logging(stream=stream, human=True)
    logging.getLogger("router.test").warning("one\ntwo\x1b[2J", extra={"fields": {"who": "a\nb"}})
    line = stream.getvalue()
    assert line.count("\n") == 1 and "\x1b" not in line
    assert line.rstrip().endswith(r"warning one\ntwo\x1b[2J who=a\nb")


def test_lines_are_bounded(out: io.StringIO) -> None:
    logging.getLogger("router.test").warning("x" * 1_000_000, extra={"fields": {"a": "y" * 1_000_000}})
    assert len(out.getvalue()) < MAX_LINE_CHARS + 2_000


def test_a_field_cannot_replace_what_the_line_says_itself(out: io.StringIO) -> None:
    logging.getLogger("router.test").warning("true", extra={"fields": {"message": "false", "level": "debug"}})
    assert (lines(out)[0]["message"], lines(out)[0]["level"]) == ("true", "warning")


def test_configuring_twice_leaves_one_handler(root: logging.Logger) -> None:
    configure_logging(stream=io.StringIO())
    second = configure_logging(stream=io.StringIO())
    assert root.handlers == [second]
