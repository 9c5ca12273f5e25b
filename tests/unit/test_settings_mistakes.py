"""Every mistake of a config is named, with its place and its cure."""

from __future__ import annotations

import pytest

from tests.settings_problems import EMBEDDED, KEY, only_problem, problems


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
