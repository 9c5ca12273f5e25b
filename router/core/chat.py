"""A chat request as the flow sees it: checked, and free of transport."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from router.core.nouns import Noun
from router.core.vocabulary import Locality


class RouterControls(Noun, frozen=True):
    """What the caller asked of the router itself, by header or in the body's `router` member.

    `quality_floor_ratio` (0..1) is the hard floor of this request, `max_nanousd` the most it may cost, rounded down.
    """

    quality_floor_ratio: float | None = None
    max_nanousd: int | None = None
    locality: Locality = Locality.ANY
    session: str | None = None
    debug: bool = False


NO_CONTROLS = RouterControls()


class ChatRequest(Noun, frozen=True):
    """One chat completion request after decoding.

    `fields` are the top-level members of the body as opaque JSON values, in the client's order, without `model` and
    without `router`: exactly what a provider splices. `texts` are all text parts of the messages in order;
    `schema_texts` is what also costs prompt tokens without being prose: tool definitions, arguments of tool calls,
    a response schema. `turns` counts user messages. `system_text` joins system and developer messages.
    """

    requested_model: str
    fields: Mapping[str, Any]
    stream: bool
    include_usage: bool
    texts: tuple[str, ...]
    schema_texts: tuple[str, ...]
    message_count: int
    turns: int
    image_count: int
    system_text: str
    last_user_text: str
    has_tools: bool
    wants_json: bool
    max_output_tokens: int | None = None
    n: int = 1
    temperature: float | None = None
    controls: RouterControls = NO_CONTROLS

    @property
    def has_images(self) -> bool:
        """Whether any message holds an image."""
        return self.image_count > 0
