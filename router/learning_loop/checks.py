"""Exact checks: whether an answer that had a form to keep has kept it. Pure, and cheap enough to be done beside.

The form is the caller's own: JSON where `response_format` asks for it, the schema where it gives one, and the
parameters of the tools that were called. A prompt that is a calculation has one right answer (`arithmetic`). What has
no form, or one we do not check, gets no verdict: keeping a form is evidence of an adequate answer only where the form
is what was asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from router.learning_loop.answers import Answer
from router.learning_loop.arithmetic import result_of, says

MAX_SCHEMA_BYTES = 65_536
# A pattern of the caller's, tried on a text of a model's, can take for ever.
_UNCHECKED = frozenset({"pattern", "patternProperties", "format", "$dynamicRef"})


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was checked (`json`, `json_schema`, `tool_arguments`, `arithmetic`), and whether it holds (1) or not (0)."""

    check: str
    quality_ratio: float


def checkable(*, wants_json: bool, has_tools: bool, asked: str = "") -> bool:
    """Whether an answer to such a request may have a form to keep, or `asked` (the last message) one right answer."""
    return wants_json or has_tools or result_of(asked) is not None


def check(fields: Mapping[str, Any], answer: Answer, asked: str = "") -> Verdict | None:
    """The verdict on `answer` to a request with these top-level members (raw JSON) that asks `asked` last.

    `None` where there is none.
    """
    if answer.tool_calls:
        return _check_calls(_decoded(fields.get("tools")), answer.tool_calls)
    wanted = _decoded(fields.get("response_format"))
    if not isinstance(wanted, dict) or wanted.get("type") == "text":
        return _check_sum(asked, answer.text)
    if wanted.get("type") == "json_object":
        return Verdict("json", float(isinstance(_decoded(answer.text.encode()), dict)))
    if wanted.get("type") != "json_schema" or not isinstance(wanted.get("json_schema"), dict):
        return None
    said = _decoded(answer.text.encode(), missing=_NOTHING)
    if said is _NOTHING:
        return Verdict("json_schema", 0.0)
    holds = _holds(wanted["json_schema"].get("schema"), said)
    return None if holds is None else Verdict("json_schema", float(holds))


def _check_sum(asked: str, said: str) -> Verdict | None:
    expected = result_of(asked)
    right = says(said, expected, prompt=asked) if expected is not None else None
    return None if right is None else Verdict("arithmetic", float(right))


def _check_calls(tools: Any, calls: tuple[tuple[str, str], ...]) -> Verdict | None:
    known = {}
    for tool in tools if isinstance(tools, list) else []:
        function = tool.get("function") if isinstance(tool, dict) else None
        if isinstance(function, dict) and isinstance(function.get("name"), str):
            known[function["name"]] = function.get("parameters") or {}
    if not known:
        return None
    for name, arguments in calls:
        said = _decoded(arguments.encode() or b"{}", missing=_NOTHING)
        if name not in known or not isinstance(said, dict):
            return Verdict("tool_arguments", 0.0)
        holds = _holds(known[name], said)
        if holds is None:
            return None
        if not holds:
            return Verdict("tool_arguments", 0.0)
    return Verdict("tool_arguments", 1.0)


def _holds(schema: Any, value: Any) -> bool | None:
    """Whether `value` is as `schema` says; `None` for a schema we do not check. Looks nothing up anywhere."""
    if not isinstance(schema, dict) or len(msgspec.json.encode(schema)) > MAX_SCHEMA_BYTES or _names(schema):
        return None
    from jsonschema import Draft202012Validator  # type: ignore[import-untyped]
    from jsonschema.exceptions import SchemaError  # type: ignore[import-untyped]
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    try:
        Draft202012Validator.check_schema(schema)
        registry: Registry[Any] = Registry()
        return bool(Draft202012Validator(schema, registry=registry).is_valid(value))
    except (SchemaError, Unresolvable, RecursionError, ValueError, TypeError):
        return None


def _names(schema: Any) -> bool:
    """Whether anything in it is of a kind we do not check."""
    waiting = [schema]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            if not _UNCHECKED.isdisjoint(node):
                return True
            waiting += node.values()
        elif isinstance(node, list):
            waiting += node
    return False


_NOTHING = object()


def _decoded(raw: Any, *, missing: Any = None) -> Any:
    if raw is None:
        return missing
    try:
        return msgspec.json.decode(bytes(raw))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, TypeError):
        return missing
