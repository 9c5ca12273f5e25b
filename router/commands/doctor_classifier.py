"""What `doctor` says of the classifier: which model would score, what it promises, and whether it has drifted."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

from sqlalchemy.exc import SQLAlchemyError

from classifier.drift import MIN_SCORES, DriftReport, drift
from router.bootstrap import build
from router.checks import Check, State
from router.commands.doctor_checks import usable_tiers
from router.errors import ConfigError, RouterError
from router.score_watch import WINDOW
from router.scoring import InForce, LoadedModel, ModelNotTrusted, Source
from router.settings import Settings
from router.stores.engines import parse_url, read_engine
from router.stores.scores import judged_scores, recent_scores

_NAME = "classifier"
_RETRAIN = "run `export-labels`, `train`, `evaluate` and `promote`: see docs/classifier.md"


def classifier(settings: Settings, at_utc: datetime) -> Iterator[Check]:
    """The model in force with its age, the quality that each preset keeps with it, and its drift."""
    try:
        in_force = build(settings).keeper.in_force
    except ModelNotTrusted as error:
        yield Check(_NAME, State.FAIL, error.message, "see the sentence before")
        return
    except ConfigError:  # a model without a price: said by the check of the prices
        return
    if in_force.problem is not None:
        detail, _, cure = in_force.problem.partition("; ")
        yield Check(_NAME, State.WARN, f"the heuristic scores: {detail}", cure)
        return
    yield _model(in_force, at_utc)
    if in_force.model.tiers_by_prior:
        tiers = ", ".join(in_force.model.tiers_by_prior)
        yield Check(
            f"{_NAME} tiers", State.WARN, f"it was not trained on {tiers}: the heuristic speaks for them", _RETRAIN
        )
    usable = usable_tiers(settings)
    if len(usable) < 2:
        yield Check(f"{_NAME} target", State.OFF, f"only {'/'.join(usable) or 'no tier'} can answer: nothing to choose")
        yield _drift(settings, in_force.model)
        return
    for preset, dial in in_force.dials.items():
        cost = f"for {dial.cost_ratio:.0%} of its cost in API fees (nu {dial.nu_usd:.4g} USD)"
        detail = f"{dial.kept_ratio:.1%} of the best tier's quality {cost}, shown: {dial.kept_lower_ratio:.1%}"
        name = f"{_NAME} target {dial.target_ratio:g} ({preset or 'configured'})"
        if dial.certified:
            yield Check(name, State.OK, f"{detail} or more with confidence {dial.confidence_ratio:.0%}")
        else:
            yield Check(name, State.WARN, dial.statement, "label more requests, or lower policy.quality_target_ratio")
    yield _drift(settings, in_force.model)


def _model(in_force: InForce, at_utc: datetime) -> Check:
    model = in_force.model
    if model.manifest is None:
        cure = "set classifier.model to auto for a calibrated model"
        return Check(_NAME, State.OFF, "the heuristic scores; its numbers are not calibrated", cure)
    made = datetime.fromisoformat(model.manifest.created_at_utc)
    days = (at_utc - (made if made.tzinfo is not None else made.replace(tzinfo=UTC))).days
    rows = model.manifest.data.get("rows_kept", "an unknown number of")
    where = {Source.FOLDER: f" from {model.folder}"}.get(model.source, f", {model.source.value}")
    detail = f"{model.scorer.version}{where}, {max(0, days)} days old, trained on {rows} rows"
    if in_force.canary is not None:
        detail += f"; canary {in_force.canary.scorer.version} for {in_force.canary_share:.0%} of the sessions"
    return Check(_NAME, State.OK, detail)


def _drift(settings: Settings, model: LoadedModel) -> Check:
    name = f"{_NAME} drift"
    try:
        report, seen = _read(settings, model)
    except (RouterError, SQLAlchemyError, OSError):  # said by the check of the database
        return Check(name, State.OFF, "the books cannot be read")
    if report.alarms:
        return Check(name, State.WARN, "; ".join(report.alarms), _RETRAIN)
    if seen < MIN_SCORES:
        return Check(name, State.OFF, f"{seen} requests scored by it so far; {MIN_SCORES} are needed to tell")
    told = {"stability index": report.psi, "novelty": report.novelty_ratio, "calibration error": report.ece}
    shown = ", ".join(f"{what} {value:.2f}" for what, value in told.items() if value is not None)
    return Check(name, State.OK, f"{shown or 'nothing to hold against'} over the last {seen} requests")


def _read(settings: Settings, model: LoadedModel) -> tuple[DriftReport, int]:
    engine = read_engine(parse_url(settings.server.database_url))
    try:
        scores = recent_scores(engine, model.scorer.version, most=WINDOW)
        labelled = judged_scores(engine, model.scorer.version, most=WINDOW)
    finally:
        engine.dispose()
    report = drift(
        training_quantiles=model.quantiles,
        scores=[score.complexity_ratio for score in scores],
        novelty=[score.novelty_ratio for score in scores],
        labelled=labelled,
    )
    return report, len(scores)
