"""Limits of keys as they stand in a config: whose they are, this gateway's part, and every mistake that is named."""

from __future__ import annotations

import pytest
import yaml

from router.core.limits import NO_LIMITS, Allowance, KeyLimiter, LimitTerms
from router.errors import ConfigError, RateLimited
from router.settings import AuthSettings, parse_settings
from tests.fakes import FakeClock

KEYS = {"ROUTER_API_KEY": "rk-1", "ACME_KEY": "rk-2", "LABS_KEY": "rk-3"}


def auth(text: str, environ: dict[str, str] | None = None, gateways: int = 1) -> AuthSettings:
    """The `auth` section of a config that has nothing else of interest."""
    config = {
        "server": {"gateways": gateways, "auth": yaml.safe_load(text)},
        "tiers": {"local": {"engine": "embedded"}},
    }
    return parse_settings(yaml.safe_dump(config), KEYS if environ is None else environ, source="r.yaml").server.auth


def mistakes(text: str, environ: dict[str, str] | None = None, gateways: int = 1) -> str:
    """All that is wrong with it."""
    with pytest.raises(ConfigError) as caught:
        auth(text, environ, gateways)
    return "\n".join(caught.value.lines())


def test_without_limits_nobody_has_any():
    assert [key.limits for key in auth("{}").keys] == [NO_LIMITS]
    assert not NO_LIMITS.any()


def test_a_key_has_the_default_where_it_does_not_say_otherwise_and_null_is_no_limit():
    found = auth(
        """
        default_limits: {requests_per_min: 60, tokens_per_min: 10000, concurrency_max: 4}
        keys:
          - {tenant: acme, key_env: ACME_KEY, limits: {requests_per_min: 600, concurrency_max: null}}
          - {tenant: labs, key_env: LABS_KEY}
        """
    )
    default = LimitTerms(requests_per_min=60, tokens_per_min=10_000, concurrency_max=4)
    assert {key.tenant: key.limits for key in found.keys} == {
        "default": default,
        "acme": LimitTerms(requests_per_min=600, tokens_per_min=10_000),
        "labs": default,
    }
    assert found.default_limits == default


@pytest.mark.parametrize(("plan", "most"), [("free", 10), ("pro", 100), ("enterprise", 1_000), ("of no plan", 10)])
def test_keys_of_each_plan_make_as_many_requests_an_hour_as_it_says(plan: str, most: int):
    own = {"free": 10, "pro": 100, "enterprise": 1_000}.get(plan)
    limits = {} if own is None else {"limits": {"requests_per_hour": own}}
    found = auth(
        yaml.safe_dump(
            {
                "default_limits": {"requests_per_hour": 10},
                "keys": [{"tenant": "acme", "key_env": "ACME_KEY", **limits}],
            }
        )
    )
    limiter = KeyLimiter(found.keys[-1].limits, now_s=FakeClock().now_s)
    for _ in range(most):
        with Allowance(limiter):
            pass
    with pytest.raises(RateLimited, match=f"{most} requests per hour"), Allowance(limiter):
        pass


@pytest.mark.parametrize("gateways", [1, 2, 3, 7])
def test_all_gateways_together_never_give_out_more_than_the_whole(gateways: int):
    found = auth("default_limits: {requests_per_min: 10, requests_per_hour: 100}", gateways=gateways)
    limits = found.keys[0].limits
    assert limits.requests_per_min is not None
    assert 10 - gateways < gateways * limits.requests_per_min <= 10
    assert limits.requests_per_hour == 100 // gateways


def test_a_limit_that_cannot_be_shared_is_a_mistake_with_its_place_and_cure():
    text = "keys: [{tenant: acme, key_env: ACME_KEY, limits: {concurrency_max: 2}}]"
    said = mistakes(text, gateways=3)
    assert "server.auth.keys[0].limits.concurrency_max: 2 cannot be shared by 3 gateways" in said
    assert "give at least 3" in said


@pytest.mark.parametrize("limit", ["requests_per_min: 0", "tokens_per_min: -1", "concurrency_max: true", "rpm: 5"])
def test_what_is_no_limit_is_refused(limit: str):
    assert "server.auth.default_limits." in mistakes(f"default_limits: {{{limit}}}")


def test_a_key_for_the_metrics_must_be_set_and_nobody_elses():
    assert auth("metrics_key_env: LABS_KEY").metrics_key is not None
    said = mistakes("metrics_key_env: PROM_KEY")
    assert "PROM_KEY is not set" in said
    assert "leave /metrics open" in said
    said = mistakes("{metrics_key_env: ACME_KEY, keys: [{tenant: acme, key_env: ACME_KEY}]}")
    assert "a tenant's as well" in said


def test_the_metrics_key_is_a_secret():
    config = yaml.safe_dump(
        {"server": {"auth": {"metrics_key_env": "LABS_KEY"}}, "tiers": {"local": {"engine": "embedded"}}}
    )
    settings = parse_settings(config, KEYS)
    assert "rk-3" in settings.secret_values()
    assert "rk-3" not in repr(settings)


def test_limits_of_a_key_that_nobody_is_asked_for_are_a_mistake():
    told = mistakes("{required: false, keys: [{tenant: acme, key_env: ACME_KEY, limits: {concurrency_max: 3}}]}")
    assert "server.auth.keys[0].limits: would hold for nobody, since server.auth.required is false" in told
    assert auth("{required: false, default_limits: {concurrency_max: 3}, keys: [{tenant: acme, key_env: ACME_KEY}]}")
