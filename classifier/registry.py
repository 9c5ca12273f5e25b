"""Models on disk: a folder per version, checked before it is believed.

A folder holds `manifest.json`, `model.skops` (the estimator), `serving.bin` (what serves), `calibration.json` (held-out
predictions, from which nu is computed), `stems.bin` (hashes of what was trained on) and, for the gate,
`heldout.jsonl.gz`.
Every file's sha256 is in the manifest; golden inputs must give their golden scores. Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from datetime import datetime
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec

from classifier.calibrate import CalibrationRow, CalibrationSample
from classifier.datamodels import ModelManifest
from classifier.features import FEATURE_VERSION
from classifier.golden import golden_requests
from classifier.scorer import TrainedScorer

MANIFEST_FORMAT = 1
MANIFEST = "manifest.json"
ESTIMATOR = "model.skops"
SERVING = "serving.bin"
CALIBRATION = "calibration.json"
STEMS = "stems.bin"
HELD_OUT = "heldout.jsonl.gz"
GOLDEN_TOLERANCE = 1e-9
STEM_BYTES = 8
CARD_FILES = ("card.md", "cost_quality.png", "reliability.png")
MODEL_FILES = (MANIFEST, ESTIMATOR, SERVING, CALIBRATION, STEMS, HELD_OUT, *CARD_FILES)

TRUSTED_TYPES = (
    "classifier.novelty.Neighbourhood",
    "classifier.novelty.SourceWords",
    "classifier.pipeline.TierModel",
    "classifier.subjects.Subjects",
    "classifier.views.BaseViews",
    "classifier.views.same",
    "sklearn._loss.link.Interval",
    "sklearn._loss.link.LogitLink",
    "sklearn._loss.loss.HalfBinomialLoss",
    "sklearn._loss._loss.CyHalfBinomialLoss",
    "sklearn.ensemble._hist_gradient_boosting.binning._BinMapper",
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    "sklearn.feature_extraction.text.TfidfTransformer",
)

_UNREADABLE = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)


class ModelRefused(ValueError):
    """A model folder that must not serve; the message says which file and why."""


class ModelMissing(ModelRefused):
    """There is no model where one should be."""


class ModelTampered(ModelRefused):
    """A file is not the one the manifest names, or does not score as the manifest says: damaged, or worse."""


class FolderTaken(ValueError):
    """A model was to be written where something else is."""


def sha256_of(path: Path) -> str:
    """Hex digest of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def write_manifest(folder: Path, manifest: ModelManifest) -> None:
    """Write `manifest.json`."""
    text = json.dumps(asdict(manifest), indent=1, sort_keys=True, ensure_ascii=False)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> ModelManifest:
    """The manifest of a folder. Raises `ModelRefused`."""
    path = folder / MANIFEST
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if raw["format"] != MANIFEST_FORMAT:
            raise ModelRefused(f"{folder.name}: manifest format {raw['format']} is not {MANIFEST_FORMAT}; train again")
        foreign = sorted(set(raw) - {field.name for field in fields(ModelManifest)})
        if foreign:
            raise ValueError(f"what is {foreign[0]!r}?")
        manifest = msgspec.convert(raw, ModelManifest)
        datetime.fromisoformat(manifest.created_at_utc)
    except OSError as error:
        raise ModelMissing(
            f"{folder.name or folder}: no readable {MANIFEST} ({error.strerror}): not a model folder"
        ) from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        if isinstance(error, ModelRefused):
            raise
        raise ModelRefused(f"{folder.name}: {MANIFEST} is not one of ours: {error}") from error
    return manifest


def _checked(folder: Path, manifest: ModelManifest, name: str) -> Path:
    path = folder / name
    wanted = manifest.files.get(name)
    if wanted is None or not path.is_file():
        raise ModelMissing(f"{folder.name}: {name} is missing")
    if sha256_of(path) != wanted:
        raise ModelTampered(
            f"{folder.name}: {name} is not the file the manifest names (sha256 differs): damaged or tampered with"
        )
    return path


def load_scorer(folder: Path, models: Mapping[str, str] | None = None) -> TrainedScorer:
    """The serving form of a model folder, after all checks, of its other files too. Raises `ModelRefused`.

    Imports no sklearn.
    """
    manifest = read_manifest(folder)
    if manifest.feature_version != FEATURE_VERSION:
        raise ModelRefused(
            f"{folder.name}: made for feature version {manifest.feature_version}, not {FEATURE_VERSION}; train again"
        )
    data = _checked(folder, manifest, SERVING).read_bytes()
    for name in (ESTIMATOR, CALIBRATION, STEMS, HELD_OUT):  # not needed to score, but who changed one may have more
        if name in manifest.files and (folder / name).is_file():
            _checked(folder, manifest, name)
    try:
        scorer = TrainedScorer.from_bytes(data, models)
    except _UNREADABLE as error:
        raise ModelRefused(f"{folder.name}: {SERVING}: {error}") from error
    if scorer.version != manifest.version or scorer.model.feature_version != manifest.feature_version:
        raise ModelTampered(
            f"{folder.name}: {SERVING} is of version {scorer.version}, the manifest of {manifest.version}"
        )
    check_golden(folder.name, scorer, manifest)
    return scorer


def golden_scores(scorer: TrainedScorer) -> tuple[Mapping[str, float], ...]:
    """What the model alone says of every golden input, models unknown, and how novel each is to it.

    Not the final score: that is the prior for what is novel, whatever the weights.
    """
    unbound = scorer.bind({})
    said = map(unbound.unshrunk, golden_requests())
    return tuple({**dict(zip(scorer.model.tiers, p, strict=True)), "novelty": novelty} for p, novelty in said)


def check_golden(name: str, scorer: TrainedScorer, manifest: ModelManifest) -> None:
    """Raise `ModelRefused` unless golden inputs give their golden scores."""
    try:
        got = golden_scores(scorer)
    except _UNREADABLE as error:
        raise ModelTampered(f"{name}: {SERVING}: golden inputs cannot be scored: {error!r}") from error
    if len(got) != len(manifest.golden_scores):
        raise ModelRefused(f"{name}: made with other golden inputs; train again")
    for number, (mine, written) in enumerate(zip(got, manifest.golden_scores, strict=True)):
        far = [t for t in mine if not abs(mine[t] - written.get(t, 2.0)) <= GOLDEN_TOLERANCE]  # NaN too
        if far:
            raise ModelTampered(
                f"{name}: golden input {number} no longer gives its score for {far[0]}: not the same model or code"
            )


def load_estimator(folder: Path) -> Any:
    """The sklearn estimator (`pipeline.TierModel`), for training and evaluation only. Raises `ModelRefused`."""
    import sklearn
    from skops.io import get_untrusted_types, load

    manifest = read_manifest(folder)
    if manifest.sklearn_version != sklearn.__version__:
        raise ModelRefused(
            f"{folder.name}: saved by scikit-learn {manifest.sklearn_version}, this is {sklearn.__version__}; "
            "estimators do not carry over: train again (serving does not need it)"
        )
    path = _checked(folder, manifest, ESTIMATOR)
    foreign = sorted(set(get_untrusted_types(file=path)) - set(TRUSTED_TYPES))
    if foreign:
        raise ModelRefused(f"{folder.name}: {ESTIMATOR} holds types we do not trust: {', '.join(foreign)}")
    return load(path, trusted=list(TRUSTED_TYPES))


def write_sample(folder: Path, sample: CalibrationSample) -> None:
    """Write `calibration.json`."""
    rows = [[list(r.p), list(r.quality), r.input_tokens, list(r.output_tokens), r.weight] for r in sample.rows]
    known: dict[str, object] = {"tiers": sample.tiers, "rows": rows}
    if sample.quality_range != (0.0, 1.0):
        known["quality_range"] = sample.quality_range
    text = json.dumps(known, separators=(",", ":"))
    (folder / CALIBRATION).write_text(text + "\n", encoding="utf-8")


def load_sample(folder: Path) -> CalibrationSample:
    """The calibration sample of a model folder. Raises `ModelRefused`."""
    path = _checked(folder, read_manifest(folder), CALIBRATION)
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        rows = tuple(CalibrationRow(tuple(p), tuple(q), int(n), tuple(o), float(w)) for p, q, n, o, w in raw["rows"])
        low, high = raw.get("quality_range", (0.0, 1.0))
        tiers = tuple(map(str, raw["tiers"]))
        if any(len(part) != len(tiers) for row in rows for part in (row.p, row.quality, row.output_tokens)):
            raise ValueError("a row without a number for each tier")
        return CalibrationSample(tiers, rows, (float(low), float(high)))
    except _UNREADABLE as error:
        raise ModelRefused(f"{folder.name}: {CALIBRATION} is not one of ours: {error!r}") from error


def load_stems(folder: Path) -> frozenset[bytes]:
    """Hashes of the stems a model was trained on."""
    data = _checked(folder, read_manifest(folder), STEMS).read_bytes()
    return frozenset(data[i : i + STEM_BYTES] for i in range(0, len(data), STEM_BYTES))


def file_hashes(folder: Path) -> dict[str, str]:
    """sha256 of the files of a folder that are checked."""
    return {
        n: sha256_of(folder / n) for n in (ESTIMATOR, SERVING, CALIBRATION, STEMS, HELD_OUT) if (folder / n).is_file()
    }


def check_replaceable(folder: Path) -> None:
    """Raise `FolderTaken` unless a model may be written at `folder`: nothing is there, or a model and nothing else."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise FolderTaken(f"{folder}: is a file; name a folder for the model")
    found = sorted(p.name for p in folder.iterdir())
    foreign = [name for name in found if name not in MODEL_FILES]
    if foreign or (found and MANIFEST not in found):
        raise FolderTaken(
            f"{folder}: holds {(foreign or found)[0]}, which a new model would replace; name a new or empty folder"
        )


def shipped_folder() -> Path:
    """The model that works out of the box."""
    return Path(str(resources.files("classifier") / "shipped"))
