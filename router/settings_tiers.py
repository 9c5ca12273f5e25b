"""The `tiers` section: file shape to settings. Mistakes are noted; a harmless stand-in lets the rest be checked."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path as FilePath

from local_llm.coefficients import PRESETS
from local_llm.datamodels import EngineCoefficients, SloTargets
from local_llm.embedded import DEFAULT_SLOT_CONTEXT_TOKENS, DEFAULT_SLOTS, MODEL_NAME
from router.core.hardware import OwnedHardware
from router.settings_checks import Note, Secrets, check_base, check_name, did_you_mean
from router.settings_hosts import PROVIDERS
from router.settings_schema import (
    ApiModelFile,
    ApiTierFile,
    CoefficientsFile,
    LocalFile,
    OwnedFile,
    PriceFile,
    RentedFile,
    TiersFile,
)
from router.settings_types import (
    ApiModel,
    Engine,
    Hardware,
    LaunchSettings,
    LocalSettings,
    PriceOverride,
    RentedHardware,
    TierSettings,
    Wire,
)
from router.settings_yaml import Path, show_path

_DEFAULT_VLLM_BASE = "http://127.0.0.1:8000/v1"


def build_tiers(file: TiersFile, secrets: Secrets, note: Note) -> TierSettings:
    """The `tiers` section; also checks that names are unique and that one tier can answer."""
    local = _local(file.local or LocalFile(engine="none"), secrets, note)
    cheap = _api_tier("cheap", file.cheap, secrets, note)
    premium = _api_tier("premium", file.premium, secrets, note)
    taken: dict[str, str] = {}
    if local.engine is not Engine.NONE:
        taken[local.model] = "tiers.local"
    for tier, path, model in (*(("cheap", *item) for item in cheap), *(("premium", *item) for item in premium)):
        if model.name in taken:
            note(path, f"{model.name!r} is already the name of {taken[model.name]}; give one of them another `name`")
        taken.setdefault(model.name, f"a model in tiers.{tier}")
    tiers = TierSettings(local, tuple(model for _, model in cheap), tuple(model for _, model in premium))
    local_answers = local.engine is not Engine.NONE and local.unavailable is None
    if not local_answers and all(model.unavailable for _, model in tiers.api_models()):
        unset = [model.unavailable for _, model in tiers.api_models()] + [local.unavailable]
        told = "; ".join(sorted({text for text in unset if text})) or "no tier has a model"
        note(("tiers",), f"no tier can answer: {told}; export a key, or set tiers.local.engine to embedded")
    return tiers


def _api_tier(tier: str, file: ApiTierFile | None, secrets: Secrets, note: Note) -> list[tuple[Path, ApiModel]]:
    if file is None:
        return []
    root: Path = ("tiers", tier)
    if file.models is None:
        if file.model is None:
            note(root, "has no model; give `model: openai/gpt-6-luna`, or several under `models`, or remove the tier")
            return []
        items: list[tuple[Path, ApiModelFile]] = [(root, file)]
    else:
        beside = sorted(file.model_fields_set - {"models"})
        if beside:
            note((*root, beside[0]), f"stands beside `models`; move {', '.join(beside)} into the items of `models`")
        if not file.models:
            note((*root, "models"), "is empty; give at least one model, or remove the tier")
        items = [((*root, "models", index), item) for index, item in enumerate(file.models)]
    built = ((path, _api_model(path, item, secrets, note)) for path, item in items)
    return [(path, model) for path, model in built if model is not None]


def _api_model(path: Path, file: ApiModelFile, secrets: Secrets, note: Note) -> ApiModel | None:
    if file.model is None:
        note(path, "has no model; give `model: openai/gpt-6-luna` or another provider/model")
        return None
    name = file.name or file.model
    check_name(name, (*path, "name" if file.name else "model"), note)
    prefix, slash, rest = file.model.partition("/")
    host = PROVIDERS.get(prefix) if slash and rest else None
    if host is None and file.api_base is None:
        what = f"provider {prefix!r} is not known" if slash else "names no provider"
        note(
            (*path, "model"),
            f"{file.model!r}: {what}{did_you_mean(prefix, PROVIDERS)}; write provider/model with one "
            f"of {', '.join(sorted(PROVIDERS))}, or give api_base for any other OpenAI-style host",
        )
        return None
    if prefix == "azure" and file.api_base is None:
        note((*path, "api_base"), "is missing; an azure model needs the address of your resource")
    if file.api_base is not None:
        check_base(file.api_base, (*path, "api_base"), note)
    # The provider's own variable is never read for another host: a key must not leave for where it was not meant.
    default_env = host.key_env if host is not None and (file.api_base is None or prefix == "azure") else None
    key_env = file.api_key_env or default_env
    key = secrets.read(key_env) if key_env else None
    window, longest = file.context_window_tokens, file.max_output_tokens
    if window is not None and longest is not None and longest >= window:
        note((*path, "max_output_tokens"), f"{longest} leaves no room for a prompt in a window of {window}")
    return ApiModel(
        name=name,
        model=file.model,
        provider=prefix if host is not None else "custom",
        wire=host.wire if host is not None else Wire.OPENAI,
        wire_model=rest if host is not None else file.model,
        api_base=(file.api_base or (host.api_base if host is not None else "") or "").rstrip("/") or None,
        api_key=key,
        api_key_env=key_env,
        unavailable=None if key is not None or key_env is None else f"{key_env} is not set",
        context_window_tokens=window,
        max_output_tokens=longest,
        supports_tools=file.supports_tools is not False,
        supports_images=file.supports_images is not False,
        supports_json=file.supports_json is not False,
        price=_price(file.price, (*path, "price"), note),
        path=show_path((*path, "model")),
    )


def _price(file: PriceFile | None, path: Path, note: Note) -> PriceOverride | None:
    if file is None:
        return None
    if file.input_usd_per_mtok is None or file.output_usd_per_mtok is None:
        missing = [key for key in ("input_usd_per_mtok", "output_usd_per_mtok") if getattr(file, key) is None]
        note(path, f"lacks {' and '.join(missing)}; give both prices, in USD per million tokens")
        return None
    cached = file.cached_input_usd_per_mtok
    if cached is not None and cached > file.input_usd_per_mtok:
        note((*path, "cached_input_usd_per_mtok"), f"{cached} is dearer than uncached input; swap or remove it")
    return PriceOverride(file.input_usd_per_mtok, file.output_usd_per_mtok, cached)


def _local(file: LocalFile, secrets: Secrets, note: Note) -> LocalSettings:
    root: Path = ("tiers", "local")
    if file.engine is None:
        note((*root, "engine"), "is missing; say embedded, vllm, external, or none for no local tier")
    engine = Engine(file.engine or "none")
    embedded = engine is Engine.EMBEDDED
    model, model_path = _local_model(file, engine, note)
    api_base = file.api_base
    if engine is Engine.VLLM:
        api_base = api_base or _DEFAULT_VLLM_BASE
    if embedded and api_base is not None:
        note((*root, "api_base"), "is set, but the embedded engine finds its own; remove it, or use engine: external")
    if engine is Engine.EXTERNAL and api_base is None:
        note((*root, "api_base"), "is missing; give the address of the engine, such as http://127.0.0.1:8000/v1")
    if api_base is not None:
        check_base(api_base, (*root, "api_base"), note, loopback_only=engine is Engine.VLLM)
    window = file.context_window_tokens or (DEFAULT_SLOT_CONTEXT_TOKENS if embedded else 8_192)
    if file.max_output_tokens is not None and file.max_output_tokens >= window:
        note((*root, "max_output_tokens"), f"{file.max_output_tokens} leaves no room for a prompt in {window}")
    key = secrets.read(file.api_key_env) if file.api_key_env else None
    default_seqs = {Engine.EMBEDDED: DEFAULT_SLOTS, Engine.VLLM: 256}.get(engine, 8)
    slo = SloTargets(ttft_s=15.0, tpot_s=0.5, slack_s=5.0) if embedded else SloTargets()
    return LocalSettings(
        engine=engine,
        model=model,
        model_path=model_path,
        api_base=api_base.rstrip("/") if api_base is not None else None,
        api_key=key,
        context_window_tokens=window,
        max_output_tokens=file.max_output_tokens,
        max_num_seqs=file.max_num_seqs or default_seqs,
        supports_tools=file.supports_tools is True,
        supports_images=file.supports_images is True,
        supports_json=file.supports_json is not False,
        launch=LaunchSettings(
            executable=file.launch.executable,
            gpu_memory_utilization=file.launch.gpu_memory_utilization,
            extra_args=file.launch.extra_args,
        ),
        hardware=_hardware(file.hardware, note),
        asset=file.hardware.asset if file.hardware is not None else None,
        practical_capacity_ratio=file.practical_capacity_ratio,
        max_gpu_utilization_ratio=file.max_gpu_utilization_ratio,
        slo=SloTargets(
            ttft_s=file.slo.ttft_s or slo.ttft_s,
            tpot_s=file.slo.tpot_s or slo.tpot_s,
            slack_s=file.slo.slack_s or slo.slack_s,
        ),
        coefficients=_coefficients(file.coefficients, embedded, note),
        unavailable=f"{file.api_key_env} is not set" if file.api_key_env and key is None else None,
    )


def _local_model(file: LocalFile, engine: Engine, note: Note) -> tuple[str, FilePath | None]:
    where: Path = ("tiers", "local", "model")
    if engine is Engine.NONE:
        return file.model or "none", None
    if engine is not Engine.EMBEDDED:
        if file.model is None:
            note(where, f"is missing; give the model's name as the {engine.value} engine knows it")
            return "none", None
        check_name(file.model, where, note)
        return file.model, None
    if file.model is None or file.model == MODEL_NAME:
        return MODEL_NAME, None
    if not file.model.endswith(".gguf"):
        note(where, f"{file.model!r} is no .gguf file; give one, or remove the key to use {MODEL_NAME}")
        return MODEL_NAME, None
    path = FilePath(file.model)
    if not path.is_file():
        note(where, f"{file.model!r} does not exist")
    check_name(path.stem, where, note)
    return path.stem, path


def _hardware(file: RentedFile | OwnedFile | None, note: Note) -> Hardware | None:
    if file is None:
        return None
    path: Path = ("tiers", "local", "hardware")
    missing = [key for key in type(file).model_fields if getattr(file, key) is None and key != "asset"]
    if missing:
        note(path, f"lacks {', '.join(missing)}; kind {file.kind} needs all of them")
        return None
    if isinstance(file, RentedFile):
        return RentedHardware(usd_per_hour=file.usd_per_hour or Decimal(0), on=file.on)
    figures: dict[str, Decimal] = file.model_dump(exclude={"kind", "asset"})
    if figures["residual_usd"] > figures["purchase_usd"]:
        note((*path, "residual_usd"), f"{figures['residual_usd']} is more than purchase_usd {figures['purchase_usd']}")
        return None
    return OwnedHardware(**figures)


def _coefficients(file: str | CoefficientsFile | None, embedded: bool, note: Note) -> EngineCoefficients:
    path: Path = ("tiers", "local", "coefficients")
    default = PRESETS["embedded-cpu" if embedded else "unknown"]
    if file is None:
        return default
    if isinstance(file, str):
        if file not in PRESETS:
            note(
                path,
                f"{file!r} is not known{did_you_mean(file, PRESETS)}; "
                f"say one of {', '.join(PRESETS)}, or give the figures",
            )
        return PRESETS.get(file, default)
    if file.t0_s is None or file.c_seq_s is None or file.c_kv_s is None or file.c_prefill_s is None:
        note(path, "needs t0_s, c_seq_s, c_kv_s and c_prefill_s, or the name of a preset")
        return default
    return EngineCoefficients(
        name="config",
        t0_s=file.t0_s,
        c_seq_s=file.c_seq_s,
        c_kv_s=file.c_kv_s,
        c_prefill_s=file.c_prefill_s,
        c_att_s=file.c_att_s,
        practical_batch=file.practical_batch,
        calibrated=True,
        api_s=file.api_s,
    )
