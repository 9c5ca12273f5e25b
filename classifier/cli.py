"""The learning loop as plain functions: `classify`, `train`, `evaluate`, `promote`, `rollback`, `calibrate_threshold`.

The gateway's command line calls these. Each takes paths, a clock and a progress callback, returns plain data, and
raises one of `UsageError` (wrong use) and `LearningError` (the thing itself failed), whose text is meant for people.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from classifier import registry
from classifier.calibrate import TokenPrices, nu_for_target, threshold_for_share
from classifier.heuristic import HeuristicScorer
from classifier.registry import shipped_folder
from classifier.rows import models_of, open_text, request_features, row_of
from classifier.scorer import TrainedScorer
from classifier.told import LearningError, UsageError, told
from classifier.versions import Registry, load_serving_scorer
from classifier.whole_file import whole_file

if TYPE_CHECKING:
    from classifier.gate import Scores, Verdict

Progress = Callable[[str, float | None], None]


def classify(
    source: Path,
    target: Path,
    *,
    model: Path | None = None,
    registry_root: Path | None = None,
    progress: Callable[[int, int | None], None] | None = None,
) -> dict[str, Any]:
    """Score every row of a JSONL file. Rows that name their `models` are scored for those.

    A row that cannot be read gets `{"request_id", "error"}`; the counts of both are returned. `target` is replaced only
    when all rows were read. `progress` is told how many rows are done, of how many.
    """
    with told():
        scorer = load_serving_scorer(model, registry_root)
        if not source.exists() or source.is_dir():
            raise UsageError(f"{source}: no such file")
        bound: dict[tuple[tuple[str, str], ...], TrainedScorer] = {}
        if target.exists() and target.samefile(source):
            raise UsageError(f"{target}: is the input too; write the predictions to another file")
        counted = progress is not None and source.is_file()  # a pipe is read once
        total = sum(1 for line in open_text(source) if line.strip()) if counted else None
        done = failed = 0
        with whole_file(target, private=False) as out:
            for line in open_text(source):
                if not line.strip():
                    continue
                answer = _classified(line, scorer, bound)
                failed += "error" in answer
                done += 1
                out.write(json.dumps(answer, ensure_ascii=True) + "\n")
                if progress is not None and done % 500 == 0:
                    progress(done, total)
        if progress is not None:
            progress(done, total)
        return {"rows": done, "failed": failed, "model_version": scorer.version}


def _classified(
    line: str, scorer: TrainedScorer, bound: dict[tuple[tuple[str, str], ...], TrainedScorer]
) -> dict[str, Any]:
    request_id = None
    try:
        row = row_of(line)
        request_id = row.get("request_id")
        models = models_of(row)
        key = tuple(sorted(models.items()))
        if key not in bound:
            bound[key] = scorer.bind(models) if models else scorer
        score = bound[key].score(request_features(row))
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        return {"request_id": request_id, "error": str(error)}
    return {
        "request_id": request_id,
        "complexity_ratio": score.complexity_ratio,
        "p_adequate": dict(score.p_adequate),
        "novelty_ratio": score.novelty_ratio,
    }


def train(
    labels: Path,
    out: Path,
    *,
    now_utc: datetime,
    seed: int = 0,
    keep_held_out: bool = True,
    with_card: bool = True,
    threads: int = 1,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train on a labels file; `out` is loadable at once. Returns the manifest's headline.

    `with_card` writes `card.md` and its plots beside the model: what it was trained on and how good it is, by
    predictions made out of fold. No more than `threads` threads are used.
    """
    with told():
        from classifier.card import write_card
        from classifier.dataset import read_labels
        from classifier.progress import few_threads, unheard
        from classifier.train import train as run

        tell = progress or unheard
        _check_place(out)
        with few_threads(threads):
            examples, summary = read_labels(labels, progress=_counted(tell))
            trained = run(
                examples,
                summary,
                out,
                now_utc=now_utc,
                seed=seed,
                keep_held_out=keep_held_out,
                threads=threads,
                progress=tell,
            )
            manifest = trained.manifest
            warnings = [*summary.warnings, *_texts(manifest.data["training_warnings"])]
            if with_card:
                tell("writing the card", 0.99)
                write_card(out, manifest, examples, trained.p, trained.novelty)
        return {
            "version": manifest.version,
            "out": str(out),
            "rows": summary.rows_kept,
            "rows_read": summary.rows_read,
            "tiers": list(manifest.tiers),
            "metrics": dict(manifest.metrics),
            "rows_duplicate": summary.rows_duplicate,
            "rows_contradictory": summary.rows_contradictory,
            "warnings": warnings,
        }


def _check_place(out: Path) -> None:
    """Raise what writing a model there would raise: better now than after an hour of training."""
    registry.check_replaceable(out)
    parent = out.resolve().parent
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".draft-", dir=parent):
        pass


def _counted(progress: Progress) -> Callable[[int], None]:
    return lambda rows: progress(f"reading labels: {rows} rows", None)


def evaluate(
    labels: Path,
    out: Path,
    *,
    model: Path | None = None,
    registry_root: Path | None = None,
    prices: Mapping[str, TokenPrices] | None = None,
    include_seen: bool = False,
    draws: int = 300,
    with_plots: bool = True,
    threads: int = 1,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Evaluate a model on a labels file: `report.json`, `report.md` and plots in `out`.

    Rows whose stem the model was trained on are left out and counted, unless `include_seen`. `prices` stand in place of
    the tiers' default ones.
    """
    with told():
        import numpy as np

        from classifier import evaluate as ev
        from classifier import leaks
        from classifier.dataset import read_labels
        from classifier.offpolicy import uneven_selection
        from classifier.progress import few_threads, unheard
        from classifier.report import plots

        tell = progress or unheard
        prices = {**ev.DEFAULT_PRICES, **(prices or {})}
        folder = _folder(model, registry_root)
        scorer = registry.load_scorer(folder)
        tiers = scorer.model.tiers
        with few_threads(threads):
            examples, summary = read_labels(labels, progress=_counted(tell))
            examples, notes = ev.of_these_tiers(examples, tiers)
            examples, note = ev.not_seen(examples, registry.load_stems(folder), include_seen=include_seen)
            notes += note
            examples, note = ev.usable(examples)
            notes += note
            scores = ev.predict(scorer, examples, tell)
            p = np.array([[s.p_adequate[t] for t in tiers] for s in scores])
            data = ev.collect(examples, tiers, p, np.array([s.novelty_ratio for s in scores]))
            tell("computing figures and their intervals", None)
            found = ev.report(data, prices=prices, draws=draws)
            uneven = uneven_selection(examples, 1.0 - p[:, 0])
            notes += ev.without_price(tiers, prices)
            found |= {
                "tier_quality": ev.traffic_quality(examples, tiers, p),
                "model_version": scorer.version,
                "labels_sha256": summary.sha256,
                "notes": [*notes, *filter(None, [uneven]), *summary.warnings, *leaks.warnings(examples, tiers)],
            }
            ev.write_report(found, out)
            if with_plots:
                plots(data, prices, out)
        return found


def _folder(model: Path | None, registry_root: Path | None) -> Path:
    if model is not None:
        return model
    current = Registry(registry_root).current_folder() if registry_root is not None else None
    return current if current is not None else shipped_folder()


def gate(
    candidate: Path, current: Path | None, labels: Path | None = None, *, progress: Progress | None = None
) -> Verdict:
    """Compare a candidate with the model in force (`None`: the heuristic) on rows neither was fitted on."""
    from classifier import gate as g
    from classifier.progress import unheard

    tell = progress or unheard
    ours = registry.load_scorer(candidate)
    theirs: TrainedScorer | Scores
    seen: frozenset[bytes] = frozenset()
    current_p: dict[bytes, Mapping[str, float]] = {}
    if current is None:
        theirs = HeuristicScorer()
    else:
        theirs = registry.load_scorer(current)
        seen = registry.load_stems(current)
        current_p = {row.stem: row.p for row in g.held_out_rows(current) if row.p is not None}
    if labels is None:
        rows = g.held_out_rows(candidate)
    else:
        from classifier.dataset import read_labels

        rows = g.fresh_rows(read_labels(labels, progress=_counted(tell))[0], registry.load_stems(candidate))
    return g.judge(ours, theirs, rows, seen_by_current=seen, current_p=current_p, progress=tell)


def promote(
    candidate: Path,
    *,
    registry_root: Path,
    now_utc: datetime,
    labels: Path | None = None,
    force: bool = False,
    canary_share: float | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Put a model in force if it is better on held-out labels beyond noise, or by `force`, which is recorded.

    A model in force that can no longer be loaded is no hindrance: the heuristic scores in its place, and the
    candidate is compared with that.
    """
    with told():
        books = Registry(registry_root)
        before, current, warnings = books.pointer(), _folder(None, registry_root), []
        try:
            registry.load_scorer(current)
        except registry.ModelRefused as error:
            warnings = [f"the model in force cannot be loaded and was not compared with, the heuristic was: {error}"]
        version = registry.read_manifest(candidate).version
        if before is not None and before.version == version and not warnings:
            raise LearningError(f"{version} is in force already: nothing to promote")
        verdict = gate(candidate, None if warnings else current, labels, progress=progress)
        if not verdict.passed and not force:
            raise LearningError(
                f"not promoted: {verdict.reason}. Label more requests, compare on others with --labels, or use --force "
                "to promote all the same"
            )
        reason = verdict.reason if verdict.passed else f"forced: {verdict.reason}"
        pointer = books.promote(
            candidate,
            now_utc=now_utc,
            reason=reason,
            forced=force and not verdict.passed,
            canary_share=canary_share,
            judged_against=before,
        )
        return {
            "version": pointer.version,
            "canary_version": pointer.canary_version,
            "canary_share": pointer.canary_share,
            "forced": force and not verdict.passed,
            "reason": reason,
            "warnings": [*warnings, *_texts(registry.read_manifest(candidate).data.get("training_warnings"))],
        }


def _texts(value: object) -> list[str]:
    return [str(text) for text in value] if isinstance(value, list) else []


def rollback(*, registry_root: Path, now_utc: datetime) -> dict[str, Any]:
    """Return to the version before (or end a canary)."""
    with told():
        pointer = Registry(registry_root).rollback(now_utc=now_utc)
        return {"version": pointer.version, "reason": pointer.reason}


def calibrate_threshold(
    *,
    model: Path | None = None,
    registry_root: Path | None = None,
    prices: Mapping[str, TokenPrices],
    quality_target_ratio: float | None = None,
    premium_share: float | None = None,
    confidence_ratio: float = 0.9,
) -> dict[str, Any]:
    """nu for a quality target at given prices, or the gain threshold for a wanted premium share."""
    with told():
        if (quality_target_ratio is None) == (premium_share is None):
            raise UsageError("give either a quality target or a premium share")
        sample = registry.load_sample(_folder(model, registry_root))
        if premium_share is not None:
            if not 0.0 <= premium_share <= 1.0:
                raise UsageError("a share lies between 0 and 1")
            gains = [row.p[-1] - row.p[0] for row in sample.rows]
            return {
                "threshold": threshold_for_share(gains, premium_share),
                "premium_share": premium_share,
                "rows": len(gains),
            }
        if sample.tiers[-1] not in prices:
            raise UsageError(
                f"the model's best tier is {sample.tiers[-1]}, which has no price: give --price "
                f"{sample.tiers[-1]}=INPUT/OUTPUT (USD per million tokens), or a config with that tier"
            )
        target = quality_target_ratio if quality_target_ratio is not None else 0.95
        if not 0.0 < target <= 1.0 or not 0.5 <= confidence_ratio < 1.0:
            raise UsageError("the target lies in (0, 1], the confidence in [.5, 1)")
        dial = nu_for_target(
            sample, prices, target_ratio=target, confidence_ratio=confidence_ratio, reference=sample.tiers[-1]
        )
        return {name: getattr(dial, name) for name in dial.__slots__}
