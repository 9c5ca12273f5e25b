"""Where a client's requests go, and what every one of them begins with."""

from __future__ import annotations

import pytest

from router.providers.http_client import HttpClient, Target


@pytest.mark.parametrize(
    ("url", "target", "authority"),
    [
        ("http://host/v1", Target(False, "host", 80, "/v1"), "host"),
        ("https://HOST:443/v1/", Target(True, "host", 443, "/v1/"), "host"),
        ("https://host:8443", Target(True, "host", 8443, "/"), "host:8443"),
        ("http://[::1]:8000/v1", Target(False, "::1", 8000, "/v1"), "[::1]:8000"),
        ("http://bücher.example/v1", Target(False, "xn--bcher-kva.example", 80, "/v1"), "xn--bcher-kva.example"),
        ("http+unix://%2Frun%2Fx.sock/v1", Target(False, "localhost", 80, "/v1", "/run/x.sock"), "localhost"),
    ],
)
def test_addresses_are_read(url: str, target: Target, authority: str) -> None:
    assert Target.parse(url) == target
    assert target.authority == authority
    assert target.host_and_port.endswith(f":{target.port}")
    assert target.below("/chat").path == target.path.rstrip("/") + "/chat"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "host",
        "ftp://host/",
        "http://",
        "http://u:secret@host/",
        "http://host/?k=secret",
        "http://host/#secret",
        "http://host:secret/",
        "http://host:99999/secret",
        "http://host/a b",
        "http://host/\x7f",
        "http://host/ü",
        f"http://{'ü' * 80}/secret",
        "http+unix:///v1",
    ],
)
def test_bad_addresses_are_refused_without_being_repeated(url: str) -> None:
    with pytest.raises(ValueError) as caught:
        Target.parse(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "headers",
    [
        {"x-key": "a\r\nx-evil: 1"},
        {"x-key": "a\nb"},
        {"x-key": "a\0"},
        {"x evil": "1"},
        {"x:evil": "1"},
        {"": "1"},
        {"Content-Length": "3"},
        {"transfer-encoding": "chunked"},
        {"Connection": "close"},
    ],
)
def test_headers_that_would_break_a_request_are_refused_without_their_values(headers: dict[str, str]) -> None:
    with pytest.raises(ValueError) as caught:
        HttpClient(
            Target.parse("http://host/"), {"authorization": "Bearer sk-1", **headers}, body_bytes=1, error_bytes=1
        )
    assert "evil: 1" not in str(caught.value)
    assert "sk-1" not in str(caught.value)
