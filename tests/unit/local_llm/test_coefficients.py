"""Which figures are taken with care until the engine itself has shown how fast it is."""

from __future__ import annotations

from dataclasses import replace

import pytest

from local_llm.coefficients import EMBEDDED_CPU, PRESETS, UNKNOWN, may_flatter


@pytest.mark.parametrize("name", PRESETS)
def test_a_gpu_by_name_may_be_another_one(name: str) -> None:
    assert may_flatter(PRESETS[name]) is (name not in (EMBEDDED_CPU, UNKNOWN))


def test_given_figures_are_believed() -> None:
    assert may_flatter(replace(PRESETS["h100-8b-fp16"], name="config")) is False
