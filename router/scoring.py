"""The model in force: found, checked, given its dials, and exchanged while requests go on. Files are read off the loop.

    classifier.model     what scores
    auto                 the version that the registry points to (and its canary), else the shipped one
    shipped, heuristic   that one, whatever was promoted
    a folder             the model in it

A file that is not the one its manifest names stops a start: it may have been tampered with. A model that is missing or
was made for another release is replaced by the heuristic, and every record says so (CLASSIFIER_UNAVAILABLE). Once
something serves, nothing that is found on disk takes it away: what cannot be loaded is told once and left alone.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Protocol

import msgspec

from classifier import registry
from classifier.calibrate import CalibrationSample, QualityDial
from classifier.datamodels import ModelManifest, RequestFeatures, Score
from classifier.heuristic import HeuristicScorer
from classifier.registry import ModelMissing, ModelRefused, ModelTampered
from classifier.versions import SHIPPED, Pointer, Registry
from router.core.decision import Candidate, PolicyConfig
from router.core.quality_dials import marginal_prices, premium_share, set_dials
from router.core.snapshot import AssetRate, PriceRow
from router.core.vocabulary import Flag
from router.errors import RouterError
from router.ports import Clock, ScoredBy, Scorer, ScoringPolicy
from router.score_watch import Alarms, ScoreWatch
from router.scorer_choice import ScorerChoice
from router.settings_types import ClassifierSettings, ModelChoice, TierSettings

LOOK_EVERY_S = 1.0
DRIFT_EVERY_S = 30.0
LABELS_EVERY_S = 300.0
Stamp = tuple[int, int] | None


class ModelNotTrusted(RouterError):
    """A model's files are not what its manifest says."""

    code = "classifier_not_trusted"


class Source(StrEnum):
    """Where a model comes from."""

    PROMOTED = "promoted"
    SHIPPED = "shipped"
    FOLDER = "folder"
    HEURISTIC = "heuristic"


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A scorer that has passed all checks, bound to the models behind the tiers. The heuristic has no manifest."""

    scorer: Scorer
    source: Source
    folder: Path | None = None
    manifest: ModelManifest | None = None
    sample: CalibrationSample | None = field(default=None, repr=False)
    tiers_by_prior: tuple[str, ...] = ()

    @property
    def quantiles(self) -> tuple[float, ...]:
        """Deciles of the complexity of training data; empty where there are none."""
        return self.manifest.score_quantiles.get("complexity", ()) if self.manifest is not None else ()


@dataclass(frozen=True, slots=True)
class InForce:
    """What scores now, with the dials of the model in force by preset. `problem` says why it is only the heuristic.

    `usual_premium_ratio` is the share of its calibration sample that goes to premium at today's prices.
    """

    model: LoadedModel
    canary: LoadedModel | None = None
    canary_share: float = 0.0
    dials: Mapping[str, QualityDial] = field(default_factory=dict)
    problem: str | None = None
    usual_premium_ratio: float | None = None


class PriorForTheRest:
    """A model that was not trained on every configured tier; the heuristic speaks for those it does not know."""

    def __init__(self, inner: Scorer, tiers: Sequence[str]) -> None:
        self._inner = inner
        self._prior = HeuristicScorer()
        self._tiers = tuple(tiers)
        self.version = inner.version

    def score(self, features: RequestFeatures) -> Score:
        """P(adequate) of the model's tiers, and the prior's for the rest."""
        score, prior = self._inner.score(features), self._prior.score(features).p_adequate
        rest = {tier: prior[tier] for tier in self._tiers}
        complexity = 1.0 - prior["local"] if "local" in rest else score.complexity_ratio
        return msgspec.structs.replace(score, p_adequate={**rest, **score.p_adequate}, complexity_ratio=complexity)


def tier_models(tiers: TierSettings) -> dict[str, str]:
    """The model behind each tier, where there is exactly one: whose labels the classifier should go by."""
    behind: dict[str, set[str]] = {"local": {engine.model for engine in tiers.engines}}
    for tier, model in tiers.api_models():
        behind.setdefault(tier.value, set()).add(model.model)
    return {tier: next(iter(models)) for tier, models in behind.items() if len(models) == 1}


def load_model(folder: Path, source: Source, models: Mapping[str, str], tiers: Sequence[str]) -> LoadedModel:
    """The model in `folder` for tiers named `tiers`, served by `models`. Raises `ModelRefused`; imports no sklearn."""
    scorer: Scorer = registry.load_scorer(folder, models)
    manifest = registry.read_manifest(folder)
    known = {name.partition("/")[0] for name in manifest.tiers}
    if not known & set(tiers):
        raise ModelRefused(
            f"{folder.name}: was trained for the tiers {', '.join(manifest.tiers)}; none of them is configured"
        )
    missing = tuple(tier for tier in tiers if tier not in known)
    if missing:
        scorer = PriorForTheRest(scorer, missing)
    return LoadedModel(scorer, source, folder, manifest, registry.load_sample(folder), missing)


HEURISTIC = LoadedModel(HeuristicScorer(), Source.HEURISTIC)


class Prices(Protocol):
    """Rows in force by candidate name; another object whenever one has changed."""

    def __call__(self) -> Mapping[str, PriceRow]: ...


class ModelKeeper:
    """Puts the model in force into `judged` and keeps it up to date with the registry and the prices.

    `load` once before serving, then `start`. `on_warning(event, **labels)` hears of what was refused, and of drift,
    which is looked for beside the requests; `labelled(version)` reads (p, quality) of answers that users judged.
    """

    def __init__(
        self,
        settings: ClassifierSettings,
        *,
        models: Mapping[str, str],
        candidates: Sequence[Candidate],
        policies: Mapping[str, PolicyConfig],
        judged: ScorerChoice,
        prices: Prices,
        assets: Mapping[str, AssetRate],
        clock: Clock,
        on_warning: Callable[..., None],
        watch: ScoreWatch | None = None,
        labelled: Callable[[str], Sequence[tuple[float, float]]] = lambda _: (),
    ) -> None:
        self._settings = settings
        self._models = models
        self._candidates = candidates
        self._policies = policies
        self._judged = judged
        self._prices = prices
        self._assets = assets
        self._clock = clock
        self._warn = on_warning
        self._watch = watch if watch is not None else ScoreWatch()
        self._labelled = labelled
        self.alarms = Alarms(self._watch, on_warning)
        self._registry = Registry(settings.registry_dir)
        self._stamp: Stamp = None
        self._rows: Mapping[str, PriceRow] = {}
        self._task: asyncio.Task[None] | None = None
        self.in_force = InForce(HEURISTIC)

    # --- before serving -------------------------------------------------------------------------------------------

    def load(self) -> None:
        """The first model, at once. Raises `ModelNotTrusted` for files that are not what their manifest says."""
        self._stamp, self._rows = self._look(), self._prices()
        try:
            found = self._find()
        except ModelTampered as error:
            raise ModelNotTrusted(f"the classifier's model is not trusted: {error}. {self._cure()}") from error
        except ModelRefused as error:
            self._warn("classifier_unavailable", cause="missing" if isinstance(error, ModelMissing) else "refused")
            self.in_force = InForce(HEURISTIC, problem=f"{error}; {self._cure()}")
            self._judged.swap(self._judged.prior)
            return
        self._put(self._priced(found))

    def _cure(self) -> str:
        if self._settings.model is ModelChoice.FOLDER:
            return f"Put a trained model into {self._settings.folder}, or set classifier.model to auto or heuristic."
        if self._settings.model is ModelChoice.AUTO and self._stamp is not None:
            return (
                f"Run `hybrid-llm-router rollback`, promote the model again into {self._registry.root}, or set "
                "classifier.model to shipped."
            )
        return "Install the package again, or set classifier.model to heuristic."

    # --- while serving --------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Look for changes from now on, once a second."""
        self._task = asyncio.create_task(self._keep())

    async def stop(self) -> None:
        """Look no longer."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _keep(self) -> None:
        drift_at_s = labels_at_s = self._clock.now_s()
        while True:
            await self._clock.sleep(LOOK_EVERY_S)
            try:
                await self.refresh()
            except Exception as error:  # noqa: BLE001 - whatever is on disk, what serves goes on serving
                self._warn("classifier_reload_refused", reason=f"{type(error).__name__}: {error}")
            self.alarms.look_at_share()
            now_s = self._clock.now_s()
            if now_s >= labels_at_s:
                labels_at_s = now_s + LABELS_EVERY_S
                await self._read_labels()
            if now_s >= drift_at_s:
                drift_at_s = now_s + DRIFT_EVERY_S
                self.alarms.look_at_drift()

    async def _read_labels(self) -> None:
        version = self.in_force.model.scorer.version
        try:
            labelled = await asyncio.to_thread(self._labelled, version)
        except Exception:  # noqa: BLE001 - a database that is away costs us one reading
            return
        if version == self.in_force.model.scorer.version:
            self._watch.labelled = labelled

    async def refresh(self) -> None:
        """Take up what was promoted or rolled back, and prices that have changed; nothing where nothing has."""
        stamp, rows = self._look(), self._prices()
        if stamp != self._stamp:
            self._stamp, self._rows = stamp, rows
            try:
                found = await asyncio.to_thread(lambda: self._priced(self._find()))
            except ModelRefused as error:
                self._warn("classifier_reload_refused", reason=str(error))
                return
            self._put(found)
        elif rows is not self._rows:
            self._rows = rows
            if self.in_force.problem is None:
                self._put(await asyncio.to_thread(self._priced, self.in_force))

    def _look(self) -> Stamp:
        """Changes whenever another model may be meant; two system calls at most."""
        if self._settings.model is ModelChoice.AUTO:
            return self._registry.stamp()
        if self._settings.folder is None:
            return None
        try:
            stat = (self._settings.folder / registry.MANIFEST).stat()
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_ino

    def _find(self) -> InForce:
        """What the settings and the registry ask for; loads only what is not in force already."""
        match self._settings.model:
            case ModelChoice.HEURISTIC:
                return InForce(HEURISTIC)
            case ModelChoice.SHIPPED:
                return InForce(self._load(registry.shipped_folder(), Source.SHIPPED))
            case ModelChoice.FOLDER:
                return InForce(self._load(self._settings.folder or Path(), Source.FOLDER))
            case ModelChoice.AUTO:
                pointer = self._registry.pointer() or Pointer(SHIPPED)
                canary = self._canary(pointer.canary_version) if pointer.canary_version is not None else None
                return InForce(self._version(pointer.version), canary, pointer.canary_share)

    def _version(self, version: str) -> LoadedModel:
        shipped = version == SHIPPED
        source = Source.SHIPPED if shipped else Source.PROMOTED
        for model in (self.in_force.model, self.in_force.canary):
            if model is not None and model.source is source and (shipped or model.scorer.version == version):
                return model
        return self._load(self._registry.folder(version), source)

    def _canary(self, version: str) -> LoadedModel | None:
        """A canary that is only missing or too old is no reason not to serve."""
        try:
            return self._version(version)
        except ModelTampered:
            raise
        except ModelRefused as error:
            self._warn("classifier_canary_refused", reason=str(error))
            return None

    def _load(self, folder: Path, source: Source) -> LoadedModel:
        tiers = dict.fromkeys(candidate.tier.value for candidate in self._candidates)
        return load_model(folder, source, self._models, tuple(tiers))

    def _priced(self, found: InForce) -> tuple[InForce, ScoringPolicy, ScoringPolicy | None]:
        """The scoring policies of what was found, with their dials at the prices in force."""
        prices = marginal_prices(self._candidates, self._rows, self._assets)

        def scoring_of(model: LoadedModel) -> tuple[ScoringPolicy, Mapping[str, QualityDial]]:
            policies, dials = set_dials(
                self._policies, model.sample, prices, confidence_ratio=self._settings.confidence_ratio
            )
            return ScoringPolicy(model.scorer, policies), dials

        current, dials = scoring_of(found.model)
        canary = None
        if found.canary is not None:
            canary = replace(scoring_of(found.canary)[0], scored_by=ScoredBy.CANARY, flags=(Flag.CANARY_MODEL,))
        usual = premium_share(found.model.sample, prices, current.policies[""].nu_usd)
        return replace(found, dials=dials, usual_premium_ratio=usual), current, canary

    def _put(self, priced: tuple[InForce, ScoringPolicy, ScoringPolicy | None]) -> None:
        before = self.in_force.model
        self.in_force, current, canary = priced
        if self.in_force.model is not before:
            self._watch.restart(self.in_force.model.quantiles)
        nu_usd = current.policies[""].nu_usd
        basis = f"{current.scorer.version} {current.policies[''].quality_target_ratio} {nu_usd or 0.0:.9g}"
        self._watch.rebase(basis, self.in_force.usual_premium_ratio)
        self._judged.swap(current, canary, self.in_force.canary_share)
        for dial in {dial.target_ratio: dial for dial in self.in_force.dials.values()}.values():
            if not dial.certified:
                self._warn("quality_target_unproven", statement=dial.statement)
        for model in (self.in_force.model, self.in_force.canary):
            if model is not None and model.tiers_by_prior:
                self._warn(
                    "classifier_tier_unknown", version=model.scorer.version, tiers=", ".join(model.tiers_by_prior)
                )
