"""What a client's messages would make somebody fetch. Pure.

We fetch nothing for a client. Where a library would download what a message points to, before the call and from inside
our network, only inline data may pass.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

_POINTERS = ("url", "image_url", "video_url", "audio_url", "file_url", "file_id", "file_data", "file", "uri")
_SCHEME = re.compile(r"\s*(?:[a-zA-Z][a-zA-Z0-9+.\-]*:|//|\\\\)")
_INLINE = re.compile(r"\s*data:", re.IGNORECASE)


def first_remote_part(messages: Any) -> str | None:
    """Where the first part stands that points outside (`messages[0].content[1]`), or `None`."""
    for index, message in enumerate(messages if isinstance(messages, list) else ()):
        content = message.get("content") if isinstance(message, dict) else None
        for place, part in enumerate(content if isinstance(content, list) else ()):
            if any(_SCHEME.match(text) and not _INLINE.match(text) for text in _pointers(part)):
                return f"messages[{index}].content[{place}]"
    return None


def _pointers(value: Any, *, pointed: bool = False) -> Iterator[str]:
    """Strings under a pointing key, at any depth; text is not looked at."""
    if isinstance(value, str):
        if pointed:
            yield value
    elif isinstance(value, list):
        for item in value:
            yield from _pointers(item, pointed=pointed)
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _pointers(inner, pointed=key in _POINTERS)
