"""`export-labels` on real books: what is in a row, what is left out and why, and caps that hold."""

from __future__ import annotations

import gzip
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from classifier.datamodels import RequestFeatures
from classifier.dataset import read_labels
from classifier.labels import MAX_JUDGEMENTS_PER_JUDGE
from router.core.attempts import RoutingRecord
from router.core.judgements import SHADOW_TENANT, JudgedAnswer
from router.core.vocabulary import Reason, Tier
from router.learning_loop.export import Exported, export
from router.stores.sql import SqlLedger
from tests.ledger_samples import NOON, WallClock, settled, tried

FEATURES = RequestFeatures("", 12, False, 1, 0, 1, 0.0, False, False, False, 400, 1)


@pytest.fixture
async def ledger(url: str, tmp_path: Path) -> AsyncIterator[SqlLedger]:
    opened = await SqlLedger.open(url, tmp_path, clock=WallClock())
    yield opened
    await opened.close()


def answered(request_id: str, tier: Tier = Tier.CHEAP, *, second: int = 0, **changes: Any) -> RoutingRecord:
    """A request that `tier` answered, decided freely, its prompt kept."""
    at_utc = NOON + timedelta(seconds=second)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": f"What is {request_id}?"}]
    given: dict[str, Any] = {
        "features": FEATURES,
        "prompt_text": json.dumps(messages),
        "prompt_sha256": request_id,
        "session": None,
        "reason": Reason.CHEAP_API_CHEAPEST,
        "exploration_probability": 1.0,
    }
    record = settled(request_id, tried(tier=tier, at_utc=at_utc), at_utc=at_utc, tenant=changes.pop("tenant", "acme"))
    return replace(record, **{**given, **changes})


def book(ledger: SqlLedger, *records: RoutingRecord) -> None:
    for record in records:
        ledger.settle(record, hold_open=False)


def read_rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.read_text().splitlines()]


async def rows_of(ledger: SqlLedger, out: Path, **options: Any) -> tuple[list[dict[str, Any]], Exported]:
    await ledger.flush()
    found = export(ledger.read_engine, out, **options)
    return read_rows(out), found


async def test_feedback_becomes_a_row_that_training_reads(ledger: SqlLedger, tmp_path: Path) -> None:
    book(ledger, answered("r1"), answered("r2", second=1))
    await ledger.flush()
    assert await ledger.add_feedback("r1", "acme", 0.25, "meh")
    (row,), found = await rows_of(ledger, tmp_path / "labels.jsonl")
    assert (found.answered, found.labelled, found.rows) == (2, 1, 1)
    assert row["outcomes"] == {"cheap": 0.25} and row["taken_tier"] == "cheap" and row["label_source"] == "feedback"
    assert row["messages"][1] == {"role": "user", "content": "What is r1?"}
    assert row["output_tokens"] == {"cheap": 300} and row["weight"] == 0.5
    assert (row["exploration_probability"], row["label_probability"]) == (1.0, 0.5)
    assert row["observation_probability"] == {"cheap": 1.0}
    (example,), _ = read_labels(tmp_path / "labels.jsonl")
    assert example.features.text == "What is r1?" and example.features.context_chars == len("Be brief.")
    assert example.features.max_output_tokens == 400 and example.features.input_tokens == 12


async def test_probabilities_of_the_action_and_of_being_judged_are_told_apart(
    ledger: SqlLedger, tmp_path: Path
) -> None:
    chances = {"cheap": 0.9, "premium": 0.1}
    for i in range(20):
        tier = Tier.PREMIUM if i < 10 else Tier.CHEAP
        usual = answered(f"r{i:02}", tier, second=i, exploration_probability=chances[tier.value])
        assert usual.decision is not None
        book(ledger, replace(usual, decision=replace(usual.decision, action_probability=chances)))
    await ledger.flush()
    for i in (*range(5), 10):
        assert await ledger.add_feedback(f"r{i:02}", "acme", 1.0, None)
    rows, _ = await rows_of(ledger, tmp_path / "labels.jsonl")
    seen = {row["taken_tier"]: row for row in rows}
    assert seen["premium"]["exploration_probability"] == 0.1 and seen["premium"]["label_probability"] == 0.5
    assert seen["cheap"]["exploration_probability"] == 0.9 and seen["cheap"]["label_probability"] == 0.1
    # of the judged ones .1 * .5 : .9 * .1 are premium's
    assert seen["premium"]["observation_probability"]["premium"] == pytest.approx(0.05 / 0.14)
    assert seen["cheap"]["observation_probability"]["cheap"] == pytest.approx(0.09 / 0.14)


async def test_a_judged_shadow_run_shows_both_tiers_and_its_own_booking_is_no_request(
    ledger: SqlLedger, tmp_path: Path
) -> None:
    book(ledger, answered("r1"), answered("s1", Tier.PREMIUM, tenant=SHADOW_TENANT, session="r1"))
    for tier, quality, model in (("cheap", 0.4, "gpt-6-luna"), ("premium", 0.9, "gpt-6.1-sol")):
        ledger.note_judgement(
            JudgedAnswer("r1", tier, model, quality, "judge", "gpt-6.1-sol", 0.5, 0.01, 77, NOON + timedelta(hours=1))
        )
    (row,), found = await rows_of(ledger, tmp_path / "labels.jsonl")
    assert row["outcomes"] == {"cheap": 0.4, "premium": 0.9} and row["label_source"] == "judge"
    assert row["observation_probability"] == {"cheap": 0.5, "premium": 0.5} and row["label_probability"] == 0.01
    assert row["models"]["premium"] == "gpt-6.1-sol" and row["output_tokens"]["premium"] == 77
    assert (found.answered, found.shadowed) == (1, 1)


async def test_the_last_word_of_a_judge_counts(ledger: SqlLedger, tmp_path: Path) -> None:
    book(ledger, answered("r1"))
    for minute, quality in ((5, 0.0), (9, 1.0), (7, 0.5)):
        said = JudgedAnswer("r1", "cheap", "m", quality, "exact_check", "json", 1.0, 1.0, None, NOON)
        ledger.note_judgement(replace(said, judged_at_utc=NOON + timedelta(minutes=minute)))
    (row,), _ = await rows_of(ledger, tmp_path / "labels.jsonl")
    assert row["outcomes"] == {"cheap": 1.0} and row["weight"] == 1.0


async def test_what_says_nothing_of_the_choice_is_left_out_and_counted(ledger: SqlLedger, tmp_path: Path) -> None:
    book(
        ledger,
        answered("pinned", reason=Reason.PINNED_BY_CLIENT),
        answered("home", reason=Reason.LOCAL_ONLY_POLICY, second=1),
        answered("fallback", reason=Reason.FALLBACK_AFTER_ERROR, second=2),
        answered("dark", prompt_text=None, second=3),
        answered("good", second=4),
        answered("theirs", tenant="secret", second=5),
    )
    await ledger.flush()
    for request_id in ("pinned", "home", "fallback", "dark", "good", "theirs"):
        assert await ledger.add_feedback(request_id, None, 1.0, None)
    rows, found = await rows_of(ledger, tmp_path / "labels.jsonl", without_tenants=("secret",))
    assert [row["request_id"] for row in rows] == ["good"]
    assert found.left_out == {"no_choice_was_made": 2, "answered_by_fallback": 1, "prompt_not_kept": 1}


async def test_a_range_is_over_the_moment_a_request_came(ledger: SqlLedger, tmp_path: Path) -> None:
    book(ledger, answered("old"), answered("new", second=86_400))
    await ledger.flush()
    for request_id in ("old", "new"):
        await ledger.add_feedback(request_id, "acme", 1.0, None)
    day = timedelta(days=1)
    rows, _ = await rows_of(ledger, tmp_path / "a.jsonl", from_utc=NOON + day / 2)
    assert [row["request_id"] for row in rows] == ["new"]
    rows, _ = await rows_of(ledger, tmp_path / "b.jsonl", to_utc=NOON + day / 2)
    assert [row["request_id"] for row in rows] == ["old"]


async def test_one_key_with_very_many_thumbs_down_is_capped(ledger: SqlLedger, tmp_path: Path) -> None:
    book(ledger, *(answered(f"bad{i:04}", tenant="angry", second=i) for i in range(1_000)))
    book(ledger, *(answered(f"fair{i:04}", tenant=f"t{i % 10}", second=i) for i in range(400)))
    await ledger.flush()
    for i in range(1_000):
        await ledger.add_feedback(f"bad{i:04}", "angry", 0.0, None)
    for i in range(400):
        await ledger.add_feedback(f"fair{i:04}", f"t{i % 10}", float(i % 5 > 0), None)
    rows, found = await rows_of(ledger, tmp_path / "labels.jsonl")
    theirs = [row for row in rows if row["request_id"].startswith("bad")]
    assert len(theirs) <= MAX_JUDGEMENTS_PER_JUDGE and found.capped_by_judge["angry"] == 1_000 - len(theirs)
    assert len(theirs) <= 0.25 * len(rows)
    assert sum(row["outcomes"]["cheap"] for row in rows) / len(rows) > 0.55


async def test_a_packed_file_is_whole_or_not_there_and_for_its_owner_only(ledger: SqlLedger, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "labels.jsonl.gz"
    book(ledger, answered("r1"))
    await ledger.flush()
    await ledger.add_feedback("r1", "acme", 1.0, None)
    assert export(ledger.read_engine, out).rows == 1
    with gzip.open(out, "rt") as file:
        assert len(file.readlines()) == 1
    assert out.stat().st_mode & 0o077 == 0

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(ledger.read_engine, out.with_name("other.jsonl"), progress=stop)
    assert [path.name for path in out.parent.iterdir()] == ["labels.jsonl.gz"]
