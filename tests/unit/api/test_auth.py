from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.api.auth import ANYBODY, Authenticator, Caller
from router.errors import Forbidden, Unauthorized

KEYS = [("rk-admin", Caller("default", admin=True)), ("rk-acme-schlüssel", Caller("acme"))]
GUARDED = Authenticator.from_keys(required=True, keys=KEYS)


def bearer(key: str) -> dict[str, str]:
    """Headers as they arrive: bytes read as latin-1."""
    return {"authorization": f"Bearer {key}".encode().decode("latin-1")}


def refused(headers: dict[str, str]) -> Unauthorized:
    with pytest.raises(Unauthorized) as caught:
        GUARDED.authenticate(headers)
    return caught.value


@pytest.mark.parametrize(
    ("key", "caller"), [("rk-admin", Caller("default", True)), ("rk-acme-schlüssel", Caller("acme"))]
)
def test_a_known_key_names_its_caller_in_either_header(key: str, caller: Caller) -> None:
    assert GUARDED.authenticate(bearer(key)) == caller
    assert GUARDED.authenticate({"x-api-key": key.encode().decode("latin-1")}) == caller


def test_the_scheme_is_read_in_any_case_and_blanks_do_not_matter() -> None:
    assert GUARDED.authenticate({"authorization": "bearer   rk-admin "}) == Caller("default", True)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": ""},
        {"authorization": "Bearer"},
        {"authorization": "Bearer "},
        {"authorization": "rk-admin"},
        {"authorization": "Basic cmstYWRtaW4="},
        {"authorization": "Bearer ' OR 1=1--"},
        {"authorization": "Bearer rk-admin rk-acme"},
        {"authorization": "Bearer RK-ADMIN"},
        {"authorization": "Bearer rk-admi"},
        {"authorization": "Bearer rk-admin\x00"},
        {"authorization": "Bearer " + "x" * 1_000_000},
        {"authorization": "Bearer rk-admin" + "x" * 1_000_000},
        {"authorization": "x" * 1_000_000},
        {"authorization": "Bearer 漢"},
        {"authorization": "Basic x", "x-api-key": "rk-admin"},
        {"x-api-key": ""},
        {"x-api-key": "x" * 1_000_000},
        {"host": "x/health?", "x-forwarded-user": "admin", "x-router-tenant": "acme"},
    ],
    ids=lambda headers: str(headers)[:60],
)
def test_anything_else_is_refused_without_repeating_it(headers: dict[str, str]) -> None:
    error = refused(headers)
    assert error.code == "invalid_api_key"
    assert "OR 1=1" not in error.message
    assert len(error.message) < 200


def test_where_no_key_is_required_none_is_looked_at() -> None:
    open_door = Authenticator.from_keys(required=False, keys=KEYS)
    for headers in ({}, bearer("rk-acme-schlüssel"), bearer("wrong"), {"authorization": "x" * 10_000}):
        assert open_door.authenticate(headers) == ANYBODY
    assert ANYBODY.tenant == "default"


def test_a_web_page_of_another_site_does_not_pass_an_open_door_but_may_have_a_key() -> None:
    page = {"sec-fetch-site": "cross-site"}
    with pytest.raises(Forbidden, match="ROUTER_API_KEY"):
        Authenticator.from_keys(required=False, keys=KEYS).authenticate(page)
    for site in ("same-origin", "same-site", "none"):
        assert Authenticator.from_keys(required=False, keys=KEYS).authenticate({"sec-fetch-site": site}) == ANYBODY
    key, caller = KEYS[0]
    with_key = Authenticator.from_keys(required=True, keys=KEYS).authenticate(page | bearer(key))
    assert with_key == caller


def test_without_any_key_configured_nobody_gets_in() -> None:
    closed = Authenticator.from_keys(required=True, keys=[])
    with pytest.raises(Unauthorized):
        closed.authenticate(bearer(""))
    with pytest.raises(Unauthorized):
        closed.authenticate(bearer("x"))


def test_no_key_is_kept_in_the_clear() -> None:
    assert "rk-admin" not in repr(vars(GUARDED))


@given(st.dictionaries(st.sampled_from(["authorization", "x-api-key"]), st.text(max_size=40)))
def test_any_header_names_a_caller_or_is_refused(headers: dict[str, str]) -> None:
    with pytest.raises(Unauthorized):
        GUARDED.authenticate(headers)
