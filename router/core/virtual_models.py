"""What a client's `model` means: a virtual name, a tier, or one real model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from router.core.decision import Candidate
from router.core.vocabulary import Locality, Tier
from router.errors import BadRequest, NotFound

_NAMES_SHOWN = 30
_NAME_CHARS_SHOWN = 100


class TargetKind(StrEnum):
    """How much of the choice the caller left to the router."""

    AUTO = "auto"
    TIER = "tier"
    MODEL = "model"


@dataclass(frozen=True, slots=True)
class Target:
    """What `model` asks for.

    `preset` (cheap, quality) and `locality` are set by the `auto:` names only; `tier` by a tier's name; `pinned` by a
    real model's name: of one candidate, or of a model that several engines serve.
    """

    kind: TargetKind
    tier: Tier | None = None
    pinned: str | None = None
    preset: str | None = None
    locality: Locality = Locality.ANY


VIRTUAL_MODELS: dict[str, Target] = {
    "auto": Target(TargetKind.AUTO),
    "auto:cheap": Target(TargetKind.AUTO, preset="cheap"),
    "auto:quality": Target(TargetKind.AUTO, preset="quality"),
    "auto:local": Target(TargetKind.AUTO, locality=Locality.LOCAL_ONLY),
}


def resolve(model: str, candidates: Sequence[Candidate]) -> Target:
    """What `model` means among `candidates`.

    A real model is named as configured (`openai/gpt-6-luna`) or as its host calls it (`gpt-6-luna`), one engine of
    several as `local/NAME`. Raises `NotFound`
    (`model_not_found`) for anything else, and for a tier without a model; `BadRequest` where two configured models
    share the host's name.
    """
    virtual = VIRTUAL_MODELS.get(model)
    if virtual is not None:
        return virtual
    for tier in Tier:
        if model == tier.value and any(c.tier is tier for c in candidates):
            return Target(TargetKind.TIER, tier=tier)
    for candidate in candidates:
        if model in (candidate.name, candidate.model):
            return Target(TargetKind.MODEL, pinned=model)
    hosted = [c for c in candidates if model == c.wire_model]
    if len(hosted) == 1:
        return Target(TargetKind.MODEL, pinned=hosted[0].name)
    if hosted:
        names = ", ".join(c.name for c in hosted)
        raise BadRequest(
            f"model {_shown(model)} is configured more than once; ask for one of: {names}",
            code="model_ambiguous",
            param="model",
        )
    raise NotFound(
        f"model {_shown(model)} does not exist here; there are: {_listing(candidates)}",
        code="model_not_found",
        param="model",
    )


def known_names(candidates: Sequence[Candidate]) -> tuple[str, ...]:
    """Every name `resolve` is sure to accept: virtual names, tiers that have a model, configured models."""
    tiers = {c.tier for c in candidates}
    models = dict.fromkeys(name for c in candidates for name in (c.model, c.name))
    return (*VIRTUAL_MODELS, *(t.value for t in Tier if t in tiers), *models)


def _listing(candidates: Sequence[Candidate]) -> str:
    names = known_names(candidates)
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _shown(model: str) -> str:
    return repr(model if len(model) <= _NAME_CHARS_SHOWN else model[:_NAME_CHARS_SHOWN] + "…")
