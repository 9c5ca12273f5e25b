"""Several engines under `tiers.local.engines`: what they share, what tells them apart, every mistake in its line."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from router.core.hardware import OwnedHardware
from router.errors import ConfigError
from router.settings import Engine, RentedHardware, parse_settings
from router.settings_types import LocalSettings

REPLICAS = """
tiers:
  local:
    engine: vllm
    model: meta/llama
    context_window_tokens: 16384
    launch: {executable: /opt/vllm, extra_args: [--quantization, fp8]}
    hardware: {kind: rented, usd_per_hour: 2.50}
    slo: {ttft_s: 2.0}
    engines:
      - {name: gpu0, launch: {gpus: [0]}}
      - {name: gpu1, launch: {gpus: [1], gpu_memory_utilization: 0.8}, slo: {tpot_s: 0.1}}
"""


def engines_of(text: str, environ: dict[str, str] | None = None) -> tuple[LocalSettings, ...]:
    return parse_settings(text, environ or {}).tiers.engines


def problems(text: str, environ: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_settings(text, environ or {}, source="router.yaml")
    return caught.value.lines()


def local(**keys: Any) -> str:
    return yaml.safe_dump({"tiers": {"local": keys}}, default_flow_style=True, width=10_000)


def test_one_engine_is_called_as_its_model_and_several_by_their_names() -> None:
    (only,) = engines_of("tiers: {local: {engine: external, model: m, api_base: 'http://127.0.0.1:1/v1'}}")
    assert (only.candidate_name, only.where) == ("m", "tiers.local")
    first, second = engines_of(REPLICAS)
    assert (first.candidate_name, second.candidate_name) == ("local/gpu0", "local/gpu1")
    assert (first.model, second.model) == ("meta/llama", "meta/llama")
    assert second.where == "tiers.local.engines[1]"


def test_without_a_local_tier_there_is_no_engine() -> None:
    assert engines_of("tiers: {local: {engine: none}, cheap: {model: ollama/x, api_base: 'http://127.0.0.1:9'}}") == ()


def test_an_engine_has_what_all_share_and_says_otherwise_key_by_key() -> None:
    first, second = engines_of(REPLICAS)
    assert {first.context_window_tokens, second.context_window_tokens} == {16384}
    assert first.launch.extra_args == second.launch.extra_args == ("--quantization", "fp8")
    assert (first.launch.gpus, second.launch.gpus) == ((0,), (1,))
    assert (first.launch.gpu_memory_utilization, second.launch.gpu_memory_utilization) == (0.9, 0.8)
    assert (first.slo.ttft_s, first.slo.tpot_s) == (2.0, 0.05)
    assert (second.slo.ttft_s, second.slo.tpot_s) == (2.0, 0.1)
    assert first.hardware == second.hardware == RentedHardware(Decimal("2.50"), "always")


def test_hardware_of_another_kind_shares_nothing_and_null_takes_it_away() -> None:
    figures = {
        "purchase_usd": 2000, "residual_usd": 500, "years": 4, "discount_rate_ratio": 0.08, "availability_ratio": 0.95,
        "power_kw": 0.3, "pue_ratio": 1.1, "usd_per_kwh": 0.2, "colo_usd_per_hour": 0, "ops_usd_per_hour": 0,
    }  # fmt: skip
    rented, owned, free = engines_of(
        local(
            engine="external",
            model="m",
            hardware={"kind": "rented", "usd_per_hour": 1, "on": "while_engine_runs"},
            engines=[
                {"name": "a", "api_base": "http://h:1/v1", "hardware": {"kind": "rented", "usd_per_hour": 3}},
                {"name": "b", "api_base": "http://h:2/v1", "hardware": {"kind": "owned", **figures}},
                {"name": "c", "api_base": "http://h:3/v1", "hardware": None},
            ],
        )
    )
    assert rented.hardware == RentedHardware(Decimal(3), "while_engine_runs")
    assert isinstance(owned.hardware, OwnedHardware)
    assert free.hardware is None


def test_supervised_engines_get_ports_of_their_own_around_those_that_are_taken() -> None:
    given_one = {"name": "b", "api_base": "http://127.0.0.1:8001/v1", "launch": {"gpus": [1]}}
    engines = engines_of(
        local(
            engine="vllm",
            model="m",
            engines=[{"name": "a", "launch": {"gpus": [0]}}, given_one, {"name": "c", "launch": {"gpus": [2, 3]}}],
        )
    )
    assert [engine.api_base for engine in engines] == [f"http://127.0.0.1:{port}/v1" for port in (8000, 8001, 8002)]


def test_engines_of_every_kind_and_model_stand_side_by_side() -> None:
    engines = engines_of(
        local(
            engines=[
                {"name": "cpu", "engine": "embedded"},
                {"name": "big", "engine": "vllm", "model": "qwen/32b"},
                {"name": "far", "engine": "external", "model": "qwen/7b", "api_base": "http://10.0.0.7:8000/v1"},
            ]
        )
    )
    assert [engine.engine for engine in engines] == [Engine.EMBEDDED, Engine.VLLM, Engine.EXTERNAL]
    assert engines[0].slo.ttft_s == 15.0
    assert engines[1].launch.gpus is None  # the only vllm may take what CUDA_VISIBLE_DEVICES leaves


def test_the_environment_reaches_into_the_list() -> None:
    environ = {"ROUTER_TIERS__LOCAL__ENGINES__1__LAUNCH__GPUS": "[3]", "ROUTER_TIERS__LOCAL__MAX_NUM_SEQS": "32"}
    first, second = engines_of(REPLICAS, environ)
    assert (first.launch.gpus, second.launch.gpus) == ((0,), (3,))
    assert {first.max_num_seqs, second.max_num_seqs} == {32}


def test_an_engine_without_its_key_is_unavailable_and_the_tier_goes_on() -> None:
    text = local(
        engine="external",
        model="m",
        engines=[
            {"name": "a", "api_base": "http://h:1/v1", "api_key_env": "A_KEY"},
            {"name": "b", "api_base": "http://h:2/v1"},
        ],
    )
    without, well = engines_of(text)
    assert (without.unavailable, well.unavailable) == ("A_KEY is not set", None)
    settings = parse_settings(text, {"A_KEY": "sk-a"})
    assert settings.secret_values() == ("sk-a",)


TWO = [{"name": "a", "api_base": "http://h:1/v1"}, {"name": "b", "api_base": "http://h:2/v1"}]


@pytest.mark.parametrize(
    ("keys", "place", "said"),
    [
        ({"engines": []}, "tiers.local.engines", "is empty"),
        ({"engines": {"a": {}}}, "tiers.local.engines", "should be a list"),
        ({"engines": [{**TWO[0], "nmae": "x"}]}, "tiers.local.engines[0].nmae", "did you mean 'name'"),
        ({"engines": [{**TWO[0], "engines": []}]}, "tiers.local.engines[0].engines", "unknown key"),
        ({"engines": [{"api_base": "http://h:1/v1"}]}, "tiers.local.engines[0]", "such as gpu0"),
        ({"engines": [TWO[0], {**TWO[1], "name": "a"}]}, "tiers.local.engines[1].name", "tiers.local.engines[0] too"),
        ({"engines": [{**TWO[0], "name": "a b"}]}, "tiers.local.engines[0].name", "letters, digits"),
        ({"engines": [{**TWO[0], "name": "../x"}]}, "tiers.local.engines[0].name", "letters, digits"),
        ({"engines": [TWO[0], {"name": "b"}]}, "tiers.local.engines[1]", "is missing; give the address"),
        ({"engines": [TWO[0], {**TWO[1], **TWO[0], "name": "b"}]}, "tiers.local.engines[1].api_base", "'a' too"),
        ({"api_base": "http://h:1/v1", "engines": [{"name": "a"}, {"name": "b"}]}, "tiers.local.api_base", "'a' too"),
        ({"engines": [TWO[0], {**TWO[1], "engine": "none"}]}, "tiers.local.engines[1].engine", "leave the engine out"),
        ({"engines": [TWO[0], {**TWO[1], "model": "local/a"}]}, "tiers.local.engines[1]", "also a model's name"),
        ({"engines": [TWO[0], {**TWO[1], "max_num_seqs": 0}]}, "tiers.local.engines[1].max_num_seqs", "greater than"),
        ({"engines": TWO, "coefficients": "h100"}, "tiers.local.coefficients", "is not known"),
        ({"engines": [TWO[0], {**TWO[1], "coefficients": "x"}]}, "tiers.local.engines[1].coefficients", "not known"),
        (
            {"engines": [{**one, "hardware": {"kind": "rented", "usd_per_hour": 1, "asset": "rack"}} for one in TWO]},
            "tiers.local.engines[1].hardware.asset",
            "'rack' is the hardware of engine 'a' too",
        ),
        (
            {"hardware": {"kind": "rented", "usd_per_hour": 1, "asset": "rack"}, "engines": TWO},
            "tiers.local.hardware.asset",
            "leave `asset` out",
        ),
        (
            {"engine": "vllm", "engines": [{"name": "a", "launch": {"gpus": [0]}}, {"name": "b"}]},
            "tiers.local.engines[1]",
            "each says which cards are its own",
        ),
        (
            {"engine": "vllm", "launch": {"gpus": [0]}, "engines": [{"name": "a"}, {"name": "b"}]},
            "tiers.local.launch.gpus",
            "card 0 is engine 'a''s too",
        ),
        (
            {"engine": "vllm", "launch": {"gpus": [1, 1]}, "engines": [{"name": "a"}]},
            "tiers.local.launch.gpus",
            "names a card twice",
        ),
        (
            {"engine": "vllm", "engines": [{"name": "a", "launch": {"gpus": [0], "extra_args": ["-tp", "2"]}}]},
            "tiers.local.engines[0].launch.gpus",
            "1 of the 2 cards",
        ),
        (
            {"engine": "vllm", "engines": [{"name": "a", "launch": {"gpus": [-1]}}]},
            "tiers.local.engines[0].launch.gpus",
            "greater than or equal to 0",
        ),
        (
            {"engines": [{"name": "a", "engine": "embedded", "launch": {"gpus": [0]}}], "model": None},
            "tiers.local.engines[0].launch.gpus",
            "works on the CPU",
        ),
        (
            {
                "engine": "vllm",
                "engines": [
                    {"name": "a", "launch": {"gpus": [0]}},
                    {"name": "b", "launch": {"gpus": [1]}, "api_base": "http://localhost:8001/v1"},
                    {"name": "c", "engine": "external", "api_base": "http://127.0.0.1:8001/v1"},
                ],
            },
            "tiers.local.engines[2].api_base",
            "'b' too",
        ),
    ],
)
def test_a_mistake_in_an_engine_is_named_where_it_stands(keys: dict[str, Any], place: str, said: str) -> None:
    cheap = {"model": "openai/x", "api_base": "http://127.0.0.1:9/v1"}
    tiers = {"local": {"engine": "external", "model": "m"} | keys, "cheap": cheap}
    found = problems(yaml.safe_dump({"tiers": tiers}, default_flow_style=True, width=10_000))
    assert len(found) == 1, found
    assert found[0].startswith(f"router.yaml:1: {place}"), found
    assert said in found[0], found


def test_a_mistake_is_told_with_the_line_of_its_own_key() -> None:
    told = problems(REPLICAS.replace("usd_per_hour: 2.50", "usd_per_hour: -1").replace("tpot_s: 0.1", "tpot_s: 0"))
    assert [line.partition(": ")[0] for line in told] == ["router.yaml:8", "router.yaml:12"]


def test_a_model_behind_an_api_may_not_be_called_as_an_engine_or_its_model() -> None:
    cheap = "  cheap: {model: openai/x, name: NAME, api_base: 'http://127.0.0.1:9/v1'}\n"
    for name, where in (("local/gpu1", "engines[1]"), ("meta/llama", "engines[0]")):
        (told,) = problems(REPLICAS + cheap.replace("NAME", name))
        assert f"{name!r} is already the name of tiers.local.{where}" in told


NAMES = st.lists(st.text("abc", min_size=1, max_size=2), min_size=1, max_size=4)


@settings(deadline=None, max_examples=50)
@given(names=NAMES, ports=st.lists(st.integers(8000, 8003), min_size=4, max_size=4))
def test_engines_that_are_accepted_are_told_apart_by_name_and_address(names: list[str], ports: list[int]) -> None:
    engines = [
        {"name": name, "api_base": f"http://127.0.0.1:{port}/v1"} for name, port in zip(names, ports, strict=False)
    ]
    wrong = len({*names}) < len(names) or len({*ports[: len(names)]}) < len(names)
    text = local(engine="external", model="m", engines=engines)
    if wrong:
        assert problems(text)
    else:
        built = engines_of(text)
        assert [engine.candidate_name for engine in built] == [f"local/{name}" for name in names]
        assert len({engine.api_base for engine in built}) == len(names)
