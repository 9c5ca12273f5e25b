"""Which version is in force: a folder of versions and a pointer to one, changed by one command at a time.

`current.json` is the pointer, exchanged by an atomic rename; `history.jsonl` has a line for every change, written
before it is made. Whoever changes something holds `.lock`; readers need none.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

import msgspec

from classifier.registry import (
    MODEL_FILES,
    ModelRefused,
    ModelTampered,
    file_hashes,
    load_scorer,
    read_manifest,
    shipped_folder,
)
from classifier.scorer import TrainedScorer

POINTER = "current.json"
HISTORY = "history.jsonl"
SHIPPED = "shipped"
LOCK = ".lock"
MOST_BEFORE = 20
_DRAFTS = (".draft-", ".pointer-")


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


class Registry:
    """A folder of versions and the pointer to the current one."""

    def __init__(self, root: Path) -> None:
        self.root = root

    # --- reading --------------------------------------------------------------------------------------------------

    def pointer(self) -> Pointer | None:
        """What is in force; `None` where nothing was ever promoted. Raises `ModelRefused` on an unreadable pointer."""
        try:
            found = msgspec.json.decode((self.root / POINTER).read_bytes(), type=Pointer)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError) as error:
            raise ModelRefused(
                f"{self.root / POINTER} cannot be read ({error}): nobody knows what was promoted; `hybrid-llm-router "
                "rollback` returns to the shipped model, and then a model can be promoted again"
            ) from error
        if not 0.0 <= found.canary_share <= 1.0:
            raise ModelRefused(f"{self.root / POINTER}: a canary share of {found.canary_share:g} is none; run rollback")
        return found

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

    # --- changing -------------------------------------------------------------------------------------------------

    def promote(
        self,
        folder: Path,
        *,
        now_utc: datetime,
        reason: str,
        forced: bool = False,
        canary_share: float | None = None,
        judged_against: Pointer | None = None,
    ) -> Pointer:
        """Put a model folder in force, wholly or for a share of the traffic. The gate is `gate.judge`.

        `judged_against` is what was in force when the gate judged; raises `ModelRefused` where another version has come
        into force since.
        """
        if canary_share is not None and not 0.0 < canary_share < 1.0:
            raise ValueError("a canary share lies between 0 and 1")
        self.root.mkdir(parents=True, exist_ok=True)
        with self._alone():
            before = self.pointer()
            if judged_against is not None and before is not None and before.version != judged_against.version:
                raise ModelRefused(
                    f"{before.version} was promoted meanwhile, and this model was compared with "
                    f"{judged_against.version}: promote again"
                )
            version = self._add(folder)
            if canary_share is not None:
                base = before if before is not None else Pointer(SHIPPED, (), now_utc.isoformat())
                after = Pointer(**asdict(base) | {"canary_version": version, "canary_share": canary_share})
                self._put(after, now_utc, f"canary {version}: {reason}", forced=forced)
                return after
            older = () if before is None else (*before.history, before.version)
            history = tuple(v for v in older if v not in (version, SHIPPED))[-MOST_BEFORE:]
            after = Pointer(version, history, now_utc.isoformat(), forced, reason)
            self._put(after, now_utc, reason, forced=forced)
            return after

    def rollback(self, *, now_utc: datetime) -> Pointer:
        """End a canary, else return to the last version before that can still be loaded, else to the shipped model.

        So does a pointer that cannot be read. Raises `ModelRefused` where nothing was promoted.
        """
        if self.stamp() is None:
            raise ModelRefused("nothing was ever promoted: the shipped model is in force")
        with self._alone():
            try:
                before = self.pointer()
            except ModelRefused:
                return self._to_shipped(now_utc, f"rollback from a {POINTER} that could not be read")
            if before is None:
                raise ModelRefused("nothing was ever promoted: the shipped model is in force")
            if before.canary_version is not None:
                return self._end_canary(before, now_utc)
            left_out = []
            for number in range(len(before.history) - 1, -1, -1):
                version = before.history[number]
                try:
                    load_scorer(self.folder(version))
                except ModelRefused as error:
                    left_out.append(str(error))
                    continue
                reason = "; ".join([f"rollback from {before.version}", *(f"passed over: {e}" for e in left_out)])
                after = Pointer(version, before.history[:number], now_utc.isoformat(), False, reason)
                self._put(after, now_utc, reason)
                return after
            reason = "; ".join([f"rollback from {before.version}", *(f"passed over: {e}" for e in left_out)])
            return self._to_shipped(now_utc, reason)

    def _end_canary(self, before: Pointer, now_utc: datetime) -> Pointer:
        reason = f"rollback of canary {before.canary_version}"
        if before.version == SHIPPED:
            return self._to_shipped(now_utc, reason)
        after = Pointer(**asdict(before) | {"canary_version": None, "canary_share": 0.0})
        self._put(after, now_utc, reason)
        return Pointer(**asdict(after) | {"reason": reason})

    def _to_shipped(self, now_utc: datetime, reason: str) -> Pointer:
        after = Pointer(SHIPPED, (), now_utc.isoformat(), False, reason)
        self._note(after, now_utc, reason)
        (self.root / POINTER).unlink()
        return after

    def _add(self, folder: Path) -> str:
        """Copy a checked model folder into the registry; returns its version."""
        load_scorer(folder)
        manifest = read_manifest(folder)
        target = self.folder(manifest.version)
        if target.exists():
            if file_hashes(target) == file_hashes(folder) and _loads(target):
                return manifest.version
            if _loads(target):
                raise ModelRefused(
                    f"version {manifest.version} is already in {self.root} with other files; train again"
                )
            shutil.rmtree(target)  # damaged since it was promoted: this is its cure
        draft = Path(tempfile.mkdtemp(prefix=_DRAFTS[0], dir=self.root))
        try:
            for name in MODEL_FILES:
                if (folder / name).is_file():
                    _copy(folder / name, draft / name)
            if any(manifest.files.get(name) != digest for name, digest in file_hashes(draft).items()):
                raise ModelTampered(f"{folder.name}: changed while it was copied")
            draft.rename(target)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        return manifest.version

    def _put(self, pointer: Pointer, now_utc: datetime, reason: str, *, forced: bool = False) -> None:
        self._note(pointer, now_utc, reason, forced=forced)
        handle, name = tempfile.mkstemp(prefix=_DRAFTS[1], dir=self.root)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(asdict(pointer), file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(self.root / POINTER)

    def _note(self, pointer: Pointer, now_utc: datetime, reason: str, *, forced: bool = False) -> None:
        """A line in the history, before the change: what was done without one could not be told from tampering."""
        line = asdict(pointer) | {"at_utc": now_utc.isoformat(), "reason": reason, "forced": forced}
        with (self.root / HISTORY).open("a", encoding="utf-8") as log:
            log.write(json.dumps(line) + "\n")
            log.flush()
            os.fsync(log.fileno())

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Nobody else changes anything; what a killed command has left is gone."""
        with (self.root / LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # given back when the file is closed, however the process ends
            for left in [p for p in self.root.iterdir() if p.name.startswith(_DRAFTS)]:
                shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)
            yield


def _loads(folder: Path) -> bool:
    try:
        load_scorer(folder)
    except ModelRefused:
        return False
    return True


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as read, target.open("wb") as written:
        shutil.copyfileobj(read, written)
        written.flush()
        os.fsync(written.fileno())


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
