"""The first prompt of all, before anything is learnt of the engine: an empty one takes it, whatever its figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.engine_house import house

SLOW = {"t0_s": 0.028, "c_seq_s": 1e-4, "c_kv_s": 3e-7, "c_prefill_s": 1.5e-4}  # just within the usual 50 ms a token


@pytest.mark.parametrize("coefficients", [None, SLOW, "a100-8b-fp16"])
async def test_an_empty_engine_takes_the_first_prompt(tmp_path: Path, coefficients: Any) -> None:
    async with house(tmp_path, local={"coefficients": coefficients}) as h:
        assert await h.tier() == "local"
        assert h.api_calls == 0
