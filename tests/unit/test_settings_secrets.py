"""Settings: keys and passwords, and who may use the gateway."""

from __future__ import annotations

from pathlib import Path

import pytest

from router.errors import ConfigError
from router.settings import (
    parse_settings,
)
from tests.settings_problems import EMBEDDED, KEY, only_problem, problems


def test_no_secret_shows_in_the_repr_of_settings() -> None:
    settings = parse_settings(
        EMBEDDED + "server: {database_url_env: DB}\n",
        {"ROUTER_API_KEY": "canary-router-key", "DB": "postgresql://u:canary-pw@h/db", **KEY},
    )
    assert "canary" not in repr(settings) and "canary" not in str(settings)
    assert settings.server.database_url_masked == "postgresql://u:***@h/db"
    assert set(settings.secret_values()) == {"canary-router-key", "postgresql://u:canary-pw@h/db"}


@pytest.mark.parametrize(
    "text",
    [
        "tiers: {local: {engine: embedded}, cheap: {model: openai/a, api_key: sk-canary-1}}",
        "tiers: {local: {engine: embedded}, cheap: {model: openai/a, api_key_env: sk-canary-1}}",
        "tiers: {local: {engine: embedded}, cheap: {model: openai/a, api_base: 'https://u:canary@h/v1'}}",
        EMBEDDED + "server: {database_url: 'postgresql://u:canary@h/db'}",
        EMBEDDED + "server: {auth: {keys: [{tenant: a, key: canary}]}}",
    ],
)
def test_a_secret_in_the_file_is_a_mistake_that_does_not_repeat_it(text: str) -> None:
    assert not any("canary" in line for line in problems(text))


def test_a_database_password_may_stand_in_the_environment() -> None:
    settings = parse_settings(EMBEDDED, {"ROUTER_SERVER__DATABASE_URL": "postgresql://u:canary@h/db"})
    assert settings.server.database_url == "postgresql://u:canary@h/db"


def test_a_secret_may_stand_in_a_file_named_by_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("sk-from-file\n")
    text = "tiers: {cheap: {model: openai/a}}"
    key = parse_settings(text, {"OPENAI_API_KEY_FILE": str(file)}).tiers.cheap[0].api_key
    assert key is not None and key.get_secret_value() == "sk-from-file"
    both = problems(text, {"OPENAI_API_KEY_FILE": str(file), **KEY})
    assert any("OPENAI_API_KEY_FILE; unset one" in line or "unset one of them" in line for line in both)
    assert any("cannot be read" in line for line in problems(text, {"OPENAI_API_KEY_FILE": str(tmp_path / "no")}))


def test_a_key_with_a_line_break_is_a_mistake_that_does_not_repeat_it() -> None:
    line = only_problem(EMBEDDED, {"ROUTER_API_KEY": "canary one\ntwo"})
    assert "ROUTER_API_KEY (environment)" in line and "canary" not in line


def test_a_providers_own_key_is_never_read_for_another_host() -> None:
    model = parse_settings("tiers: {cheap: {model: openai/a, api_base: 'http://10.0.0.1/v1'}}", KEY).tiers.cheap[0]
    assert (model.api_key, model.unavailable) == (None, None)


def test_an_unknown_provider_with_an_address_is_told_the_whole_model_name() -> None:
    text = "tiers: {cheap: {model: meta-llama/Llama-3.1-8B, api_base: 'http://10.0.0.1/v1/'}}"
    model = parse_settings(text, {}).tiers.cheap[0]
    assert (model.provider, model.wire_model, model.api_base) == (
        "custom",
        "meta-llama/Llama-3.1-8B",
        "http://10.0.0.1/v1",
    )


def test_an_unset_key_is_no_mistake_as_long_as_one_tier_can_answer() -> None:
    tiers = parse_settings(
        "tiers: {local: {engine: external, model: m, api_base: 'http://h:1/v1', api_key_env: VLLM_KEY}, "
        "cheap: {model: openai/a}}",
        KEY,
    ).tiers
    assert tiers.local.unavailable == "VLLM_KEY is not set" and tiers.cheap[0].unavailable is None


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "gateway.example"])
def test_listening_elsewhere_than_on_loopback_needs_a_key(host: str) -> None:
    text = EMBEDDED + f"server: {{host: '{host}'}}"
    assert "ROUTER_API_KEY" in only_problem(text)
    settings = parse_settings(text, {"ROUTER_API_KEY": "0123456789abcdef"})
    assert settings.server.auth.required and settings.server.auth.keys[0].admin
    assert "listen on 127.0.0.1" in only_problem(
        EMBEDDED + f"server: {{host: '{host}', auth: {{required: false}}}}", {"ROUTER_API_KEY": "0123456789abcdef"}
    )


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.8.8.8"])
def test_loopback_needs_no_key(host: str) -> None:
    assert not parse_settings(EMBEDDED + f"server: {{host: '{host}'}}", {}).server.auth.required


def test_a_key_makes_the_gateway_ask_for_it_unless_told_otherwise() -> None:
    environ = {"ROUTER_API_KEY": "0123456789abcdef"}
    assert parse_settings(EMBEDDED, environ).server.auth.required
    assert not parse_settings(EMBEDDED + "server: {auth: {required: false}}", environ).server.auth.required


def test_each_tenant_has_its_own_key() -> None:
    text = EMBEDDED + "server: {auth: {keys: [{tenant: a, key_env: A}, {tenant: b, key_env: B}]}}"
    auth = parse_settings(text, {"A": "key-of-a"}).server.auth
    assert [key.tenant for key in auth.keys] == ["a"] and auth.unset_env == ("B",) and auth.required
    assert "another tenant's" in only_problem(text, {"A": "same-key", "B": "same-key"})


def test_keys_that_are_named_but_not_set_open_the_gateway_to_nobody() -> None:
    keys = "keys: [{tenant: a, key_env: A}, {tenant: b, key_env: B}]"
    problem = only_problem(EMBEDDED + f"server: {{auth: {{{keys}}}}}")
    assert "auth.keys" in problem and "A, B: not set" in problem and "export" in problem
    assert not parse_settings(EMBEDDED + f"server: {{auth: {{required: false, {keys}}}}}", {}).server.auth.required


def test_who_only_reads_needs_nobodys_key() -> None:
    text = (
        "server: {auth: {required: true, keys: [{tenant: a, key_env: A}]}}\n"
        "tiers: {local: {engine: none}, cheap: {model: openai/gpt-6-luna}}"
    )
    with pytest.raises(ConfigError) as refused:
        parse_settings(text, {})
    assert len(refused.value.problems) == 2
    assert parse_settings(text, {}, serving=False).tiers.api_models()
    with pytest.raises(ConfigError, match="no tier has a model"):
        parse_settings("tiers: {local: {engine: none}}", {}, serving=False)


def test_a_required_key_that_is_not_set_is_a_mistake() -> None:
    assert "ROUTER_API_KEY" in only_problem(EMBEDDED + "server: {auth: {required: true}}")
