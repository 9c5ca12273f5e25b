"""Which engine a what-if plays, what the product believes of it, and whose dials it decides by."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest

from local_llm.coefficients import PRESETS
from local_llm.datamodels import SloTargets
from router.core.decision import PolicyConfig
from router.core.snapshot import PriceRow, PriceTier
from router.errors import BadRequest
from router.settings import load_settings
from router.settings_types import LocalSettings
from router.simulation.setting import Setting, setting

PRICE = PriceRow(
    "api", "host", (PriceTier(0, Decimal("0.1"), Decimal("0.5")),), datetime(2026, 1, 1, tzinfo=UTC), None, "test", "1"
)
H100, A100 = PRESETS["h100-8b-fp16"], PRESETS["a100-8b-fp16"]
API = "cheap: {model: openai/gpt-6-luna, api_key_env: NO_KEY_NEEDED}"


def local(tmp_path: Path, text: str) -> LocalSettings:
    file = tmp_path / "router.yaml"
    file.write_text(f"tiers: {{local: {{{text}}}, {API}}}\n")
    return load_settings(file).tiers.local


def asked(engine: LocalSettings, **changes: object) -> Setting:
    wishes = {"gpu": None, "start_coefficients": None, "max_batched_tokens": None, "self_calibration": True} | changes
    return setting(engine, PolicyConfig(f_ttft=0.5), PRICE, **wishes)  # type: ignore[arg-type]


def test_without_a_gpu_server_in_the_config_it_is_an_h100_as_the_gateway_would_start_it(tmp_path: Path) -> None:
    found = asked(local(tmp_path, "engine: embedded"))
    assert (found.truth, found.product.coefficients) == (H100, H100)
    assert found.limits.max_batched_tokens == 1152
    assert found.slo == SloTargets()
    assert found.described == "h100-8b-fp16, 1152 tokens a step"


VLLM = "engine: vllm, model: m, coefficients: a100-8b-fp16, max_num_seqs: 64, slo: {ttft_s: 2.0, tpot_s: 0.1}"


def test_the_gpu_server_of_the_config_is_played_with_its_own_figures_and_promises(tmp_path: Path) -> None:
    found = asked(local(tmp_path, VLLM))
    assert (found.truth, found.product.coefficients) == (A100, A100)
    assert (found.limits.max_num_seqs, found.limits.context_window_tokens) == (64, 8192)
    assert (found.slo.ttft_s, found.slo.tpot_s) == (2.0, 0.1)
    assert found.product.policy.f_ttft == 0.5


def test_measured_figures_of_the_config_are_played_and_believed(tmp_path: Path) -> None:
    figures = "{t0_s: 0.01, c_seq_s: 0.0001, c_kv_s: 1.0e-7, c_prefill_s: 0.0001}"
    found = asked(
        local(tmp_path, f"engine: external, api_base: 'http://127.0.0.1:1/v1', model: m, coefficients: {figures}")
    )
    assert found.truth.t0_s == found.product.coefficients.t0_s == 0.01
    assert found.limits.max_batched_tokens == 384


def test_a_gpu_that_is_asked_for_is_believed_to_be_what_the_config_says_unless_told_otherwise(tmp_path: Path) -> None:
    engine = local(tmp_path, VLLM)
    found = asked(engine, gpu="h100-8b-fp16")
    assert (found.truth, found.product.coefficients) == (H100, A100)
    assert "believed a100-8b-fp16 at the start" in found.described
    assert asked(engine, gpu="h100-8b-fp16", start_coefficients="h100-8b-fp16").product.coefficients == H100


def test_an_engine_of_which_nothing_is_known_is_not_taken_for_one_that_is_measured(tmp_path: Path) -> None:
    found = asked(local(tmp_path, "engine: external, api_base: 'http://127.0.0.1:1/v1', model: m"))
    assert found.truth == found.product.coefficients == H100


def test_the_token_budget_can_be_given_and_a_cpu_keeps_its_own(tmp_path: Path) -> None:
    engine = local(tmp_path, "engine: embedded")
    assert asked(engine, max_batched_tokens=2048).limits.max_batched_tokens == 2048
    cpu = asked(engine, gpu="embedded-cpu")
    assert (cpu.limits.max_batched_tokens, cpu.slo.ttft_s) == (512, 15.0)


@pytest.mark.parametrize("wrong", [{"gpu": "abacus"}, {"start_coefficients": "abacus"}])
def test_a_gpu_that_is_not_known_is_told_with_those_that_are(tmp_path: Path, wrong: dict[str, str]) -> None:
    with pytest.raises(BadRequest, match=r"abacus.*h100-8b-fp16"):
        asked(local(tmp_path, "engine: embedded"), **wrong)


def test_the_description_tells_what_is_wrongly_believed() -> None:
    product = asked(replace(load_settings(None).tiers.local)).product
    told = Setting(A100, product).described
    assert told.startswith("a100-8b-fp16")
    assert "believed h100-8b-fp16" in told
