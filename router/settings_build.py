"""File shape to settings: what depends on more than one key, and every secret.

Nothing here stops at the first mistake: each is noted with its place, and a harmless stand-in lets the rest be checked.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path as FilePath
from urllib.parse import urlsplit

from pydantic import SecretStr

from router.core.judgements import OVERHEAD_TENANT_PREFIX
from router.core.limits import LimitTerms
from router.core.vocabulary import Limit
from router.settings_checks import Note, Secrets, is_loopback, mask_password
from router.settings_schema import PolicyFile
from router.settings_schema_learning import ClassifierFile, LearningFile
from router.settings_schema_server import LimitsFile, ServerFile
from router.settings_types import (
    QUALITY_TARGETS,
    AuthKey,
    AuthSettings,
    ClassifierSettings,
    LearningSettings,
    ModelChoice,
    PolicySettings,
    ServerSettings,
    TierSettings,
)
from router.settings_yaml import Path

API_KEY_ENV = "ROUTER_API_KEY"


def build_server(
    file: ServerFile, secrets: Secrets, note: Note, note_unset: Note, *, url_from_file: bool
) -> ServerSettings:
    """The `server` section. `url_from_file`: database_url stands in the file, where no password may stand.

    `note_unset` is told of keys that only the environment lacks.
    """
    data_dir = FilePath(file.data_dir)
    url = file.database_url or f"sqlite:///{data_dir / 'router.db'}"
    where: Path = ("server", "database_url")
    if file.database_url_env is not None:
        where = ("server", "database_url_env")
        secret = secrets.read(file.database_url_env)
        if file.database_url is not None:
            note(where, "database_url is given as well; keep one of them")
        elif secret is None:
            note(where, f"{file.database_url_env} is not set; export it, or remove the key to use SQLite in data_dir")
        else:
            url = secret.get_secret_value()
    masked = _checked_database_url(url, where, note, url_from_file=url_from_file)
    return ServerSettings(
        host=file.host,
        port=file.port,
        database_url=url,
        database_url_masked=masked,
        data_dir=data_dir,
        max_body_bytes=file.max_body_bytes,
        body_timeout_s=file.body_timeout_s,
        drain_grace_s=file.drain_grace_s,
        gateways=file.gateways,
        store_prompts=file.store_prompts,
        auth=_auth(file, secrets, note, note_unset),
    )


def _checked_database_url(url: str, where: Path, note: Note, *, url_from_file: bool) -> str:
    try:
        masked = mask_password(url)
        scheme = urlsplit(url).scheme
    except ValueError:
        note(where, "is not a URL; write sqlite:///PATH or postgresql://HOST/NAME")
        return "***"
    if scheme.partition("+")[0] not in {"sqlite", "postgresql"}:
        note(where, f"{masked!r} is of no known kind; write sqlite:///PATH or postgresql://HOST/NAME")
    elif scheme.startswith("sqlite") and (":memory:" in url or not url.partition(":///")[2]):
        note(where, f"{masked!r} names no file, so the books would be lost; write sqlite:///PATH")
    if url_from_file and masked != url:
        note(where, "holds a password; put the URL into an environment variable and name it in database_url_env")
    return masked


def _auth(file: ServerFile, secrets: Secrets, note: Note, note_unset: Note) -> AuthSettings:
    keys: list[AuthKey] = []
    unset: list[str] = []
    default = _limits(file.auth.default_limits, LimitsFile(), ("server", "auth", "default_limits"), file, note)
    own = secrets.read(API_KEY_ENV)
    if own is not None:
        keys.append(AuthKey("default", own, admin=True, limits=default))
    for index, item in enumerate(file.auth.keys):
        where: Path = ("server", "auth", "keys", index)
        if item.tenant is None or item.key_env is None:
            note(where, "needs tenant and key_env")
            continue
        if item.tenant.startswith(OVERHEAD_TENANT_PREFIX):
            note(
                (*where, "tenant"),
                f"{item.tenant!r}: names that begin with {OVERHEAD_TENANT_PREFIX} are ours; take another",
            )
            continue
        limits = _limits(item.limits, file.auth.default_limits, (*where, "limits"), file, note)
        secret = secrets.read(item.key_env)
        if secret is None:
            unset.append(item.key_env)
        elif any(secret == key.key for key in keys):
            note((*where, "key_env"), f"the key in {item.key_env} is another tenant's as well; give each its own")
        else:
            keys.append(AuthKey(item.tenant, secret, admin=item.admin, limits=limits))
    loopback = is_loopback(file.host)
    # A key that is named but not set must not open the gateway to everybody.
    wanted = bool(keys or file.auth.keys) or not loopback
    required = file.auth.required if file.auth.required is not None else wanted
    if not loopback and not required:
        note(
            ("server", "auth", "required"),
            f"false, but the gateway listens on {file.host}; set it to true, or listen on 127.0.0.1",
        )
    elif required and not keys:
        unset_text = f" ({', '.join(unset)}: not set)" if unset else ""
        names = " or ".join((API_KEY_ENV, *unset))
        note_unset(
            ("server", "auth", "keys") if unset else ("server", "auth") if file.auth.required else ("server", "host"),
            f"{'a key is required' if loopback else f'{file.host} can be reached from elsewhere'}, but no key is "
            f"configured{unset_text}; export {names} with a long random value, or "
            f"{'set server.auth.required to false' if loopback else 'listen on 127.0.0.1'}",
        )
    if not required:
        _note_limits_of_nobody(file, note)
    return AuthSettings(
        required=required,
        keys=tuple(keys),
        unset_env=tuple(unset),
        default_limits=default,
        metrics_key=_metrics_key(file, keys, secrets, note, note_unset),
    )


def _note_limits_of_nobody(file: ServerFile, note: Note) -> None:
    """Where no key is looked at, a limit of one would bound nobody, and its owner would believe that it does."""
    for index, item in enumerate(file.auth.keys):
        if item.limits.model_fields_set:
            note(
                ("server", "auth", "keys", index, "limits"),
                "would hold for nobody, since server.auth.required is false; set that to true, or use "
                "server.auth.default_limits, which then hold for all callers together",
            )


def _limits(own: LimitsFile, default: LimitsFile, where: Path, file: ServerFile, note: Note) -> LimitTerms:
    """This gateway's part of what a key may use: what stands in `own` (null: no limit), for the rest `default`."""
    parts: dict[str, int | None] = {}
    for limit in Limit:
        given = limit.value in own.model_fields_set
        whole: int | None = getattr(own if given else default, limit.value)
        parts[limit.value] = None if whole is None else whole // file.gateways
        if given and parts[limit.value] == 0:
            note(
                (*where, limit.value),
                f"{whole} cannot be shared by {file.gateways} gateways (server.gateways): nothing would be left for "
                f"each; give at least {file.gateways}",
            )
    return LimitTerms(**parts, gateways=file.gateways)


def _metrics_key(
    file: ServerFile, keys: Sequence[AuthKey], secrets: Secrets, note: Note, note_unset: Note
) -> SecretStr | None:
    name = file.auth.metrics_key_env
    if name is None:
        return None
    where: Path = ("server", "auth", "metrics_key_env")
    secret = secrets.read(name)
    if secret is None:  # a key that is named but not set must not open the metrics to everybody
        note_unset(where, f"{name} is not set; export it, or remove the key to leave /metrics open")
    elif any(secret == key.key for key in keys):
        note(where, f"the key in {name} is a tenant's as well; give the metrics their own")
    return secret


def build_policy(file: PolicyFile) -> PolicySettings:
    """The `policy` section; an explicit target wins over the preset's."""
    target = file.quality_target_ratio
    return PolicySettings(
        preset=file.preset,
        quality_target_ratio=QUALITY_TARGETS[file.preset] if target is None else target,
        quality_floor_ratio=file.quality_floor_ratio,
        max_usd_per_request=file.max_usd_per_request,
        budget_usd_per_day=file.budget_usd_per_day,
        budget_usd_per_month=file.budget_usd_per_month,
        on_saturation=file.on_saturation,
        max_premium_rise_ratio=file.max_premium_rise_ratio,
        exploration_ratio=file.exploration_ratio,
        exploration_budget_usd_per_day=file.exploration_budget_usd_per_day,
    )


def build_learning(file: LearningFile, tiers: TierSettings, note: Note) -> LearningSettings:
    """The `learning` section; the judge must be one of the configured models."""
    local = {name for engine in tiers.engines for name in (engine.model, engine.candidate_name)}
    names = local | {model.name for _, model in tiers.api_models()}
    judge = file.judge.model
    if judge is not None and judge not in names:
        known = ", ".join(sorted(names)) or "none"
        note(("learning", "judge", "model"), f"{judge!r} is no configured model; known here: {known}")
    _check_learning(file, tiers, note)
    return LearningSettings(
        shadow_ratio=file.shadow.ratio,
        shadow_budget_usd_per_day=file.shadow.budget_usd_per_day,
        max_concurrent=file.shadow.max_concurrent,
        judge_model=judge,
        judge_ratio=file.judge.ratio,
        judge_budget_usd_per_day=file.judge.budget_usd_per_day,
        exact_checks=file.exact_checks,
        exclude_tenants=file.exclude_tenants,
    )


def _check_learning(file: LearningFile, tiers: TierSettings, note: Note) -> None:
    """Keys that only make sense together. A ratio that is 0 in so many words switches off whatever else is set."""
    shadow, judge = file.shadow, file.judge
    if shadow.ratio > 0.0:
        if judge.model is None and not file.exact_checks:
            note(
                ("learning", "shadow", "ratio"),
                "shadow runs cost money, and nothing judges their answers; name learning.judge.model, set "
                "learning.exact_checks: true, or set this to 0",
            )
        if shadow.budget_usd_per_day == 0 and not tiers.engines:
            note(
                ("learning", "shadow", "budget_usd_per_day"),
                "0 lets no shadow run happen; give an amount, or set learning.shadow.ratio: 0",
            )
    elif "ratio" not in shadow.model_fields_set:
        set_in_vain = [("shadow", key) for key in ("budget_usd_per_day", "max_concurrent")]
        set_in_vain = [place for place in set_in_vain if place[1] in shadow.model_fields_set and not file.exact_checks]
        if judge.model is not None:
            set_in_vain.append(("judge", "model"))
        for section, key in set_in_vain:
            note(
                ("learning", section, key),
                "does nothing without shadow runs; set learning.shadow.ratio to the share of requests to learn from "
                "(0: none)",
            )
    if judge.model is None:
        for key in ("ratio", "budget_usd_per_day"):
            if key in judge.model_fields_set:
                note(("learning", "judge", key), "does nothing without a judge; name learning.judge.model")
    elif shadow.ratio > 0.0 and judge.ratio > 0.0 and judge.budget_usd_per_day == 0:
        note(
            ("learning", "judge", "budget_usd_per_day"),
            "0 lets nothing be judged; give an amount, or set learning.judge.ratio: 0",
        )


def build_classifier(file: ClassifierFile, data_dir: FilePath) -> ClassifierSettings:
    """The `classifier` section: a word, or the folder of a model (`./auto` for one of that name)."""
    words = {choice.value: choice for choice in ModelChoice if choice is not ModelChoice.FOLDER}
    choice = words.get(file.model, ModelChoice.FOLDER)
    return ClassifierSettings(
        model=choice,
        folder=FilePath(file.model) if choice is ModelChoice.FOLDER else None,
        registry_dir=FilePath(file.registry_dir) if file.registry_dir is not None else data_dir / "models",
        confidence_ratio=file.confidence_ratio,
        max_score_s=file.max_score_s,
    )
