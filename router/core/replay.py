"""What a decision rested on, as bytes: hashed into every decision, kept with its record, decoded to replay it.

The inputs come in two parts. The *world* (candidates, prices, assets, dials) changes rarely: it is stored once and
named by its hash, which the builder of a snapshot may pass along. The *moment* (the request, the score, health,
budgets, engines) is small and stored with each record.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from hashlib import blake2b
from typing import Any

import msgspec

from classifier.datamodels import Score
from local_llm.datamodels import LocalSnapshot
from router.core.decision import Candidate, PolicyConfig
from router.core.nouns import Noun
from router.core.request import RequestFacts
from router.core.snapshot import AssetRate, BudgetState, PriceRow, ProviderHealth, Snapshot


class World(Noun, frozen=True):
    """The part of the inputs that changes rarely."""

    candidates: tuple[Candidate, ...]
    prices: Mapping[str, PriceRow]
    assets: Mapping[str, AssetRate]


class Moment(Noun, frozen=True):
    """The part of the inputs that belongs to one request."""

    facts: RequestFacts
    score: Score
    now_s: float
    now_utc: datetime
    budgets: tuple[BudgetState, ...]
    health: Mapping[str, ProviderHealth]
    engines: Mapping[str, LocalSnapshot]
    density_quantiles: Mapping[str, tuple[float, ...]]
    input_token_ratio: Mapping[str, float]
    cfg: PolicyConfig
    scorer_version: str
    exploration_left_nanousd: int | None = None
    cache_unknown: frozenset[str] = frozenset()


def _plain(value: Any) -> Any:
    """A read-only mapping is a dict on paper."""
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"a decision cannot rest on a {type(value).__name__}")


_encoder = msgspec.json.Encoder(enc_hook=_plain, decimal_format="string", order="deterministic")
_world_decoder = msgspec.json.Decoder(World)
_moment_decoder = msgspec.json.Decoder(Moment)


def world_bytes(candidates: Sequence[Candidate], snapshot: Snapshot) -> bytes:
    """The world of `snapshot`, canonical."""
    return _encoder.encode(World(tuple(candidates), snapshot.prices, snapshot.assets))


def world_hash(world: bytes) -> str:
    """Name of a world."""
    return blake2b(world, digest_size=12).hexdigest()


def moment_bytes(facts: RequestFacts, score: Score, snapshot: Snapshot, cfg: PolicyConfig) -> bytes:
    """The moment of a decision, canonical."""
    return _encoder.encode(
        Moment(
            facts,
            score,
            snapshot.now_s,
            snapshot.now_utc,
            snapshot.budgets,
            snapshot.health,
            snapshot.engines,
            snapshot.density_quantiles,
            snapshot.input_token_ratio,
            cfg,
            snapshot.scorer_version,
            snapshot.exploration_left_nanousd,
            snapshot.cache_unknown,
        )
    )


def hash_inputs(candidates: Sequence[Candidate], snapshot: Snapshot, moment: bytes) -> str:
    """Hash over everything `decide` saw: `WORLD-MOMENT`, so that a record names the world it needs."""
    world = snapshot.world_hash or world_hash(world_bytes(candidates, snapshot))
    return f"{world}-{blake2b(moment, digest_size=12).hexdigest()}"


def restore(world: bytes, moment: bytes) -> tuple[RequestFacts, Score, tuple[Candidate, ...], Snapshot, PolicyConfig]:
    """The arguments of `decide` as they were; msgspec.ValidationError if the bytes are not ours."""
    w = _world_decoder.decode(world)
    m = _moment_decoder.decode(moment)
    snapshot = Snapshot(
        now_s=m.now_s,
        now_utc=m.now_utc,
        prices=w.prices,
        budgets=m.budgets,
        health=m.health,
        engines=m.engines,
        assets=w.assets,
        density_quantiles=m.density_quantiles,
        input_token_ratio=m.input_token_ratio,
        cache_unknown=m.cache_unknown,
        scorer_version=m.scorer_version,
        world_hash=world_hash(world),
        exploration_left_nanousd=m.exploration_left_nanousd,
    )
    return m.facts, m.score, w.candidates, snapshot, m.cfg
