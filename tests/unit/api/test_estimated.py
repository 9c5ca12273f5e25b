"""What an estimate tells while nobody can answer: the price all the same, and why not now."""

from __future__ import annotations

from router.api.explained import estimated
from router.api.schemas import decode_chat
from router.core.vocabulary import Tier
from router.flow import consider, describe
from router.providers.scripted import Say
from tests.fakes import LOCAL
from tests.flow_world import World

BODY = b'{"model": "local", "messages": [{"role": "user", "content": "Hi"}]}'


def test_a_full_engine_has_a_price_all_the_same() -> None:
    world = World({Tier.LOCAL: [Say("one")]})
    seen = describe(decode_chat(BODY, {}), "acme", world.deps)
    before = estimated(seen, consider(seen, world.deps)[0])
    assert (before["state"], before["estimated_for"]) == ("ready", LOCAL.name)
    for _ in range(256):
        world.room.inflight.enter(0.0, 10, 10)
    full = estimated(seen, consider(seen, world.deps)[0])
    assert full["chosen"] is None
    assert full["state"] in ("queued", "saturated")
    assert full["estimated_for"] == LOCAL.name
    assert full["expected_cost_usd"] == before["expected_cost_usd"] > 0
    (local,) = (alt for alt in full["alternatives"] if alt["name"] == LOCAL.name)
    assert local["reasons_against"] == ["SATURATED_SEQS"]
