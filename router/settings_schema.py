"""The config as it stands in a file: every key with its meaning, unit and default.

This is the shape users write, not the shape the product works with: here a key may be unset. `router.settings` turns
it into frozen settings without "unset". Descriptions are shown by mistakes in a config (as the cure) and make up
`docs/configuration.md`, so they say meaning, unit and default.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from router.settings_fields import (
    Count,
    EnvName,
    MigSlices,
    Number,
    PositiveRatio,
    Ratio,
    Seconds,
    Section,
    StepSeconds,
    Text,
    Usd,
    UsdPerMtok,
)
from router.settings_schema_learning import ClassifierFile, LearningFile
from router.settings_schema_server import ServerFile


class TimeoutsFile(Section):
    """Bounds of every upstream call."""

    connect_s: Seconds = Field(2.0, description="seconds to connect")
    first_byte_s: Seconds = Field(
        20.0,
        description="seconds to the first token of a stream, or to the headers of a plain call. Those come with the "
        "last token: raise it where plain answers are long, or stream them (engines that we start have up to "
        "`total_s`)",
    )
    idle_s: Seconds = Field(20.0, description="seconds of silence after which a call counts as broken")
    total_s: Seconds = Field(120.0, description="seconds a request may take, all its attempts together")
    min_tokens_per_s: Annotated[float, Number, Field(ge=0, le=1_000)] = Field(
        0.25, description="tokens per second below which a stream counts as a trickle and is given up; 0 allows any"
    )


class SleepFile(Section):
    """Putting a vLLM that nobody uses to sleep. Read docs/gpu-server.md first: its endpoints open the engine to all."""

    after_idle_s: Annotated[float, Number, Field(ge=1, le=604_800)] = Field(
        900.0, description="seconds without a request after which the engine is put to sleep; the next one wakes it"
    )


class LaunchFile(Section):
    """How a supervised `vllm serve` is started."""

    executable: Text = Field(".venv-engine/bin/vllm", description="the vllm program, in its own environment")
    gpu_memory_utilization: PositiveRatio = Field(
        0.9, description="share of the GPU's memory that vLLM takes, 0..1 (its --gpu-memory-utilization)"
    )
    gpus: tuple[Annotated[int, Number, Field(ge=0, le=255)], ...] | None = Field(
        None,
        description=(
            "cards that the engine works on, numbered as nvidia-smi does: [0], [0, 1], or [] for none; vllm sees no "
            "others. Default: the first ones that CUDA_VISIBLE_DEVICES leaves; required where several vllm are started"
        ),
    )
    extra_args: tuple[Text, ...] = Field((), description="further arguments for `vllm serve`, one a list item")
    sleep: SleepFile | None = Field(
        None, description="put the engine to sleep when nobody uses it; starts it in vLLM's development mode"
    )


_MIG_SLICES = (
    "compute slices, of a card's 7, of the MIG instance that the engine runs on: costs and power are then given for "
    "the whole card and count for that share; default: the engine has whole cards"
)


class RentedFile(Section):
    """A GPU that is rented by the hour."""

    kind: Literal["rented"] = Field("rented", description="rented")
    usd_per_hour: Usd | None = Field(
        None, description="what the whole engine's hardware costs in USD an hour; required"
    )
    on: Literal["always", "while_engine_runs"] = Field(
        "always", description="always: billed from the first start on; while_engine_runs: billed while the engine is up"
    )
    mig_slices: MigSlices | None = Field(None, description=_MIG_SLICES)
    asset: Text | None = Field(
        None, description="name of the hardware in the books, one for each engine; default: the engine's own name"
    )


class OwnedFile(Section):
    """A GPU that was bought. Every figure is of the whole asset that serves the engine."""

    kind: Literal["owned"] = Field("owned", description="owned")
    purchase_usd: Usd | None = Field(None, description="purchase price in USD; required")
    residual_usd: Usd | None = Field(None, description="what it will sell for at the end in USD; required")
    years: Annotated[Decimal, Number, Field(gt=0, le=50)] | None = Field(None, description="years of use; required")
    discount_rate_ratio: Annotated[Decimal, Number, Field(ge=0, le=1)] | None = Field(
        None, description="yearly cost of capital, 0.08 for 8 %; required"
    )
    availability_ratio: Annotated[Decimal, Number, Field(gt=0, le=1)] | None = Field(
        None, description="share of the hours in which it works, 0..1; required"
    )
    power_kw: Annotated[Decimal, Number, Field(ge=0, le=10_000)] | None = Field(
        None,
        description=(
            "average draw in kW (a guess: 0.6 of the rated power): what standard costs rest on, and what is invoiced "
            "while the cards' own energy counters cannot be read; required"
        ),
    )
    pue_ratio: Annotated[Decimal, Number, Field(ge=1, le=10)] | None = Field(
        None, description="power usage effectiveness of the room, 1 or more; required"
    )
    usd_per_kwh: Annotated[Decimal, Number, Field(ge=0, le=100)] | None = Field(
        None, description="price of electricity in USD per kWh; required"
    )
    colo_usd_per_hour: Usd | None = Field(None, description="rent for rack and cooling in USD an hour; required")
    ops_usd_per_hour: Usd | None = Field(None, description="work of people and contracts in USD an hour; required")
    mig_slices: MigSlices | None = Field(None, description=_MIG_SLICES)
    asset: Text | None = Field(
        None, description="name of the hardware in the books, one for each engine; default: the engine's own name"
    )


class SloFile(Section):
    """What the local tier promises; beyond it a request goes elsewhere."""

    ttft_s: Seconds | None = Field(None, description="seconds to the first token; default 1.0, embedded 15")
    tpot_s: Seconds | None = Field(None, description="seconds per output token; default 0.05, embedded 0.5")
    slack_s: Seconds | None = Field(
        None, description="seconds of prefill that may pile up before a burst counts as full; default 0.5, embedded 5"
    )


class CoefficientsFile(Section):
    """Step time of one engine on one GPU: dt = t0 + c_seq*B + c_kv*S + c_prefill*P."""

    t0_s: StepSeconds | None = Field(None, description="seconds of an empty step (reading the weights); required")
    c_seq_s: StepSeconds | None = Field(None, description="seconds per decoding sequence and step; required")
    c_kv_s: StepSeconds | None = Field(None, description="seconds per context token and step; required")
    c_prefill_s: StepSeconds | None = Field(None, description="seconds per prompt token; required")
    c_att_s: StepSeconds = Field(0.0, description="seconds per prompt token and context token; default 0")
    api_s: StepSeconds = Field(0.0, description="seconds of the front end before every first token; default 0")
    practical_batch: Annotated[float, Number, Field(ge=1, le=100_000)] = Field(
        100.0, description="sequences over which the reading of the weights is spread when work is priced; default 100"
    )


def _name_or_figures(value: Any) -> str:
    """A preset's name or a mapping of figures; told apart so that mistakes name the one that was meant."""
    return "figures" if isinstance(value, dict | CoefficientsFile) else "name"


class EngineFile(Section):
    """An engine of the local tier."""

    engine: Literal["embedded", "vllm", "external", "none"] | None = Field(
        None,
        description=(
            "embedded: a small model inside the gateway's care, no GPU needed; vllm: `vllm serve`, started and "
            "supervised; external: somebody else's OpenAI-style server; none: no local tier. Required"
        ),
    )
    api_base: Text | None = Field(
        None,
        description=(
            "URL of the engine, such as http://127.0.0.1:8000/v1 (the default for vllm; the next port for the next one)"
        ),
    )
    api_key_env: EnvName | None = Field(None, description="environment variable with the key of an external engine")
    model: Text | None = Field(
        None, description="model name as the engine knows it; for embedded a .gguf file or nothing (the shipped model)"
    )
    context_window_tokens: Count | None = Field(
        None, description="prompt and answer together, in tokens; default 8192, embedded 4096"
    )
    max_output_tokens: Count | None = Field(None, description="longest answer in tokens; default: the window's rest")
    max_num_seqs: Count | None = Field(
        None, description="requests that the engine works on at once; default vllm 256, external 8, embedded 4"
    )
    supports_tools: bool | None = Field(
        None, description="takes tool calls; default false (vLLM needs a tool-call parser for it)"
    )
    supports_images: bool | None = Field(None, description="takes images; default false")
    supports_json: bool | None = Field(None, description="takes response_format json; default true")
    launch: LaunchFile = Field(LaunchFile(), description="how `vllm serve` is started")
    hardware: Annotated[RentedFile | OwnedFile, Field(discriminator="kind")] | None = Field(
        None, description="what the hardware costs: kind rented or owned; without it local answers are booked at 0"
    )
    practical_capacity_ratio: PositiveRatio = Field(
        0.85, description="share of a GPU hour that can be sold while the promises hold, 0..1"
    )
    max_gpu_utilization_ratio: PositiveRatio | None = Field(
        None,
        description=(
            "hard cap on the GPU's utilisation, 0..1, for a GPU shared with other work; default none, since it says "
            "that something ran, not that there is no room: see gpu-server.md"
        ),
    )
    slo: SloFile = Field(SloFile(), description="what the local tier promises")
    coefficients: (
        Annotated[
            Annotated[Text, Tag("name")] | Annotated[CoefficientsFile, Tag("figures")], Discriminator(_name_or_figures)
        ]
        | None
    ) = Field(
        None,
        description=(
            "step-time model of the engine: h100-8b-fp16, h100-8b-fp8, a100-8b-fp16, embedded-cpu, unknown, or the "
            "figures {t0_s, c_seq_s, c_kv_s, c_prefill_s, c_att_s, api_s} as calibrate-engine measures them; default "
            "unknown (embedded: embedded-cpu)"
        ),
    )


class NamedEngineFile(EngineFile):
    """One of several engines."""

    name: Text | None = Field(
        None, description="what the engine is called in the books and metrics: letters, digits, `.`, `_`, `-`; required"
    )


class LocalFile(EngineFile):
    """The local tier: one engine (its keys stand here) or several (`engines`)."""

    engines: tuple[NamedEngineFile, ...] | None = Field(
        None,
        description=(
            "several engines: a list of {name, ...} with the same keys; what stands beside `engines` holds for each "
            "that does not say otherwise, `hardware` included: it is what one engine costs"
        ),
    )


class PriceFile(Section):
    """A price of your own, instead of the price book's. USD per million tokens."""

    input_usd_per_mtok: UsdPerMtok | None = Field(None, description="USD per million input tokens; required")
    output_usd_per_mtok: UsdPerMtok | None = Field(None, description="USD per million output tokens; required")
    cached_input_usd_per_mtok: UsdPerMtok | None = Field(
        None, description="USD per million input tokens read from the provider's cache; default: the input price"
    )


class ApiModelFile(Section):
    """One model behind an API."""

    model: Text | None = Field(None, description="provider/model, such as openai/gpt-6-luna; required")
    name: Text | None = Field(None, description="name under which clients may ask for it; default: `model`")
    api_key_env: EnvName | None = Field(
        None,
        description=(
            "environment variable that holds the key (or NAME_FILE: a file with it); default the provider's usual "
            "one, such as OPENAI_API_KEY, but none where api_base is set"
        ),
    )
    api_base: Text | None = Field(None, description="URL of the API; default the provider's own")
    context_window_tokens: Count | None = Field(
        None, description="prompt and answer together, in tokens; default: as the price book knows the model"
    )
    max_output_tokens: Count | None = Field(None, description="longest answer in tokens; default: no limit known")
    supports_tools: bool | None = Field(None, description="takes tool calls; default true")
    supports_images: bool | None = Field(None, description="takes images; default true")
    supports_json: bool | None = Field(None, description="takes response_format json; default true")
    price: PriceFile | None = Field(None, description="a price of your own, instead of the price book's")


class ApiTierFile(ApiModelFile):
    """A tier of API models: one model (its keys stand here) or several (`models`)."""

    models: tuple[ApiModelFile, ...] | None = Field(None, description="several models: a list with the same keys")


class TiersFile(Section):
    """Where answers come from."""

    local: LocalFile | None = Field(None, description="an engine of your own")
    cheap: ApiTierFile | None = Field(None, description="a cheap API: one model, or several under `models`")
    premium: ApiTierFile | None = Field(None, description="the best API: the same keys as tiers.cheap")


class PolicyFile(Section):
    """How the choice is made."""

    preset: Literal["balanced", "cheap", "quality"] = Field(
        "balanced", description="sets quality_target_ratio: cheap 0.90, balanced 0.95, quality 0.99"
    )
    quality_target_ratio: Ratio | None = Field(
        None, description="share of always-premium quality that the traffic keeps on average, 0..1; default by preset"
    )
    quality_floor_ratio: Ratio | None = Field(
        None,
        description="hard floor per request, as a share of the best eligible candidate's quality, 0..1; default none",
    )
    max_usd_per_request: Usd | None = Field(None, description="most a request may cost in USD; default none")
    budget_usd_per_day: Usd | None = Field(None, description="most a day (UTC) may cost in USD; default none")
    budget_usd_per_month: Usd | None = Field(None, description="most a month (UTC) may cost in USD; default none")
    on_saturation: Literal["spill", "queue", "reject"] = Field(
        "spill", description="when the local tier is full: spill to an API, queue for it, or reject"
    )
    max_premium_rise_ratio: PositiveRatio = Field(
        0.3,
        description=(
            "by how much premium's share of recent free choices (`auto` without a floor) may exceed its usual share, "
            "0..1; what would be more goes to the next best tier (PREMIUM_CAPPED): a bound on what prompts that steer "
            "the router can do. 1: no bound, a jump is only an alert"
        ),
    )
    exploration_ratio: Ratio = Field(
        0.0, description="share of requests sent to another tier than decided, to learn from, 0..1; default 0: none"
    )
    exploration_budget_usd_per_day: Usd = Field(
        Decimal(1), description="most that exploring may cost in USD a day (UTC) above the usual choice, in expectation"
    )


class ConfigFile(Section):
    """The whole file."""

    server: ServerFile = Field(ServerFile(), description="the gateway's own process")
    timeouts: TimeoutsFile = Field(TimeoutsFile(), description="bounds of every upstream call")
    tiers: TiersFile = Field(TiersFile(), description="where answers come from")
    policy: PolicyFile = Field(PolicyFile(), description="how the choice is made")
    learning: LearningFile = Field(LearningFile(), description="how the gateway finds out how good answers are")
    classifier: ClassifierFile = Field(
        ClassifierFile(), description="what says how likely each tier's answer is adequate"
    )
