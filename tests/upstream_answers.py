"""What an OpenAI-style model host says, as pure functions of the request: answers, chunks, usage, errors.

Token counts come from the texts (one token a word or punctuation mark, four a message), so that usage figures are
true to the request and the same for plain and streamed answers.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

_PIECE = re.compile(r"\s*(?:\w+|[^\w\s])", re.UNICODE)
CREATED = 1_795_304_780
OVERHEAD_TOKENS_PER_MESSAGE = 4


def pieces(text: str) -> list[str]:
    """`text` cut into tokens; joined they give it back, but for trailing white space."""
    return _PIECE.findall(text)


def message_text(message: dict[str, Any]) -> str:
    """All text of a message, whether its content is a string, a list of parts, or absent."""
    content = message.get("content")
    if isinstance(content, list):
        return " ".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def prompt_tokens(body: dict[str, Any]) -> int:
    """Tokens of the conversation and of the tools offered with it."""
    messages = body.get("messages") or []
    tools = len(pieces(json.dumps(body["tools"]))) if body.get("tools") else 0
    return tools + sum(OVERHEAD_TOKENS_PER_MESSAGE + len(pieces(message_text(m))) for m in messages)


def usage_of(body: dict[str, Any], completion_tokens: int, *, cached: int = 0, reasoning: int = 0) -> dict[str, Any]:
    """OpenAI's usage object."""
    prompt = prompt_tokens(body)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": cached, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": reasoning,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


@dataclass(frozen=True, slots=True)
class Said:
    """What one choice says: text in tokens, or tool calls, and why it ended."""

    tokens: tuple[str, ...]
    tool_calls: tuple[dict[str, Any], ...] = ()
    finish_reason: str = "stop"

    @property
    def completion_tokens(self) -> int:
        """Tokens generated, those of tool calls included."""
        calls = sum(len(pieces(json.dumps(call["function"]))) for call in self.tool_calls)
        return len(self.tokens) + calls


def forced_tools(body: dict[str, Any]) -> tuple[str, ...]:
    """Names of the tools that the request forces the model to call."""
    choice = body.get("tool_choice")
    names = tuple(t["function"]["name"] for t in body.get("tools") or () if t.get("type") == "function")
    if choice == "required":
        return names[:1]
    return (choice["function"]["name"],) if isinstance(choice, dict) and "function" in choice else ()


def tool_call(name: str, arguments: dict[str, Any], number: int = 0) -> dict[str, Any]:
    """One tool call as a plain answer shows it."""
    function = {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)}
    return {"id": f"call_{number}_{name}", "type": "function", "function": function}


def say(body: dict[str, Any], text: str | None, tool_calls: tuple[dict[str, Any], ...] = ()) -> Said:
    """One choice: `text`, or an echo of the last message, or the tools that are forced; cut at max_tokens."""
    last = message_text((body.get("messages") or [{}])[-1])
    if not tool_calls and text is None:
        tool_calls = tuple(tool_call(name, {"text": last}, i) for i, name in enumerate(forced_tools(body)))
    if tool_calls and text is None:
        return Said((), tool_calls, "tool_calls")
    answer = f"You said: {last}" if text is None else text
    if text is None and (body.get("response_format") or {}).get("type") in ("json_object", "json_schema"):
        answer = json.dumps({"answer": last}, ensure_ascii=False)
    tokens = tuple(pieces(answer))
    cap = body.get("max_completion_tokens") or body.get("max_tokens")
    if isinstance(cap, int) and cap < len(tokens):
        return Said(tokens[:cap], (), "length")
    return Said(tokens, tool_calls, "tool_calls" if tool_calls else "stop")


def logprobs_of(tokens: tuple[str, ...]) -> dict[str, Any]:
    """Log probabilities in OpenAI's shape, the same for every token."""
    entries = [{"token": t, "logprob": -0.125, "bytes": list(t.encode()), "top_logprobs": []} for t in tokens]
    return {"content": entries, "refusal": None}


def plain_answer(body: dict[str, Any], said: Said, *, number: int, usage: dict[str, Any] | None) -> dict[str, Any]:
    """A `chat.completion`; `n` choices say the same."""
    choices = []
    for index in range(body.get("n") or 1):
        message: dict[str, Any] = {"role": "assistant", "content": "".join(said.tokens) or None, "refusal": None}
        if said.tool_calls:
            message["tool_calls"] = list(said.tool_calls)
        logprobs = logprobs_of(said.tokens) if body.get("logprobs") else None
        choices.append({"index": index, "message": message, "logprobs": logprobs, "finish_reason": said.finish_reason})
    answer = {**_head(body, number, "chat.completion"), "choices": choices}
    return answer if usage is None else {**answer, "usage": usage}


def _head(body: dict[str, Any], number: int, kind: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{number}",
        "object": kind,
        "created": CREATED,
        "model": body.get("model"),
        "system_fingerprint": "fp_loopback",
    }


def chunk(body: dict[str, Any], number: int, choices: list[dict[str, Any]]) -> dict[str, Any]:
    """One `chat.completion.chunk`."""
    return {**_head(body, number, "chat.completion.chunk"), "choices": choices}


def stream_chunks(body: dict[str, Any], said: Said, number: int) -> list[dict[str, Any]]:
    """All chunks of a streamed answer without usage: roles, deltas, finish reasons; choices take turns."""

    def of(index: int, delta: dict[str, Any], finish: str | None = None, token: str | None = None) -> dict[str, Any]:
        logprobs = logprobs_of((token,)) if token is not None and body.get("logprobs") else None
        return chunk(body, number, [{"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}])

    indices = range(body.get("n") or 1)
    chunks = [of(i, {"role": "assistant", "content": "", "refusal": None}) for i in indices]
    chunks += [of(i, {"content": token}, token=token) for token in said.tokens for i in indices]
    chunks += [of(i, {"tool_calls": [delta]}) for delta in _tool_deltas(said.tool_calls) for i in indices]
    chunks += [of(i, {}, said.finish_reason) for i in indices]
    return chunks


def _tool_deltas(calls: tuple[dict[str, Any], ...]) -> list[dict[str, Any]]:
    """Tool calls as they are streamed: the name first, then the arguments in pieces of five characters."""
    deltas: list[dict[str, Any]] = []
    for index, call in enumerate(calls):
        arguments = call["function"]["arguments"]
        head = {"name": call["function"]["name"], "arguments": ""}
        deltas.append({"index": index, "id": call["id"], "type": "function", "function": head})
        pieces_of_five = (arguments[start : start + 5] for start in range(0, len(arguments), 5))
        deltas.extend({"index": index, "function": {"arguments": piece}} for piece in pieces_of_five)
    return deltas


def usage_chunk(body: dict[str, Any], number: int, usage: dict[str, Any]) -> dict[str, Any]:
    """The chunk that ends a stream whose caller asked for usage: no choices."""
    return {**chunk(body, number, []), "usage": usage}


def error_body(message: str, kind: str, *, param: str | None = None, code: str | int | None = None) -> dict[str, Any]:
    """OpenAI's error envelope."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def refuse(
    body: Any, known_models: frozenset[str] | None, context_tokens: int | None
) -> tuple[int, dict[str, Any]] | None:
    """The 4xx that OpenAI gives for `body`, or `None`: not an object, no messages, unknown model, prompt too long."""
    if not isinstance(body, dict) or not isinstance(body.get("messages"), list) or not body["messages"]:
        text = "Missing required parameter: 'messages'."
        return 400, error_body(text, "invalid_request_error", param="messages", code="missing_required_parameter")
    if body.get("stream_options") is not None and not body.get("stream"):
        text = "The 'stream_options' parameter is only allowed when 'stream' is enabled."
        return 400, error_body(text, "invalid_request_error", param="stream_options")
    if known_models is not None and body.get("model") not in known_models:
        text = f"The model `{body.get('model')}` does not exist or you do not have access to it."
        return 404, error_body(text, "invalid_request_error", code="model_not_found")
    if context_tokens is not None and prompt_tokens(body) > context_tokens:
        text = (
            f"This model's maximum context length is {context_tokens} tokens. However, your messages resulted in "
            f"{prompt_tokens(body)} tokens. Please reduce the length of the messages."
        )
        kind = "invalid_request_error"
        return 400, error_body(text, kind, param="messages", code="context_length_exceeded")
    return None
