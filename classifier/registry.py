"""Models on disk: a folder per version, checked before it is believed, and a pointer to the one in force.

A folder holds `manifest.json`, `model.skops` (the estimator), `serving.bin` (what serves), `calibration.json` (held-out
predictions, from which nu is computed), `stems.bin` (hashes of what was trained on) and, for the gate,
`heldout.jsonl.gz`.
Every file's sha256 is in the manifest; golden inputs must give their golden scores. Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from importlib import resources
from pathlib import Path
from typing import Any

from classifier.calibrate import CalibrationRow, CalibrationSample
from classifier.datamodels import ModelManifest
from classifier.features import FEATURE_VERSION
from classifier.golden import golden_requests
from classifier.scorer import TrainedScorer
from classifier.serving import ServingFormatError

MANIFEST_FORMAT = 1
MANIFEST = "manifest.json"
ESTIMATOR = "model.skops"
SERVING = "serving.bin"
CALIBRATION = "calibration.json"
STEMS = "stems.bin"
HELD_OUT = "heldout.jsonl.gz"
POINTER = "current.json"
SHIPPED = "shipped"
GOLDEN_TOLERANCE = 1e-9
STEM_BYTES = 8
CARD_FILES = ("card.md", "cost_quality.png", "reliability.png")

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


class ModelRefused(ValueError):
    """A model folder that must not serve; the message says which file and why."""


class ModelMissing(ModelRefused):
    """There is no model where one should be."""


class ModelTampered(ModelRefused):
    """A file is not the one the manifest names, or does not score as the manifest says: damaged, or worse."""


class FolderTaken(ValueError):
    """A model was to be written where something else is."""


@dataclass(frozen=True, slots=True)
class Pointer:
    """Which versions are in force. `history` ends with the version before the current one."""

    version: str
    history: tuple[str, ...] = ()
    promoted_at_utc: str = ""
    forced: bool = False
    reason: str = ""
    canary_version: str | None = None
    canary_share: float = 0.0


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
        for name in ("tiers", "sources", "golden_scores"):
            raw[name] = tuple(raw[name])
        raw["score_quantiles"] = {k: tuple(v) for k, v in raw["score_quantiles"].items()}
        return ModelManifest(**raw)
    except OSError as error:
        raise ModelMissing(f"{folder.name}: no readable {MANIFEST}: not a model folder") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        if isinstance(error, ModelRefused):
            raise
        raise ModelRefused(f"{folder.name}: {MANIFEST} is not one of ours: {error}") from error


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
    except (ServingFormatError, ValueError, IndexError, TypeError) as error:
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
    got = golden_scores(scorer)
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
    raw = json.loads(_checked(folder, read_manifest(folder), CALIBRATION).read_text(encoding="utf-8"))
    rows = tuple(CalibrationRow(tuple(p), tuple(q), int(n), tuple(out), float(w)) for p, q, n, out, w in raw["rows"])
    low, high = raw.get("quality_range", (0.0, 1.0))
    return CalibrationSample(tuple(raw["tiers"]), rows, (float(low), float(high)))


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
    ours = {MANIFEST, ESTIMATOR, SERVING, CALIBRATION, STEMS, HELD_OUT, *CARD_FILES}
    found = sorted(p.name for p in folder.iterdir())
    foreign = [name for name in found if name not in ours]
    if foreign or (found and MANIFEST not in found):
        raise FolderTaken(
            f"{folder}: holds {(foreign or found)[0]}, which a new model would replace; name a new or empty folder"
        )


class Registry:
    """A folder of versions and the pointer to the current one, changed by atomic rename."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def pointer(self) -> Pointer | None:
        """What is in force; `None` where nothing was ever promoted. Raises `ModelRefused` on an unreadable pointer."""
        try:
            raw = json.loads((self.root / POINTER).read_text(encoding="utf-8"))
            return Pointer(**raw | {"history": tuple(raw["history"])})
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ModelRefused(f"{POINTER} cannot be read: {error}") from error

    def folder(self, version: str) -> Path:
        """Where a version lives. Raises `ModelRefused` for a name that is no plain folder name."""
        if version == SHIPPED:
            return shipped_folder()
        if not version or version != Path(version).name or version.startswith("."):
            raise ModelRefused(f"{version!r} is not a version")
        return self.root / version

    def current_folder(self) -> Path | None:
        """Folder of the version in force, if any."""
        pointer = self.pointer()
        return self.folder(pointer.version) if pointer is not None else None

    def stamp(self) -> tuple[int, int] | None:
        """Changes whenever the pointer does: cheap to poll for a hot reload."""
        try:
            stat = (self.root / POINTER).stat()
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_ino

    def add(self, folder: Path) -> str:
        """Copy a checked model folder into the registry; returns its version."""
        load_scorer(folder)
        version = read_manifest(folder).version
        target = self.folder(version)
        if not target.exists():
            self.root.mkdir(parents=True, exist_ok=True)
            draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=self.root))
            try:
                shutil.copytree(folder, draft, dirs_exist_ok=True)
                draft.rename(target)
            finally:
                shutil.rmtree(draft, ignore_errors=True)
        elif file_hashes(target) != file_hashes(folder):
            raise ModelRefused(f"version {version} is already in the registry with other files")
        return version

    def promote(
        self, folder: Path, *, now_utc: datetime, reason: str, forced: bool = False, canary_share: float | None = None
    ) -> Pointer:
        """Put a model folder in force, wholly or for a share of the traffic. The gate is `gate.judge`."""
        version = self.add(folder)
        before = self.pointer()
        if canary_share is not None:
            if not 0.0 < canary_share < 1.0:
                raise ValueError("a canary share lies between 0 and 1")
            base = before if before is not None else Pointer(SHIPPED, (), now_utc.isoformat())
            after = Pointer(**asdict(base) | {"canary_version": version, "canary_share": canary_share})
        else:
            older = () if before is None else (*before.history, before.version)
            history = tuple(v for v in older if v not in (version, SHIPPED))[-20:]
            after = Pointer(version, history, now_utc.isoformat(), forced, reason)
        self._point(after)
        return after

    def rollback(self, *, now_utc: datetime) -> Pointer:
        """End a canary, else return to the version before; raises `ModelRefused` where there is none."""
        before = self.pointer()
        if before is None:
            raise ModelRefused("nothing was ever promoted: the shipped model is in force")
        if before.canary_version is not None:
            after = Pointer(**asdict(before) | {"canary_version": None, "canary_share": 0.0})
            if after.version == SHIPPED:
                (self.root / POINTER).unlink()
            else:
                self._point(after)
            return after
        for number in range(len(before.history) - 1, -1, -1):
            version = before.history[number]
            if (self.folder(version) / MANIFEST).is_file():
                load_scorer(self.folder(version))
                after = Pointer(
                    version, before.history[:number], now_utc.isoformat(), False, f"rollback from {before.version}"
                )
                self._point(after)
                return after
        (self.root / POINTER).unlink()
        return Pointer(SHIPPED, (), now_utc.isoformat(), False, f"rollback from {before.version}")

    def _point(self, pointer: Pointer) -> None:
        handle, name = tempfile.mkstemp(prefix=".pointer-", dir=self.root)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(asdict(pointer), file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(self.root / POINTER)
        with (self.root / "history.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps(asdict(pointer)) + "\n")


def shipped_folder() -> Path:
    """The model that works out of the box."""
    return Path(str(resources.files("classifier") / "shipped"))


def load_serving_scorer(
    model: Path | None, registry_root: Path | None, models: Mapping[str, str] | None = None
) -> TrainedScorer:
    """The scorer to serve with: a given folder, else the registry's current version, else the shipped model.

    `models` says which model stands behind each tier. Raises `ModelRefused`; imports no sklearn.
    """
    if model is not None:
        return load_scorer(model, models)
    current = Registry(registry_root).current_folder() if registry_root is not None else None
    return load_scorer(current if current is not None else shipped_folder(), models)
