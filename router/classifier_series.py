"""What is known of the classifier, as Prometheus series: who scores, with which dials, and whether it has drifted."""

from __future__ import annotations

from router.ports import ScoredBy
from router.score_watch import ScoreWatch
from router.scorer_choice import ScorerChoice
from router.scoring import ModelKeeper
from router.telemetry import PrometheusTelemetry

CONFIGURED = "configured"


def watch_classifier(
    telemetry: PrometheusTelemetry, keeper: ModelKeeper, judged: ScorerChoice, watch: ScoreWatch
) -> None:
    """Register the series; they are read when `/metrics` is, and bounded: three who score, four presets."""
    telemetry.table(
        "router_classifier_info",
        "1 for the version that scores, and for its canary",
        ("scored_by", "version", "source"),
        lambda: _info(keeper, judged),
    )
    telemetry.table(
        "router_classifier_decisions",
        "Decisions that left a choice, by who scored and by the tier that was chosen",
        ("scored_by", "tier"),
        lambda: {(by.value, tier.value): float(count) for (by, tier), count in watch.decisions.items()},
        counter=True,
    )
    telemetry.table(
        "router_classifier_nu_usd",
        "What a unit of missing quality costs in the decision",
        ("preset",),
        lambda: {(preset or CONFIGURED,): dial.nu_usd for preset, dial in keeper.in_force.dials.items()},
    )
    telemetry.table(
        "router_classifier_target_proven",
        "1 if the calibration sample shows that the preset's quality target is kept, with the confidence asked for",
        ("preset",),
        lambda: {(preset or CONFIGURED,): float(dial.certified) for preset, dial in keeper.in_force.dials.items()},
    )
    telemetry.gauge("router_classifier_canary_share_ratio", "Share of sessions it gets", lambda: judged.canary_share)
    telemetry.gauge(
        "router_classifier_left_out", "1 while the model is left out for being slow or failing", judged.left_out
    )
    telemetry.gauge(
        "router_classifier_stability_index",
        "How far recent scores are from those of training; above 0.25 is an alarm",
        lambda: keeper.alarms.report.psi,
    )
    telemetry.gauge(
        "router_classifier_calibration_error_ratio",
        "How far probabilities are off on fresh feedback; above 0.08 is an alarm",
        lambda: keeper.alarms.report.ece,
    )
    telemetry.gauge(
        "router_classifier_novelty_ratio",
        "How unlike the training data recent prompts are, 0..1; above 0.15 is an alarm",
        lambda: keeper.alarms.report.novelty_ratio,
    )
    telemetry.gauge(
        "router_classifier_retrain_suggested",
        "1 if one of these is alarming",
        lambda: float(keeper.alarms.report.retrain),
    )
    telemetry.gauge(
        "router_premium_share_ratio", "Share of recent free choices", lambda: watch.premium_share().recent_ratio
    )
    telemetry.gauge(
        "router_premium_share_usual_ratio", "The same over a long time", lambda: watch.premium_share().usual_ratio
    )


def _info(keeper: ModelKeeper, judged: ScorerChoice) -> dict[tuple[str, ...], float]:
    current, canary = judged.current, keeper.in_force.canary
    found: dict[tuple[str, ...], float] = {}
    found[current.scored_by.value, current.scorer.version, keeper.in_force.model.source.value] = 1.0
    if canary is not None:
        found[ScoredBy.CANARY.value, canary.scorer.version, canary.source.value] = 1.0
    return found
