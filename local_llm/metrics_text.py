"""Text of an engine's /metrics to an `EngineReading` and what it counts. Pure; never raises.

Engines rename their series, so every reading has a table of names. A reading that is not there, that is no number or
that cannot be true is `None`, never 0: an engine that says nothing must not look idle.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from local_llm.datamodels import EngineCounters, EngineReading

MAX_TEXT_CHARS = 8_000_000  # a page of vLLM has 50 kB; whatever sends more is no engine

_ALIASES: Mapping[str, tuple[str, ...]] = {
    "running": ("vllm:num_requests_running", "llamacpp:requests_processing"),
    "waiting": ("vllm:num_requests_waiting", "llamacpp:requests_deferred"),
    "kv_usage": ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc", "llamacpp:kv_cache_usage_ratio"),
    "preemptions": ("vllm:num_preemptions_total", "vllm:num_preemptions"),
    "sleep": ("vllm:engine_sleep_state",),
    "cache_config": ("vllm:cache_config_info",),
    "prompt_tokens": ("vllm:prompt_tokens_total", "vllm:prompt_tokens", "llamacpp:prompt_tokens_total"),
    "output_tokens": (
        "vllm:generation_tokens_total",
        "vllm:generation_tokens",
        "llamacpp:tokens_predicted_total",
    ),
    "cached_prompt_tokens": ("vllm:prompt_tokens_cached_total", "vllm:prefix_cache_hits_total"),
    # Of the histograms sum and count suffice: what is learnt is moved a little by each look, so no bucket is needed.
    "steps": ("vllm:iteration_tokens_total_count",),
    "token_gaps": ("vllm:inter_token_latency_seconds_count", "vllm:time_per_output_token_seconds_count"),
    "token_gaps_s": ("vllm:inter_token_latency_seconds_sum", "vllm:time_per_output_token_seconds_sum"),
    "first_tokens": ("vllm:time_to_first_token_seconds_count",),
    "first_tokens_s": ("vllm:time_to_first_token_seconds_sum",),
}
_MEANING: Mapping[str, str] = {name: meaning for meaning, names in _ALIASES.items() for name in names}
_RANK: Mapping[str, int] = {name: rank for names in _ALIASES.values() for rank, name in enumerate(names)}
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"')
_MAX_REQUESTS = 1_000_000
_MAX_COUNTER = 2**63
_MAX_KV_TOKENS = 10**10


@dataclass(frozen=True, slots=True)
class _Sample:
    name: str
    labels: Mapping[str, str]
    value: float


_OWN_PREFIX = re.compile(r"^(?:vllm|llamacpp):", re.MULTILINE)


def parse_metrics(text: str, *, taken_at_s: float) -> EngineReading:
    """The reading of `parse_counters`, alone."""
    return parse_counters(text, taken_at_s=taken_at_s).reading


def parse_counters(text: str, *, taken_at_s: float) -> EngineCounters:
    """One scrape, taken at `taken_at_s` (monotonic), of vLLM (0.6 to 0.3x) or llama.cpp.

    Several engines behind one page (data parallelism) are summed; KV usage is that of the fullest. `problem` says
    what kept the page, or a part of it, from being read.
    """
    if len(text) > MAX_TEXT_CHARS:
        return _nothing(taken_at_s, f"/metrics is {len(text)} characters long")
    if text.lstrip()[:1] == "<":
        return _nothing(taken_at_s, "/metrics is an HTML page")
    samples: dict[str, list[_Sample]] = {}
    for sample in _samples(text):
        samples.setdefault(_MEANING[sample.name], []).append(sample)
    if not samples:
        if _OWN_PREFIX.search(text):
            return _nothing(taken_at_s, "/metrics has no series that is known of its engine")
        return replace(_nothing(taken_at_s, "/metrics has no series of a known engine"), foreign=True)
    problems: list[str] = []
    running = _total(samples.get("running"), problems, upper=_MAX_REQUESTS)
    waiting = _total(samples.get("waiting"), problems, upper=_MAX_REQUESTS)
    if running is None and waiting is None and not problems:
        problems.append("/metrics tells neither running nor waiting requests")
    reading = EngineReading(
        running_requests=running,
        waiting_requests=waiting,
        kv_cache_usage_ratio=_fullest(samples.get("kv_usage"), problems),
        taken_at_s=taken_at_s,
        asleep=_asleep(samples.get("sleep")),
        preemptions=_total(samples.get("preemptions"), problems, upper=_MAX_COUNTER),
        kv_tokens=_kv_tokens(samples.get("cache_config")),
        prompt_tokens=_total(samples.get("prompt_tokens"), problems, upper=_MAX_COUNTER),
        output_tokens=_total(samples.get("output_tokens"), problems, upper=_MAX_COUNTER),
    )
    return _with_counters(replace(reading, problem="; ".join(problems) or None), samples)


def _with_counters(reading: EngineReading, samples: Mapping[str, list[_Sample]]) -> EngineCounters:
    """Only learnt from, so a count that makes no sense is nobody's problem."""
    ignored: list[str] = []
    return EngineCounters(
        reading,
        cached_prompt_tokens=_total(samples.get("cached_prompt_tokens"), ignored, upper=_MAX_COUNTER),
        steps=_total(samples.get("steps"), ignored, upper=_MAX_COUNTER),
        token_gaps=_total(samples.get("token_gaps"), ignored, upper=_MAX_COUNTER),
        token_gaps_s=_seconds(samples.get("token_gaps_s")),
        first_tokens=_total(samples.get("first_tokens"), ignored, upper=_MAX_COUNTER),
        first_tokens_s=_seconds(samples.get("first_tokens_s")),
    )


def _nothing(taken_at_s: float, problem: str) -> EngineCounters:
    reading = EngineReading(
        running_requests=None,
        waiting_requests=None,
        kv_cache_usage_ratio=None,
        taken_at_s=taken_at_s,
        problem=problem,
    )
    return EngineCounters(reading)


def _samples(text: str) -> Iterable[_Sample]:
    """The lines we know, in the Prometheus text format; anything else is skipped."""
    for line in text.splitlines():
        end = min((at for at in (line.find("{"), line.find(" "), line.find("\t")) if at > 0), default=0)
        name = line[:end]
        if name not in _MEANING:
            continue
        labels: Mapping[str, str] = {}
        rest = line[end:]
        if rest.startswith("{"):
            body, brace, rest = rest.rpartition("}")
            if not brace:
                continue
            labels = dict(_LABEL.findall(body))
        fields = rest.split()  # value, then perhaps a timestamp
        if not fields:
            continue
        try:
            value = float(fields[0])
        except ValueError:
            value = math.nan
        yield _Sample(name, labels, value)


def _preferred(samples: list[_Sample] | None) -> list[_Sample]:
    """The samples under the newest name present: a version that exports both must not count twice."""
    if not samples:
        return []
    best = min(_RANK[sample.name] for sample in samples)
    return [sample for sample in samples if _RANK[sample.name] == best]


def _distinct(samples: list[_Sample], problems: list[str]) -> list[_Sample] | None:
    """The samples, or `None` if one label set occurs twice with different values."""
    seen: dict[frozenset[tuple[str, str]], _Sample] = {}
    for sample in samples:
        key = frozenset(sample.labels.items())
        first = seen.setdefault(key, sample)
        if first.value != sample.value:
            problems.append(f"{sample.name} is there twice with different values")
            return None
    return list(seen.values())


def _total(samples: list[_Sample] | None, problems: list[str], *, upper: int) -> int | None:
    chosen = _distinct(_preferred(samples), problems)
    if not chosen:
        return None
    total = 0.0
    for sample in chosen:
        if not 0 <= sample.value <= upper or not sample.value.is_integer():  # NaN and infinity fail the first
            problems.append(f"{sample.name} is {sample.value}")
            return None
        total += sample.value
    return int(total)


def _seconds(samples: list[_Sample] | None) -> float | None:
    """A sum of seconds over all engines; `None` if it makes no sense."""
    chosen = _distinct(_preferred(samples), [])
    if not chosen or not all(0.0 <= sample.value < math.inf for sample in chosen):
        return None
    return sum(sample.value for sample in chosen)


def _fullest(samples: list[_Sample] | None, problems: list[str]) -> float | None:
    chosen = _distinct(_preferred(samples), problems)
    if not chosen:
        return None
    for sample in chosen:
        if not 0.0 <= sample.value <= 1.0:
            problems.append(f"{sample.name} is {sample.value}")
            return None
    return max(sample.value for sample in chosen)


def _asleep(samples: list[_Sample] | None) -> bool | None:
    awake = [sample.value for sample in samples or () if sample.labels.get("sleep_state") == "awake"]
    if not awake or not all(value in (0.0, 1.0) for value in awake):
        return None
    return any(value == 0.0 for value in awake)


def _kv_tokens(samples: list[_Sample] | None) -> int | None:
    """Size of the KV cache in tokens, told in the labels of an info series; summed over engines."""
    total = 0
    for sample in samples or ():
        tokens = _whole(sample.labels.get("kv_cache_size_tokens"))
        if tokens is None:
            blocks, size = _whole(sample.labels.get("num_gpu_blocks")), _whole(sample.labels.get("block_size"))
            if blocks is None or size is None:
                return None
            tokens = blocks * size
        total += tokens
    return total if 0 < total <= _MAX_KV_TOKENS else None


def _whole(label: str | None) -> int | None:
    return int(label) if label is not None and label.isascii() and label.isdigit() else None
