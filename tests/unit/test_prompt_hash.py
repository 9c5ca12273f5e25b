"""The hash of a prompt, however long it is."""

from __future__ import annotations

from hashlib import sha256

import msgspec
import pytest

from router.api.schemas import decode_chat
from router.records import prompt_sha256


@pytest.mark.parametrize("chars", [1, 1_980, 2_000, 2_047, 2_048, 4_094, 16_300, 16_376, 16_400, 100_000])
def test_the_hash_is_that_of_the_messages_as_they_came(chars: int) -> None:
    messages = msgspec.json.encode([{"role": "user", "content": "é" + "x" * chars}])
    chat = decode_chat(b'{"model":"auto","messages":' + messages + b"}", {})
    assert prompt_sha256(chat) == sha256(messages).hexdigest()
