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
from tests.settings_problems import EMBEDDED, KEY, only_problem


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
