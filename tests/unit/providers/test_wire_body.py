"""What is sent upstream: the client's members as they came, three of them ours."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from router.providers.openai_compatible import OpenAICompatibleProvider, wire_body
from tests.provider_calls import a_call


def sent(**options: Any) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(wire_body(a_call(**options)))
    return body


def test_model_is_set_and_our_own_member_stays_home() -> None:
    body = sent(model="auto", router={"locality": "local"}, temperature=0.5, odd={"x": [1]})
    assert body["model"] == "wire-model"
    assert "router" not in body
    assert (body["temperature"], body["odd"]) == (0.5, {"x": [1]})


def test_members_are_spliced_byte_for_byte() -> None:
    odd = b'{ "a" : 1.50, "b":"\\u00fc\\ud83d" }'
    call = a_call()
    assert odd in wire_body(replace(call, fields={**call.fields, "odd": msgspec.Raw(odd)}))


def test_a_stream_always_asks_for_usage_and_keeps_the_clients_options() -> None:
    assert sent(stream=True)["stream_options"] == {"include_usage": True}
    assert sent(stream=True, stream_options=None)["stream_options"] == {"include_usage": True}
    own = {"include_usage": False, "include_obfuscation": False}
    body = sent(stream=True, stream_options=own)
    assert body["stream"] is True
    assert body["stream_options"] == {"include_usage": True, "include_obfuscation": False}
    assert sent(stream=True, stream_options="nonsense")["stream_options"] == "nonsense"


def test_hosts_that_refuse_stream_options_get_none() -> None:
    call = a_call(stream=True, stream_options={"include_usage": True})
    assert "stream_options" not in json.loads(wire_body(call, ask_for_usage=False))


def test_a_plain_call_does_not_stream() -> None:
    body = sent()
    assert "stream" not in body
    assert "stream_options" not in body


@pytest.mark.parametrize(
    "base_url",
    [
        "",
        "localhost:8000/v1",
        "ftp://host/v1",
        "file:///etc/passwd",
        "http://",
        "http://user:secret@host/v1",
        "https://host/v1?key=secret",
        "http+unix:///v1",
    ],
)
def test_a_bad_base_is_refused_at_once_without_repeating_it(base_url: str) -> None:
    with pytest.raises(ValueError, match="API base") as caught:
        OpenAICompatibleProvider(base_url, "k")
    assert "secret" not in str(caught.value)


def test_a_key_with_a_line_break_cannot_smuggle_a_header() -> None:
    with pytest.raises(ValueError, match="line break") as caught:
        OpenAICompatibleProvider("http://host/v1", "sk-1\r\nx-evil: 1")
    assert "sk-1" not in str(caught.value)
    OpenAICompatibleProvider("http://host/v1", "sk-1\n")  # as files end


def test_the_key_is_not_in_the_repr() -> None:
    assert "sk-1" not in repr(OpenAICompatibleProvider("http://host/v1", "sk-1"))
