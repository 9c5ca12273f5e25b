"""What training on very many labels takes: CPU, memory and rows used, on made-up rows with a known truth.

    python -m bench.classifier_scale --rows 1000000

Prompts are made of words as frequent as words are (Zipf); each word has its own say in how hard a prompt is. Reading,
training and writing run in a process of their own, one core's CPU seconds and the peak of resident memory are its own.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

import numpy as np

VOCABULARY = 30_000
SOURCES = 6
CHUNK = 10_000
TIERS = ("local", "cheap", "premium")
_BYTES_PER_RSS_UNIT = 1_024 if sys.platform != "darwin" else 1


def write_rows(path: Path, rows: int, *, seed: int = 0) -> None:
    """`rows` labelled rows, some 300 bytes each."""
    rng = np.random.default_rng(seed)
    rank = np.arange(1, VOCABULARY + 1)
    share = (1.0 / rank) / (1.0 / rank).sum()
    words = np.array([np.base_repr(7_919 * int(i) + 100_000, 26).lower().translate(_LETTERS) for i in rank])
    difficulty = rng.normal(0.0, 0.6, VOCABULARY)
    with path.open("w", encoding="utf-8") as file:
        for start in range(0, rows, CHUNK):
            count = min(CHUNK, rows - start)
            lengths = np.clip(rng.lognormal(3.2, 0.6, count).astype(int), 4, 300)
            drawn = rng.choice(VOCABULARY, size=int(lengths.sum()), p=share)
            for i, own in enumerate(np.split(drawn, np.cumsum(lengths)[:-1])):
                hard = float(difficulty[own].sum() / np.sqrt(len(own)) + 0.01 * len(own))
                p = 1.0 / (1.0 + np.exp(np.array([hard - 0.4, 0.7 * hard - 1.2, 0.5 * hard - 2.0])))
                row = {
                    "request_id": f"r{start + i}",
                    "source": f"app{int(own[0]) % SOURCES}",
                    "messages": [{"role": "user", "content": " ".join(words[own])}],
                    "outcomes": {t: float(x) for t, x in zip(TIERS, rng.random(3) < p, strict=True)},
                }
                file.write(json.dumps(row) + "\n")


_LETTERS = str.maketrans("0123456789", "qrstuvwxyz")


def measured(labels: Path, out: Path) -> dict[str, object]:
    """Train by the command, as a user would, and say what it took."""
    started_s = perf_counter()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "router", "train", "--labels", str(labels), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    told = json.loads(done.stdout) if done.returncode == 0 else {"error": done.stderr.strip()[-2_000:]}
    return {
        "cpu_s": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1),
        "wall_s": round(perf_counter() - started_s, 1),
        "peak_memory_mb": round(after.ru_maxrss * _BYTES_PER_RSS_UNIT / 1e6),
        "file_mb": round(labels.stat().st_size / 1e6),
        "told": told,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the rows, train on them, print what it took as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--labels", type=Path, help="rows that are there already")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        labels = options.labels or Path(folder) / "labels.jsonl"
        if not labels.exists():
            write_rows(labels, options.rows)
        print(json.dumps(measured(labels, Path(folder) / "model"), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
