"""Whether a model fits a card, against what real models weigh."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from local_llm.memory import GIB, ModelShape, parameters_of, plan, shape_from_config, shape_from_name, weight_bits

LLAMA_8B = {
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "hidden_size": 4096,
    "torch_dtype": "bfloat16",
}
A10G, H100 = 24_146_608_128, 85_520_809_984


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", 8),
        ("Qwen/Qwen2.5-0.5B-Instruct", 0.5),
        ("Qwen/Qwen3-30B-A3B", 30),
        ("mistralai/Mixtral-8x7B-Instruct-v0.1", 47),
        ("TheBloke/Llama-2-70b-AWQ", 70),
    ],
)
def test_the_name_tells_the_parameters(name: str, billions: float) -> None:
    assert parameters_of(name) == pytest.approx(billions * 1e9, rel=0.01)


@pytest.mark.parametrize("name", ["mistral-small", "gpt2", "phi-4", "a100b2x", "model-v3bis"])
def test_a_name_without_a_size_tells_nothing(name: str) -> None:
    assert parameters_of(name) is None
    assert shape_from_name(name) is None


def test_a_config_gives_the_known_figures_of_llama_8b() -> None:
    shape = shape_from_config(LLAMA_8B, None, 8.03e9)
    assert shape == ModelShape(16_060_000_000, 131_072)  # 128 KiB a token


def test_a_config_with_its_own_head_size_and_a_language_part_is_understood() -> None:
    text = {
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "hidden_size": 2560,
        "head_dim": 128,
    }
    assert shape_from_config({"text_config": text}, 9 * GIB, None) == ModelShape(9 * GIB, 147_456)


@pytest.mark.parametrize("config", [{}, {"num_hidden_layers": 3}, {**LLAMA_8B, "hidden_size": "big"}])
def test_a_config_that_lacks_something_gives_nothing(config: dict[str, object]) -> None:
    assert shape_from_config(config, GIB, None) is None


def test_quantized_weights_are_smaller() -> None:
    assert weight_bits({"torch_dtype": "float16"}) == 16
    assert weight_bits({"quantization_config": {"quant_method": "fp8"}}) == 8
    assert weight_bits({"quantization_config": {"quant_method": "awq", "bits": 4}}) == 4.5
    full, fp8, awq = (shape_from_name(f"x/Llama-70B{mark}") for mark in ("", "-FP8", "-AWQ"))
    assert full and fp8 and awq
    assert full.weight_bytes == 2 * fp8.weight_bytes > 3 * awq.weight_bytes


def fits(shape: ModelShape, *cards: int, window: int = 8192, seqs: int = 64) -> bool:
    return plan(shape, card_bytes=cards, gpu_memory_utilization=0.9, window_tokens=window, max_num_seqs=seqs).starts


def test_an_8b_model_fits_24_gb_and_a_70b_one_needs_cards_enough() -> None:
    small, large = shape_from_config(LLAMA_8B, 16_060_000_000, None), shape_from_name("Llama-3.1-70B")
    assert small and large
    assert fits(small, A10G)
    assert not fits(small, A10G, window=65_536)
    assert not fits(large, H100)
    assert fits(large, H100, H100)
    assert not fits(large, H100, H100, window=131_072)  # 141 GB of weights leave little in 2 x 77 GB
    assert fits(large, *(H100,) * 4, window=131_072)


def test_the_smallest_card_of_a_group_decides() -> None:
    shape = ModelShape(30 * GIB, 131_072)
    assert fits(shape, H100, H100)
    assert not fits(shape, H100, A10G // 2)


@given(st.integers(1, 10**11), st.integers(1, 10**6), st.integers(10**9, 10**11), st.floats(0.1, 1.0))
def test_more_memory_never_fits_less(weights: int, kv: int, card: int, share: float) -> None:
    shape = ModelShape(weights, kv)

    def tokens(bytes_: int) -> int:
        return plan(
            shape, card_bytes=(bytes_,), gpu_memory_utilization=share, window_tokens=1, max_num_seqs=8
        ).kv_tokens

    assert tokens(card) <= tokens(card + 10**9)
