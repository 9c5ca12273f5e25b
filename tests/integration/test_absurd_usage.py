"""An upstream that claims to have written a library: booked at what was seen, neither at its word nor at nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from router.core.vocabulary import Flag
from tests.engine_house import house
from tests.upstream import with_usage

WRITTEN_TOKENS = 5
LIBRARY = 10**12


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("model", ["cheap", "local"])
async def test_what_was_seen_is_booked_and_told_to_be_an_estimate(tmp_path: Path, model: str, stream: bool) -> None:
    async with house(tmp_path) as h:
        teller = h.cheap if model == "cheap" else h.engine
        for reported in ((LIBRARY, LIBRARY), (LIBRARY, WRITTEN_TOKENS)):
            usage = {"prompt_tokens": reported[0], "completion_tokens": reported[1], "total_tokens": sum(reported)}
            teller.script(with_usage(usage, tokens=WRITTEN_TOKENS))
            options = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
            status, headers, _ = await h.ask(model=model, **options)
            assert status == 200
            await h.front.gateway.ledger.flush()
            (attempt,) = (await h.front.record(headers["x-request-id"])).attempts
            assert attempt.usage.estimated
            assert Flag.USAGE_INCONSISTENT in attempt.charge.flags
            assert 0 < attempt.usage.input_tokens < 100
            assert WRITTEN_TOKENS - 1 <= attempt.usage.output_tokens <= 2 * WRITTEN_TOKENS
            assert 0 < attempt.charge.amount_nanousd < 100_000
