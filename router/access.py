"""Who may use a gateway, and how much: its keys with their limits, from the settings. Made once for each gateway."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from router.api.auth import ANYBODY, DEFAULT_TENANT, Authenticator, Caller
from router.core.limits import KeyLimiter, LimitTerms
from router.core.vocabulary import Limit
from router.settings_types import AuthSettings
from router.telemetry import PrometheusTelemetry


@dataclass(frozen=True, slots=True)
class Access:
    """`limiters` are those of the keys that have limits, each with its tenant."""

    settings: AuthSettings
    authenticator: Authenticator
    limiters: tuple[tuple[str, KeyLimiter], ...]

    def used_ratios(self) -> Mapping[tuple[str, ...], float]:
        """How much of each limit is in use, 0..1, by (tenant, limit); of a tenant's several keys the fullest."""
        ratios: dict[tuple[str, ...], float] = {}
        for tenant, limiter in self.limiters:
            for standing in limiter.standings():
                at = (tenant, standing.limit.value)
                ratios[at] = max(ratios.get(at, 0.0), (standing.most - standing.left) / standing.most)
        return ratios

    def shown(self) -> dict[str, Any]:
        """For readiness: whether a key is asked for, and which of the configured ones the environment lacks."""
        return {"key_required": self.settings.required, "keys_unset": list(self.unset_env)}

    @property
    def unset_env(self) -> tuple[str, ...]:
        """Variables of keys that are configured and asked for, but not set: who holds such a key cannot enter."""
        return self.settings.unset_env if self.settings.required else ()


def access_of(auth: AuthSettings, telemetry: PrometheusTelemetry, now_s: Callable[[], float]) -> Access:
    """The callers behind the configured keys. `now_s` is the monotonic clock that limits are counted by."""
    limiters: list[tuple[str, KeyLimiter]] = []

    def limiter_of(tenant: str, terms: LimitTerms) -> KeyLimiter | None:
        if not terms.any():
            return None

        def refused(limit: Limit) -> None:
            telemetry.limit_refused(tenant, limit)

        limiter = KeyLimiter(terms, now_s=now_s, on_refused=refused)
        limiters.append((tenant, limiter))
        return limiter

    anybody = ANYBODY
    keys: list[tuple[str, Caller]] = []
    if auth.required:
        for key in auth.keys:
            caller = Caller(key.tenant, key.admin, limiter_of(key.tenant, key.limits))
            keys.append((key.key.get_secret_value(), caller))
    else:
        anybody = Caller(DEFAULT_TENANT, admin=True, limiter=limiter_of(DEFAULT_TENANT, auth.default_limits))
        keys = [(key.key.get_secret_value(), Caller(key.tenant, key.admin)) for key in auth.keys]
    metrics_key = None if auth.metrics_key is None else auth.metrics_key.get_secret_value()
    authenticator = Authenticator.from_keys(required=auth.required, keys=keys, anybody=anybody, metrics_key=metrics_key)
    return Access(auth, authenticator, tuple(limiters))
