"""The wire shape of a chat request -> our noun. What we do not know passes through untouched.

Known fields are checked here, once, so that nothing behind this file meets a value out of range: an engine that is
asked for a billion answers may die of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from router.api.controls import CONNECTION_FIELDS, read_controls, refuse_connection_field
from router.api.media_urls import check_media_url
from router.api.raw_json import decode_object
from router.core.chat import ChatRequest
from router.errors import BadRequest

MAX_OUTPUT_TOKENS = 10_000_000
MAX_N = 128

_ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
_JSON_FORMATS = frozenset({"json_object", "json_schema"})
_OWN_MEMBERS = ("model", "router")
_OTHER_MEDIA = frozenset({"input_audio", "input_image", "input_file", "file"})


def decode_chat(body: bytes, headers: Mapping[str, str]) -> ChatRequest:
    """The chat request in `body`, with controls from `headers` (lower-case names).

    Raises `BadRequest` for anything else than a request that makes sense; `param` names the field.
    """
    document, members = decode_object(body)
    if not CONNECTION_FIELDS.isdisjoint(document):
        raise refuse_connection_field(next(name for name in document if name in CONNECTION_FIELDS))
    for name, value in document.items():
        check = _CHECKS.get(name)
        if check is not None and value is not None:
            check(name, value)
    model = document.get("model")
    if type(model) is not str or not model:
        raise _missing_or_wrong("model", model, "a model name, `auto` to let the router choose")
    if "extra_body" in document:
        _unwrap_extra_body(document, members)
    conversation = _read_messages(document.get("messages"))
    conversation.schema_texts += _schema_texts(document, members)
    max_output_tokens = document.get("max_completion_tokens")
    if max_output_tokens is None:
        max_output_tokens = document.get("max_tokens")
    elif "max_tokens" in members:
        del members["max_tokens"]  # two limits are an error to some upstreams; the newer form wins
    stream_options = document.get("stream_options")
    response_format = document.get("response_format")
    temperature = document.get("temperature")
    controls = read_controls(headers, document.get("router"))
    for name in _OWN_MEMBERS:
        members.pop(name, None)
    return ChatRequest(
        requested_model=model,
        fields=members,
        stream=document.get("stream") is True,
        include_usage=stream_options is not None and stream_options.get("include_usage") is True,
        texts=tuple(conversation.texts),
        schema_texts=tuple(conversation.schema_texts),
        message_count=conversation.message_count,
        turns=conversation.turns,
        image_count=conversation.image_count,
        system_text="\n".join(conversation.system_texts),
        last_user_text=conversation.last_user_text,
        has_tools=bool(document.get("tools") or document.get("functions")),
        wants_json=response_format is not None and response_format["type"] in _JSON_FORMATS,
        max_output_tokens=max_output_tokens,
        n=document.get("n") or 1,
        temperature=None if temperature is None else float(temperature),
        controls=controls,
    )


# ---- messages -------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Conversation:
    """What is gathered while the messages are checked."""

    message_count: int
    texts: list[str] = field(default_factory=list)
    schema_texts: list[str] = field(default_factory=list)
    system_texts: list[str] = field(default_factory=list)
    last_user_text: str = ""
    turns: int = 0
    image_count: int = 0


def _read_messages(messages: object) -> _Conversation:
    if type(messages) is not list or not messages:
        if messages == []:
            raise BadRequest("messages must not be empty", code="empty_array", param="messages")
        raise _missing_or_wrong("messages", messages, "a list of messages")
    conversation = _Conversation(len(messages))
    for index, message in enumerate(messages):
        if type(message) is not dict:
            raise BadRequest("every message must be an object", code="invalid_type", param=f"messages[{index}]")
        role = message.get("role")
        if type(role) is not str or role not in _ROLES:
            raise _wrong_role(role, f"messages[{index}].role")
        content = message.get("content")
        if type(content) is str:
            conversation.texts.append(content)
        else:
            content = _read_content(content, role, f"messages[{index}].content", conversation)
        if role == "user":
            conversation.turns += 1
            conversation.last_user_text = content
        elif role in ("system", "developer"):
            conversation.system_texts.append(content)
        elif "tool_calls" in message:
            _read_tool_calls(message["tool_calls"], f"messages[{index}].tool_calls", conversation)
    return conversation


def _wrong_role(role: object, param: str) -> BadRequest:
    if role is None:
        return BadRequest(f"{param} is missing", code="missing_required_parameter", param=param)
    return BadRequest(f"{param} must be one of: {', '.join(sorted(_ROLES))}", code="invalid_value", param=param)


def _read_content(content: object, role: str, param: str, conversation: _Conversation) -> str:
    """The text of a message whose content is no plain string."""
    if content is None:
        if role == "assistant":  # it called tools, or refused
            return ""
        raise BadRequest(
            f"{param} is missing; a {role} message needs one", code="missing_required_parameter", param=param
        )
    if type(content) is not list:
        raise BadRequest(f"{param} must be a string or a list of parts", code="invalid_type", param=param)
    if not content:
        raise BadRequest(f"{param} must not be an empty list", code="empty_array", param=param)
    texts: list[str] = []
    for index, part in enumerate(content):
        if type(part) is not dict or type(part.get("type")) is not str:
            raise BadRequest(
                f"{param}[{index}] must be an object with a `type`", code="invalid_type", param=f"{param}[{index}]"
            )
        kind = part["type"]
        if kind in ("text", "refusal"):
            if type(part.get(kind)) is not str:
                raise BadRequest(
                    f"{param}[{index}].{kind} must be a string", code="invalid_type", param=f"{param}[{index}].{kind}"
                )
            texts.append(part[kind])
        elif kind == "image_url":
            _check_image(part.get("image_url"), f"{param}[{index}].image_url")
            conversation.image_count += 1
        else:
            _check_other_media(part, kind, f"{param}[{index}]")
            # A model that takes more than text is told by its images; one that reads text only would refuse these too.
            conversation.image_count += kind in _OTHER_MEDIA or kind.endswith("_url")
    conversation.texts += texts
    return texts[0] if len(texts) == 1 else "\n".join(texts)


def _check_image(image: object, param: str) -> None:
    url = image.get("url") if type(image) is dict else image
    if type(url) is not str:
        raise BadRequest(f"{param} must be an object with a `url`", code="invalid_type", param=param)
    check_media_url(url, f"{param}.url" if type(image) is dict else param)


def _check_other_media(part: Mapping[str, Any], kind: str, param: str) -> None:
    """Parts that only some engines know (`video_url`, `audio_url`): they too are fetched by whoever answers."""
    if not kind.endswith("_url"):
        return
    value = part.get(kind)
    url = value.get("url") if type(value) is dict else value
    if type(url) is str:
        check_media_url(url, f"{param}.{kind}")


def _read_tool_calls(calls: object, param: str, conversation: _Conversation) -> None:
    if calls is None:
        return
    if type(calls) is not list or any(type(call) is not dict for call in calls):
        raise BadRequest(f"{param} must be a list of objects", code="invalid_type", param=param)
    for call in calls:
        function = call.get("function")
        if type(function) is dict:
            conversation.schema_texts += [
                v for v in (function.get("name"), function.get("arguments")) if type(v) is str
            ]


def _schema_texts(document: Mapping[str, Any], members: Mapping[str, msgspec.Raw]) -> list[str]:
    return [bytes(members[name]).decode() for name in ("tools", "functions", "response_format") if document.get(name)]


def _unwrap_extra_body(document: dict[str, Any], members: dict[str, msgspec.Raw]) -> None:
    """`extra_body` is an argument of client libraries, which merge it into the body; some callers send it as it is.

    Its `router` would else be lost without a word, and with it a cost cap.
    """
    extra = document["extra_body"]
    if type(extra) is not dict:
        return
    if not CONNECTION_FIELDS.isdisjoint(extra):
        raise refuse_connection_field(f"extra_body.{next(name for name in extra if name in CONNECTION_FIELDS)}")
    if "router" in extra:
        if document.get("router") is not None:
            raise BadRequest(
                "router and extra_body.router are both given; send the first",
                code="conflicting_controls",
                param="router",
            )
        document["router"] = extra.pop("router")
        if extra:
            members["extra_body"] = msgspec.Raw(msgspec.json.encode(extra))
        else:
            del members["extra_body"]


# ---- known fields ---------------------------------------------------------------------------------------------------


def _missing_or_wrong(param: str, value: object, wanted: str) -> BadRequest:
    if value is None:
        return BadRequest(f"{param} is missing; send {wanted}", code="missing_required_parameter", param=param)
    return BadRequest(f"{param} must be {wanted}", code="invalid_type", param=param)


def _shown(value: object) -> str:
    """A value fit for a message: numbers and booleans as they are, anything else by its kind only."""
    if isinstance(value, bool | float):
        return msgspec.json.encode(value).decode()
    if isinstance(value, int):
        return str(value) if abs(value) < 10**20 else "a huge number"
    return "a string" if isinstance(value, str) else "a list" if isinstance(value, list) else "an object"


def _integer(low: int, high: int) -> Callable[[str, object], None]:
    def check(name: str, value: object) -> None:
        if type(value) is not int:
            raise BadRequest(f"{name} is {_shown(value)}; it must be an integer", code="invalid_type", param=name)
        if not low <= value <= high:
            raise BadRequest(
                f"{name} is {_shown(value)}; it must be from {low} to {high}", code="invalid_value", param=name
            )

    return check


def _number(low: float, high: float) -> Callable[[str, object], None]:
    def check(name: str, value: object) -> None:
        if type(value) is not float and type(value) is not int:
            raise BadRequest(f"{name} is {_shown(value)}; it must be a number", code="invalid_type", param=name)
        if not low <= value <= high:
            raise BadRequest(
                f"{name} is {_shown(value)}; it must be from {low:g} to {high:g}", code="invalid_value", param=name
            )

    return check


def _boolean(name: str, value: object) -> None:
    if type(value) is not bool:
        raise BadRequest(f"{name} is {_shown(value)}; it must be true or false", code="invalid_type", param=name)


def _stop(name: str, value: object) -> None:
    if type(value) is str or (type(value) is list and all(type(text) is str for text in value)):
        return
    raise BadRequest(f"{name} must be a string or a list of strings", code="invalid_type", param=name)


def _objects(name: str, value: object) -> None:
    if type(value) is not list or any(type(item) is not dict for item in value):
        raise BadRequest(f"{name} must be a list of objects", code="invalid_type", param=name)


def _stream_options(name: str, value: object) -> None:
    if type(value) is not dict:
        raise BadRequest(f"{name} must be an object", code="invalid_type", param=name)
    include_usage = value.get("include_usage")
    if include_usage is not None:
        _boolean(f"{name}.include_usage", include_usage)


def _response_format(name: str, value: object) -> None:
    if type(value) is not dict or type(value.get("type")) is not str:
        raise BadRequest(f"{name} must be an object with a `type`", code="invalid_type", param=name)


# Absent and null are the same; names not listed here are not ours to judge.
_CHECKS: dict[str, Callable[[str, Any], None]] = {
    "max_tokens": _integer(1, MAX_OUTPUT_TOKENS),
    "max_completion_tokens": _integer(1, MAX_OUTPUT_TOKENS),
    "n": _integer(1, MAX_N),
    "best_of": _integer(1, MAX_N),
    "temperature": _number(0, 2),
    "top_p": _number(0, 1),
    "presence_penalty": _number(-2, 2),
    "frequency_penalty": _number(-2, 2),
    "logprobs": _boolean,
    "top_logprobs": _integer(0, 20),
    "prompt_logprobs": _integer(0, 20),
    "seed": _integer(-(2**63), 2**63 - 1),
    "stream": _boolean,
    "stop": _stop,
    "stream_options": _stream_options,
    "response_format": _response_format,
    "tools": _objects,
    "functions": _objects,
}
