"""kill -9 at any moment, then a restart: what was promised is there, and nothing is charged twice."""

from __future__ import annotations

import random
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from router.core.vocabulary import Outcome
from router.stores import queries
from router.stores.engines import read_engine
from router.stores.sql import SqlLedger
from tests.ledger_samples import WallClock

CHILD = Path(__file__).resolve().parents[1] / "ledger_child.py"


def run_and_kill(url: str, data_dir: Path, prefix: str, trouble: float, luck: random.Random) -> dict[str, set[str]]:
    """What a gateway had promised when it was killed after a random number of promises: kind of promise to ids."""
    command = [sys.executable, CHILD, url, data_dir, prefix, str(trouble), str(luck.randrange(10**6))]
    promised: dict[str, set[str]] = defaultdict(set)
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        until = luck.randrange(1, 400)
        for count, line in enumerate(child.stdout):
            if count == until:
                child.kill()  # the lines already in the pipe were promises too, so reading goes on
            if line.endswith(b"\n"):
                kind, request_id = line.decode().split()
                promised[kind].add(request_id)
        assert child.wait() == -9
    return promised


def check(promised: dict[str, set[str]], url: str, prefix: str) -> None:
    engine = read_engine(url)
    found = {r.request_id: r for r in queries.iterate_records(engine) if r.request_id.startswith(prefix)}
    assert promised["reserved"] <= set(found)
    for request_id, record in found.items():
        api = record.attempts[0].tier != "local"
        numbers = [a.number for a in record.attempts]
        if record.outcome is Outcome.LOST:
            assert request_id not in promised["settled"]
            assert record.cost_nanousd == (900 if api else 0) + (8000 if 2 in numbers else 0)
        else:
            assert record.cost_nanousd == 10 + (100 if 2 in numbers else 0)
        assert 2 in numbers or request_id not in promised["opened"]
    totals = queries.costs(engine).totals
    everything = list(queries.iterate_records(engine))
    assert totals.cost_nanousd == sum(r.cost_nanousd for r in everything)
    assert totals.requests == len(everything)
    assert totals.open_reservations == 0


@pytest.mark.parametrize("trouble", [0.0, 0.2])
async def test_nothing_is_lost_and_nothing_is_booked_twice(url: str, trouble: float, tmp_path: Path) -> None:
    luck = random.Random(f"{url.partition(':')[0]}{trouble}")
    for life in range(3):
        prefix = f"life{life}"
        promised = run_and_kill(url, tmp_path, prefix, trouble, luck)
        heir = await SqlLedger.open(url, tmp_path, clock=WallClock())
        assert heir.state().healthy
        await heir.close()
        check(promised, url, prefix)
        # A second restart finds nothing more to do.
        before = queries.costs(read_engine(url))
        again = await SqlLedger.open(url, tmp_path, clock=WallClock())
        await again.close()
        assert queries.costs(read_engine(url)) == before
