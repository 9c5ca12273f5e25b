"""`tiers.local`: one engine, or several that share keys. Mistakes are noted where the key stands that is wrong.

Several engines are told apart by name, address, cards and hardware: two that shared one of these would be counted, or
paid for, as one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from hashlib import blake2b
from pathlib import Path as FilePath
from typing import Any
from urllib.parse import urlsplit

from local_llm.coefficients import PRESETS, UNKNOWN
from local_llm.datamodels import EngineCoefficients, SloTargets
from local_llm.embedded import DEFAULT_SLOT_CONTEXT_TOKENS, DEFAULT_SLOTS, MODEL_NAME
from local_llm.launch import cards_needed, named
from router.core.hardware import OwnedHardware, share_of_card
from router.settings_checks import Note, Secrets, check_base, check_name, did_you_mean, is_loopback
from router.settings_fields import Section
from router.settings_schema import (
    CoefficientsFile,
    EngineFile,
    LocalFile,
    NamedEngineFile,
    OwnedFile,
    RentedFile,
)
from router.settings_types import Engine, Hardware, LaunchSettings, LocalSettings, RentedHardware
from router.settings_yaml import Path, show_path

_LOCAL: Path = ("tiers", "local")
_FIRST_VLLM_PORT = 8000
_MERGED = ("launch", "slo", "hardware")  # sections of which an engine may say a part only
_ENGINE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")  # names a log file, a metric's label, a candidate

_ON_LOOPBACK = "vllm stays on loopback, on the port of api_base, so that nobody comes past the gateway"
# What we tell vllm ourselves. Said once more it would win, and the gateway would go on believing its own.
_SAID_ELSEWHERE = {
    "--host": _ON_LOOPBACK,
    "--port": _ON_LOOPBACK,
    "--uds": _ON_LOOPBACK,
    "--api-key": "the key is made at each start and travels in the environment, where no other user can read it",
    "--served-model-name": "the gateway asks for the model by the name in `model`",
    "--max-model-len": "say it in context_window_tokens",
    "--max-num-seqs": "say it in max_num_seqs",
    "--max-num-batched-tokens": "it follows from the coefficients and slo.tpot_s, and admission rests on it",
    "--gpu-memory-utilization": "say it in launch.gpu_memory_utilization",
}


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the keys of one engine stand: its own beside what it shares with the others."""

    root: Path
    own: EngineFile
    shared: EngineFile | None = None

    def at(self, *keys: str) -> Path:
        """The path of a key, as closely as the file has it."""
        if self.shared is not None and not _says(self.own, keys) and _says(self.shared, keys):
            return (*_LOCAL, *keys)
        return (*self.root, *keys)


def _says(section: Any, keys: Sequence[str]) -> bool:
    for key in keys:
        if not isinstance(section, Section) or key not in section.model_fields_set:
            return False
        section = getattr(section, key)
    return True


def build_engines(file: LocalFile, secrets: Secrets, note: Note) -> list[LocalSettings]:
    """At least one; a single one that is NONE where there is no local tier."""
    if file.engines is None:
        return [_engine(file, None, _Place(_LOCAL, file), f"http://127.0.0.1:{_FIRST_VLLM_PORT}/v1", secrets, note)]
    if not file.engines:
        note((*_LOCAL, "engines"), "is empty; give at least one engine, or remove the key")
        return build_engines(LocalFile(engine="none"), secrets, note)
    places = [_Place((*_LOCAL, "engines", index), own, file) for index, own in enumerate(file.engines)]
    whole = [_with_shared(file, own) for own in file.engines]
    bases = _vllm_bases(whole)
    engines = [
        _engine(one, _name(own, place, note), place, next(bases), secrets, note)
        for one, own, place in zip(whole, file.engines, places, strict=True)
    ]
    for place, one in zip(places, whole, strict=True):
        if one.engine == "none":
            note(place.at("engine"), "is none; leave the engine out of the list instead")
    _tell_apart(list(zip(places, engines, strict=True)), note)
    return engines


def _with_shared(shared: LocalFile, own: NamedEngineFile) -> EngineFile:
    """The keys of one engine: its own, else those that all share."""
    values = {
        key: _merged(getattr(shared, key), getattr(own, key)) if key in _MERGED else getattr(own, key)
        for key in own.model_fields_set & EngineFile.model_fields.keys()
    }
    return shared.model_copy(update=values)


def _merged(shared: Section | None, own: Section | None) -> Section | None:
    """`own` with what it leaves to `shared`; hardware of another kind shares nothing."""
    if shared is None or own is None or type(shared) is not type(own):
        return own
    return shared.model_copy(update={key: getattr(own, key) for key in own.model_fields_set})


def _vllm_bases(engines: Sequence[EngineFile]) -> Iterator[str]:
    """For each engine the address it gets if it is a vllm that names none: ports upwards from 8000, none twice."""
    taken = {_address(one.api_base)[1] for one in engines if one.api_base is not None}
    port = _FIRST_VLLM_PORT
    for one in engines:
        while port in taken:
            port += 1
        yield f"http://127.0.0.1:{port}/v1"
        if one.engine == "vllm" and one.api_base is None:
            port += 1


def _name(own: NamedEngineFile, place: _Place, note: Note) -> str:
    index = place.root[-1]
    if own.name is None:
        note(place.at("name"), f"is missing; call the engine something, such as gpu{index}")
    elif not _ENGINE_NAME.fullmatch(own.name):
        note(place.at("name"), f"{own.name!r} should be at most 63 letters, digits, `.`, `_` or `-`")
    else:
        return own.name
    return f"engines[{index}]"


def _tell_apart(engines: Sequence[tuple[_Place, LocalSettings]], note: Note) -> None:
    several_started = sum(engine.engine is Engine.VLLM for _, engine in engines) > 1
    for position, (place, engine) in enumerate(engines):
        if engine.engine is Engine.VLLM and several_started and engine.launch.gpus is None:
            note(
                place.at("launch", "gpus"),
                "is missing; where several vllm are started each says which cards are its own: [0], or [] for none",
            )
        for _, other in engines[:position]:
            _compare(place, engine, other, note)


def _compare(place: _Place, engine: LocalSettings, other: LocalSettings, note: Note) -> None:
    if engine.name == other.name:
        note(place.at("name"), f"{engine.name!r} is the name of {other.where} too; give each engine its own")
        return
    if engine.candidate_name == other.model or other.candidate_name == engine.model:
        note(place.at("name"), f"makes {engine.candidate_name!r}, which is also a model's name; choose another")
    if _same_address(engine, other):
        note(place.at("api_base"), f"{engine.api_base} is the address of engine {other.name!r} too; give each its own")
    shared_cards = sorted(set(engine.launch.gpus or ()) & set(other.launch.gpus or ()))
    if shared_cards and _on_this_machine(engine) and _on_this_machine(other):
        note(
            place.at("launch", "gpus"),
            f"card {shared_cards[0]} is engine {other.name!r}'s too; neither would know how full the other makes it",
        )
    if engine.hardware is not None and other.hardware is not None and _asset(engine) == _asset(other):
        note(
            place.at("hardware", "asset"),
            f"{_asset(engine)!r} is the hardware of engine {other.name!r} too; name it apart, or leave `asset` out",
        )


def _asset(engine: LocalSettings) -> str:
    return engine.asset or engine.candidate_name


def _same_address(one: LocalSettings, other: LocalSettings) -> bool:
    if one.api_base is None or other.api_base is None:
        return False
    if Engine.VLLM in (one.engine, other.engine):  # whatever the path, a port can be listened on once
        return _address(one.api_base) == _address(other.api_base)
    return one.api_base == other.api_base


def _address(api_base: str | None) -> tuple[str, int]:
    """Host and port; every name of this machine is the same one."""
    try:
        parts = urlsplit(api_base or "")
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return "", 0
    return "loopback" if is_loopback(host) else host, port or (443 if parts.scheme == "https" else 80)


def _on_this_machine(engine: LocalSettings) -> bool:
    return engine.engine is Engine.VLLM or _address(engine.api_base)[0] == "loopback"


def _engine(
    file: EngineFile, name: str | None, place: _Place, vllm_base: str, secrets: Secrets, note: Note
) -> LocalSettings:
    if file.engine is None:
        note(place.at("engine"), "is missing; say embedded, vllm, external, or none for no local tier")
    engine = Engine(file.engine or "none")
    embedded = engine is Engine.EMBEDDED
    model, model_path = _model(file, engine, place, note)
    window = file.context_window_tokens or (DEFAULT_SLOT_CONTEXT_TOKENS if embedded else 8_192)
    if file.max_output_tokens is not None and file.max_output_tokens >= window:
        note(place.at("max_output_tokens"), f"{file.max_output_tokens} leaves no room for a prompt in {window}")
    key = secrets.read(file.api_key_env) if file.api_key_env else None
    default_seqs = {Engine.EMBEDDED: DEFAULT_SLOTS, Engine.VLLM: 256}.get(engine, 8)
    slo = SloTargets(ttft_s=15.0, tpot_s=0.5, slack_s=5.0) if embedded else SloTargets()
    return LocalSettings(
        engine=engine,
        model=model,
        model_path=model_path,
        api_base=_api_base(file, engine, place, vllm_base, note),
        api_key=key,
        context_window_tokens=window,
        max_output_tokens=file.max_output_tokens,
        max_num_seqs=file.max_num_seqs or default_seqs,
        supports_tools=file.supports_tools is True,
        supports_images=file.supports_images is True,
        supports_json=file.supports_json is not False,
        launch=_launch(file, engine, place, note),
        hardware=_hardware(file.hardware, place, note),
        asset=file.hardware.asset if file.hardware is not None else None,
        practical_capacity_ratio=file.practical_capacity_ratio,
        max_gpu_utilization_ratio=file.max_gpu_utilization_ratio,
        slo=SloTargets(
            ttft_s=file.slo.ttft_s or slo.ttft_s,
            tpot_s=file.slo.tpot_s or slo.tpot_s,
            slack_s=file.slo.slack_s or slo.slack_s,
        ),
        coefficients=_coefficients(file.coefficients, embedded, place, note),
        unavailable=f"{file.api_key_env} is not set" if file.api_key_env and key is None else None,
        name=name,
        where=show_path(place.root),
    )


def _api_base(file: EngineFile, engine: Engine, place: _Place, vllm_base: str, note: Note) -> str | None:
    api_base = file.api_base
    where = place.at("api_base")
    if engine is Engine.VLLM:
        api_base = api_base or vllm_base
    if engine is Engine.EMBEDDED and api_base is not None:
        note(where, "is set, but the embedded engine finds its own; remove it, or use engine: external")
    if engine is Engine.EXTERNAL and api_base is None:
        note(where, "is missing; give the address of the engine, such as http://127.0.0.1:8000/v1")
    if api_base is None:
        return None
    check_base(api_base, where, note, loopback_only=engine is Engine.VLLM)
    return api_base.rstrip("/")


def _launch(file: EngineFile, engine: Engine, place: _Place, note: Note) -> LaunchSettings:
    launch, where = file.launch, place.at("launch", "gpus")
    gpus = launch.gpus
    if gpus is not None and engine is Engine.EMBEDDED:
        note(where, "is set, but the embedded engine works on the CPU; remove it")
    elif gpus is not None and len(set(gpus)) < len(gpus):
        note(where, "names a card twice; name each once")
    elif gpus and engine is Engine.VLLM:
        needed = cards_needed(launch.extra_args)
        if needed is not None and needed > len(gpus):
            note(where, f"names {len(gpus)} of the {needed} cards that launch.extra_args asks for; name them all")
    if launch.sleep is not None and engine is not Engine.VLLM:
        note(place.at("launch", "sleep"), "is set, but only a vllm that we start can be put to sleep; remove it")
    if engine is Engine.VLLM:
        for option in sorted(named(launch.extra_args) & _SAID_ELSEWHERE.keys()):
            note(place.at("launch", "extra_args"), f"says {option}; take it out: {_SAID_ELSEWHERE[option]}")
    return LaunchSettings(
        executable=launch.executable,
        gpu_memory_utilization=launch.gpu_memory_utilization,
        extra_args=launch.extra_args,
        gpus=gpus,
        sleep_after_idle_s=launch.sleep.after_idle_s if launch.sleep is not None else None,
    )


def _model(file: EngineFile, engine: Engine, place: _Place, note: Note) -> tuple[str, FilePath | None]:
    where = place.at("model")
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


def _hardware(file: RentedFile | OwnedFile | None, place: _Place, note: Note) -> Hardware | None:
    if file is None:
        return None
    optional = {"asset", "mig_slices"}
    missing = [key for key in type(file).model_fields if getattr(file, key) is None and key not in optional]
    if missing:
        note(place.at("hardware"), f"lacks {', '.join(missing)}; kind {file.kind} needs all of them")
        return None
    if isinstance(file, RentedFile):
        return RentedHardware(share_of_card(file.usd_per_hour or Decimal(0), file.mig_slices), on=file.on)
    figures: dict[str, Decimal] = file.model_dump(exclude={"kind", "asset", "mig_slices"})
    if figures["residual_usd"] > figures["purchase_usd"]:
        note(
            place.at("hardware", "residual_usd"),
            f"{figures['residual_usd']} is more than purchase_usd {figures['purchase_usd']}",
        )
        return None
    of_the_card = ("purchase_usd", "residual_usd", "power_kw", "colo_usd_per_hour", "ops_usd_per_hour")
    return OwnedHardware(**figures | {name: share_of_card(figures[name], file.mig_slices) for name in of_the_card})


def _coefficients(file: str | CoefficientsFile | None, embedded: bool, place: _Place, note: Note) -> EngineCoefficients:
    path = place.at("coefficients")
    default = PRESETS["embedded-cpu" if embedded else UNKNOWN]
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
    if not any((file.t0_s, file.c_seq_s, file.c_kv_s, file.c_prefill_s)):
        note(path, "says that nothing takes any time: every answer would cost 0; measure with calibrate-engine")
        return default
    return EngineCoefficients(
        name=f"config-{_digest(file)}",
        t0_s=file.t0_s,
        c_seq_s=file.c_seq_s,
        c_kv_s=file.c_kv_s,
        c_prefill_s=file.c_prefill_s,
        c_att_s=file.c_att_s,
        practical_batch=file.practical_batch,
        calibrated=True,
        api_s=file.api_s,
    )


def _digest(file: CoefficientsFile) -> str:
    """Names figures given by hand, so that charges made with others can be told apart."""
    figures = file.model_dump_json(exclude_none=True)
    return blake2b(figures.encode(), digest_size=4).hexdigest()
