"""What an answer said, read from what a host sent: a whole body, or the events of a stream. Pure; never raises."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

MAX_ANSWER_BYTES = 262_144


@dataclass(frozen=True, slots=True)
class Answer:
    """The first choice of an answer: its text, and (name, arguments as sent) of every tool call."""

    text: str
    tool_calls: tuple[tuple[str, str], ...] = ()


def of_body(body: bytes) -> Answer | None:
    """The answer in a plain body; `None` where there is none to be read."""
    whole = _object(body)
    message = _first_choice(whole).get("message")
    if not isinstance(message, Mapping):
        return None
    calls = [call for call in _items(message.get("tool_calls")) if isinstance(call, Mapping)]
    return _answer([_text(message.get("content"))], {i: _call(call) for i, call in enumerate(calls)})


def of_events(blocks: Sequence[bytes]) -> Answer | None:
    """The answer in the events of a stream; `None` where there is none to be read."""
    texts: list[str] = []
    calls: dict[int, list[str]] = {}
    for line in b"".join(blocks).splitlines():
        if not line.startswith(b"data:"):
            continue
        delta = _first_choice(_object(line[5:].strip())).get("delta")
        if not isinstance(delta, Mapping):
            continue
        texts.append(_text(delta.get("content")))
        for call in _items(delta.get("tool_calls")):
            if isinstance(call, Mapping) and isinstance(call.get("index", 0), int):
                name, arguments = _call(call)
                known = calls.setdefault(call.get("index", 0), ["", ""])
                known[0] += name
                known[1] += arguments
    return _answer(texts, {index: (name, arguments) for index, (name, arguments) in calls.items()})


def _answer(texts: Sequence[str], calls: Mapping[int, tuple[str, str]]) -> Answer | None:
    text = "".join(texts)
    if not text and not calls:
        return None
    return Answer(text, tuple(calls[index] for index in sorted(calls)))


def _object(data: bytes) -> Mapping[str, Any]:
    try:
        value = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _first_choice(whole: Mapping[str, Any]) -> Mapping[str, Any]:
    choices = _items(whole.get("choices"))
    return choices[0] if choices and isinstance(choices[0], dict) else {}


def _items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "".join(p["text"] for p in _items(content) if isinstance(p, dict) and isinstance(p.get("text"), str))


def _call(call: Mapping[str, Any]) -> tuple[str, str]:
    function = call.get("function")
    if not isinstance(function, Mapping):
        return "", ""
    name, arguments = function.get("name"), function.get("arguments")
    return name if isinstance(name, str) else "", arguments if isinstance(arguments, str) else ""
