"""NVML through the real pynvml and a stand-in for the driver's library, compiled here; each case in its own process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from local_llm.nvml import Nvml
from tests.nvml_stand_in import build_library
from tests.patience import PATIENCE_S

ROOT = Path(__file__).parents[2]
HEALTHY = """
gpus 2
driver 570.124.06
name NVIDIA A10G
memory_total 24146608128
memory_used 20401094656
utilization 87
power_mw 211350
energy_mj 9000500
temperature 71
cuda 13000
clock_mhz 1695
clock_max_mhz 1980
1.name NVIDIA L4
1.utilization 3
uuid GPU-5f1c6a0e
"""
# Reads once per line of standard input, after writing that line's state, and prints what was read.
READER = """
import dataclasses, json, pathlib, sys
from local_llm.nvml import Nvml
nvml = Nvml()
for line in sys.stdin:
    pathlib.Path(sys.argv[1]).write_text(json.loads(line))
    print(json.dumps([[dataclasses.asdict(gpu) for gpu in nvml.read()], nvml.problem]), flush=True)
nvml.close()
"""

Look = tuple[list[dict[str, object]], str | None]


@pytest.fixture(scope="session")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders with a library each: a current driver, and one from before the clocks call was renamed."""
    built = {}
    for name, flags in (("current", ()), ("old", ("-DOLD_DRIVER",))):
        built[name] = build_library(tmp_path_factory.mktemp(f"nvml_{name}"), *flags)
    return built


def looks(library: Path, folder: Path, *states: str) -> list[Look]:
    """What successive reads of one process see, the state of the machine rewritten before each."""
    state = folder / "state.txt"
    environment = {
        **os.environ,
        "NVML_STATE": str(state),
        "PYTHONPATH": str(ROOT),
        "LD_LIBRARY_PATH": str(library),
    }
    done = subprocess.run(
        [sys.executable, "-c", READER, str(state)],
        input="".join(json.dumps(text) + "\n" for text in states),
        capture_output=True,
        text=True,
        env=environment,
        check=True,
        timeout=PATIENCE_S,
    )
    return [(look[0], look[1]) for look in map(json.loads, done.stdout.splitlines())]


def test_two_cards_are_read_in_full(libraries: dict[str, Path], tmp_path: Path) -> None:
    ((gpus, problem),) = looks(libraries["current"], tmp_path, HEALTHY)
    assert problem is None
    assert gpus[0] == {
        "index": 0,
        "name": "NVIDIA A10G",
        "memory_total_bytes": 24146608128,
        "memory_used_bytes": 20401094656,
        "utilization_ratio": 0.87,
        "temperature_c": 71,
        "power_w": 211.35,
        "energy_j": 9000.5,
        "throttle_reasons": [],
        "problem": None,
        "mig": False,
        "ecc_uncorrected": 0,
        "xid": None,
        "sm_clock_mhz": 1695,
        "sm_clock_max_mhz": 1980,
        "uuid": "GPU-5f1c6a0e",
    }
    assert (gpus[1]["name"], gpus[1]["utilization_ratio"]) == ("NVIDIA L4", 0.03)


def test_driver_and_cuda_version_are_told(libraries: dict[str, Path], tmp_path: Path) -> None:
    state = tmp_path / "state.txt"
    state.write_text(HEALTHY)
    read = "from local_llm.nvml import Nvml; n = Nvml(); n.read(); print(n.driver_version, n.cuda_version)"
    environment = {**os.environ, "NVML_STATE": str(state), "LD_LIBRARY_PATH": str(libraries["current"])}
    command = [sys.executable, "-c", read]
    done = subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True, timeout=PATIENCE_S
    )
    assert done.stdout.split() == ["570.124.06", "13.0"]


def test_a_mig_card_tells_no_utilisation_and_that_is_not_zero(libraries: dict[str, Path], tmp_path: Path) -> None:
    state = HEALTHY + "0.mig 1\n0.fail.Utilization 3\n0.fail.Power 3\n0.fail.Ecc 3\n"
    ((gpus, _),) = looks(libraries["current"], tmp_path, state)
    assert (gpus[0]["mig"], gpus[0]["utilization_ratio"], gpus[0]["power_w"]) == (True, None, None)
    assert gpus[0]["ecc_uncorrected"] is None
    assert gpus[1]["utilization_ratio"] == 0.03


def test_one_lost_card_of_two_leaves_the_other_readable(libraries: dict[str, Path], tmp_path: Path) -> None:
    ((gpus, problem),) = looks(libraries["current"], tmp_path, HEALTHY + "0.fail.Memory 15\n")
    assert problem is None
    assert gpus[0]["problem"] == "the GPU has fallen off the bus"
    assert gpus[0]["utilization_ratio"] is None
    assert gpus[1]["problem"] is None


def test_throttling_is_named_and_an_idle_clock_is_none(libraries: dict[str, Path], tmp_path: Path) -> None:
    ((gpus, _),) = looks(libraries["current"], tmp_path, HEALTHY + "0.throttle 0x68\n1.throttle 0x1\n")
    assert gpus[0]["throttle_reasons"] == ["hw_slowdown", "sw_thermal_slowdown", "hw_thermal_slowdown"]
    assert gpus[1]["throttle_reasons"] == []


def test_an_older_driver_knows_throttling_by_its_old_name(libraries: dict[str, Path], tmp_path: Path) -> None:
    ((gpus, problem),) = looks(libraries["old"], tmp_path, HEALTHY + "throttle 0x80\n")
    assert problem is None
    assert gpus[0]["throttle_reasons"] == ["hw_power_brake_slowdown"]


def test_a_fatal_driver_error_stays_with_its_card_and_a_harmless_one_is_no_problem(
    libraries: dict[str, Path], tmp_path: Path
) -> None:
    found = looks(
        libraries["current"],
        tmp_path,
        HEALTHY,
        HEALTHY + "xid_serial 1\nxid 1 79\n",
        HEALTHY,
        HEALTHY + "xid_serial 2\nxid 0 13\n",
    )
    problems = [[gpu["problem"] for gpu in gpus] for gpus, _ in found]
    assert problems == [[None, None], [None, "XID 79"], [None, "XID 79"], [None, "XID 79"]]
    assert found[-1][0][0]["xid"] == 13


def test_a_card_in_trouble_is_trusted_again_once_the_driver_has_begun_anew(
    libraries: dict[str, Path], tmp_path: Path
) -> None:
    broken = HEALTHY + "xid_serial 1\nxid 0 95\n"
    found = looks(libraries["current"], tmp_path, HEALTHY, broken, broken + "fail.Count 1\n", broken)
    assert [[gpu["problem"] for gpu in gpus] for gpus, _ in found] == [[None, None], ["XID 95", None], [], [None, None]]


def test_uncorrectable_memory_errors_are_counted(libraries: dict[str, Path], tmp_path: Path) -> None:
    ((gpus, _),) = looks(libraries["current"], tmp_path, HEALTHY + "1.ecc 2\n")
    assert [gpu["ecc_uncorrected"] for gpu in gpus] == [0, 2]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("fail.Init 9", "the NVIDIA driver is not loaded"),
        ("fail.Init 4", "no permission to ask the NVIDIA driver"),
        ("fail.Init 18", "the NVIDIA driver and its library differ in version: reboot or reload the driver"),
        ("fail.Init 999", "NVML: Unknown Error"),
        ("fail.Count 1", "the NVIDIA driver has been reset"),
    ],
)
def test_a_driver_that_does_not_answer_gives_nothing_and_says_why_until_it_does(
    libraries: dict[str, Path], tmp_path: Path, line: str, problem: str
) -> None:
    found = looks(libraries["current"], tmp_path, HEALTHY + line + "\n", HEALTHY)
    assert found[0] == ([], problem)
    assert len(found[1][0]) == 2
    assert found[1][1] is None


def test_a_driver_lost_between_two_reads_is_taken_up_again(libraries: dict[str, Path], tmp_path: Path) -> None:
    found = looks(libraries["current"], tmp_path, HEALTHY, HEALTHY + "fail.Count 15\n", HEALTHY)
    assert [len(gpus) for gpus, _ in found] == [2, 0, 2]
    assert found[1][1] == "the GPU has fallen off the bus"


def test_a_machine_whose_library_cannot_be_loaded_has_no_gpus(tmp_path: Path) -> None:
    (tmp_path / "libnvidia-ml.so.1").write_bytes(b"no library")  # shadows a real one, should there be any
    ((gpus, problem),) = looks(tmp_path, tmp_path, "")
    assert (gpus, problem) == ([], "no NVIDIA driver on this machine")


def test_a_library_that_lacks_a_call_is_a_problem_and_no_crash() -> None:
    class Library:
        """What pynvml raises when binding and driver do not fit each other is no NVMLError."""

        class NVMLError(Exception):
            pass

        class NVMLLibraryMismatchError(Exception):
            pass

        def nvmlDeviceGetCount(self) -> int:  # noqa: N802
            raise self.NVMLLibraryMismatchError("Unversioned function called")

        def nvmlShutdown(self) -> None:  # noqa: N802
            raise self.NVMLError

    nvml = Nvml()
    nvml._library = Library()
    assert nvml.read() == ()
    assert nvml.problem == "NVML: Unversioned function called"
