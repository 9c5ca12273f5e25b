"""`make run-gpu` as somebody with a driver types it: looked at, started, answered from home, ended with Ctrl-C.

The cards are those of a stand-in for the driver's library, the engine is a stand-in for `vllm serve`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import pytest
import yaml

from tests.nvml_stand_in import build_library
from tests.patience import PATIENCE_S
from tests.ports import free_port
from tests.process import alive, child_environ, descendants
from tests.vllm_stand_in import write_executable

ROOT = Path(__file__).parents[2]
CARD = """
gpus 1
driver 580.65.06
cuda 13000
name NVIDIA L4
memory_total 24146608128
memory_used 450000000
utilization 0
power_mw 20000
temperature 40
"""


@contextmanager
def run_gpu(folder: Path, cards: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """The target in a session of its own (as a terminal gives it), and the port it shall listen on."""
    (folder / "cards.txt").write_text(cards)
    library = folder / "lib"
    library.mkdir()
    local = {
        "engine": "vllm",
        "model": "house/Model-7B",
        "api_base": f"http://127.0.0.1:{free_port()}/v1",
        "launch": {"executable": str(write_executable(folder))},
    }
    config = {"server": {"data_dir": str(folder / "data")}, "tiers": {"local": local}}
    (folder / "my.yaml").write_text(yaml.safe_dump(config))
    driver = {"NVML_STATE": str(folder / "cards.txt"), "LD_LIBRARY_PATH": str(build_library(library))}
    port = free_port()
    # -o install: what is installed is what is being tested
    command = ["make", "-o", "install", "run-gpu", f"CONFIG={folder / 'my.yaml'}", f"PORT={port}"]
    with (folder / "out").open("wb") as out:
        started = subprocess.Popen(
            command,
            cwd=ROOT,
            env=child_environ(driver),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield started, port
    finally:
        for pid in [started.pid, *descendants(started.pid)]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        started.wait()


def until_it_says(out: Path, text: str, started: subprocess.Popen[bytes]) -> str:
    """What it has printed, once `text` is in it."""
    ends_at_s = time.monotonic() + PATIENCE_S
    while text not in (said := out.read_text()):
        assert started.poll() is None, said
        assert time.monotonic() < ends_at_s, said
        time.sleep(0.02)
    return said


@pytest.mark.timeout(240)
async def test_from_a_driver_to_the_first_answer_and_back(tmp_path: Path) -> None:
    with run_gpu(tmp_path, CARD) as (started, port):
        said = until_it_says(tmp_path / "out", f"on http://127.0.0.1:{port}", started)
        assert said.index("driver 580.65.06, CUDA 13.0") < said.index(f"on http://127.0.0.1:{port}")
        family = descendants(started.pid)
        body = {"model": "auto", "messages": [{"role": "user", "content": "Name a colour."}]}
        url = f"http://127.0.0.1:{port}"
        async with aiohttp.ClientSession() as session:
            ends_at_s = time.monotonic() + PATIENCE_S
            while True:  # loading: refused with the reason, and then answered
                async with session.post(f"{url}/v1/chat/completions", json=body) as response:
                    answer = await response.json()
                    if response.status == 200:
                        break
                    assert response.status == 503, answer
                assert time.monotonic() < ends_at_s, answer
            assert response.headers["x-router-tier"] == "local"
            assert answer["choices"][0]["message"]["content"] == "Blue."
            async with session.get(f"{url}/metrics") as page:
                assert "router_gpu_power_watts" in await page.text()
        family = [*family, *descendants(started.pid)]
        os.killpg(started.pid, signal.SIGINT)  # what a terminal does on Ctrl-C
        started.wait(PATIENCE_S)
        assert [pid for pid in family if alive(pid)] == []


@pytest.mark.parametrize(
    ("cards", "said"),
    [
        (CARD + "fail.Init 9\n", "the NVIDIA driver is not loaded"),
        (CARD.replace("24146608128", "8146608128"), "lower tiers.local.context_window_tokens"),
    ],
    ids=["no driver", "too small a card"],
)
def test_what_could_not_start_is_told_before_it_is_tried(cards: str, said: str, tmp_path: Path) -> None:
    with run_gpu(tmp_path, cards) as (started, _):
        assert started.wait(PATIENCE_S) != 0
        assert said in " ".join((tmp_path / "out").read_text().split())
        assert not (tmp_path / "data" / "engine.log").exists()
