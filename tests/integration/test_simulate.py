"""`simulate` from the command line: over a written trace, over real books, and over Azure's traces if they are near."""

from __future__ import annotations

import asyncio
import csv
import io
import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from router.cli import main
from router.core.vocabulary import Outcome, Tier
from router.simulation.arrivals import gamma_bursts
from router.simulation.traces import TraceRequest
from router.stores.sql import SqlLedger
from tests.ledger_samples import NOON, WallClock, settled, tried

KEYS = ["policy", "spend_ratio", "slo_miss_ratio", "ttft_p95_s", "local_share_ratio", "gpu_utilization_ratio"]
MIXED = tuple(TraceRequest(0.0, prompt, output) for prompt, output in ((300, 200), (1200, 100), (2500, 20), (4000, 30)))


def simulate(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left:
        main(["simulate", *arguments])
    captured = capsys.readouterr()
    code = left.value.code
    return (0 if code is None else int(code)), captured.out, captured.err


def rows(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, dict[str, Any]]:
    code, out, err = simulate(capsys, *arguments, "--format", "json")
    assert code == 0, err
    found = json.loads(out)
    assert all(list(row) == KEYS for row in found)
    return {row["policy"]: row for row in found}


@pytest.fixture
def trace(tmp_path: Path) -> str:
    file = tmp_path / "trace.csv"
    drawn = gamma_bursts(MIXED, rate_rps=9.0, count=600, seed=6)
    lines = [f"{request.at_s:.6f},{request.prompt_tokens},{request.output_tokens}" for request in drawn]
    file.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + "\n".join(lines) + "\n")
    return str(file)


def test_the_product_spends_less_than_nvml_and_misses_less_than_the_rest(
    capsys: pytest.CaptureFixture[str], trace: str
) -> None:
    found = rows(capsys, "--trace", trace)
    assert list(found) == ["product", "nvml80", "waiting0", "llmd", "always_local"]
    product = found["product"]
    assert product["slo_miss_ratio"] <= 0.006
    assert product["spend_ratio"] < found["nvml80"]["spend_ratio"]
    assert all(found[name]["slo_miss_ratio"] > 0.02 for name in ("waiting0", "llmd", "always_local"))
    assert found["always_local"]["spend_ratio"] == 0.0


def test_the_same_seed_prints_the_same_bytes(capsys: pytest.CaptureFixture[str], trace: str) -> None:
    arguments = (
        "--trace",
        trace,
        "--policies",
        "product,count50",
        "--burst-cv",
        "3",
        "--seed",
        "4",
        "--format",
        "json",
    )
    first, again = simulate(capsys, *arguments), simulate(capsys, *arguments)
    assert first == again
    other = simulate(capsys, *arguments[:-3], "5", *arguments[-2:])
    assert other[1] != first[1]


def test_another_gpus_coefficients_are_put_right_unless_that_is_forbidden(
    capsys: pytest.CaptureFixture[str], trace: str
) -> None:
    arguments = ("--trace", trace, "--gpu", "a100-8b-fp16", "--rate", "3.5", "--policies", "product")
    wrong = ("--start-coefficients", "h100-8b-fp16")
    learnt = rows(capsys, *arguments, *wrong)["product"]["slo_miss_ratio"]
    stubborn = rows(capsys, *arguments, *wrong, "--no-self-calibration")["product"]["slo_miss_ratio"]
    assert learnt <= 0.02
    assert stubborn > 0.05


def test_others_on_the_engine_and_other_gateways_are_seen_through_its_gauges(
    capsys: pytest.CaptureFixture[str], trace: str
) -> None:
    few = ("--rate", "8", "--policies", "product,always_local", "--requests", "600")
    alone = rows(capsys, "--trace", trace, *few)
    shared = rows(capsys, "--trace", trace, *few, "--others-ratio", "0.5")
    assert shared["always_local"]["spend_ratio"] == 0.0
    assert shared["product"]["slo_miss_ratio"] <= shared["always_local"]["slo_miss_ratio"]
    several = rows(capsys, "--trace", trace, *few, "--gateways", "4")
    assert several["product"]["slo_miss_ratio"] <= several["always_local"]["slo_miss_ratio"]
    assert several["always_local"] == alone["always_local"]


def test_of_several_engines_none_is_played_in_silence(capsys: pytest.CaptureFixture[str], trace: str) -> None:
    two = ("--trace", trace, "--requests", "20", "--policies", "product")
    two += ("--config", str(Path(__file__).parents[2] / "deploy/configs/two-h100-replicas.yaml"))
    code, _, err = simulate(capsys, *two)
    assert (code, "--gpu" in err, "--scale 0.5" in err) == (2, True, True)
    assert simulate(capsys, *two, "--gpu", "h100-8b-fp16")[0] == 0


def test_a_table_a_csv_and_a_plot_say_the_same(capsys: pytest.CaptureFixture[str], trace: str, tmp_path: Path) -> None:
    plot = tmp_path / "plot.svg"
    code, out, _ = simulate(capsys, "--trace", trace, "--policies", "always_api,count20", "--plot", str(plot))
    assert code == 0
    assert "API spend %" in out
    assert "always_api" in out
    assert "(no rule below)" in out
    assert all(f">{told}</text>" in plot.read_text() for told in ("always_api", "count20", "100.0"))
    _, text, _ = simulate(capsys, "--trace", trace, "--policies", "always_api,count20", "--format", "csv")
    found = list(csv.DictReader(io.StringIO(text)))
    assert list(found[0]) == KEYS
    assert found[0]["spend_ratio"] == "1.0"


def test_twice_as_fast_is_twice_as_full(capsys: pytest.CaptureFixture[str], trace: str) -> None:
    arguments = ("--trace", trace, "--policies", "always_local", "--scale")
    slow, fast = (rows(capsys, *arguments, scale)["always_local"] for scale in ("0.05", "0.1"))
    assert fast["gpu_utilization_ratio"] > 1.4 * slow["gpu_utilization_ratio"]


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        ((), 2, "give either --trace"),
        (("--trace", "TRACE", "--from-log"), 2, "give either --trace"),
        (("--trace", "TRACE", "--rate", "1", "--scale", "2"), 2, "not both"),
        (("--trace", "TRACE", "--rate", "0"), 2, "more than 0"),
        (("--trace", "TRACE", "--gpu", "abacus"), 2, "h100-8b-fp16"),
        (("--trace", "TRACE", "--start-coefficients", "abacus"), 2, "h100-8b-fp16"),
        (("--trace", "TRACE", "--policies", "luck"), 2, "waiting0"),
        (("--trace", "nowhere.csv"), 2, "nowhere.csv"),
    ],
)
def test_wrong_use_is_told_with_its_cure(
    capsys: pytest.CaptureFixture[str], trace: str, arguments: tuple[str, ...], code: int, told: str
) -> None:
    left, _, err = simulate(capsys, *(trace if argument == "TRACE" else argument for argument in arguments))
    assert left == code
    assert told in err


async def keep_books(url: str, data_dir: Path) -> None:
    """Ten answered requests ten seconds apart, and one that no tier has answered."""
    ledger = await SqlLedger.open(url, data_dir, clock=WallClock(NOON))
    try:
        for number in range(10):
            at = NOON + timedelta(seconds=10 * number)
            ledger.settle(settled(f"r{number}", tried(1, tier=Tier.CHEAP, at_utc=at), at_utc=at), hold_open=False)
        lost = settled("lost", tried(1, outcome=Outcome.TIMEOUT), outcome=Outcome.TIMEOUT)
        ledger.settle(replace(lost, usage=None), hold_open=False)
    finally:
        await ledger.close()


def test_what_the_gateway_has_served_is_played_out_of_its_books(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path}/ledger.db"
    config = tmp_path / "router.yaml"
    config.write_text(
        f"server: {{database_url: '{url}'}}\n"
        "tiers: {local: {engine: embedded}, cheap: {model: openai/gpt-6-luna, api_key_env: NO_KEY_NEEDED}}\n"
    )
    code, _, err = simulate(capsys, "--from-log", "--config", str(config))
    assert code == 1
    assert "the log holds no request" in err
    asyncio.run(keep_books(url, tmp_path))
    code, out, err = simulate(capsys, "--from-log", "--config", str(config), "--format", "json")
    assert code == 0
    assert "1 requests left out" in err
    assert json.loads(out)[0]["local_share_ratio"] == 1.0
