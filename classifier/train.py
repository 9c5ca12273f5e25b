"""From labelled examples to a model folder: fit, compile, check that both forms agree, write with a passport."""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED

import msgspec
import numpy as np
from numpy.typing import NDArray

from classifier import leaks, registry
from classifier.calibrate import CalibrationRow, CalibrationSample
from classifier.compiler import compile_model
from classifier.datamodels import DatasetSummary, LabelledExample, ModelManifest
from classifier.dataset import stem_hash
from classifier.features import FEATURE_VERSION
from classifier.labels import ONE_SIDED
from classifier.matrix import Matrix, as_matrix
from classifier.offpolicy import NoOverlap, check_overlap, is_partial, pseudo_outcomes, pseudo_range
from classifier.pipeline import TierModel
from classifier.progress import Progress, few_threads, unheard
from classifier.scorer import TrainedScorer, sources_with

Floats = NDArray[np.float64]

MIN_ROWS = 40
MIN_PER_CLASS = 5
MAX_CALIBRATION_ROWS = 2_500
MAX_HELD_OUT_ROWS = 3_000
AGREEMENT = 1e-9
LEAK_BRIER_SHARE = 0.25  # of the variance of labels; real prompts leave far more unexplained


class TrainingError(ValueError):
    """No model can be made of these labels; the message says why. Whatever was in force stays."""


@dataclass(frozen=True, slots=True)
class Trained:
    """What training gives back: the manifest, and predictions and novelty of every row made out of fold."""

    manifest: ModelManifest
    p: Floats
    novelty: Floats


def check_trainable(matrix: Matrix) -> list[str]:
    """Warnings; raises `TrainingError` where no honest model can come of it."""
    rows = len(matrix.outcomes)
    if rows < MIN_ROWS:
        raise TrainingError(f"{rows} labelled rows without repetitions; at least {MIN_ROWS} are needed")
    if len(np.unique(matrix.groups)) < 10:
        raise TrainingError("nearly all rows share one stem or conversation: nothing can be held out")
    warnings = []
    for t, tier in enumerate(matrix.tiers):
        seen = matrix.outcomes[~np.isnan(matrix.outcomes[:, t]), t]
        good, bad = int((seen > 0.5).sum()), int((seen < 0.5).sum())
        few = min(good, len(seen) - good)
        if not good and not bad and len(seen) >= MIN_ROWS:
            raise TrainingError(
                f"tier {tier!r}: the {len(seen)} labels come to one half each, as many good as bad for one prompt: "
                "they contradict each other, and nothing can be learnt"
            )
        if few == 0 and len(seen) >= MIN_ROWS:
            which = "adequate" if good else "inadequate"
            raise TrainingError(f"tier {tier!r}: all {len(seen)} labels say {which}; both kinds are needed to learn")
        if few < MIN_PER_CLASS:
            warnings.append(
                f"tier {tier!r}: {len(seen)} labels, {few} of the rarer kind: its mean is used, not a model"
            )
    return warnings


def fit(
    examples: Sequence[LabelledExample], *, seed: int = 0, threads: int = 1, progress: Progress = unheard
) -> tuple[TierModel, Matrix, list[str]]:
    """Fit the estimator; raises `TrainingError`."""
    matrix = as_matrix(examples)
    warnings = check_trainable(matrix)
    try:
        check_overlap(examples, matrix.tiers)
    except NoOverlap as error:
        warnings.append(f"the labels are those of past choices only: {error}")
    model = TierModel(tiers=list(matrix.tiers), sources=list(matrix.source_names), seed=seed)
    with few_threads(threads):
        model.fit(
            [e.features for e in examples],
            matrix.outcomes,
            sources=matrix.sources,
            groups=matrix.groups,
            weights=matrix.weights,
            domains=[e.domain for e in examples],
            peers=[sources_with(matrix.source_models, models) for models in matrix.source_models],
            progress=progress,
        )
    return model, matrix, warnings


def calibration_sample(
    examples: Sequence[LabelledExample], matrix: Matrix, p: Floats, scorer: TrainedScorer, *, seed: int
) -> CalibrationSample:
    """Held-out predictions `p` of rows on which most tiers were judged, as `scorer` would serve them, in random order.

    Tokens that the log lacks are the mean of their tier. Rows of partial logs carry doubly robust outcomes where the
    log allows it, else they are left out.
    """
    outcomes, quality_range = matrix.outcomes, (0.0, 1.0)
    partial = [i for i, e in enumerate(examples) if is_partial(e)]
    if partial:
        rows = [examples[i] for i in partial]
        try:
            check_overlap(rows, matrix.tiers)
            outcomes = outcomes.copy()
            outcomes[partial] = pseudo_outcomes(rows, matrix.tiers, p[partial])
            quality_range = pseudo_range(rows, matrix.tiers)
        except NoOverlap:
            pass
    complete = np.flatnonzero(~np.isnan(outcomes).any(axis=1))
    chosen = np.random.default_rng(seed).permutation(complete)[:MAX_CALIBRATION_ROWS]
    known: dict[str, list[float]] = defaultdict(list)
    for e in examples:
        for tier, tokens in e.output_tokens.items():
            known[tier].append(tokens)
    mean = {t: float(np.mean(known[t])) if known[t] else 200.0 for t in matrix.tiers}

    def served(i: int) -> dict[str, float]:
        said = dict(zip(matrix.tiers, p[i].tolist(), strict=True))
        return scorer.bind(examples[i].models).as_served(examples[i].features, said)

    return CalibrationSample(
        tiers=matrix.tiers,
        rows=tuple(
            CalibrationRow(
                p=tuple(round(x, 6) for x in served(i).values()),
                quality=tuple(round(float(x), 4) for x in outcomes[i]),
                input_tokens=examples[i].features.input_tokens,
                output_tokens=tuple(round(examples[i].output_tokens.get(t, mean[t]), 1) for t in matrix.tiers),
            )
            for i in chosen.tolist()
        ),
        quality_range=quality_range,
    )


def train(
    examples: Sequence[LabelledExample],
    summary: DatasetSummary,
    out: Path,
    *,
    now_utc: datetime,
    seed: int = 0,
    keep_held_out: bool = True,
    threads: int = 1,
    progress: Progress = unheard,
) -> Trained:
    """Write a model folder at `out`, complete or not at all. Raises `TrainingError`, and `registry.FolderTaken` where
    something else than a model is there.

    The same labels give the same scores. `keep_held_out` stores bounded texts with held-out predictions, which the gate
    compares models on; without it `promote` needs a labels file.
    """
    out = out.resolve()  # what `.` names is lost when it is replaced
    registry.check_replaceable(out)
    model, matrix, warnings = fit(examples, seed=seed, threads=threads, progress=progress)
    progress("checking and writing the model", 0.97)
    version = _version(summary, now_utc, seed)
    serving = compile_model(model, version=version, source_models=matrix.source_models)
    scorer = TrainedScorer.from_bytes(serving)
    _check_agreement(model, scorer, examples)
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=out.parent))
    try:
        manifest = _write(
            draft, model, matrix, serving, scorer, examples, summary, version, now_utc, seed, keep_held_out, warnings
        )
        draft.chmod(0o755)
        if out.exists():
            before = Path(tempfile.mkdtemp(prefix=".draft-", dir=out.parent))
            out.rename(before)  # onto an empty folder: the old model is gone only when the new one is in its place
            draft.rename(out)
            shutil.rmtree(before)
        else:
            draft.rename(out)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return Trained(manifest, model.out_of_fold_p_, model.out_of_fold_novelty_)


def _write(
    draft: Path,
    model: TierModel,
    matrix: Matrix,
    serving: bytes,
    scorer: TrainedScorer,
    examples: Sequence[LabelledExample],
    summary: DatasetSummary,
    version: str,
    now_utc: datetime,
    seed: int,
    keep_held_out: bool,
    warnings: Sequence[str],
) -> ModelManifest:
    import sklearn
    from skops.io import dump

    (draft / registry.SERVING).write_bytes(serving)
    dump(slim(model), draft / registry.ESTIMATOR, compression=ZIP_DEFLATED, compresslevel=9)
    p = model.out_of_fold_p_
    warnings = [*warnings, *leak_warnings(matrix, p), *leaks.warnings(examples, matrix.tiers)]
    registry.write_sample(draft, calibration_sample(examples, matrix, p, scorer, seed=seed))
    (draft / registry.STEMS).write_bytes(b"".join(sorted({stem_hash(e) for e in examples})))
    if keep_held_out:
        _write_held_out(draft / registry.HELD_OUT, examples, matrix, p, seed)
    complexity = 1.0 - p[:, 0]
    manifest = ModelManifest(
        format=registry.MANIFEST_FORMAT,
        version=version,
        created_at_utc=now_utc.isoformat(),
        feature_version=FEATURE_VERSION,
        sklearn_version=sklearn.__version__,
        tiers=matrix.tiers,
        sources=matrix.source_names,
        data=asdict(summary) | {"training_warnings": list(warnings)},
        metrics=out_of_fold_metrics(matrix, p),
        files=registry.file_hashes(draft),
        golden_scores=registry.golden_scores(scorer),
        score_quantiles={"complexity": tuple(float(q) for q in np.quantile(complexity, np.arange(1, 10) / 10))},
        trained_with={"seed": seed, **model.get_params()},
    )
    registry.write_manifest(draft, manifest)
    return manifest


def leak_warnings(matrix: Matrix, p: Floats) -> list[str]:
    """Tiers predicted so well out of fold that the label itself must stand in the prompt or the features."""
    found = []
    for t, tier in enumerate(matrix.tiers):
        seen = ~np.isnan(matrix.outcomes[:, t])
        y = matrix.outcomes[seen, t]
        left = float(np.mean((p[seen, t] - y) ** 2) / y.var()) if seen.sum() >= MIN_ROWS and y.var() > 0.0 else 1.0
        if left < LEAK_BRIER_SHARE:
            found.append(
                f"tier {tier!r}: held-out labels are predicted too good to be true; does the prompt tell the label?"
            )
    return found


def slim(model: TierModel) -> TierModel:
    """The estimator without what only training needed."""
    copy = TierModel(**model.get_params())
    copy.__dict__.update({k: v for k, v in model.__dict__.items() if not k.startswith("out_of_fold")})
    return copy


def out_of_fold_metrics(matrix: Matrix, p: Floats) -> dict[str, Any]:
    """Headline figures on predictions made out of fold; `evaluate` gives the whole report."""
    from classifier.metrics import apgr, brier, ece

    found: dict[str, Any] = {"kind": "out of fold, grouped by stem and conversation"}
    for t, tier in enumerate(matrix.tiers):
        seen = ~np.isnan(matrix.outcomes[:, t])
        q, y, mass = p[seen, t], matrix.outcomes[seen, t], matrix.weights[seen, t]
        found[f"{tier}_ece"] = round(ece(q, y, weight=mass), 4)
        found[f"{tier}_brier"] = round(brier(q, y, weight=mass), 4)
    both = ~np.isnan(matrix.outcomes[:, [0, -1]]).any(axis=1)
    if both.sum() > 1 and len(matrix.tiers) > 1:
        y, gain = matrix.outcomes[both], p[both, -1] - p[both, 0]
        value = apgr(gain, y[:, 0], y[:, -1])
        found["apgr"] = None if np.isnan(value) else round(value, 4)
    return found


def _version(summary: DatasetSummary, now_utc: datetime, seed: int) -> str:
    mark = hashlib.sha256(f"{summary.sha256}/{FEATURE_VERSION}/{seed}".encode()).hexdigest()[:8]
    return f"{now_utc:%Y%m%dT%H%M%S}-{mark}"


def _check_agreement(model: TierModel, scorer: TrainedScorer, examples: Sequence[LabelledExample]) -> None:
    """Raise `TrainingError` unless the serving form gives the estimator's numbers on real rows."""
    some = [examples[i].features for i in np.linspace(0, len(examples) - 1, min(200, len(examples))).astype(int)]
    wanted, far = model.predict_proba(some), model.novelty(some)
    for features, p, novelty in zip(some, wanted, far, strict=True):
        score = scorer.score(features)
        got = np.array([score.p_adequate[t] for t in model.tiers])
        if abs(score.novelty_ratio - novelty) > AGREEMENT or (novelty == 0.0 and np.abs(got - p).max() > AGREEMENT):
            raise TrainingError("the serving form does not give the estimator's numbers; the model is not written")


def _write_held_out(path: Path, examples: Sequence[LabelledExample], matrix: Matrix, p: Floats, seed: int) -> None:
    """Rows for the gate, but for those known by retries alone: a model that says no would win by them."""
    two_sided = np.array([i for i, e in enumerate(examples) if e.label_source != ONE_SIDED], dtype=np.int64)
    chosen = np.sort(np.random.default_rng(seed).permutation(two_sided)[:MAX_HELD_OUT_ROWS])
    with gzip.GzipFile(path, "wb", mtime=0) as file:
        for i in chosen.tolist():
            e = examples[i]
            row = {
                "request_id": e.request_id,
                "source": e.source,
                "models": dict(e.models),
                "features": msgspec.structs.asdict(e.features),
                "outcomes": dict(e.outcomes),
                "weights": {t: float(matrix.weights[i, matrix.tiers.index(t)]) for t in e.outcomes},
                "stem": stem_hash(e).hex(),
                "p": {t: round(float(x), 6) for t, x in zip(matrix.tiers, p[i], strict=True)},
            }
            file.write(json.dumps(row).encode() + b"\n")
