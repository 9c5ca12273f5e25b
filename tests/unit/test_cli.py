"""The command line: what each command prints, and with which code it leaves."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from router.cli import Processing
from router.core.dated_prices import PROCESSING
from router.settings import SHIPPED_SOURCE

A_REQUEST = ["--input-tokens", "1000", "--output-tokens", "300"]
WORKLOAD = ["--input-tokens", "512", "--output-tokens", "256"]
BREAK_EVEN = ["report", "break-even", *WORKLOAD, "--slo-capacity-rps", "20.57", "--saturation-rps", "24.37"]


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("ROUTER_API_KEY", "OPENAI_API_KEY", "ANTHROPIC_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


def config(tmp_path: Path, text: str = "") -> str:
    file = tmp_path / "config.yaml"
    file.write_text("tiers: {local: {engine: embedded}}\n" + text)
    return str(file)


def test_help_names_every_command() -> None:
    done = subprocess.run([sys.executable, "-m", "router", "--help"], capture_output=True, text=True, check=True)
    gateway = ("serve", "check-config", "doctor", "explain", "estimate", "report", "prices", "simulate")
    for command in (*gateway, "classify", "train", "evaluate", "promote", "rollback"):
        assert f"  {command} " in done.stdout


def test_help_imports_neither_the_gateway_nor_its_libraries() -> None:
    code = (
        "import sys\nfrom router.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'fastapi', 'litellm', 'sqlalchemy', 'aiohttp', 'pydantic', 'genai_prices', 'rich', 'yaml'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


def test_check_config_says_ok_or_every_mistake(run: Any, tmp_path: Path) -> None:
    good = config(tmp_path, "policy: {exploration_ratio: 0.1}")
    code, out, err = run("check-config", good)
    assert (code, out) == (0, f"{good}: ok\n")
    assert err == ""
    bad = config(tmp_path, "server: {prot: 1}\npolicy: {preset: best}")
    code, out, err = run("check-config", bad)
    assert (code, out) == (1, "")
    assert err.splitlines()[0] == f"{bad}:2: server.prot: unknown key; did you mean 'port'?"
    assert err.splitlines()[1].startswith(f"{bad}:3: policy.preset: 'best' should be")


def test_check_config_tells_a_missing_price_together_with_all_other_mistakes(run: Any, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(
        "server: {prot: 1}\n"
        "tiers:\n"
        "  local: {engine: embedded}\n"
        "  cheap: {model: own/model, api_base: 'http://127.0.0.1:1/v1'}\n"
        "  premium: {model: own/other, api_base: 'http://127.0.0.1:1/v1', price: {input_usd_per_mtok: dear}}\n"
    )
    code, out, err = run("check-config", str(file))
    assert (code, out) == (1, "")
    one, two, three = err.splitlines()
    assert one.startswith(f"{file}:1: server.prot: unknown key")
    assert two.startswith(f"{file}:4: tiers.cheap.model: ") and "own/model" in two and "price" in two
    # the price that is there is the mistake; that there is none without it is no second one
    assert three.startswith(f"{file}:5: tiers.premium.price.input_usd_per_mtok: 'dear'")


@pytest.mark.parametrize(
    "arguments",
    [
        ["check-config", "no-such-file.yaml"],
        ["no-such-command"],
        ["estimate", "--model", "m"],
        ["estimate", "--model", "m", "--input-tokens", "-1", "--output-tokens", "1"],
        ["estimate", "--model", "m", "--input-tokens", "1", "--output-tokens", "1", "--users", "3"],
        ["estimate", "--model", "m", "--input-tokens", "1", "--output-tokens", "1", "--requests-per-day", "inf"],
        ["estimate", "--model", "m", "--input-tokens", "1", "--output-tokens", "1", "--cached-input-tokens", "2"],
        ["estimate", "--model", "m", "--input-tokens", "1", "--output-tokens", "1", "--at", "tomorrow"],
        ["report", "costs", "--from", "yesterday"],
        ["explain"],
        ["explain", "--prompt", "a", "--request", "-"],
        ["serve", "--port", "99999"],
        ["serve", "--log-level", "loud"],
        [*BREAK_EVEN, "--usd-per-hour", "x", "--api-input-usd-per-mtok", "1", "--api-output-usd-per-mtok", "1"],
        [*BREAK_EVEN, "--usd-per-hour", "nan", "--api-input-usd-per-mtok", "1", "--api-output-usd-per-mtok", "1"],
    ],
)
def test_wrong_use_is_code_2(run: Any, arguments: list[str]) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "") and err


def test_break_even_in_json_is_the_worked_example(run: Any) -> None:
    prices = ["--usd-per-hour", "2.50", "--api-input-usd-per-mtok", "0.10", "--api-output-usd-per-mtok", "0.50"]
    code, out, _ = run(*BREAK_EVEN, *prices, "--format", "json")
    found = json.loads(out)
    assert code == 0
    assert list(found) == [
        "usd_per_request", "requests_per_hour", "requests_per_s", "share_of_slo_capacity", "verdict",
    ]  # fmt: skip
    # the same figures with the arithmetic of fractions: right to the last digit that a JSON number holds
    usd = Fraction(512 * 10 + 256 * 50, 100) / 10**6
    per_hour = Fraction(5, 2) / usd
    assert found["usd_per_request"] == float(usd) == 0.0001792
    assert found["requests_per_hour"] == float(per_hour) and round(found["requests_per_hour"], 2) == 13950.89
    assert found["requests_per_s"] == float(per_hour / 3600) and round(found["requests_per_s"], 4) == 3.8752
    share = float(per_hour / 3600 / Fraction("20.57"))
    assert found["share_of_slo_capacity"] == share and round(share, 4) == 0.1884
    assert found["verdict"] == "yes"


_FIGURES = {
    "--usd-per-hour": "2.50", "--input-tokens": "512", "--output-tokens": "256", "--api-input-usd-per-mtok": "0.10",
    "--api-output-usd-per-mtok": "0.50", "--slo-capacity-rps": "20.57", "--saturation-rps": "24.37",
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(_FIGURES.keys() - {"--usd-per-hour"}))
def test_break_even_with_a_figure_missing_names_it(run: Any, name: str) -> None:
    rest = [word for option, value in _FIGURES.items() if option != name for word in (option, value)]
    code, out, err = run("report", "break-even", *rest)
    assert (code, out) == (2, "") and name in err


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("--slo-capacity-rps", "0", "0 < --slo-capacity-rps"),
        ("--saturation-rps", "20", "--slo-capacity-rps <= --saturation-rps"),
        ("--slo-capacity-rps", "many", "many"),
        ("--usd-per-hour", "-1", "-1"),
        ("--api-output-usd-per-mtok", "-0.5", "-0.5"),
        ("--output-tokens", "1.5", "--output-tokens"),
        ("--usd-per-hour", "1e400", "is absurd"),
        ("--api-input-usd-per-mtok", "1e-400", "is absurd"),
    ],
)
def test_break_even_with_a_figure_that_cannot_be_says_which(run: Any, name: str, value: str, told: str) -> None:
    words = [word for option, given in (_FIGURES | {name: value}).items() for word in (option, given)]
    code, out, err = run("report", "break-even", *words)
    assert (code, out) == (2, "") and told in " ".join(err.split())


@pytest.mark.parametrize(
    ("option", "known"), [(("--gpu", "h200"), "h100-8b-fp16"), (("--policies", "product,best"), "always_local")]
)
def test_a_name_that_nobody_knows_is_wrong_use(run: Any, tmp_path: Path, option: tuple[str, str], known: str) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n0,100,10\n")
    code, out, err = run("simulate", "--trace", str(trace), *option)
    assert (code, out) == (2, "") and known in err


def test_break_even_where_the_api_is_free_is_never_and_has_no_load(run: Any) -> None:
    free = _FIGURES | {"--api-input-usd-per-mtok": "0", "--api-output-usd-per-mtok": "0", "--format": "json"}
    found = json.loads(run("report", "break-even", *(word for pair in free.items() for word in pair))[1])
    assert found == {
        "usd_per_request": 0, "requests_per_hour": None, "requests_per_s": None, "share_of_slo_capacity": None,
        "verdict": "never",
    }  # fmt: skip


@pytest.mark.parametrize(("usd_per_hour", "verdict"), [("2.50", "never"), ("2.00", "above_slo")])
def test_break_even_against_a_discount_host(run: Any, usd_per_hour: str, verdict: str) -> None:
    prices = ["--usd-per-hour", usd_per_hour, "--api-input-usd-per-mtok", "0.02", "--api-output-usd-per-mtok", "0.05"]
    assert json.loads(run(*BREAK_EVEN, *prices, "--format", "json")[1])["verdict"] == verdict
    assert f"verdict                 {verdict}" in run(*BREAK_EVEN, *prices)[1]


CARD = {
    "--rent-usd-per-hour": "2.50",
    "--purchase-usd": "40000",
    "--residual-usd": "10000",
    "--years": "4",
    "--discount-rate-ratio": "0.08",
    "--availability-ratio": "0.98",
    "--power-kw": "0.9",
    "--pue-ratio": "1.3",
    "--usd-per-kwh": "0.09",
    "--colo-usd-per-hour": "0.15",
    "--ops-usd-per-hour": "0.25",
}


def test_payback_of_a_card_that_was_bought_is_the_worked_example(run: Any) -> None:
    code, out, _ = run("report", "payback", *(word for pair in CARD.items() for word in pair), "--format", "json")
    told = json.loads(out)
    assert code == 0
    assert (round(told["usd_per_hour"], 4), round(told["capital_usd_per_hour"], 4)) == (1.6528, 1.1475)
    assert (round(told["payback_years"], 3), round(told["payback_months"], 1)) == (2.334, 28.0)
    assert told["verdict"] == "yes"


@pytest.mark.parametrize(("rent", "verdict"), [("0.40", "never"), ("1.2", "too_late"), ("2.5", "yes")])
def test_payback_says_never_and_too_late(run: Any, rent: str, verdict: str) -> None:
    words = (word for pair in (CARD | {"--rent-usd-per-hour": rent}).items() for word in pair)
    told = json.loads(run("report", "payback", *words, "--format", "json")[1])
    assert told["verdict"] == verdict
    assert (told["payback_years"] is None) == (verdict == "never")


def test_payback_of_the_config_and_of_what_cannot_be(run: Any, tmp_path: Path) -> None:
    file = tmp_path / "router.yaml"
    file.write_text("tiers: {local: {engine: embedded}}\n")
    code, _, err = run("report", "payback", "--rent-usd-per-hour", "2.5", "--config", str(file))
    assert (code, "--purchase-usd" in err) == (1, True)
    words = (word for pair in (CARD | {"--years": "0"}).items() for word in pair)
    code, _, err = run("report", "payback", *words)
    assert (code, "years must be above 0" in err) == (2, True)
    file.write_text(
        "tiers: {local: {engine: embedded, hardware: {kind: owned, purchase_usd: 40000, residual_usd: 10000, "
        "years: 4, discount_rate_ratio: 0.08, availability_ratio: 0.98, power_kw: 0.9, pue_ratio: 1.3, "
        "usd_per_kwh: 0.09, colo_usd_per_hour: 0.15, ops_usd_per_hour: 0.25}}}\n"
    )
    code, out, err = run("report", "payback", "--rent-usd-per-hour", "2.5", "--config", str(file), "--format", "json")
    assert code == 0, err
    assert [round(row["payback_years"], 3) for row in json.loads(out)] == [2.334]


def test_break_even_takes_a_config_like_every_command(run: Any, tmp_path: Path) -> None:
    file = tmp_path / "router.yaml"
    file.write_text("tiers: {local: {engine: embedded}}\n")
    prices = ["--usd-per-hour", "2.50", "--api-input-usd-per-mtok", "0.10", "--api-output-usd-per-mtok", "0.50"]
    assert run(*BREAK_EVEN, *prices, "--config", str(file))[0] == 0


def test_estimate_adds_up_per_request_day_and_month(run: Any) -> None:
    asked = ["estimate", "--model", "openai/gpt-6-luna", *A_REQUEST, "--at", "2026-11-22"]
    code, out, _ = run(*asked, "--users", "100", "--calls", "5", "--format", "json")
    found = json.loads(out)
    assert code == 0
    assert (found["input_usd"], found["output_usd"], found["usd_per_request"]) == (0.0001, 0.00015, 0.00025)
    assert (found["requests_per_day"], found["usd_per_day"], found["usd_per_month"]) == (500, 0.125, 3.75)
    assert found["days_per_month"] == 30
    batch = json.loads(run(*asked, "--processing", "batch", "--format", "json")[1])
    assert batch["usd_per_request"] == 0.000125


def test_estimate_takes_the_price_of_the_day(run: Any) -> None:
    def usd(day: str) -> float:
        asked = ["estimate", "--model", "gemini/gemini-4-argon", *A_REQUEST, "--at", day]
        return float(json.loads(run(*asked, "--format", "json")[1])["usd_per_request"])

    assert (usd("2026-11-30"), usd("2026-12-01")) == (0.005, 0.010)


def test_estimate_knows_models_and_prices_of_the_config(run: Any, tmp_path: Path) -> None:
    file = config(tmp_path)
    Path(file).write_text(
        "tiers: {cheap: {model: own/model, name: mine, api_base: 'http://h/v1', "
        "price: {input_usd_per_mtok: 10, output_usd_per_mtok: 30}}}"
    )
    asked = ["estimate", "--model", "mine", "--input-tokens", "1800", "--output-tokens", "300", "--format", "json"]
    found = json.loads(run(*asked, "--config", file)[1])
    assert (found["input_usd"], found["output_usd"], found["usd_per_request"]) == (0.018, 0.009, 0.027)


LOCAL = (
    "tiers: {local: {engine: external, api_base: 'http://127.0.0.1:9/v1', model: llama, practical_capacity_ratio: 1, "
    "hardware: {kind: rented, usd_per_hour: 2.50}, "
    "coefficients: {t0_s: 0, c_seq_s: 0.00019, c_kv_s: 0, c_prefill_s: 0.000035}}, "
    "cheap: {model: openai/gpt-6-luna}}\n"
)


def test_estimate_of_the_local_tier_is_its_standard_cost(run: Any, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(LOCAL)
    asked = ["estimate", "--model", "local", *A_REQUEST, "--requests-per-day", "1000", "--config", str(file)]
    found = json.loads(run(*asked, "--format", "json")[1])
    assert (found["usd_per_request"], found["work_gpu_s"], found["basis"]) == (0.000063889, 0.092, "standard cost")
    assert (found["usd_per_day"], found["usd_per_month"]) == (0.063889, 1.91667)
    assert ["usd_per_request", "0.000063889"] in [line.split() for line in run(*asked)[1].splitlines()]


def test_estimate_of_auto_is_a_range_and_what_it_depends_on(run: Any, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(LOCAL)
    asked = ["estimate", "--model", "auto", *A_REQUEST, "--config", str(file)]
    found = json.loads(run(*asked, "--format", "json")[1])
    assert (found["usd_per_request_min"], found["usd_per_request_max"]) == (0.000063889, 0.000063889)
    assert [choice["unavailable"] for choice in found["choices"]] == [None, "OPENAI_API_KEY is not set"]
    assert "explain --prompt" in found["depends_on"]
    assert "auto: 0.000063889 to 0.000063889 USD per request. It depends on" in run(*asked)[1]
    lines = list(csv.DictReader(io.StringIO(run(*asked, "--format", "csv")[1])))
    assert [line["usd_per_request"] for line in lines] == ["0.000063889", "0.00025"]


def test_a_model_without_a_price_is_code_1_and_names_the_cure(run: Any) -> None:
    asked = ["estimate", "--model", "no-such-model", "--input-tokens", "1", "--output-tokens", "1"]
    code, out, err = run(*asked)
    assert (code, out) == (1, "") and "no-such-model" in err and "price:" in err


def test_prices_show_in_three_forms(run: Any) -> None:
    found = json.loads(run("prices", "show", "openai/gpt-6.1-sol", "--format", "json")[1])
    assert [tier["from_input_tokens"] for tier in found["tiers"]] == [0, 272_001]
    assert found["source"]
    rows = list(csv.DictReader(io.StringIO(run("prices", "show", "openai/gpt-6.1-sol", "--format", "csv")[1])))
    assert [(row["input_usd_per_mtok"], row["output_usd_per_mtok"]) for row in rows] == [("2", "10"), ("4", "15")]
    assert "272001" in run("prices", "show", "openai/gpt-6.1-sol")[1]


def test_prices_check_fails_for_a_gap_only(run: Any, tmp_path: Path) -> None:
    assert run("prices", "check")[0] == 0
    file = config(tmp_path)
    Path(file).write_text("tiers: {cheap: {model: own/model, api_base: 'http://h/v1'}}")
    code, out, _ = run("prices", "check", "--config", file, "--format", "json")
    assert code == 1
    assert [(note["kind"], note["model"]) for note in json.loads(out)["notes"] if note["kind"] == "gap"] == [
        ("gap", "own/model")
    ]


def test_costs_before_the_first_request_are_nothing(run: Any) -> None:
    code, out, _ = run("report", "costs", "--format", "json")
    assert code == 0
    assert json.loads(out) == {
        "rows": [],
        "totals": {"requests": 0, "attempts": 0, "cost_nanousd": 0, "open_reservations": 0},
    }
    assert run("report", "costs", "--format", "csv")[1] == "day,tenant,tier,model,requests,attempts,cost_nanousd\n"
    assert run("report", "costs", "--to", "9999-12-31")[0] == 0


def test_doctor_in_json_names_every_check(run: Any) -> None:
    code, out, _ = run("doctor", "--format", "json")
    found = json.loads(out)
    checks = {check["name"]: check for check in found["checks"]}
    assert code == (1 if found["state"] == "fail" else 0)
    assert checks["config"]["detail"] == SHIPPED_SOURCE
    assert checks["tier cheap: openai/gpt-6-luna"] == {
        "state": "warn",
        "name": "tier cheap: openai/gpt-6-luna",
        "detail": "OPENAI_API_KEY is not set",
        "cure": "export OPENAI_API_KEY",
    }
    assert checks["lever answer cache"]["state"] == "off"


def test_doctor_turns_a_broken_config_into_failed_checks(run: Any, tmp_path: Path) -> None:
    file = config(tmp_path, "server: {prot: 1}")
    code, out, _ = run("doctor", "--config", file, "--format", "json")
    found = json.loads(out)
    assert (code, found["state"]) == (1, "fail")
    assert "server.prot" in found["checks"][0]["detail"]


def test_serve_does_not_start_on_a_broken_config(run: Any, tmp_path: Path) -> None:
    code, out, err = run("serve", "--config", config(tmp_path), "--host", "0.0.0.0", "--port", "0")
    assert (code, out) == (1, "") and "ROUTER_API_KEY" in err


@pytest.mark.parametrize("words", ["prices show openai/gpt-6-luna --format json", "serve --help", "--help"])
def test_a_reader_that_goes_away_is_no_error(words: str) -> None:
    reads, writes = os.pipe()
    os.close(reads)
    command = [sys.executable, "-m", "router", *words.split()]
    done = subprocess.run(command, stdout=writes, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writes)
    assert (done.returncode, done.stderr) == (0, "")


def test_kinds_of_processing_are_those_of_the_price_book() -> None:
    assert tuple(kind.value for kind in Processing) == PROCESSING


def test_check_config_takes_router_yaml_where_no_file_is_named(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "router.yaml").write_text("server: {prot: 1}\n")
    code, _, err = run("check-config")
    assert (code, err.startswith("router.yaml:1: server.prot")) == (1, True)
    file = config(tmp_path)
    assert run("check-config", "--config", file)[:2] == (0, f"{file}: ok\n")
    assert run("check-config", file, "--config", file)[0] == 2


def test_classify_fails_where_no_row_could_be_scored(run: Any, tmp_path: Path) -> None:
    rows, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    rows.write_text("# no row\n# at all\n")
    code, told, err = run("classify", "--input", rows, "--output", out)
    assert (code, json.loads(told)["failed"]) == (1, 2)
    assert err == f"error: no row of {rows} could be scored; each line of {out} says why\n"
    rows.write_text('# no row\n{"messages": [{"role": "user", "content": "Name a colour."}]}\n')
    assert run("classify", "--input", rows, "--output", out)[0] == 0
