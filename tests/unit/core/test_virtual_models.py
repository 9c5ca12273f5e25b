from __future__ import annotations

from dataclasses import replace

import pytest

from router.core.decision import Candidate
from router.core.virtual_models import Target, TargetKind, known_names, resolve
from router.core.vocabulary import Locality, Tier
from router.errors import BadRequest, NotFound

LOCAL = Candidate("meta/llama", Tier.LOCAL, "engine", "meta/llama", 8192)
LUNA = Candidate("openai/gpt-6-luna", Tier.CHEAP, "openai", "gpt-6-luna", 128_000)
TWIN = replace(LUNA, name="azure/gpt-6-luna", provider="azure", tier=Tier.PREMIUM)
BOTH = (LOCAL, LUNA)


@pytest.mark.parametrize(
    ("model", "target"),
    [
        ("auto", Target(TargetKind.AUTO)),
        ("auto:cheap", Target(TargetKind.AUTO, preset="cheap")),
        ("auto:quality", Target(TargetKind.AUTO, preset="quality")),
        ("auto:local", Target(TargetKind.AUTO, locality=Locality.LOCAL_ONLY)),
        ("local", Target(TargetKind.TIER, tier=Tier.LOCAL)),
        ("cheap", Target(TargetKind.TIER, tier=Tier.CHEAP)),
        ("openai/gpt-6-luna", Target(TargetKind.MODEL, pinned=LUNA.name)),
        ("gpt-6-luna", Target(TargetKind.MODEL, pinned=LUNA.name)),
        ("meta/llama", Target(TargetKind.MODEL, pinned=LOCAL.name)),
    ],
)
def test_every_kind_of_name_means_one_thing(model: str, target: Target) -> None:
    assert resolve(model, BOTH) == target


@pytest.mark.parametrize("model", ["gpt-7", "auto:fast", "AUTO", "premium", "", " auto", "auto:", "openai/"])
def test_what_is_not_configured_is_not_found_and_says_what_is(model: str) -> None:
    with pytest.raises(NotFound) as caught:
        resolve(model, BOTH)
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    assert repr(model) in caught.value.message
    for name in known_names(BOTH):
        assert name in caught.value.message


def test_a_name_at_two_hosts_must_be_said_in_full() -> None:
    three = (*BOTH, TWIN)
    with pytest.raises(BadRequest) as caught:
        resolve("gpt-6-luna", three)
    assert "azure/gpt-6-luna" in caught.value.message
    assert resolve("azure/gpt-6-luna", three).pinned == TWIN.name


def test_a_configured_name_goes_before_a_hosts_name() -> None:
    shadow = replace(LUNA, name="gpt-6-luna", provider="other", wire_model="x")
    assert resolve("gpt-6-luna", (LUNA, shadow)).pinned == shadow.name


def test_a_model_that_cannot_answer_now_is_still_found() -> None:
    from router.core.vocabulary import Reject

    keyless = replace(LUNA, unavailable=Reject.UNCONFIGURED)
    assert resolve("cheap", (keyless,)).tier is Tier.CHEAP


def test_a_monstrous_name_is_shortened_in_the_answer() -> None:
    with pytest.raises(NotFound) as caught:
        resolve("x" * 100_000, [replace(LUNA, name=f"openai/m{i}") for i in range(500)])
    assert len(caught.value.message) < 1_000


@pytest.mark.parametrize("candidates", [(), BOTH, (*BOTH, TWIN)])
def test_every_listed_name_resolves(candidates: tuple[Candidate, ...]) -> None:
    for name in known_names(candidates):
        resolve(name, candidates)
