"""Parts that are not text need a model that takes more than text."""

from __future__ import annotations

import json
from typing import Any

import pytest

from router.api.schemas import decode_chat

AUDIO = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}
FILE = {"type": "file", "file": {"file_data": "AAAA"}}
VIDEO = {"type": "video_url", "video_url": {"url": "https://example.com/a.mp4"}}


def has_images(*parts: dict[str, Any]) -> bool:
    body = {
        "model": "auto",
        "messages": [{"role": "user", "content": [{"type": "text", "text": "What is it?"}, *parts]}],
    }
    return decode_chat(json.dumps(body).encode(), {}).has_images


@pytest.mark.parametrize("part", [AUDIO, FILE, VIDEO], ids=lambda part: part["type"])
def test_media_other_than_images_are_kept_from_models_that_read_text_only(part: dict[str, Any]) -> None:
    assert has_images(part)


def test_text_alone_and_parts_of_unknown_kinds_ask_for_nothing() -> None:
    assert not has_images()
    assert not has_images({"type": "thinking", "thinking": "hm"})
