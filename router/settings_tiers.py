"""The `tiers` section: file shape to settings. Mistakes are noted; a harmless stand-in lets the rest be checked."""

from __future__ import annotations

from router.settings_checks import Note, Secrets, check_base, check_name, did_you_mean
from router.settings_engines import build_engines
from router.settings_hosts import PROVIDERS
from router.settings_schema import (
    ApiModelFile,
    ApiTierFile,
    LocalFile,
    PriceFile,
    TiersFile,
)
from router.settings_types import (
    ApiModel,
    Engine,
    PriceOverride,
    TierSettings,
    Wire,
)
from router.settings_yaml import Path, show_path


def build_tiers(file: TiersFile, secrets: Secrets, note: Note, note_unset: Note) -> TierSettings:
    """The `tiers` section; also checks that names are unique and that one tier can answer.

    `note_unset` is told where none can for want of keys that only the environment lacks.
    """
    engines = build_engines(file.local or LocalFile(engine="none"), secrets, note)
    cheap = _api_tier("cheap", file.cheap, secrets, note)
    premium = _api_tier("premium", file.premium, secrets, note)
    taken: dict[str, str] = {}
    for engine in engines:
        if engine.engine is not Engine.NONE:
            taken[engine.candidate_name] = engine.where
            taken.setdefault(engine.model, engine.where)
    for tier, path, model in (*(("cheap", *item) for item in cheap), *(("premium", *item) for item in premium)):
        if model.name in taken:
            note(path, f"{model.name!r} is already the name of {taken[model.name]}; give one of them another `name`")
        taken.setdefault(model.name, f"a model in tiers.{tier}")
    local, *more = engines
    tiers = TierSettings(local, tuple(model for _, model in cheap), tuple(model for _, model in premium), tuple(more))
    local_answers = any(engine.unavailable is None for engine in tiers.engines)
    if not local_answers and all(model.unavailable for _, model in tiers.api_models()):
        unset = [model.unavailable for _, model in tiers.api_models()]
        unset += [engine.unavailable for engine in tiers.engines]
        told = "; ".join(sorted({text for text in unset if text})) or "no tier has a model"
        say = note_unset if cheap or premium else note
        say(("tiers",), f"no tier can answer: {told}; export a key, or set tiers.local.engine to embedded")
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
