"""YAML and environment to settings: what is accepted, and every mistake that is named."""

from __future__ import annotations

import dataclasses
import json
from decimal import Decimal
from importlib import resources
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.core.hardware import OwnedHardware
from router.errors import ConfigError
from router.settings import (
    Engine,
    RentedHardware,
    Settings,
    Wire,
    find_config,
    load_settings,
    parse_settings,
)

KEY = {"OPENAI_API_KEY": "sk-canary-0123456789"}
EMBEDDED = "tiers: {local: {engine: embedded}}\n"


def problems(text: str, environ: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_settings(text, environ or {}, source="router.yaml")
    return caught.value.lines()


def only_problem(text: str, environ: dict[str, str] | None = None) -> str:
    found = problems(text, environ)
    assert len(found) == 1, found
    return found[0]


def test_the_shipped_default_works_without_a_key() -> None:
    settings = load_settings(Path(str(resources.files("router").joinpath("shipped/router.yaml"))), {})
    assert (settings.server.host, settings.server.port, settings.server.data_dir) == ("127.0.0.1", 8080, Path("data"))
    assert settings.tiers.local.engine is Engine.EMBEDDED
    assert [model.name for model in settings.tiers.cheap] == ["openai/gpt-6-luna"]
    assert [model.name for model in settings.tiers.premium] == ["openai/gpt-6.1-sol"]
    assert {model.unavailable for _, model in settings.tiers.api_models()} == {"OPENAI_API_KEY is not set"}
    assert settings.policy.quality_target_ratio == 0.95
    assert settings.not_acted_on == ()


def test_every_key_of_the_contract_is_accepted(tmp_path: Path) -> None:
    settings = parse_settings(
        """
server:
  host: 127.0.0.1
  port: 8081
  database_url: sqlite:///books.db
  data_dir: /var/lib/r
  max_body_bytes: 2000000
  auth: {required: false}
timeouts: {connect_s: 1, first_byte_s: 2, idle_s: 3, total_s: 4}
tiers:
  local:
    engine: vllm
    api_base: http://127.0.0.1:8000/v1
    model: meta-llama/Llama-3.1-8B-Instruct
    context_window_tokens: 16384
    max_num_seqs: 128
    launch: {executable: vllm, gpu_memory_utilization: 0.8, extra_args: [--enforce-eager]}
    hardware: {kind: rented, usd_per_hour: 2.50, on: while_engine_runs}
    practical_capacity_ratio: 0.9
    max_gpu_utilization_ratio: null
    slo: {ttft_s: 2.0, tpot_s: 0.1, slack_s: 1.0}
    coefficients: {t0_s: 0.006, c_seq_s: 0.00002, c_kv_s: 8.0e-8, c_prefill_s: 3e-5, c_att_s: 2e-10}
  cheap:
    model: openai/gpt-6-luna
    api_key_env: OPENAI_API_KEY
    api_base: https://proxy.example/v1
    context_window_tokens: 1000
    price: {input_usd_per_mtok: 0.1, output_usd_per_mtok: 0.5}
  premium:
    models:
      - {model: openai/gpt-6.1-sol, api_key_env: OPENAI_API_KEY}
      - {model: anthropic/claude-sonnet-5.5, api_key_env: ANTHROPIC_API_KEY}
policy:
  preset: cheap
  quality_target_ratio: 0.93
  quality_floor_ratio: 0.5
  max_usd_per_request: 0.01
  budget_usd_per_day: 5
  budget_usd_per_month: 100
  on_saturation: queue
  exploration_ratio: 0.1
""",
        KEY,
    )
    local = settings.tiers.local
    assert local.hardware == RentedHardware(usd_per_hour=Decimal("2.5"), on="while_engine_runs")
    assert local.coefficients.calibrated and local.coefficients.c_kv_s == 8e-8 and local.coefficients.c_att_s == 2e-10
    assert (local.slo.ttft_s, local.slo.tpot_s, local.slo.slack_s) == (2.0, 0.1, 1.0)
    assert local.launch.extra_args == ("--enforce-eager",)
    cheap, (sol, sonnet) = settings.tiers.cheap[0], settings.tiers.premium
    assert (cheap.wire, cheap.wire_model, cheap.api_base) == (Wire.OPENAI, "gpt-6-luna", "https://proxy.example/v1")
    assert sol.unavailable is None and sonnet.unavailable == "ANTHROPIC_API_KEY is not set"
    assert (sonnet.wire, sonnet.api_base) == (Wire.LITELLM, None)
    config = settings.policy.policy_config()
    assert (config.quality_target_ratio, config.max_nanousd_per_request) == (0.93, 10_000_000)
    assert settings.policy.policy_config("quality").quality_target_ratio == 0.99
    assert settings.not_acted_on == ()
    assert (config.exploration_ratio, settings.policy.policy_config("quality").exploration_ratio) == (0.1, 0.0)
    assert settings.price_overrides() == {
        "openai/gpt-6-luna": {"input_usd_per_mtok": Decimal("0.1"), "output_usd_per_mtok": Decimal("0.5")}
    }


def test_owned_hardware_has_all_its_figures() -> None:
    settings = parse_settings(
        EMBEDDED.replace(
            "embedded}",
            "embedded, hardware: {kind: owned, purchase_usd: 40000, residual_usd: 10000, years: 4, "
            "discount_rate_ratio: 0.08, availability_ratio: 0.98, power_kw: 0.9, pue_ratio: 1.3, usd_per_kwh: 0.09, "
            "colo_usd_per_hour: 0.15, ops_usd_per_hour: 0.25}}",
        ),
        {},
    )
    hardware = settings.tiers.local.hardware
    assert isinstance(hardware, OwnedHardware)
    assert (hardware.purchase_usd, hardware.usd_per_kwh) == (Decimal(40_000), Decimal("0.09"))


def test_a_mig_instance_is_paid_for_by_its_share_of_the_card() -> None:
    rented = parse_settings(
        EMBEDDED.replace("embedded}", "embedded, hardware: {kind: rented, usd_per_hour: 2.80, mig_slices: 3}}"), {}
    ).tiers.local.hardware
    assert isinstance(rented, RentedHardware)
    assert rented.usd_per_hour == Decimal("1.2")
    owned = parse_settings(
        EMBEDDED.replace(
            "embedded}",
            "embedded, hardware: {kind: owned, purchase_usd: 42000, residual_usd: 7000, years: 4, mig_slices: 1, "
            "discount_rate_ratio: 0.08, availability_ratio: 0.98, power_kw: 0.7, pue_ratio: 1.3, usd_per_kwh: 0.09, "
            "colo_usd_per_hour: 0.14, ops_usd_per_hour: 0.21}}",
        ),
        {},
    ).tiers.local.hardware
    assert isinstance(owned, OwnedHardware)
    assert (owned.purchase_usd, owned.residual_usd, owned.power_kw) == (Decimal(6000), Decimal(1000), Decimal("0.1"))
    assert (owned.colo_usd_per_hour, owned.ops_usd_per_hour) == (Decimal("0.02"), Decimal("0.03"))
    assert (owned.pue_ratio, owned.usd_per_kwh, owned.years) == (Decimal("1.3"), Decimal("0.09"), 4)
    assert "mig_slices" in only_problem(
        EMBEDDED.replace("embedded}", "embedded, hardware: {kind: rented, usd_per_hour: 2.80, mig_slices: 8}}")
    )


def test_all_mistakes_come_in_one_report_in_the_order_of_the_file() -> None:
    found = problems(
        """server:
  prot: 8081
  port: 99999
timeouts: {connect_s: -1}
tiers:
  local: {engine: vlm}
  cheap: {model: opnai/gpt-6-luna}
  premium: {models: []}
policy: {preset: best}
""",
        {"ROUTER_TIMEOUTS__TOTAL": "3"},
    )
    places = [line.split(": ")[:2] for line in found]
    assert places == [
        ["router.yaml:2", "server.prot"],
        ["router.yaml:3", "server.port"],
        ["router.yaml:4", "timeouts.connect_s"],
        ["router.yaml:6", "tiers.local.engine"],
        ["router.yaml:7", "tiers.cheap.model"],
        ["router.yaml:8", "tiers.premium.models"],
        ["router.yaml:9", "policy.preset"],
        ["router.yaml", "ROUTER_TIMEOUTS__TOTAL (environment)"],
    ]


@pytest.mark.parametrize(
    ("text", "environ", "place", "said"),
    [
        ("servr: {}\n" + EMBEDDED, {}, "1: servr", "did you mean 'server'?"),
        (EMBEDDED + "policy: {}\npolicy: {}", {}, "3: policy", "stands twice (first in line 2)"),
        (EMBEDDED + "server: {port: true}", {}, "2: server.port", "not true or false"),
        (EMBEDDED + "server: {port: x}", {}, "2: server.port", "'x' should be a valid integer"),
        (EMBEDDED + "server: 3", {}, "2: server", "should be a section"),
        (EMBEDDED + "timeouts: {total_s: .inf}", {}, "2: timeouts.total_s", "should be a"),
        (EMBEDDED + "timeouts: {total_s: nan}", {}, "2: timeouts.total_s", "finite"),
        (EMBEDDED + "policy: {quality_target_ratio: 95}", {}, "2: policy.quality_target_ratio", "less than or equal"),
        (EMBEDDED + "policy: {budget_usd_per_day: -1}", {}, "2: policy.budget_usd_per_day", "greater than or equal"),
        ("tiers: {local: {}}", KEY, "1: tiers.local.engine", "say embedded, vllm, external"),
        ("tiers: {local: {engine: embedded}, cheap: {}}", {}, "1: tiers.cheap", "has no model"),
        ("tiers: {local: {engine: embedded}, premium: {models: [{}]}}", {}, "1: tiers.premium.models[0]", "no model"),
        ("tiers: {local: {engine: embedded}, premium: {models: []}}", {}, "1: tiers.premium.models", "is empty"),
        (
            "tiers: {local: {engine: embedded}, premium: {name: x, models: [{model: openai/a}]}}",
            {},
            "1: tiers.premium.name",
            "stands beside `models`",
        ),
        (
            "tiers: {local: {engine: embedded}, cheap: {model: gpt-6-luna}}",
            {},
            "1: tiers.cheap.model",
            "give api_base",
        ),
        (
            "tiers: {local: {engine: embedded}, cheap: {model: openai/a}, premium: {model: openai/a}}",
            {},
            "1: tiers.premium",
            "already the name",
        ),
        (
            "tiers: {local: {engine: embedded}, cheap: {model: openai/a, name: 'auto:x'}}",
            {},
            "1: tiers.cheap.name",
            "uses itself",
        ),
        (
            "tiers: {local: {engine: embedded}, cheap: {model: openai/a, price: {input_usd_per_mtok: 1}}}",
            {},
            "1: tiers.cheap.price",
            "lacks output_usd_per_mtok",
        ),
        (
            "tiers: {local: {engine: embedded}, cheap: {model: openai/a, price: {input_usd_per_mtok: 1e6}}}",
            {},
            "1: tiers.cheap.price.input_usd_per_mtok",
            "less than or equal",
        ),
        (
            "tiers: {local: {engine: embedded}, cheap: {model: openai/a, api_base: 'ftp://x/y'}}",
            {},
            "1: tiers.cheap.api_base",
            "not an http address",
        ),
        ("tiers: {local: {engine: vllm}}", {}, "1: tiers.local.model", "is missing"),
        ("tiers: {local: {engine: external, model: m}}", {}, "1: tiers.local.api_base", "is missing"),
        (
            "tiers: {local: {engine: vllm, model: m, api_base: 'http://10.0.0.1:8000/v1'}}",
            {},
            "1: tiers.local.api_base",
            "engine: external",
        ),
        (
            "tiers: {local: {engine: embedded, coefficients: h100-8b}}",
            {},
            "1: tiers.local.coefficients",
            "did you mean 'h100-8b-fp",
        ),
        (
            "tiers: {local: {engine: embedded, coefficients: {t0_s: 1}}}",
            {},
            "1: tiers.local.coefficients",
            "needs t0_s, c_seq_s",
        ),
        (
            "tiers: {local: {engine: embedded, coefficients: {t0_s: 0, c_seq_s: 0, c_kv_s: 0, c_prefill_s: 0}}}",
            {},
            "1: tiers.local.coefficients",
            "nothing takes any time",
        ),
        (
            "tiers: {local: {engine: embedded, hardware: {kind: owned, purchase_usd: 3}}}",
            {},
            "1: tiers.local.hardware",
            "lacks residual_usd, years",
        ),
        ("tiers: {local: {engine: embedded, hardware: {kind: rented}}}", {}, "1: tiers.local.hardware", "usd_per_hour"),
        (
            "tiers: {local: {engine: embedded, launch: {sleep: {after_idle_s: 60}}}}",
            {},
            "1: tiers.local.launch.sleep",
            "only a vllm that we start",
        ),
        (
            "tiers: {local: {engine: vllm, model: m, launch: {extra_args: ['--host', 0.0.0.0]}}}",
            {},
            "1: tiers.local.launch.extra_args",
            "says --host; take it out: vllm stays on loopback",
        ),
        (
            "tiers: {local: {engine: vllm, model: m, launch: {extra_args: [--max_num_seqs=16]}}}",
            {},
            "1: tiers.local.launch.extra_args",
            "says --max-num-seqs; take it out: say it in max_num_seqs",
        ),
        (
            "tiers: {local: {engine: embedded, hardware: {kind: owned, 'on': always}}}",
            {},
            "1: tiers.local.hardware.on",
            "is no key of this kind",
        ),
        ("tiers: {local: {engine: embedded, hardware: {}}}", {}, "1: tiers.local.hardware", "which kind"),
        (EMBEDDED + "server: {database_url: 'mysql://h/x'}", {}, "2: server.database_url", "no known kind"),
        (EMBEDDED + "server: {database_url: 'sqlite://'}", {}, "2: server.database_url", "names no file"),
        (EMBEDDED + "server: {database_url_env: DB}", {}, "2: server.database_url_env", "DB is not set"),
        ("", {}, "tiers", "no tier can answer"),
        ("tiers: {cheap: {model: openai/a}}", {}, "1: tiers", "OPENAI_API_KEY is not set"),
        ("- 1", {}, "1: (file)", "should be a mapping"),
        ("a: [", {}, "1: (file)", "is not valid YAML"),
        ("tiers: &t {local: *t}", {}, "1: tiers.local", "alias of its own parent"),
        ("tiers: !!python/object:os.system {}", {}, "1: tiers", "has the tag 'python/object:os.system'"),
        ("server: {port: !!binary eA==}", {}, "1: server.port", "has the tag 'binary'"),
    ],
)
def test_a_mistake_is_named_with_its_place_and_cure(text: str, environ: dict[str, str], place: str, said: str) -> None:
    found = problems(text, environ)
    assert found[0].startswith("router.yaml:" if place[0].isdigit() else "router.yaml: "), found
    assert found[0].removeprefix("router.yaml:").lstrip().startswith(place), found
    assert said in found[0]


def test_a_refused_value_is_not_reported_as_missing_as_well() -> None:
    assert "should be a valid string" in only_problem(
        "tiers: {local: {engine: embedded}, premium: {models: [{model: 3}]}}"
    )


def test_the_environment_wins_over_the_file_and_lists_take_yaml() -> None:
    settings = parse_settings(
        EMBEDDED + "server: {port: 1}",
        {
            "ROUTER_SERVER__PORT": "9000",
            "ROUTER_POLICY__PRESET": "quality",
            "ROUTER_TIERS__PREMIUM__MODELS": "[{model: openai/a}, {model: groq/b}]",
            "ROUTER_TIERS__PREMIUM__MODELS__1__NAME": "second",
            "ROUTER_TIERS__LOCAL__MAX_NUM_SEQS": "",
        },
    )
    assert (settings.server.port, settings.policy.quality_target_ratio) == (9000, 0.99)
    assert [model.name for model in settings.tiers.premium] == ["openai/a", "second"]


def test_variables_that_kubernetes_sets_for_a_service_called_router_do_no_harm() -> None:
    settings = parse_settings(EMBEDDED, {"ROUTER_PORT": "tcp://10.0.0.1:80", "ROUTER_SERVICE_HOST": "10.0.0.1"})
    assert settings.ignored_env == ("ROUTER_PORT", "ROUTER_SERVICE_HOST")


def test_only_true_and_false_are_booleans_so_that_the_key_on_stays_a_key() -> None:
    text = "tiers: {local: {engine: embedded, hardware: {kind: rented, usd_per_hour: 1, on: always}}}"
    assert parse_settings(text, {}).tiers.local.hardware == RentedHardware(Decimal(1), "always")


def test_presets_set_the_target_and_an_explicit_target_wins() -> None:
    def target(policy: str) -> float:
        return parse_settings(EMBEDDED + f"policy: {policy}", {}).policy.quality_target_ratio

    assert [target(f"{{preset: {name}}}") for name in ("cheap", "balanced", "quality")] == [0.90, 0.95, 0.99]
    assert target("{preset: cheap, quality_target_ratio: 0.5}") == 0.5


def test_promises_of_the_embedded_engine_are_wider_than_a_gpus() -> None:
    embedded = parse_settings(EMBEDDED, {}).tiers.local.slo
    vllm = parse_settings("tiers: {local: {engine: vllm, model: m}}", {}).tiers.local
    assert (embedded.ttft_s, embedded.tpot_s, embedded.slack_s) == (15.0, 0.5, 5.0)
    assert (vllm.slo.ttft_s, vllm.slo.tpot_s, vllm.slo.slack_s) == (1.0, 0.05, 0.5)
    assert (vllm.max_num_seqs, vllm.api_base, vllm.coefficients.calibrated) == (256, "http://127.0.0.1:8000/v1", False)


# --- secrets -----------------------------------------------------------------------------------------------------


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


# --- who may use it ------------------------------------------------------------------------------------------------


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


# --- files ---------------------------------------------------------------------------------------------------------


def test_the_named_file_wins_over_the_one_in_the_folder(tmp_path: Path) -> None:
    assert find_config(None, tmp_path) is None
    (tmp_path / "router.yaml").write_text(EMBEDDED)
    assert find_config(None, tmp_path) == tmp_path / "router.yaml"
    assert find_config(Path("other.yaml"), tmp_path) == Path("other.yaml")


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"\xff\xfe", "is not UTF-8"), (b"a: \x00", "holds the character"), (b"#" * 1_000_001, "is larger than")],
)
def test_a_file_that_is_no_text_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    file = tmp_path / "router.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=said):
        load_settings(file, {})


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: \(file\): cannot be read"):
        load_settings(tmp_path / "none.yaml", {})


def test_settings_are_frozen() -> None:
    settings = parse_settings(EMBEDDED, {})
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.server = settings.server  # type: ignore[misc]


def _sections(value: object) -> list[object]:
    if not dataclasses.is_dataclass(value):
        return []
    children = (getattr(value, field.name) for field in dataclasses.fields(value))
    return [value, *(found for child in children for found in _sections(child))]


def test_every_section_is_frozen() -> None:
    settings: Settings = parse_settings(EMBEDDED, {})
    for section in _sections(settings):
        assert type(section).__dataclass_params__.frozen, type(section)  # type: ignore[attr-defined]


_yaml_like = st.text(alphabet=st.sampled_from("ab: {}[]-#&*!|>'\"%@`\n\t,?01.eE~\x00é"), max_size=60) | st.text(
    max_size=60
)


@given(text=_yaml_like)
def test_no_text_breaks_the_reader(text: str) -> None:
    """Whatever stands in a file, the answer is settings or a list of mistakes."""
    with pytest.raises(ConfigError) as caught:
        parse_settings(text, {})
    assert caught.value.problems


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["model", "engine", "kind"]), inner),
    max_leaves=6,
)
_paths = st.sampled_from(
    [
        "SERVER",
        "SERVER__PORT",
        "SERVER__AUTH__KEYS",
        "TIMEOUTS__TOTAL_S",
        "TIERS",
        "TIERS__LOCAL",
        "TIERS__LOCAL__SLO",
        "TIERS__LOCAL__HARDWARE",
        "TIERS__LOCAL__COEFFICIENTS",
        "TIERS__LOCAL__LAUNCH__EXTRA_ARGS",
        "TIERS__CHEAP",
        "TIERS__PREMIUM__MODELS",
        "TIERS__PREMIUM__MODELS__0__PRICE",
        "POLICY__PRESET",
        "POLICY__MAX_USD_PER_REQUEST",
    ]
)


@given(environ=st.dictionaries(_paths, _json, max_size=4))
def test_no_environment_breaks_the_reader(environ: dict[str, object]) -> None:
    variables = {f"ROUTER_{name}": json.dumps(value) for name, value in environ.items()}
    try:
        settings = parse_settings(EMBEDDED, variables)
    except ConfigError as error:
        assert all(path and text for _, path, text in error.problems)
    else:
        assert settings.tiers.local is not None


def test_learning_is_off_unless_asked_for_and_its_judge_is_one_of_the_models() -> None:
    assert not parse_settings(EMBEDDED, {}).learning.on
    tiers = "tiers: {local: {engine: embedded}, premium: {model: openai/gpt-6.1-sol}}\n"
    asked = "learning: {shadow: {ratio: 0.02}, judge: {model: openai/gpt-6.1-sol, ratio: 0.5}, exclude_tenants: [acme]}"
    learning = parse_settings(tiers + asked, {}).learning
    assert learning.on and learning.shadow_budget_usd_per_day == learning.judge_budget_usd_per_day == Decimal(1)
    assert (learning.shadow_ratio, learning.judge_ratio, learning.exclude_tenants) == (0.02, 0.5, ("acme",))
    with pytest.raises(ConfigError, match=r"learning\.judge\.model.*'nobody' is no configured model; known here: "):
        parse_settings(EMBEDDED + "learning: {judge: {model: nobody}}", {})
    with pytest.raises(ConfigError, match="should be less than or equal to 1"):
        parse_settings(EMBEDDED + "learning: {shadow: {ratio: 2}}", {})


JUDGE = "model: openai/gpt-6.1-sol"


@pytest.mark.parametrize(
    ("learning", "line", "key", "says"),
    [
        ("shadow: {ratio: 0.1}", 4, "shadow.ratio", "nothing judges their answers; name learning.judge.model"),
        (f"shadow:\n    ratio: 0.1\n    budget_usd_per_day: 0\n  judge: {{{JUDGE}}}", 6, "shadow.budget_usd_per_day",
         "0 lets no shadow run happen; give an amount"),
        ("shadow: {budget_usd_per_day: 5}", 4, "shadow.budget_usd_per_day", "set learning.shadow.ratio to the share"),
        (f"judge: {{{JUDGE}}}", 4, "judge.model", "does nothing without shadow runs; set learning.shadow.ratio"),
        ("exact_checks: true\n  shadow: {ratio: 0.1}\n  judge: {budget_usd_per_day: 2}", 6,
         "judge.budget_usd_per_day", "does nothing without a judge; name learning.judge.model"),
        ("judge: {ratio: 0.5}", 4, "judge.ratio", "does nothing without a judge"),
        (f"shadow: {{ratio: 0.1}}\n  judge: {{budget_usd_per_day: 0, {JUDGE}}}", 5, "judge.budget_usd_per_day",
         "0 lets nothing be judged"),
    ],
)  # fmt: skip
def test_learning_keys_that_do_nothing_without_each_other_are_refused_with_their_line_and_the_cure(
    learning: str, line: int, key: str, says: str
) -> None:
    text = f"tiers:\n  premium: {{model: openai/gpt-6.1-sol}}\nlearning:\n  {learning}\n"
    with pytest.raises(ConfigError) as refused:
        parse_settings(text, {"OPENAI_API_KEY": "sk-x"})
    (found,) = refused.value.problems
    assert (found[0], found[1]) == (line, f"learning.{key}")
    assert says in found[2]


def test_a_shadow_ratio_of_nought_switches_the_rest_off_without_taking_it_out() -> None:
    asked = f"learning: {{shadow: {{ratio: 0, budget_usd_per_day: 5}}, judge: {{{JUDGE}, budget_usd_per_day: 0}}}}"
    tiers = "tiers: {premium: {model: openai/gpt-6.1-sol}}\n"
    assert not parse_settings(tiers + asked, {"OPENAI_API_KEY": "sk-x"}).learning.on


def test_a_tenant_cannot_take_a_name_under_which_overhead_is_booked() -> None:
    keys = "server: {auth: {keys: [{tenant: 'router:shadow', key_env: K}]}}\n"
    with pytest.raises(ConfigError, match="names that begin with router: are ours"):
        parse_settings(keys + EMBEDDED, {"K": "secret"})
