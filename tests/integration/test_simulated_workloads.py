"""The bounds that the admission must keep, shown on the six workloads as `simulate --workloads six` plays them.

Drawn traffic everywhere, cut short; Azure's own traces in full where they are near (AZURE_TRACES names their folder).
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from router.cli import main
from router.simulation.workloads import six

_NEAR = (os.environ.get("AZURE_TRACES"), Path(__file__).parents[3] / "shared" / "data" / "econ")
AZURE = next((Path(folder) for folder in _NEAR if folder and Path(folder).is_dir()), None)
Figures = dict[str, dict[str, tuple[float, float]]]
"""By policy and workload: (spend_ratio, slo_miss_ratio); of `all`: (spend of all, misses of the worst)."""


def played(capsys: pytest.CaptureFixture[str], *arguments: str) -> Figures:
    with pytest.raises(SystemExit) as left:
        main(["simulate", "--workloads", "six", *arguments, "--format", "json"])
    captured = capsys.readouterr()
    assert left.value.code in (0, None), captured.err
    found: Figures = {}
    for row in json.loads(captured.out):
        cell = (row["spend_ratio"], row["slo_miss_ratio"])
        found.setdefault(row["policy"], {})[row["workload"]] = cell
    assert all(len(cells) == 7 for cells in found.values())
    return found


@pytest.mark.parametrize("seed", ["0", "7"])
def test_on_an_h100_the_product_spends_little_and_keeps_its_promises_where_the_common_rules_do_not(
    capsys: pytest.CaptureFixture[str], seed: str
) -> None:
    policies = "product_fixed,product,nvml80,waiting0,llmd"
    found = played(capsys, "--requests", "2000", "--seed", seed, "--policies", policies)
    assert found["product_fixed"]["all"][0] <= 0.28
    assert found["product_fixed"]["all"][1] <= 0.006
    assert found["product"]["all"][0] <= 0.30
    assert found["product"]["all"][1] <= 0.015
    assert found["nvml80"]["all"][0] > 2 * found["product"]["all"][0]
    for name in ("nvml80", "waiting0", "llmd"):
        assert found[name]["all"][1] > 0.05


def test_with_the_older_token_budget_of_2048_a_step_the_same_bounds_hold(
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ("--requests", "3000", "--seed", "1", "--max-batched-tokens", "2048")
    found = played(capsys, *arguments, "--policies", "product_fixed,product")
    assert found["product_fixed"]["all"][0] <= 0.28
    assert found["product_fixed"]["all"][1] <= 0.006
    assert found["product"]["all"][0] <= 0.30
    assert found["product"]["all"][1] <= 0.015


def test_on_an_a100_believed_to_be_an_h100_promises_are_kept_all_the_same(
    capsys: pytest.CaptureFixture[str],
) -> None:
    wrong = ("--gpu", "a100-8b-fp16", "--start-coefficients", "h100-8b-fp16")
    found = played(capsys, *wrong, "--requests", "1500", "--policies", "product,product_fixed")
    assert found["product"]["all"][1] <= 0.005
    assert found["product_fixed"]["all"][1] > 0.05


def test_on_conversations_beyond_capacity_a_quarter_is_spilled_at_most(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "conversations.csv"
    drawn = next(workload for workload in six(seed=1, requests=8000) if workload.name == "conv 1.3")
    rows = "".join(f"{r.at_s:.6f},{r.prompt_tokens},{r.output_tokens}\n" for r in drawn.trace)
    file.write_text(f"TIMESTAMP,ContextTokens,GeneratedTokens\n{rows}")
    spend = spend_and_misses_on(capsys, file)
    assert spend["product"][0] <= 0.25
    assert spend["product"][1] <= 0.005
    assert spend["nvml80"][0] >= 0.70


def spend_and_misses_on(
    capsys: pytest.CaptureFixture[str], file: Path, *arguments: str
) -> dict[str, tuple[float, float]]:
    with pytest.raises(SystemExit):
        main(["simulate", "--trace", str(file), "--policies", "product,nvml80", *arguments, "--format", "json"])
    found = json.loads(capsys.readouterr().out)
    return {row["policy"]: (row["spend_ratio"], row["slo_miss_ratio"]) for row in found}


if AZURE is not None:

    def test_on_azures_own_traces_in_full_the_bounds_hold(capsys: pytest.CaptureFixture[str]) -> None:
        found = played(capsys, "--azure", str(AZURE), "--policies", "product_fixed")
        assert found["product_fixed"]["all"][0] <= 0.28
        assert found["product_fixed"]["all"][1] <= 0.006

    def test_on_azures_conversations_beyond_capacity_a_quarter_is_spilled_at_most(
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        found = spend_and_misses_on(capsys, AZURE / "AzureLLMInferenceTrace_conv.csv", "--rate", "14.333")
        assert found["product"][0] <= 0.25
        assert found["product"][1] <= 0.005
        assert found["nvml80"][0] >= 0.70
