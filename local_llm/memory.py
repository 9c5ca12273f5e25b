"""Does a model fit a card? Pure arithmetic on the model's shape, before minutes are spent on loading it.

    weights   parameters * bits / 8, shared by the cards of a tensor-parallel group
    KV        2 * layers * kv_heads * head_dim * bytes, per token of context, shared likewise
    room      vLLM takes `gpu_memory_utilization` of each card; what weights and activations leave is KV cache

vLLM does not start unless the cache holds one whole context window. What it holds beyond that decides how many requests
run side by side.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

GIB = 2**30
# An estimate of the peak of activations, of CUDA graphs and of the runtime itself, at up to 2,048 tokens in a step.
RUNTIME_BYTES = 3 * GIB // 2
TYPICAL_REQUEST_TOKENS = 1024
_BITS = {"float32": 32, "fp8": 8, "awq": 4.5, "gptq": 4.5, "bitsandbytes": 4.5, "mxfp4": 4.5, "compressed-tensors": 8}
# What models of a size look like where their config.json is not at hand: (billions up to, layers, KV heads, head size).
_USUAL_SHAPES = ((2.0, 28, 8, 128), (5.0, 36, 8, 128), (10.0, 36, 8, 128), (20.0, 48, 8, 128), (40.0, 64, 8, 128))
_LARGE_SHAPE = (80, 8, 128)
_EXPERTS = re.compile(r"(\d+)x(\d+(?:\.\d+)?)b(?![a-z])", re.IGNORECASE)
_BILLIONS = re.compile(r"(?<![a-z\d.])(\d+(?:\.\d+)?)b(?![a-z])", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What of a model takes memory. `guessed` where it comes from the model's name only."""

    weight_bytes: int
    kv_bytes_per_token: int
    guessed: bool = False


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What is needed of each card, in bytes, and how many tokens the KV cache of all of them together holds.

    `kv_tokens` is negative where not even the weights fit.
    """

    weight_bytes: int
    taken_bytes: int
    kv_tokens: int
    window_tokens: int

    @property
    def starts(self) -> bool:
        """Whether vLLM would start: one whole window fits."""
        return self.kv_tokens >= self.window_tokens

    def concurrency(self, tokens: int = TYPICAL_REQUEST_TOKENS) -> int:
        """How many requests that hold `tokens` each fit side by side."""
        return max(0, self.kv_tokens) // tokens


def shape_from_config(
    config: Mapping[str, Any], weight_bytes: int | None, parameters: float | None
) -> ModelShape | None:
    """The shape from a model's `config.json`; `None` where that lacks what is needed.

    `weight_bytes` is the size of its weight files where they are at hand, else `parameters` (a count) is used.
    """
    text = config.get("text_config", config)  # models that see keep their language part there
    layers, heads, hidden = (
        _whole(text.get(key)) for key in ("num_hidden_layers", "num_attention_heads", "hidden_size")
    )
    if layers is None or heads is None or hidden is None:
        return None
    kv_heads = _whole(text.get("num_key_value_heads")) or heads
    head_dim = _whole(text.get("head_dim")) or hidden // heads
    if weight_bytes is None:
        if parameters is None:
            return None
        weight_bytes = round(parameters * weight_bits(config) / 8)
    return ModelShape(weight_bytes, 2 * layers * kv_heads * head_dim * 2)


def shape_from_name(name: str) -> ModelShape | None:
    """A usual shape for the count of parameters in a model's name, or `None` where there is none in it."""
    parameters = parameters_of(name)
    if parameters is None:
        return None
    layers, kv_heads, head_dim = next(
        (shape[1:] for shape in _USUAL_SHAPES if parameters <= shape[0] * 1e9), _LARGE_SHAPE
    )
    lower = name.lower()
    bits = next(
        (size for mark, size in _BITS.items() if mark in lower), 4.5 if "int4" in lower or "4bit" in lower else 16
    )
    return ModelShape(round(parameters * bits / 8), 2 * layers * kv_heads * head_dim * 2, guessed=True)


def parameters_of(name: str) -> float | None:
    """The count of parameters that a model's name tells: `Llama-3.1-8B` 8e9, `Mixtral-8x7B` 47e9."""
    experts = _EXPERTS.search(name)
    if experts is not None:  # attention and embeddings are shared by the experts
        return float(experts[1]) * float(experts[2]) * 0.84e9
    billions = _BILLIONS.search(name)
    return float(billions[1]) * 1e9 if billions is not None else None


def weight_bits(config: Mapping[str, Any]) -> float:
    """Bits of a weight, from a `config.json`."""
    quantization = config.get("quantization_config")
    if isinstance(quantization, Mapping):
        bits = quantization.get("bits")
        if isinstance(bits, int):
            return bits + 0.5  # scales and zero points
        return _BITS.get(str(quantization.get("quant_method")), 8)
    dtype = str(config.get("torch_dtype") or config.get("dtype"))
    return _BITS.get(dtype, 16)


def plan(
    shape: ModelShape,
    *,
    card_bytes: Sequence[int],
    gpu_memory_utilization: float,
    window_tokens: int,
    max_num_seqs: int,
    kv_bytes_ratio: float = 1.0,
) -> MemoryPlan:
    """What `shape` needs of the cards it is spread over, the smallest of which decides. No card: ValueError.

    `kv_bytes_ratio` is 0.5 for a KV cache in 8 bits.
    """
    if not card_bytes:
        raise ValueError("a model needs a card")
    cards = len(card_bytes)
    taken = int(min(card_bytes) * gpu_memory_utilization)
    weights = -(-shape.weight_bytes // cards)
    logits = max_num_seqs * 600_000  # a row of 150,000 logits in 32 bits for each sequence that is sampled
    room = taken - weights - RUNTIME_BYTES - logits
    kv_per_token = max(1.0, shape.kv_bytes_per_token * kv_bytes_ratio / cards)
    return MemoryPlan(weights, taken, int(room // kv_per_token), window_tokens)


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
