"""The nouns of the house engine. A reading that is not there is `None`, never 0."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class ProcessState(StrEnum):
    """Life of an engine as seen from outside it."""

    STOPPED = "stopped"
    STARTING = "starting"
    READY = "ready"
    DEGRADED = "degraded"  # alive but not making progress: new work goes elsewhere
    ASLEEP = "asleep"  # alive, its weights put away: new work goes elsewhere until it is woken
    DOWN = "down"
    FAILED = "failed"  # given up after too many starts


class Binding(StrEnum):
    """Which limit makes the engine tight."""

    TTFT = "ttft"
    TPOT = "tpot"
    PREFILL_BURST = "prefill_burst"
    KV = "kv"
    SEQS = "seqs"


@dataclass(frozen=True, slots=True)
class EngineCoefficients:
    """Step-time model of one engine on one GPU: dt = t0 + c_seq*B + c_kv*S + c_prefill*P (seconds).

    `practical_batch` is B*, over which the weight read t0 is spread when work is priced; `api_s` is the fixed front-end
    time in every time to first token (HTTP, tokenising), which is no GPU work.
    """

    name: str
    t0_s: float
    c_seq_s: float
    c_kv_s: float
    c_prefill_s: float
    c_att_s: float = 0.0
    practical_batch: float = 100.0
    calibrated: bool = False
    api_s: float = 0.0


@dataclass(frozen=True, slots=True)
class SloTargets:
    """What the local tier promises: time to first token, time per output token, slack for a burst of prefill."""

    ttft_s: float = 1.0
    tpot_s: float = 0.05
    slack_s: float = 0.5


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """Hard room of an engine. `kv_tokens` is `None` where the engine does not tell."""

    max_num_seqs: int = 8
    max_batched_tokens: int = 2048
    kv_tokens: int | None = None
    context_window_tokens: int = 8192


@dataclass(frozen=True, slots=True)
class Others:
    """What is in an engine beside what this router sent."""

    n: float = 0.0
    streaming: float = 0.0
    context_tokens: float = 0.0
    waiting_prompt_tokens: float = 0.0


@dataclass(frozen=True, slots=True)
class InflightState:
    """The router's own count of what is in the engine, at `taken_at_s` (monotonic).

    n: in flight; waiting_prompt_tokens: dispatched without a first token; streaming: sequences past their first
    token; context_tokens: tokens those hold; reserved_tokens: sum of prompt + expected output, reserved_squares: sum of
    their squares, output_variance: sum of the variances of those lengths (tokens squared); prefill_share: share of step
    time spent in prefill (decaying mean); bucket_s: seconds of prefill work not yet drained;
    unseen_factor: load by others on the same engine, >= 1, in proportion to ours; others_*: what the engine held beside
    ours at the last looks at it, a floor under that.

    Two more are known where streams show their tokens. backlog_done_at_s: when the prompts dispatched so far will all
    have been read; lag_s: how far the slowest stream now is behind the pace promised to it, negative when all are
    ahead. `None` is not known.
    """

    n: int = 0
    waiting_prompt_tokens: float = 0.0
    streaming: int = 0
    context_tokens: float = 0.0
    reserved_tokens: float = 0.0
    prefill_share: float = 0.0
    bucket_s: float = 0.0
    bucket_at_s: float = 0.0
    unseen_factor: float = 1.0
    taken_at_s: float = 0.0
    others_n: float = 0.0
    others_streaming: float = 0.0
    others_context_tokens: float = 0.0
    others_waiting_prompt_tokens: float = 0.0
    backlog_done_at_s: float | None = None
    lag_s: float | None = None
    reserved_squares: float = 0.0
    output_variance: float = 0.0


@dataclass(frozen=True, slots=True)
class Tightness:
    """How close an engine is to its limits for one request: u <= 1 fits. Predictions in seconds."""

    u: float
    binding: Binding
    ttft_s: float
    tpot_s: float


class EngineKind(StrEnum):
    """What we start ourselves."""

    EMBEDDED = "embedded"
    VLLM = "vllm"


@dataclass(frozen=True, slots=True)
class LaunchConfig:
    """How to start an engine. `model` is a GGUF file (embedded) or what `vllm serve` takes; `port` 0 means a free one.

    `executable` is the Python that has xllamacpp, or the `vllm` command of its own environment. `extra_args` go
    last, so that they win. `gpus` are the cards that vLLM may see, as NVML numbers them. What is `None` is left to the
    engine. `can_sleep` starts vLLM in its development mode, in which whoever reaches the port may call any function.
    """

    kind: EngineKind
    model: str
    executable: str
    served_model_name: str | None = None
    host: str = "127.0.0.1"
    port: int = 0
    context_window_tokens: int = 4096
    max_num_seqs: int = 4
    max_batched_tokens: int = 2048
    max_queued_requests: int | None = 64
    gpu_memory_utilization_ratio: float | None = None
    threads: int = 1
    model_sha256: str | None = None
    can_sleep: bool = False
    extra_args: tuple[str, ...] = ()
    gpus: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class GpuReading:
    """One look at one GPU through NVML; whatever the card does not tell is `None`.

    `ecc_uncorrected` counts memory errors since boot; `xid` is the last critical driver error seen. `problem` is set
    when the card cannot be trusted with work (lost, uncorrectable errors), or could not be read at all.
    """

    index: int
    name: str
    memory_total_bytes: int | None = None
    memory_used_bytes: int | None = None
    utilization_ratio: float | None = None
    temperature_c: int | None = None
    power_w: float | None = None
    energy_j: float | None = None
    throttle_reasons: tuple[str, ...] = ()
    problem: str | None = None
    mig: bool | None = None
    ecc_uncorrected: int | None = None
    xid: int | None = None
    sm_clock_mhz: int | None = None
    sm_clock_max_mhz: int | None = None
    uuid: str | None = None


@dataclass(frozen=True, slots=True)
class EngineReading:
    """One look at an engine's /metrics; the two token counts run since its start and show progress."""

    running_requests: int | None
    waiting_requests: int | None
    kv_cache_usage_ratio: float | None
    taken_at_s: float
    asleep: bool | None = None
    preemptions: int | None = None
    kv_tokens: int | None = None
    problem: str | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class EngineCounters:
    """What an engine counts since its start, at the time of `reading`: how fast it is, whoever asked.

    `cached_prompt_tokens` are those of the prompt tokens that it did not have to read. `steps` it has made,
    `token_gaps` between two tokens of a stream that lasted `token_gaps_s` in all, and `first_tokens` for which
    `first_tokens_s` were waited in all.
    `foreign`: the page is none of an engine that is known. Kept apart from the reading: no decision rests on them.
    """

    reading: EngineReading
    cached_prompt_tokens: int | None = None
    steps: int | None = None
    token_gaps: int | None = None
    token_gaps_s: float | None = None
    first_tokens: int | None = None
    first_tokens_s: float | None = None
    foreign: bool = False


@dataclass(frozen=True, slots=True)
class LocalSnapshot:
    """Everything known about one engine at one moment; frozen, swapped whole.

    `metrics_required` lists the readings without which the engine counts as full (METRICS_STALE); it is empty for an
    engine that never had any. `gpus` is empty where there is no driver.
    """

    state: ProcessState
    limits: EngineLimits
    coefficients: EngineCoefficients
    slo: SloTargets
    inflight: InflightState
    gpus: tuple[GpuReading, ...] = ()
    gpus_taken_at_s: float | None = None
    engine: EngineReading | None = None
    metrics_required: tuple[str, ...] = ()
    stale_after_s: float = 3.0
    max_gpu_utilization_ratio: float | None = None
    problem: str | None = None
    warnings: tuple[str, ...] = field(default=())
