"""The model in force: what is found at the start, what is refused, and what changes while requests go on."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from classifier import registry
from classifier.golden import golden_requests
from classifier.heuristic import HeuristicScorer
from classifier.versions import POINTER, Registry
from router.core.decision import Candidate, PolicyConfig
from router.core.snapshot import PriceRow
from router.core.vocabulary import Flag, Tier
from router.ports import ScoredBy, ScoringPolicy
from router.scorer_choice import ScorerChoice
from router.scoring import ModelKeeper, ModelNotTrusted, PriorForTheRest, Source
from router.settings import ClassifierSettings, ModelChoice
from tests.fakes import ALL, BIG, PRICES, FakeClock, FixedScorer, price
from tests.model_folders import copy_of_shipped, edit_manifest, spoil, version_of

NOW = datetime(2026, 1, 2, tzinfo=UTC)
POLICIES = {preset: PolicyConfig(quality_target_ratio=t) for preset, t in {"": 0.95, "cheap": 0.9}.items()}
SHIPPED_VERSION = version_of(registry.shipped_folder())
PROMPT = golden_requests()[4]


@dataclass
class Desk:
    """A keeper and what it does to the choice of scorers."""

    root: Path
    model: str = "auto"
    candidates: Sequence[Candidate] = ALL
    rows: Mapping[str, PriceRow] = field(default_factory=lambda: dict(PRICES))
    warnings: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        prior = ScoringPolicy(HeuristicScorer(), POLICIES, ScoredBy.PRIOR, (Flag.CLASSIFIER_UNAVAILABLE,))
        self.judged = ScorerChoice(ScoringPolicy(prior.scorer, POLICIES), prior)
        words = {choice.value: choice for choice in ModelChoice if choice is not ModelChoice.FOLDER}
        choice = words.get(self.model, ModelChoice.FOLDER)
        folder = Path(self.model) if choice is ModelChoice.FOLDER else None
        self.keeper = ModelKeeper(
            ClassifierSettings(choice, folder, self.root, 0.9, 0.05),
            models={},
            candidates=self.candidates,
            policies=POLICIES,
            judged=self.judged,
            prices=lambda: self.rows,
            assets={},
            clock=FakeClock(),
            on_warning=lambda event, **labels: self.warnings.append((event, labels)),
        )

    def loaded(self) -> Desk:
        self.keeper.load()
        return self

    @property
    def events(self) -> list[str]:
        return [event for event, _ in self.warnings]

    @property
    def version(self) -> str:
        return self.judged.current.scorer.version

    def promote(self, folder: Path, **options: Any) -> None:
        Registry(self.root).promote(folder, now_utc=NOW, reason="test", **options)


@pytest.fixture
def other(tmp_path: Path) -> Path:
    return copy_of_shipped(tmp_path / "other", letter="B")


def test_out_of_the_box_the_shipped_model_scores_with_a_nu_for_every_preset(tmp_path: Path) -> None:
    desk = Desk(tmp_path / "models").loaded()
    assert (desk.version, desk.keeper.in_force.model.source) == (SHIPPED_VERSION, Source.SHIPPED)
    nus = [desk.judged.current.policies[preset].nu_usd for preset in ("cheap", "")]
    assert nus[0] is not None and nus[1] is not None and 0.0 < nus[0] < nus[1]
    assert all(dial.certified for dial in desk.keeper.in_force.dials.values())
    assert desk.judged.current.scorer.score(PROMPT).calibrated
    assert desk.warnings == []


@pytest.mark.parametrize(
    ("model", "source"), [("heuristic", Source.HEURISTIC), ("shipped", Source.SHIPPED), ("auto", Source.PROMOTED)]
)
async def test_the_word_in_the_config_says_which_model_scores(tmp_path: Path, model: str, source: Source) -> None:
    desk = Desk(tmp_path / "models", model)
    desk.promote(copy_of_shipped(tmp_path / "b", letter="B"))
    desk.loaded()
    assert desk.keeper.in_force.model.source is source
    assert desk.judged.current.flags == ()
    before = desk.judged.current
    await desk.keeper.refresh()
    assert desk.judged.current is before, "nothing changed, nothing is exchanged"


async def test_a_promotion_and_a_rollback_are_taken_up_whole(tmp_path: Path, other: Path) -> None:
    desk = Desk(tmp_path / "models").loaded()
    under_way = desk.judged.of("a session", 0.0)
    desk.promote(other)
    await desk.keeper.refresh()
    assert desk.version == version_of(other)
    assert desk.judged.current.policies[""].nu_usd is not None
    assert (under_way.scorer.version, under_way.scorer.score(PROMPT).model_version) == (SHIPPED_VERSION,) * 2
    Registry(desk.root).rollback(now_utc=NOW)
    await desk.keeper.refresh()
    assert desk.version == SHIPPED_VERSION


async def test_a_canary_gets_its_share_and_its_own_dials_beside_the_model_in_force(tmp_path: Path, other: Path) -> None:
    desk = Desk(tmp_path / "models").loaded()
    current = desk.keeper.in_force.model
    desk.promote(other, canary_share=0.25)
    await desk.keeper.refresh()
    assert desk.keeper.in_force.model is current, "it is not read again"
    seen = [desk.judged.of(f"s{i}", 0.0) for i in range(2000)]
    versions = [scoring.scorer.version for scoring in seen]
    assert versions.count(version_of(other)) / len(versions) == pytest.approx(0.25, abs=0.04)
    canary = next(scoring for scoring in seen if scoring.scored_by is ScoredBy.CANARY)
    assert canary.flags == (Flag.CANARY_MODEL,)
    assert canary.policies[""].nu_usd is not None
    Registry(desk.root).rollback(now_utc=NOW)
    await desk.keeper.refresh()
    assert desk.judged.canary is None
    assert desk.version == SHIPPED_VERSION
    desk.promote(other, canary_share=0.25)
    desk.promote(other)
    await desk.keeper.refresh()
    assert (desk.version, desk.judged.canary) == (version_of(other), None)


async def test_nu_follows_the_prices(tmp_path: Path) -> None:
    desk = Desk(tmp_path / "models").loaded()
    before = desk.judged.current
    desk.rows = {**PRICES, BIG.name: price("big", "20", "100")}
    await desk.keeper.refresh()
    after = desk.judged.current
    assert after.scorer is before.scorer
    assert after.policies[""].nu_usd > 3 * before.policies[""].nu_usd  # type: ignore[operator]


# --- what is wrong on disk ------------------------------------------------------------------------------------------


def test_a_start_refuses_a_promoted_model_that_was_tampered_with_and_says_what_helps(
    tmp_path: Path, other: Path
) -> None:
    desk = Desk(tmp_path / "models")
    desk.promote(other)
    spoil(desk.root / version_of(other) / registry.SERVING)
    with pytest.raises(ModelNotTrusted, match=r"serving\.bin is not the file .* Run `hybrid-llm-router rollback`"):
        desk.loaded()


@pytest.mark.parametrize("name", [registry.SERVING, registry.CALIBRATION])
def test_a_start_refuses_a_configured_folder_that_was_tampered_with(tmp_path: Path, other: Path, name: str) -> None:
    spoil(other / name)
    with pytest.raises(ModelNotTrusted, match=f"{name}.*set classifier.model to auto"):
        Desk(tmp_path / "models", str(other)).loaded()


def test_weights_with_a_matching_hash_but_other_scores_are_refused_too(tmp_path: Path, other: Path) -> None:
    manifest = registry.read_manifest(other)
    edit_manifest(other, golden_scores=[dict(manifest.golden_scores[0]) | {"local": 0.5}, *manifest.golden_scores[1:]])
    with pytest.raises(ModelNotTrusted, match="golden input 0"):
        Desk(tmp_path / "models", str(other)).loaded()


def unmade(folder: Path) -> None:
    shutil.rmtree(folder)


def outdated(folder: Path) -> None:
    edit_manifest(folder, feature_version=0)


def foreign(folder: Path) -> None:
    (folder / registry.MANIFEST).write_text("[1, 2]")


@pytest.mark.parametrize(("break_it", "says"), [(unmade, "readable"), (outdated, "version 0"), (foreign, "not one of")])
async def test_what_is_missing_or_of_another_time_is_replaced_by_the_heuristic_until_it_is_cured(
    tmp_path: Path, other: Path, break_it: Any, says: str
) -> None:
    desk = Desk(tmp_path / "models")
    desk.promote(other)
    break_it(desk.root / version_of(other))
    desk.loaded()
    assert desk.events == ["classifier_unavailable"]
    assert says in str(desk.keeper.in_force.problem)
    scoring = desk.judged.of("a", 0.0)
    assert scoring.flags == (Flag.CLASSIFIER_UNAVAILABLE,)
    assert scoring.policies[""].nu_usd is None, "the prior has no calibration sample: the target is the floor"
    Registry(desk.root).rollback(now_utc=NOW)
    await desk.keeper.refresh()
    assert (desk.version, desk.keeper.in_force.problem) == (SHIPPED_VERSION, None)


@pytest.mark.parametrize("break_it", [lambda folder: spoil(folder / registry.SERVING), unmade, outdated, foreign])
async def test_while_serving_a_bad_model_is_told_once_and_the_old_one_stays(
    tmp_path: Path, other: Path, break_it: Any
) -> None:
    desk = Desk(tmp_path / "models").loaded()
    desk.promote(other)
    break_it(desk.root / version_of(other))
    for _ in range(3):
        await desk.keeper.refresh()
    assert desk.version == SHIPPED_VERSION
    assert desk.events == ["classifier_reload_refused"]


async def test_a_pointer_that_cannot_be_read_changes_nothing(tmp_path: Path) -> None:
    desk = Desk(tmp_path / "models").loaded()
    desk.root.mkdir()
    (desk.root / POINTER).write_text("{")
    await desk.keeper.refresh()
    assert (desk.version, desk.events) == (SHIPPED_VERSION, ["classifier_reload_refused"])


def test_a_canary_that_is_gone_is_no_reason_not_to_serve(tmp_path: Path, other: Path) -> None:
    desk = Desk(tmp_path / "models")
    desk.promote(other, canary_share=0.5)
    unmade(desk.root / version_of(other))
    desk.loaded()
    assert (desk.version, desk.judged.canary) == (SHIPPED_VERSION, None)
    assert desk.events == ["classifier_canary_refused"]


async def test_a_model_that_is_trained_again_into_the_configured_folder_is_taken_up(
    tmp_path: Path, other: Path
) -> None:
    desk = Desk(tmp_path / "models", str(tmp_path / "mine")).loaded()
    assert desk.judged.of("a", 0.0).flags == (Flag.CLASSIFIER_UNAVAILABLE,)
    shutil.move(other, tmp_path / "mine")
    await desk.keeper.refresh()
    assert desk.version == version_of(tmp_path / "mine")


# --- tiers ----------------------------------------------------------------------------------------------------------


def test_a_model_for_other_tiers_is_of_no_use_here(tmp_path: Path) -> None:
    house = (Candidate("a", Tier.LOCAL, "engine", "a", 8192),)
    desk = Desk(tmp_path / "models", candidates=house).loaded()
    assert desk.version == SHIPPED_VERSION
    nobody = Desk(tmp_path / "models", candidates=()).loaded()
    assert "none of them is configured" in str(nobody.keeper.in_force.problem)


def test_a_tier_the_model_was_not_trained_on_is_judged_by_the_prior() -> None:
    known = HeuristicScorer().score(PROMPT)
    scorer = PriorForTheRest(FixedScorer(version="two-tiers"), ("cheap",))
    fixed = FixedScorer().fixed
    assert scorer.score(PROMPT).p_adequate == {**fixed.p_adequate, "cheap": fixed.p_adequate["cheap"]}
    only_premium = FixedScorer(fixed=type(fixed)(0.2, {"premium": 0.8}, 0.0, "one-tier", 1, calibrated=True))
    score = PriorForTheRest(only_premium, ("local", "cheap")).score(PROMPT)
    assert score.p_adequate == {**known.p_adequate, "premium": 0.8}
    assert score.complexity_ratio == 1.0 - known.p_adequate["local"]


def test_a_target_that_no_labels_show_to_be_kept_is_told(tmp_path: Path, other: Path) -> None:
    sample = registry.load_sample(other)
    registry.write_sample(other, type(sample)(sample.tiers, sample.rows[:8]))
    edit_manifest(other, files=registry.file_hashes(other))
    desk = Desk(tmp_path / "models", str(other)).loaded()
    assert set(desk.events) == {"quality_target_unproven"}
    assert "8 held-out requests do not show" in desk.warnings[0][1]["statement"]
