"""The learning loop as plain functions: `classify`, `train`, `evaluate`, `promote`, `rollback`, `calibrate_threshold`.

The gateway's command line calls these. Each takes paths, a clock and a progress callback, returns plain data, and
raises one of `UsageError` (wrong use) and `LearningError` (the thing itself failed), whose text is meant for people.
"""

from __future__ import annotations

import errno
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from classifier import registry
from classifier.calibrate import TokenPrices, nu_for_target, threshold_for_share
from classifier.heuristic import HeuristicScorer
from classifier.registry import shipped_folder
from classifier.rows import models_of, open_text, request_features, row_of
from classifier.scorer import TrainedScorer
from classifier.versions import Registry, load_serving_scorer
from classifier.whole_file import whole_file

MIN_FRESH_ROWS = 30
MOST_ASKED_AGAIN = 500
MAX_OWN_NOVELTY = 0.3

if TYPE_CHECKING:
    from classifier.datamodels import LabelledExample
    from classifier.gate import Scores, Verdict

Progress = Callable[[str, float | None], None]


class UsageError(ValueError):
    """The call makes no sense as it is: a missing file, a value out of range. Exit code 2."""


class LearningError(RuntimeError):
    """The work itself failed: bad labels, a refused model, a closed gate. Exit code 1."""


@contextmanager
def _told() -> Iterator[None]:
    """What can go wrong, as the two errors of this module."""
    try:
        yield
    except FileNotFoundError as error:
        raise UsageError(f"{error.filename}: no such file") from error
    except (UsageError, LearningError):
        raise
    except registry.FolderTaken as error:
        raise UsageError(str(error)) from error
    except OSError as error:
        raise LearningError(_of_the_disk(error)) from error
    except ValueError as error:  # DatasetError, TrainingError, NoOverlap, ModelRefused are ValueErrors
        raise LearningError(str(error)) from error
    except ModuleNotFoundError as error:
        raise LearningError(
            f"{str(error.name).partition('.')[0]} is not installed: the learning commands need the extra `learn` "
            "(in a checkout `make dev`, else pip install 'hybrid-llm-router[learn]')"
        ) from error


def _of_the_disk(error: OSError) -> str:
    """What the system refused, where, and what helps."""
    cure = {
        errno.ENOSPC: "free some room, or name another place",
        errno.EDQUOT: "free some room, or name another place",
        errno.EROFS: "name a place that can be written",
        errno.EACCES: "run this as its owner, or name another place",
        errno.EPERM: "run this as its owner, or name another place",
    }.get(error.errno or 0)
    where = f"{error.filename}: " if error.filename is not None else ""
    return f"{where}{error.strerror or error}" + (f": {cure}" if cure else "")


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
    with _told():
        scorer = load_serving_scorer(model, registry_root)
        if not source.is_file():
            raise UsageError(f"{source}: no such file")
        bound: dict[tuple[tuple[str, str], ...], TrainedScorer] = {}
        if target.exists() and target.samefile(source):
            raise UsageError(f"{target}: is the input too; write the predictions to another file")
        total = sum(1 for line in open_text(source) if line.strip()) if progress is not None else None
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
    with _told():
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
            warnings += _taken_for_novel(registry.load_scorer(out), examples)
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


def _taken_for_novel(scorer: TrainedScorer, examples: Sequence[LabelledExample]) -> list[str]:
    """A warning where the model would not go by what it has learned, since it takes even its own prompts for novel."""
    some = examples[:: max(1, len(examples) // MOST_ASKED_AGAIN)]
    novelty = sum(scorer.bind(e.models).score(e.features).novelty_ratio for e in some) / len(some)
    if novelty <= MAX_OWN_NOVELTY:
        return []
    told = (
        f"the model takes its own training prompts for novel (mean {novelty:.2f}), so that the prior decides and not "
    )
    return [f"{told}what was learned: prompts of one pattern, each with a name of its own? Label more kinds of prompts"]


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
    with _told():
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
            examples, notes = _of_these_tiers(examples, tiers)
            examples, note = _not_seen(examples, registry.load_stems(folder), include_seen=include_seen)
            notes += note
            examples, note = ev.usable(examples)
            notes += note
            scores = ev.predict(scorer, examples, tell)
            p = np.array([[s.p_adequate[t] for t in tiers] for s in scores])
            data = ev.collect(examples, tiers, p, np.array([s.novelty_ratio for s in scores]))
            tell("computing figures and their intervals", None)
            found = ev.report(data, prices=prices, draws=draws)
            uneven = uneven_selection(examples, 1.0 - p[:, 0])
            notes += _without_price(tiers, prices)
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


def _of_these_tiers(
    examples: Sequence[LabelledExample], tiers: Sequence[str]
) -> tuple[list[LabelledExample], list[str]]:
    """Rows that judge a tier the model knows, and a note on what else the labels judge."""
    judged = {t for e in examples for t in e.outcomes}
    foreign = sorted(judged - set(tiers))
    if not judged & set(tiers):
        raise LearningError(
            f"the labels judge {', '.join(foreign)}; the model predicts {', '.join(tiers)}: no tier is in both. Name "
            "the tiers in `outcomes` as the model does, or train a model on labels of these tiers and give it with "
            "--model"
        )
    kept = [e for e in examples if not set(e.outcomes).isdisjoint(tiers)]
    notes = [f"the model predicts {', '.join(tiers)}; judgements of {', '.join(foreign)} are left out"] * bool(foreign)
    if len(kept) < len(examples):
        notes.append(f"{len(examples) - len(kept)} rows judge no tier of the model and are left out")
    return kept, notes


def _without_price(tiers: Sequence[str], prices: Mapping[str, TokenPrices]) -> list[str]:
    missing = [tier for tier in tiers if tier not in prices]
    if not missing:
        return []
    return [f"no price of {', '.join(missing)}: figures of cost are without; give --price {missing[0]}=INPUT/OUTPUT"]


def _not_seen(
    examples: Sequence[LabelledExample], seen: frozenset[bytes], *, include_seen: bool
) -> tuple[list[LabelledExample], list[str]]:
    """Rows whose stem the model was not trained on (all, if `include_seen`), with a note on the others."""
    from classifier.dataset import stem_hash

    fresh = [e for e in examples if stem_hash(e) not in seen]
    told = f"{len(examples) - len(fresh)} of {len(examples)} rows share their stem with training data"
    if include_seen:
        return list(examples), [told, "these rows are included: the figures flatter the model"]
    if len(fresh) < MIN_FRESH_ROWS:
        raise LearningError(f"{told}; {len(fresh)} fresh rows are too few to say anything")
    return fresh, [told]


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
    with _told():
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
            raise LearningError(f"not promoted: {verdict.reason}. Use --force to promote all the same")
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
    with _told():
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
    with _told():
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
