"""What operators are told of the classifier: records, metrics, explain and doctor, over a real ledger."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from classifier import registry
from classifier.heuristic import HeuristicScorer
from classifier.versions import Registry
from router.checks import Check, State
from router.commands.doctor_classifier import classifier
from router.core.policy import decide
from router.core.replay import restore
from router.core.vocabulary import Flag
from tests.fakes import BrokenScorer
from tests.gateway import RunningGateway, running, settings_of, three_tiers
from tests.model_folders import copy_of_shipped, edit_manifest, spoil, version_of
from tests.upstream import FakeUpstream

KEYS = {"CHEAP_KEY": "sk-cheap-4711", "BIG_KEY": "sk-big-4712"}
NOW = datetime(2026, 11, 23, tzinfo=UTC)
SHIPPED = version_of(registry.shipped_folder())
HARD = "Explain why the proof fails, and analyze what would have to change in it."


@dataclass
class House:
    """A gateway with the shipped model before loopback tiers."""

    front: RunningGateway
    config: Mapping[str, Any]
    session: aiohttp.ClientSession

    async def post(self, path: str, body: Mapping[str, Any]) -> tuple[Any, Mapping[str, str]]:
        async with self.session.post(self.front.url + path, json=body) as answer:
            assert answer.status == 200, await answer.text()
            return await answer.json(), answer.headers

    async def ask(self, text: str, **options: Any) -> str:
        """The request's id."""
        body = {"model": "auto", "messages": [{"role": "user", "content": text}], **options}
        return (await self.post("/v1/chat/completions", body))[1]["x-request-id"]

    async def metrics(self) -> dict[str, float]:
        async with self.session.get(f"{self.front.url}/metrics") as answer:
            lines = (await answer.text()).splitlines()
        pairs = (line.rpartition(" ") for line in lines if not line.startswith("#"))
        return {name: float(value) for name, _, value in pairs}

    def checks(self) -> dict[str, Check]:
        return {check.name: check for check in classifier(settings_of(self.config, KEYS), NOW)}


def config_of(folder: Path, upstream: str, **section: Any) -> dict[str, Any]:
    return three_tiers(folder, local=upstream, cheap=upstream, big=upstream) | {"classifier": section}


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(FakeUpstream(api_key=None))
        config = config_of(tmp_path, upstream.base_url)
        front = await stack.enter_async_context(running(config, KEYS))
        yield House(front, config, await stack.enter_async_context(aiohttp.ClientSession()))


async def test_the_record_says_who_scored_with_which_nu_and_replays_to_the_same_choice(house: House) -> None:
    record = await house.front.record(await house.ask(HARD))
    assert (record.score.model_version, record.score.calibrated) == (SHIPPED, True)
    assert (Flag.SCORE_SHRUNK in record.decision.flags) == (record.score.novelty_ratio > 0.0)
    assert Flag.QUALITY_TARGET_AS_FLOOR not in record.decision.flags
    facts, score, candidates, snapshot, cfg = restore(record.world, record.moment)
    assert cfg.nu_usd == house.front.gateway.keeper.in_force.dials[""].nu_usd
    again = decide(facts, score, candidates, snapshot, cfg)
    assert again.inputs_hash == record.decision.inputs_hash
    assert again.flags == record.decision.flags
    assert again.chosen.name == record.attempts[0].candidate
    dearer = decide(facts, score, candidates, snapshot, replace(cfg, nu_usd=1.0))
    assert dearer.inputs_hash != again.inputs_hash, "nu is part of what is hashed"


async def test_every_preset_has_a_nu_of_its_own(house: House) -> None:
    asked = {"messages": [{"role": "user", "content": HARD}]}
    told = [
        (await house.post("/v1/route/explain", asked | {"model": model}))[0]["quality"]["nu_usd"]
        for model in ("auto:cheap", "auto", "auto:quality")
    ]
    assert 0 < told[0] < told[1] < told[2]
    metrics = await house.metrics()
    assert metrics['router_classifier_nu_usd{preset="quality"}'] == told[2]
    assert metrics['router_classifier_target_proven{preset="configured"}'] == 1.0


async def test_a_model_that_fails_leaves_its_nu_with_it(house: House) -> None:
    judged = house.front.gateway.state.judged
    judged.swap(replace(judged.current, scorer=BrokenScorer()))
    for _ in range(4):
        record = await house.front.record(await house.ask(HARD))
        assert record.score.model_version == HeuristicScorer.version
        assert {Flag.CLASSIFIER_UNAVAILABLE, Flag.QUALITY_TARGET_AS_FLOOR} <= set(record.decision.flags)
        assert restore(record.world, record.moment)[4].nu_usd is None
    metrics = await house.metrics()
    assert metrics["router_classifier_left_out"] == 1.0
    assert metrics['router_warnings_total{event="classifier_unavailable"}'] >= 4.0


async def test_prompts_unlike_the_training_data_show_in_metrics_and_doctor(house: House) -> None:
    assert house.checks()["classifier drift"].state is State.OFF
    ids = [await house.ask(f"Zyx wvut {i} qqrs tlon uqbar?") for i in range(210)]
    for request_id in ids[:5]:
        await house.post("/v1/feedback", {"request_id": request_id, "score": 1.0})
    gateway = house.front.gateway
    gateway.keeper.alarms.look_at_drift()
    metrics = await house.metrics()
    assert metrics["router_classifier_novelty_ratio"] > 0.15
    assert metrics["router_classifier_retrain_suggested"] == 1.0
    decisions = {name: n for name, n in metrics.items() if name.startswith("router_classifier_decisions_total")}
    assert sum(decisions.values()) == 210
    assert all('scored_by="current"' in name for name in decisions)
    await gateway.ledger.flush()
    told = house.checks()["classifier drift"]
    assert told.state is State.WARN
    assert "requests are unlike the training data" in told.detail
    assert "export-labels" in told.cure


async def test_opinions_of_users_are_held_against_what_was_promised(house: House) -> None:
    from router.stores.scores import judged_scores

    request_id = await house.ask(HARD)
    await house.post("/v1/feedback", {"request_id": request_id, "score": 0.25})
    record = await house.front.record(request_id)
    last = record.attempts[-1]
    engine = house.front.gateway.ledger.read_engine
    assert judged_scores(engine, SHIPPED, most=10) == [(record.score.p(last.tier.value, last.candidate), 0.25)]
    assert judged_scores(engine, "another-version", most=10) == []


# --- doctor without a gateway ---------------------------------------------------------------------------------------


def told_by_doctor(folder: Path, **section: Any) -> dict[str, Check]:
    settings = settings_of(config_of(folder, "http://127.0.0.1:9/v1", **section), KEYS)
    return {check.name: check for check in classifier(settings, NOW)}


def test_doctor_names_version_source_age_and_what_each_preset_keeps(tmp_path: Path) -> None:
    told = told_by_doctor(tmp_path)
    assert told["classifier"].state is State.OK
    assert told["classifier"].detail.startswith(f"{SHIPPED}, shipped, ")
    assert told["classifier target 0.9 (cheap)"].state is State.OK
    assert "with confidence 90%" in told["classifier target 0.99 (quality)"].detail
    assert not (tmp_path / "data").exists(), "looking writes nothing"


def test_doctor_says_no_target_where_one_tier_only_can_answer(tmp_path: Path) -> None:
    settings = settings_of(config_of(tmp_path, "http://127.0.0.1:9/v1"), {})
    told = {check.name: check for check in classifier(settings, NOW)}
    assert told["classifier target"].detail == "only local can answer: nothing to choose"
    assert not [name for name in told if name.startswith("classifier target 0")]


def test_doctor_tells_a_canary_and_a_folder(tmp_path: Path) -> None:
    model = copy_of_shipped(tmp_path / "mine", letter="M")
    Registry(tmp_path / "data" / "models").promote(model, now_utc=NOW, reason="try", canary_share=0.05)
    assert "canary MMM" in told_by_doctor(tmp_path)["classifier"].detail
    assert f"from {model}" in told_by_doctor(tmp_path, model=str(model))["classifier"].detail


def test_doctor_fails_for_a_tampered_model_and_warns_of_a_missing_one(tmp_path: Path) -> None:
    model = copy_of_shipped(tmp_path / "mine")
    spoil(model / registry.SERVING)
    told = told_by_doctor(tmp_path, model=str(model))["classifier"]
    assert (told.state, "serving.bin" in told.detail) == (State.FAIL, True)
    told = told_by_doctor(tmp_path, model=str(tmp_path / "none"))["classifier"]
    assert told.state is State.WARN
    assert told.detail.startswith("the heuristic scores: none: no readable manifest.json")
    assert "set classifier.model" in told.cure
    assert told_by_doctor(tmp_path, model="heuristic")["classifier"].state is State.OFF


def test_doctor_warns_where_a_target_is_not_shown_to_be_kept(tmp_path: Path) -> None:
    model = copy_of_shipped(tmp_path / "mine", letter="M")
    sample = registry.load_sample(model)
    registry.write_sample(model, replace(sample, rows=sample.rows[:8]))
    edit_manifest(model, files=registry.file_hashes(model))
    told = told_by_doctor(tmp_path, model=str(model))["classifier target 0.95 (configured)"]
    assert told.state is State.WARN
    assert "8 held-out requests do not show" in told.detail


def test_explain_uses_the_promoted_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from router.commands.gateway import explain

    model = copy_of_shipped(tmp_path / "mine", letter="M")
    Registry(tmp_path / "data" / "models").promote(model, now_utc=NOW, reason="test")
    file = tmp_path / "router.yaml"
    file.write_text(f"server: {{data_dir: '{tmp_path / 'data'}'}}\ntiers: {{local: {{engine: embedded}}}}\n")
    explain(file, prompt="Name a colour.", request=None)
    assert json.loads(capsys.readouterr().out)["score"]["model_version"] == version_of(model)
