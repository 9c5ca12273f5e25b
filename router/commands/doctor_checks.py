"""What `doctor` looks at without starting a gateway. Nothing is written and no paid call is made."""

from __future__ import annotations

import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from urllib.parse import urlsplit

from sqlalchemy.exc import SQLAlchemyError

from local_llm.datamodels import GpuReading
from local_llm.embedded import EmbeddedModelError, engine_installed, find_model
from router.checks import Check, State
from router.commands.price_book import book_of
from router.core.dated_prices import EPOCH
from router.errors import RouterError
from router.prices import PriceUnknown
from router.settings import Engine, Settings
from router.settings_checks import is_loopback
from router.settings_types import LocalSettings
from router.stores.engines import parse_url, read_engine, sqlite_path
from router.stores.migrations import MIGRATIONS, version_of

DISTRIBUTION = "hybrid-llm-router"
OUR_PACKAGES = ("router", "classifier", "local_llm")
_PROBE_TIMEOUT_S = 2.0


def config(settings: Settings) -> Iterator[Check]:
    """Where the settings come from, and what in them does nothing."""
    yield Check("config", State.OK, settings.source)
    for key in settings.not_acted_on:
        yield Check(f"config {key}", State.WARN, "accepted, but not acted on in this release", "remove the key")
    for name in settings.ignored_env:
        yield Check(f"environment {name}", State.WARN, "is no setting and was ignored", "write ROUTER_SECTION__KEY")


def learning(settings: Settings) -> Iterator[Check]:
    """Whether what is spent on learning can come to labels."""
    wanted = settings.learning
    explores = settings.policy.exploration_ratio > 0.0
    if not (wanted.on or explores):
        return
    parts = [f"explores {settings.policy.exploration_ratio:.1%}"] if explores else []
    parts += [f"shadows {wanted.shadow_ratio:.1%}"] if wanted.shadow_ratio > 0.0 else []
    parts += [f"judged by {wanted.judge_model}"] if wanted.judge_model is not None else []
    parts += ["exact checks"] if wanted.exact_checks else []
    lost = []
    if not settings.server.store_prompts:
        lost.append(("prompts are not kept, so no label can be exported", "set server.store_prompts: true"))
    if wanted.shadow_ratio > 0.0 and len({tier for tier, _ in settings.tiers.api_models()}) == 0:
        lost.append(("there is no second tier to send a shadow to", "configure one, or set learning.shadow.ratio: 0"))
    for what, cure in lost:
        yield Check("learning", State.WARN, what, cure)
    if not lost:
        yield Check("learning", State.OK, ", ".join(parts))


def packages(claims: Mapping[str, Sequence[str]]) -> Iterator[Check]:
    """Whether another distribution claims one of our top-level packages: pip lets it overwrite ours silently."""
    for package in OUR_PACKAGES:
        others = sorted(set(claims.get(package, ())) - {DISTRIBUTION})
        if others:
            cure = f"install {DISTRIBUTION} into an environment of its own"
            yield Check(f"package {package}", State.FAIL, f"is also claimed by {', '.join(others)}", cure)
    if not any(set(claims.get(package, ())) - {DISTRIBUTION} for package in OUR_PACKAGES):
        yield Check("packages", State.OK, f"nobody else claims {', '.join(OUR_PACKAGES)}")


def access(settings: Settings) -> Iterator[Check]:
    """Who may use the gateway."""
    auth = settings.server.auth
    where = f"{settings.server.host}:{settings.server.port}"
    for name in auth.unset_env:
        yield Check(f"key {name}", State.WARN, "is not set, so its tenant cannot enter", f"export {name}")
    if auth.required:
        yield Check("access", State.OK, f"{len(auth.keys)} keys, listening on {where}")
    else:
        yield Check("access", State.OFF, f"no key is asked for, listening on {where}, which only this machine reaches")
    yield from _limits(settings)


def _limits(settings: Settings) -> Iterator[Check]:
    auth, gateways = settings.server.auth, settings.server.gateways
    limits = [key.limits for key in auth.keys] if auth.required else [auth.default_limits]
    limited = sum(terms.any() for terms in limits)
    share = f"; this gateway gives out 1/{gateways} of them" if gateways > 1 else ""
    if limited:
        yield Check("limits", State.OK, f"{limited} of {len(limits)} keys are limited{share}")
    else:
        cure = "set server.auth.default_limits, or limits of single keys"
        yield Check("limits", State.OFF, "no key is limited in requests, tokens or concurrency", cure)
    policy = settings.policy
    if gateways > 1 and not (policy.budget_usd_per_day is None and policy.budget_usd_per_month is None):
        what = f"each of {gateways} gateways may spend all of it: unlike limits, budgets are not divided"
        yield Check("budgets", State.WARN, what, "give each gateway's config its part of policy.budget_usd_*")
    if auth.required:
        yield (
            Check("metrics", State.OFF, "/metrics is open and shows every tenant", "name server.auth.metrics_key_env")
            if auth.metrics_key is None
            else Check("metrics", State.OK, "/metrics asks for a key")
        )


def api_tiers(settings: Settings) -> Iterator[Check]:
    """Whether the models behind APIs have their keys."""
    for tier, models in (("cheap", settings.tiers.cheap), ("premium", settings.tiers.premium)):
        if not models:
            yield Check(f"tier {tier}", State.OFF, "not configured", f"configure tiers.{tier}")
        for model in models:
            name = f"tier {tier}: {model.name}"
            host = urlsplit(model.api_base or "https://")
            if model.unavailable is not None:
                yield Check(name, State.WARN, model.unavailable, f"export {model.api_key_env}")
            elif model.api_key is not None and host.scheme == "http" and not is_loopback(host.hostname or ""):
                yield Check(name, State.WARN, f"{model.api_key_env} travels unencrypted", "use https in api_base")
            elif model.api_key_env is not None:
                yield Check(name, State.OK, f"{model.api_key_env} is set")
            else:
                yield Check(name, State.OK, f"no key needed at {model.api_base}")


def local_tier(settings: Settings) -> Iterator[Check]:
    """Whether the engines and their models are there."""
    engines = settings.tiers.engines
    if not engines:
        yield Check("tier local", State.OFF, "not configured", "set tiers.local.engine to embedded, vllm or external")
    for local in engines:
        yield _engine(local)
        if not local.coefficients.calibrated and local.engine is not Engine.EMBEDDED:
            named = "" if local.name is None else f" --engine {local.name}"
            yield Check(
                "engine coefficients" if local.name is None else f"engine {local.name} coefficients",
                State.WARN,
                f"step times are guessed (preset {local.coefficients.name}), not measured on this kind of GPU",
                f"run `calibrate-engine{named}`, or name a preset in {local.where}.coefficients",
            )


def _engine(local: LocalSettings) -> Check:
    name = f"tier local: {local.engine.value}" if local.name is None else f"tier local {local.name}: {local.engine}"
    if local.unavailable is not None:
        return Check(name, State.WARN, local.unavailable, local.unavailable.replace(" is not set", " must be exported"))
    if local.engine is Engine.EMBEDDED:
        return _embedded(name, local.model_path)
    if local.engine is Engine.VLLM:
        if shutil.which(local.launch.executable) is None:
            cure = f"run `make engine`, or set {local.where}.launch.executable"
            return Check(name, State.FAIL, f"{local.launch.executable} is not there", cure)
        cards = local.launch.gpus
        on = "" if not cards else f" on card {', '.join(map(str, cards))}"
        return Check(name, State.OK, f"{local.launch.executable} will serve {local.model}{on}")
    return _external(name, local.api_base or "")


def gpus(readings: Sequence[GpuReading], problem: str | None) -> Iterator[Check]:
    """What NVML sees. `problem` says why it sees nothing."""
    if not readings:
        yield Check("gpu", State.OFF, problem or "none seen")
    for gpu in readings:
        name = f"gpu {gpu.index}: {gpu.name}"
        if gpu.problem is not None:
            yield Check(name, State.FAIL, gpu.problem, "see nvidia-smi and the kernel's log")
        elif gpu.throttle_reasons:
            yield Check(name, State.WARN, f"is slowed down: {', '.join(gpu.throttle_reasons)}", "see cooling and power")
        else:
            memory = f"{gpu.memory_total_bytes / 2**30:.0f} GiB" if gpu.memory_total_bytes else "memory not told"
            yield Check(name, State.OK, memory)


def _embedded(name: str, model_path: Path | None) -> Check:
    if not engine_installed():
        return Check(name, State.FAIL, "xllamacpp is not installed", f"pip install '{DISTRIBUTION}[embedded]'")
    if model_path is not None:
        return Check(name, State.OK, f"xllamacpp with {model_path}")
    try:
        model = find_model()
    except EmbeddedModelError as error:
        detail, _, cure = str(error).partition("; run: ")
        return Check(name, State.FAIL, detail, cure)
    return Check(name, State.OK, f"xllamacpp with {model.name}")


def _external(name: str, api_base: str) -> Check:
    parts = urlsplit(api_base)
    url = f"{parts.scheme}://{parts.netloc}/health"
    try:
        with urllib.request.urlopen(url, timeout=_PROBE_TIMEOUT_S) as answer:  # noqa: S310 - http(s), see settings
            return Check(name, State.OK, f"{url} answers {answer.status}")
    except urllib.error.HTTPError as error:
        # Not every server has /health, but one that says 404 is there.
        if error.code < 500:
            return Check(name, State.OK, f"{parts.netloc} answers ({error.code} for /health)")
        return Check(name, State.WARN, f"{url} answers {error.code}", "look at the engine's own log")
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        return Check(name, State.WARN, f"{url} does not answer: {reason}", "start the engine, or correct api_base")


def database(settings: Settings) -> Iterator[Check]:
    """Whether the books can be reached, and their schema version."""
    shown = settings.server.database_url_masked
    try:
        url = parse_url(settings.server.database_url)
        path = sqlite_path(url)
        if path is not None and not path.exists():
            yield _writable(path)
            return
        engine = read_engine(url)
        try:
            with engine.connect() as connection:
                version = version_of(connection)
        finally:
            engine.dispose()
    except RouterError as error:
        yield Check("database", State.FAIL, error.message, "")
        return
    except (SQLAlchemyError, OSError) as error:
        reason = str(getattr(error, "orig", None) or type(error).__name__).strip().partition("\n")[0]
        reason = reason.replace(settings.server.database_url, shown)
        yield Check("database", State.FAIL, f"{shown}: {reason}", "see that the server runs and the URL is right")
        return
    if version > len(MIGRATIONS):
        cure = "run the newer release, or name another database"
        yield Check("database", State.FAIL, f"{shown} has schema {version}, newer than {len(MIGRATIONS)}", cure)
    elif version < len(MIGRATIONS):
        yield Check("database", State.OK, f"{shown} has schema {version}; serve will bring it to {len(MIGRATIONS)}")
    else:
        yield Check("database", State.OK, f"{shown} has schema {version}")


def _writable(path: Path) -> Check:
    folder = next(parent for parent in path.parents if parent.exists())
    if os.access(folder, os.W_OK):
        return Check("database", State.OK, f"{path.name} does not exist yet; serve will make it below {folder.name}/")
    return Check("database", State.FAIL, f"{folder} cannot be written to", "set server.data_dir or fix the permissions")


def price_rows(settings: Settings, at_utc: datetime) -> Iterator[Check]:
    """The price of every model that may be asked, where it comes from and since when."""
    try:
        book = book_of(settings)
    except RouterError as error:
        yield Check("price book", State.FAIL, error.message, "correct the price overrides")
        return
    for _, model in settings.tiers.api_models():
        name = f"price {model.name}"
        try:
            row = book.row(model.price_key, at_utc)
        except PriceUnknown as unknown:
            detail, _, cure = str(unknown).partition("; ")
            yield Check(name, State.FAIL, detail, cure)
            continue
        tier = row.tiers[0]
        since = "undated" if row.effective_from_utc == EPOCH else f"from {row.effective_from_utc:%Y-%m-%d}"
        until = f", until {row.valid_until_utc:%Y-%m-%d %H:%M}" if row.valid_until_utc is not None else ""
        yield Check(
            name,
            State.OK,
            f"{tier.input_usd_per_mtok:f} in, {tier.output_usd_per_mtok:f} out USD per million tokens; {row.source}, "
            f"{since}{until}",
        )
    models = {model.price_key for _, model in settings.tiers.api_models()}
    for note in book.check(sorted(models), at_utc):
        if note.kind in {"change", "clash"} and note.model in models:
            yield Check(f"price {note.kind} {note.model}", State.WARN, note.text)


def usable_tiers(settings: Settings) -> list[str]:
    """Tiers that could answer if they are well: with a key where one is needed, with an engine that can run here."""
    tiers = settings.tiers
    usable = [tier for tier, models in (("cheap", tiers.cheap), ("premium", tiers.premium)) if _any_usable(models)]
    if any(engine.unavailable is None for engine in tiers.engines):
        usable.insert(0, "local")
    return usable


def levers(settings: Settings) -> Iterator[Check]:
    """The means of keeping costs down: which are in use, which are off."""
    tiers, policy = settings.tiers, settings.policy
    usable = usable_tiers(settings)
    yield _lever(
        "routing", len(usable) > 1, f"between {', '.join(usable)}", "only one tier can answer", "configure two"
    )
    yield _lever(
        "quality target",
        policy.quality_target_ratio < 1,
        f"{policy.quality_target_ratio:g} of premium quality is kept",
        "1.0 leaves no room for a cheaper model",
        "set policy.preset",
    )
    to_price = [engine for engine in tiers.engines if engine.engine is not Engine.EMBEDDED]
    unpriced = [engine for engine in to_price if engine.hardware is None]
    yield _lever(
        "hardware in the books",
        not unpriced,
        "priced" if any(engine.hardware is not None for engine in tiers.engines) else "no GPU to price",
        "local answers are booked at 0" if len(unpriced) == len(to_price) else "some local answers are booked at 0",
        f"set {', '.join(f'{engine.where}.hardware' for engine in unpriced)}",
    )
    for key, value in (
        ("budget_usd_per_day", policy.budget_usd_per_day),
        ("budget_usd_per_month", policy.budget_usd_per_month),
        ("max_usd_per_request", policy.max_usd_per_request),
    ):
        yield _lever(key.replace("_", " "), value is not None, f"{value} USD", "not set", f"set policy.{key}")
    yield _lever(
        "costs per tenant",
        bool(settings.server.auth.keys),
        "by key",
        "all is booked on one tenant",
        "give each application a key in server.auth.keys",
    )
    yield Check("lever monitoring", State.OK, "/metrics and `report costs`")
    for lever in ("answer cache", "prompt compression", "batching", "budget alerts"):
        yield Check(f"lever {lever}", State.OFF, "not part of this release")


def _any_usable(models: Sequence[object]) -> bool:
    return any(getattr(model, "unavailable", None) is None for model in models)


def _lever(name: str, used: bool, on: str, off: str, cure: str) -> Check:
    return Check(f"lever {name}", State.OK, on) if used else Check(f"lever {name}", State.OFF, off, cure)
