"""`report costs` on books that a gateway has kept."""

from __future__ import annotations

import asyncio
import csv
import io
import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from router.cli import main
from router.core.vocabulary import Outcome, Tier
from router.stores.sql import SqlLedger
from tests.ledger_samples import NOON, WallClock, hold, settled, tried


async def keep_books(url: str, data_dir: Path) -> None:
    """One request a day on three days, the second with a failed attempt; a fourth is still running."""
    ledger = await SqlLedger.open(url, data_dir, clock=WallClock(NOON))
    try:
        for day in range(3):
            at = NOON + timedelta(days=day)
            attempts = [tried(1, at_utc=at)]
            if day == 1:
                attempts = [
                    tried(1, outcome=Outcome.TIMEOUT, amount_nanousd=100, at_utc=at),
                    tried(2, tier=Tier.PREMIUM, amount_nanousd=5000, at_utc=at),
                ]
            ledger.settle(settled(f"r{day}", *attempts, at_utc=at), hold_open=False)
        await ledger.reserve(hold("running"))
    finally:
        await ledger.close()


@pytest.fixture
def config(tmp_path: Path) -> str:
    url = f"sqlite:///{tmp_path}/ledger.db"
    asyncio.run(keep_books(url, tmp_path))
    file = tmp_path / "router.yaml"
    file.write_text(f"server: {{database_url: '{url}'}}\ntiers: {{local: {{engine: embedded}}}}\n")
    return str(file)


def report(capsys: pytest.CaptureFixture[str], config: str, *arguments: str) -> str:
    with pytest.raises(SystemExit) as left:
        main(["report", "costs", "--config", config, *arguments])
    assert not left.value.code
    return capsys.readouterr().out


def test_rows_and_totals_in_json(capsys: pytest.CaptureFixture[str], config: str) -> None:
    found: dict[str, Any] = json.loads(report(capsys, config, "--format", "json"))
    assert list(found) == ["rows", "totals"]
    assert found["rows"][0] == {
        "day": "2026-11-23",
        "tenant": "acme",
        "tier": "cheap",
        "model": "gpt-6-luna",
        "requests": 1,
        "attempts": 1,
        "cost_nanousd": 250,
    }
    assert found["totals"] == {"requests": 3, "attempts": 4, "cost_nanousd": 5600, "open_reservations": 1}


def test_both_ends_of_a_range_are_included(capsys: pytest.CaptureFixture[str], config: str) -> None:
    def days(*arguments: str) -> list[str]:
        text = report(capsys, config, *arguments, "--format", "csv")
        return sorted({row["day"] for row in csv.DictReader(io.StringIO(text))})

    assert days("--from", "2026-11-24", "--to", "2026-11-25") == ["2026-11-24", "2026-11-25"]
    assert days("--to", "2026-11-23") == ["2026-11-23"]
    assert days("--from", "2026-11-26") == []


def test_the_table_ends_with_totals_and_says_what_is_still_open(
    capsys: pytest.CaptureFixture[str], config: str
) -> None:
    *_, total, still_open = report(capsys, config).splitlines()
    assert total.split() == ["total", "3", "4", "0.000005600"]
    assert still_open == "1 requests are still open and not counted."
