from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.api.media_urls import check_media_url
from router.errors import BadRequest


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com/a.png",
        "http://example.com:8080/a.png?x=1#y",
        "HTTPS://EXAMPLE.COM/",
        "data:image/png;base64,AAAA",
        "DATA:image/png;base64," + "A" * 100_000,
        "https://8.8.8.8/a.png",
        "https://[2606:4700::1111]/a.png",
        "https://bücher.example/a.png",
        "https://10.example.com/",
    ],
)
def test_public_addresses_and_inline_data_pass(url: str) -> None:
    check_media_url(url, "p")


@pytest.mark.parametrize(
    "url",
    [
        "", "x", "a.png", "//example.com/a", "file:///etc/passwd", "ftp://example.com/a", "gopher://x", "javascript:1",
        "http://", "http:///path", "http://localhost/", "http://LOCALHOST./", "http://a.localhost", "http://db.internal/",
        "http://127.0.0.1/", "http://127.1/", "http://2130706433/", "http://0x7f000001/", "http://0177.0.0.1/",
        "http://0x7f.1/", "http://0/", "http://0.0.0.0/", "http://10.0.0.1/", "http://172.16.0.1/", "http://192.168.1.1/",
        "http://169.254.169.254/latest/meta-data/", "http://100.64.0.1/", "http://224.0.0.1/", "http://255.255.255.255/",
        "http://[::1]/", "http://[::]/", "http://[::ffff:127.0.0.1]/", "http://[fe80::1]/", "http://[fc00::1]/",
        "http://[64:ff9b::7f00:1]/", "http://[2002:7f00:1::]/", "http://\uff11\uff12\uff17.0.0.\uff11/", "http://127\u30020\u30020\u30021/",
        "http://user:pw@example.com/", "http://example.com\\@127.0.0.1/", "http://exa mple.com/", "http://a\nb/",
        "http://[::1", "http://example.com:99999/", "http://1.2.3.4.5.6/" + "9" * 9000, "http://999999999999/",
        "http://300.1.1.1/", "https://example.com/" + "a" * 9000, "http://127.0.0.1:80/", "http://09.0.0.1/",
    ],
)  # fmt: skip
def test_addresses_inside_the_house_and_odd_ones_are_refused(url: str) -> None:
    with pytest.raises(BadRequest) as caught:
        check_media_url(url, "messages[0].content[0].image_url.url")
    assert caught.value.param == "messages[0].content[0].image_url.url"


@given(st.text(max_size=30).map(lambda tail: "http://" + tail) | st.text(max_size=30))
def test_any_text_passes_or_is_refused_but_never_breaks(url: str) -> None:
    try:
        check_media_url(url, "p")
    except BadRequest as error:
        assert error.code == "invalid_media_url"
    else:
        assert url[:5].lower() in ("http:", "https", "data:")
