"""Settings as the product works with them: frozen, checked, and without "unset".

`None` means "there is none" here, never "not given". Secrets are `SecretStr`, so that no repr, traceback or log line
shows them. Money is `Decimal` USD as configured; `PolicySettings.policy_config` has it in nano-dollars.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from decimal import ROUND_FLOOR, ROUND_HALF_EVEN, Decimal
from enum import StrEnum
from pathlib import Path

from pydantic import SecretStr

from local_llm.datamodels import EngineCoefficients, SloTargets
from router.core.decision import PolicyConfig
from router.core.hardware import OwnedHardware
from router.core.limits import NO_LIMITS, LimitTerms
from router.core.vocabulary import NANO_PER_USD, Tier
from router.ports import CallTimeouts


class Engine(StrEnum):
    """Who runs the local model."""

    EMBEDDED = "embedded"
    VLLM = "vllm"
    EXTERNAL = "external"
    NONE = "none"


class Wire(StrEnum):
    """How a model's host is spoken to."""

    OPENAI = "openai"  # OpenAI-style HTTP, the fast path
    LITELLM = "litellm"  # everything else


@dataclass(frozen=True, slots=True)
class AuthKey:
    """One key that clients may use."""

    tenant: str
    key: SecretStr
    admin: bool = False
    limits: LimitTerms = NO_LIMITS


@dataclass(frozen=True, slots=True)
class AuthSettings:
    """`keys` holds those that are really set; `unset_env` names the variables that hold none.

    Limits are this gateway's own part. `default_limits` hold for everybody together where no key is asked for.
    """

    required: bool
    keys: tuple[AuthKey, ...] = ()
    unset_env: tuple[str, ...] = ()
    default_limits: LimitTerms = NO_LIMITS
    metrics_key: SecretStr | None = None


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """The gateway's own process. `database_url` may hold a password: show `database_url_masked`."""

    host: str
    port: int
    database_url: str = field(repr=False)
    database_url_masked: str
    data_dir: Path
    max_body_bytes: int
    body_timeout_s: float
    drain_grace_s: float
    gateways: int
    store_prompts: bool
    auth: AuthSettings


@dataclass(frozen=True, slots=True)
class TimeoutSettings:
    """Bounds of every upstream call, in seconds."""

    connect_s: float
    first_byte_s: float
    idle_s: float
    total_s: float
    min_tokens_per_s: float

    def call_timeouts(self) -> CallTimeouts:
        """The same as the ports want it."""
        return CallTimeouts(
            connect_s=self.connect_s,
            first_byte_s=self.first_byte_s,
            idle_s=self.idle_s,
            total_s=self.total_s,
            min_tokens_per_s=self.min_tokens_per_s,
        )


@dataclass(frozen=True, slots=True)
class LaunchSettings:
    """How a supervised `vllm serve` is started. `gpus` are NVML's numbers of its cards, `None`: not told.

    `sleep_after_idle_s`: `None` for an engine that is never put to sleep.
    """

    executable: str
    gpu_memory_utilization: float
    extra_args: tuple[str, ...]
    gpus: tuple[int, ...] | None = None
    sleep_after_idle_s: float | None = None


@dataclass(frozen=True, slots=True)
class RentedHardware:
    """Billed by the hour; `on` is `always` or `while_engine_runs`."""

    usd_per_hour: Decimal
    on: str


Hardware = RentedHardware | OwnedHardware


@dataclass(frozen=True, slots=True)
class LocalSettings:
    """One engine of the local tier. With `engine` NONE nothing else means anything.

    `name` is set where there are several; `where` is the config's key for it. `model` is what clients ask for and
    what the engine is told; `model_path` is set when the embedded engine shall load a file of the user's.
    `api_base` is `None` for the embedded engine, which finds its own port. `unavailable` says why the tier cannot
    answer in this process (code UNCONFIGURED). `asset` names the hardware in the books; `None`: as the candidate.
    """

    engine: Engine
    model: str
    model_path: Path | None
    api_base: str | None
    api_key: SecretStr | None
    context_window_tokens: int
    max_output_tokens: int | None
    max_num_seqs: int
    supports_tools: bool
    supports_images: bool
    supports_json: bool
    launch: LaunchSettings
    hardware: Hardware | None
    asset: str | None
    practical_capacity_ratio: float
    max_gpu_utilization_ratio: float | None
    slo: SloTargets
    coefficients: EngineCoefficients
    unavailable: str | None = None
    name: str | None = None
    where: str = "tiers.local"

    @property
    def candidate_name(self) -> str:
        """What names the engine among all that may answer: the model, or where there are several `local/NAME`."""
        return self.model if self.name is None else f"local/{self.name}"


@dataclass(frozen=True, slots=True)
class PriceOverride:
    """A price of the user's own, USD per million tokens; `None`: cached input costs as much as any."""

    input_usd_per_mtok: Decimal
    output_usd_per_mtok: Decimal
    cached_input_usd_per_mtok: Decimal | None


@dataclass(frozen=True, slots=True)
class ApiModel:
    """One model behind an API.

    `name` is what clients ask for and is unique; `model` is as configured (with its provider prefix, which is what
    the price book and litellm take); `wire_model` is what an OpenAI-style host is told. `unavailable` says why the
    model cannot answer in this process, ready for people (code UNCONFIGURED). `context_window_tokens` is `None` where
    the config leaves it to the price book. `path` is the key that names the model, `tiers.premium.models[0].model`.
    """

    name: str
    model: str
    provider: str
    wire: Wire
    wire_model: str
    api_base: str | None
    api_key: SecretStr | None
    api_key_env: str | None
    unavailable: str | None
    context_window_tokens: int | None
    max_output_tokens: int | None
    supports_tools: bool
    supports_images: bool
    supports_json: bool
    price: PriceOverride | None
    path: str = ""

    @property
    def price_key(self) -> str:
        """Under what the price book knows the model: its own name where it has a price of its own."""
        return self.model if self.price is None else self.name


@dataclass(frozen=True, slots=True)
class TierSettings:
    """Where answers come from. `cheap` and `premium` are empty where the tier is not configured.

    `local` is the first engine, or one that is NONE; what is about the whole local tier goes over `engines`.
    """

    local: LocalSettings
    cheap: tuple[ApiModel, ...]
    premium: tuple[ApiModel, ...]
    more_engines: tuple[LocalSettings, ...] = ()

    @property
    def engines(self) -> tuple[LocalSettings, ...]:
        """Every engine of the local tier, as configured; empty where there is none."""
        return () if self.local.engine is Engine.NONE else (self.local, *self.more_engines)

    def api_models(self) -> Iterator[tuple[Tier, ApiModel]]:
        """Every API model with its tier, cheap first."""
        for model in self.cheap:
            yield Tier.CHEAP, model
        for model in self.premium:
            yield Tier.PREMIUM, model

    def price_overrides(self) -> dict[str, dict[str, Decimal]]:
        """The users' own prices by `ApiModel.price_key`, as `PriceBook.load` takes them."""
        overrides: dict[str, dict[str, Decimal]] = {}
        for _, model in self.api_models():
            if model.price is not None:
                figures = {name: getattr(model.price, name) for name in PriceOverride.__slots__}
                overrides[model.price_key] = {name: value for name, value in figures.items() if value is not None}
        return overrides


QUALITY_TARGETS: Mapping[str, float] = {"cheap": 0.90, "balanced": 0.95, "quality": 0.99}
"""Share of always-premium quality that each preset keeps on average."""


@dataclass(frozen=True, slots=True)
class PolicySettings:
    """The dials of the choice, money in USD as configured."""

    preset: str
    quality_target_ratio: float
    quality_floor_ratio: float | None
    max_usd_per_request: Decimal | None
    budget_usd_per_day: Decimal | None
    budget_usd_per_month: Decimal | None
    on_saturation: str
    exploration_ratio: float
    max_premium_rise_ratio: float
    exploration_budget_usd_per_day: Decimal

    def policy_config(self, preset: str | None = None) -> PolicyConfig:
        """The dials as the decision takes them; `preset` (a key of QUALITY_TARGETS) sets another target.

        A caller who names a preset has chosen: such requests do not explore.
        """
        return PolicyConfig(
            quality_target_ratio=self.quality_target_ratio if preset is None else QUALITY_TARGETS[preset],
            quality_floor_ratio=self.quality_floor_ratio,
            on_saturation=self.on_saturation,
            max_nanousd_per_request=to_nanousd(self.max_usd_per_request),
            exploration_ratio=self.exploration_ratio if preset is None else 0.0,
        )


class ModelChoice(StrEnum):
    """Which model scores."""

    AUTO = "auto"
    SHIPPED = "shipped"
    HEURISTIC = "heuristic"
    FOLDER = "folder"


@dataclass(frozen=True, slots=True)
class ClassifierSettings:
    """What scores. `folder` is set with FOLDER; `registry_dir` is where promoted models are, whatever scores."""

    model: ModelChoice
    folder: Path | None
    registry_dir: Path
    confidence_ratio: float
    max_score_s: float


@dataclass(frozen=True, slots=True)
class LearningSettings:
    """How answers are judged besides feedback, money in USD. `judge_model` is the name of a candidate."""

    shadow_ratio: float = 0.0
    shadow_budget_usd_per_day: Decimal = Decimal(1)
    max_concurrent: int = 2
    judge_model: str | None = None
    judge_ratio: float = 1.0
    judge_budget_usd_per_day: Decimal = Decimal(1)
    exact_checks: bool = False
    exclude_tenants: tuple[str, ...] = ()

    @property
    def on(self) -> bool:
        """Whether anything is to be done beside a request."""
        return self.shadow_ratio > 0.0 or self.exact_checks


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that can be configured.

    `source` is the file (`shipped default` where there was none); `not_acted_on` names the keys that are set but that
    this release only accepts; `ignored_env` names ROUTER_ variables that are no setting; `places` holds, by
    `ApiModel.path`, line and name of the key for mistakes that are found later.
    """

    source: str
    server: ServerSettings
    timeouts: TimeoutSettings
    tiers: TierSettings
    policy: PolicySettings
    classifier: ClassifierSettings
    learning: LearningSettings = LearningSettings()
    not_acted_on: tuple[str, ...] = ()
    ignored_env: tuple[str, ...] = ()
    places: Mapping[str, tuple[int | None, str]] = field(default_factory=dict)

    def price_overrides(self) -> dict[str, dict[str, Decimal]]:
        """See `TierSettings.price_overrides`."""
        return self.tiers.price_overrides()

    def secret_values(self) -> tuple[str, ...]:
        """Every secret that must never be seen in a log, longest first."""
        auth = self.server.auth
        secrets = [key.key for key in auth.keys]
        secrets += [auth.metrics_key] if auth.metrics_key is not None else []
        secrets += [model.api_key for _, model in self.tiers.api_models() if model.api_key is not None]
        secrets += [engine.api_key for engine in self.tiers.engines if engine.api_key is not None]
        values = {secret.get_secret_value() for secret in secrets}
        if self.server.database_url != self.server.database_url_masked:
            values.add(self.server.database_url)
        return tuple(sorted(values, key=len, reverse=True))


def to_nanousd(usd: Decimal | None) -> int | None:
    """A limit in whole nano-dollars; rounded down, so that a limit never grows."""
    return None if usd is None else int((usd * NANO_PER_USD).to_integral_value(ROUND_FLOOR))


def to_nearest_nanousd(usd: Decimal) -> int:
    """An amount in whole nano-dollars, half-even."""
    return int((usd * NANO_PER_USD).to_integral_value(ROUND_HALF_EVEN))
