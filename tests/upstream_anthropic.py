"""`FakeAnthropic`: a host that plays Anthropic's `/v1/messages`, plain and streamed, and fails as scripted.

Usage is counted from the request. As the real one, it counts cached tokens beside `input_tokens`, not within.
"""

from __future__ import annotations

import json
import math
from collections import deque
from dataclasses import dataclass
from typing import Any, Literal

from tests.loopback_http import Exchange, LoopbackServer
from tests.upstream_answers import message_text, pieces


@dataclass(frozen=True, slots=True)
class Turn:
    """How one request is answered. `*_at` count text deltas from 0."""

    text: str | None = None
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    tool: tuple[str, dict[str, Any]] | None = None
    delay_s: float = 0.0
    gap_s: float = 0.0
    status: int = 200
    error_type: str = ""
    error_message: str = "scripted"
    headers: tuple[tuple[str, str], ...] = ()
    error_at: int | None = None
    cut_at: int | None = None
    cut_how: Literal["eof", "clean_end"] = "eof"
    silent_at: int | None = None


class FakeAnthropic(LoopbackServer):
    """Requests without the right `x-api-key` are 401."""

    def __init__(self, api_key: str = "sk-ant-loopback") -> None:
        super().__init__()
        self.api_key = api_key
        self.queue: deque[Turn] = deque()

    def script(self, *turns: Turn) -> None:
        """Append turns, one per coming request."""
        self.queue.extend(turns)

    async def handle(self, exchange: Exchange) -> None:
        """Answer one request."""
        request = exchange.request
        turn = self.queue.popleft() if self.queue else Turn()
        await exchange.pause(turn.delay_s)
        if request.headers.get("x-api-key") != self.api_key:
            turn = Turn(status=401, error_type="authentication_error", error_message="invalid x-api-key")
        elif request.path != "/v1/messages":
            turn = Turn(status=404, error_type="not_found_error", error_message="Not found")
        if turn.status != 200:
            error = {"type": "error", "error": {"type": turn.error_type, "message": turn.error_message}}
            headers = [("content-type", "application/json"), *turn.headers]
            await exchange.answer(turn.status, json.dumps(error).encode(), headers)
        elif request.json.get("stream"):
            await self._stream(exchange, turn)
        else:
            body = self._message(request.json, turn, len(self.requests))
            await exchange.answer(200, json.dumps(body).encode(), [("content-type", "application/json")])

    def _usage(self, body: dict[str, Any], turn: Turn, output_tokens: int) -> dict[str, int]:
        return {
            "input_tokens": sum(4 + len(pieces(message_text(m))) for m in body["messages"]),
            "cache_creation_input_tokens": turn.cache_write_tokens,
            "cache_read_input_tokens": turn.cache_read_tokens,
            "output_tokens": output_tokens,
        }

    @staticmethod
    def _tokens(body: dict[str, Any], turn: Turn) -> list[str]:
        text = f"You said: {message_text(body['messages'][-1])}" if turn.text is None else turn.text
        return pieces(text)[: body["max_tokens"]]

    def _message(self, body: dict[str, Any], turn: Turn, number: int) -> dict[str, Any]:
        tokens = self._tokens(body, turn)
        content: list[dict[str, Any]] = [{"type": "text", "text": "".join(tokens)}]
        if turn.tool is not None:
            name, arguments = turn.tool
            content.append({"type": "tool_use", "id": "toolu_1", "name": name, "input": arguments})
        return {
            "id": f"msg_{number}",
            "type": "message",
            "role": "assistant",
            "model": body["model"],
            "content": content,
            "stop_reason": "end_turn" if turn.tool is None else "tool_use",
            "stop_sequence": None,
            "usage": self._usage(body, turn, len(tokens)),
        }

    async def _stream(self, exchange: Exchange, turn: Turn) -> None:
        body = exchange.request.json
        tokens = self._tokens(body, turn)
        await exchange.head(200, [("content-type", "text/event-stream; charset=utf-8")], content_length=None)
        start = {**self._message(body, turn, len(self.requests)), "content": [], "stop_reason": None}
        await self._send(exchange, "message_start", message={**start, "usage": self._usage(body, turn, 1)})
        await self._send(exchange, "content_block_start", index=0, content_block={"type": "text", "text": ""})
        await self._send(exchange, "ping")
        for position, token in enumerate(tokens):
            if position == turn.error_at:
                await self._send(exchange, "error", error={"type": "overloaded_error", "message": "Overloaded"})
                await exchange.end()
                return
            if position == turn.cut_at:
                if turn.cut_how == "clean_end":
                    await exchange.end()
                else:
                    exchange.close()
                return
            if position == turn.silent_at:
                await exchange.pause(math.inf)
            await self._send(exchange, "content_block_delta", index=0, delta={"type": "text_delta", "text": token})
            await exchange.pause(turn.gap_s)
        await self._send(exchange, "content_block_stop", index=0)
        if turn.tool is not None:
            await self._tool(exchange, *turn.tool)
        stop = {"stop_reason": "end_turn" if turn.tool is None else "tool_use", "stop_sequence": None}
        await self._send(exchange, "message_delta", delta=stop, usage={"output_tokens": len(tokens)})
        await self._send(exchange, "message_stop")
        await exchange.end()

    async def _tool(self, exchange: Exchange, name: str, arguments: dict[str, Any]) -> None:
        block = {"type": "tool_use", "id": "toolu_1", "name": name, "input": {}}
        await self._send(exchange, "content_block_start", index=1, content_block=block)
        raw = json.dumps(arguments)
        for start in range(0, len(raw), 5):
            delta = {"type": "input_json_delta", "partial_json": raw[start : start + 5]}
            await self._send(exchange, "content_block_delta", index=1, delta=delta)
        await self._send(exchange, "content_block_stop", index=1)

    @staticmethod
    async def _send(exchange: Exchange, kind: str, **members: Any) -> None:
        await exchange.chunk(f"event: {kind}\ndata: {json.dumps({'type': kind, **members})}\n\n".encode())
