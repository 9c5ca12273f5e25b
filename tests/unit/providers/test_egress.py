"""Which messages would make somebody fetch something."""

from __future__ import annotations

from typing import Any

import pytest

from router.providers.egress import first_remote_part


def with_part(part: Any) -> list[dict[str, Any]]:
    return [{"role": "system", "content": "x"}, {"role": "user", "content": [{"type": "text", "text": "hi"}, part]}]


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}},
        {"type": "image_url", "image_url": "http://169.254.169.254/latest/meta-data"},
        {"type": "image_url", "image_url": {"url": " FILE:///etc/passwd"}},
        {"type": "image_url", "image_url": {"url": "//10.0.0.1/a"}},
        {"type": "video_url", "video_url": {"url": "ftp://h/v"}},
        {"type": "file", "file": {"file_id": "https://example.com/a.pdf"}},
        {"type": "file", "file": {"file_data": "gs://bucket/a.pdf"}},
        {"type": "image", "source": {"type": "url", "url": "http://h/a"}},
        {"type": "odd", "deep": [{"er": {"image_url": {"url": "http://h/a"}}}]},
    ],
)
def test_what_points_outside_is_found(part: Any) -> None:
    assert first_remote_part(with_part(part)) == "messages[1].content[1]"


@pytest.mark.parametrize(
    "part",
    [
        {"type": "text", "text": "look at https://example.com/a.png"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
        {"type": "input_audio", "input_audio": {"data": "UklGR", "format": "wav"}},
        {"type": "file", "file": {"file_id": "file-abc123", "file_data": "JVBERi0x"}},
        "https://not.a.part/",
        None,
        7,
    ],
)
def test_text_and_inline_data_pass(part: Any) -> None:
    assert first_remote_part(with_part(part)) is None


@pytest.mark.parametrize("messages", [None, "x", {}, [], [None], ["x"], [{"content": None}], [{"content": "http://h"}]])
def test_any_shape_is_taken(messages: Any) -> None:
    assert first_remote_part(messages) is None
