"""What a what-if plays: which engine, what the product believes of it, and what both promise and pay."""

from __future__ import annotations

from dataclasses import dataclass, replace

from local_llm.coefficients import PRESETS, UNKNOWN
from local_llm.datamodels import EngineCoefficients, EngineLimits, SloTargets
from local_llm.simulated_engine import LIMITS
from local_llm.steptime import tokens_per_step
from router.core.decision import PolicyConfig
from router.core.snapshot import PriceRow
from router.errors import BadRequest
from router.settings_types import Engine, LocalSettings
from router.simulation.product import ProductConfig

DEFAULT_GPU = "h100-8b-fp16"
_CPU_GPU = "embedded-cpu"
_CPU_SLO = SloTargets(ttft_s=15.0, tpot_s=0.5, slack_s=5.0)


@dataclass(frozen=True, slots=True)
class Setting:
    """The simulated engine (`truth`) and the product beside it, which may believe something else of it."""

    truth: EngineCoefficients
    product: ProductConfig

    @property
    def limits(self) -> EngineLimits:
        """Room of the engine; the product knows it."""
        return self.product.limits

    @property
    def slo(self) -> SloTargets:
        """What is promised."""
        return self.product.slo

    @property
    def described(self) -> str:
        """The engine in a few words, with what is wrongly believed of it."""
        believed = self.product.coefficients
        told = f"{self.truth.name}, {self.limits.max_batched_tokens} tokens a step"
        return told if believed == self.truth else f"{told}, believed {believed.name} at the start"


def setting(
    local: LocalSettings,
    policy: PolicyConfig,
    price: PriceRow,
    *,
    gpu: str | None,
    start_coefficients: str | None,
    max_batched_tokens: int | None,
    self_calibration: bool,
) -> Setting:
    """The what-if that the config and the command line ask for. Raises `BadRequest` for names that are not known.

    Without `gpu` it is the config's own GPU server where the config has figures of one, else an H100. Without
    `start_coefficients` the product starts from the config's figures where it has some, else from the truth. Without
    `max_batched_tokens` the engine reads prompts in the chunks that this gateway would start it with.
    """
    for name in (gpu, start_coefficients):
        if name is not None and name not in LIMITS:
            raise BadRequest(f"{name!r} is no GPU that is known; there are {', '.join(LIMITS)}", param="gpu")
    serves_gpu = local.engine in (Engine.VLLM, Engine.EXTERNAL)
    own = local.coefficients if serves_gpu and local.coefficients.name != UNKNOWN else None
    slo = local.slo if serves_gpu else _CPU_SLO if gpu == _CPU_GPU else SloTargets()
    truth = PRESETS[gpu] if gpu is not None else own or PRESETS[DEFAULT_GPU]
    believed = PRESETS[start_coefficients] if start_coefficients is not None else own or truth
    limits = LIMITS.get(truth.name, LIMITS[DEFAULT_GPU])
    if gpu is None and own is not None:
        limits = replace(limits, max_num_seqs=local.max_num_seqs, context_window_tokens=local.context_window_tokens)
    if max_batched_tokens is None and truth.name != _CPU_GPU:
        max_batched_tokens = tokens_per_step(believed, slo)
    if max_batched_tokens is not None:
        limits = replace(limits, max_batched_tokens=max_batched_tokens)
    product = ProductConfig(
        coefficients=believed,
        limits=limits,
        slo=slo,
        price=price,
        policy=policy,
        self_calibration=self_calibration,
    )
    return Setting(truth, product)
