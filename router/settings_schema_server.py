"""The `server` section as it stands in a file: the process, who may use it, and how much. See `settings_schema`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from router.settings_fields import Count, EnvName, Number, Seconds, Section, Text


class LimitsFile(Section):
    """What one key may use."""

    requests_per_min: Count | None = Field(
        None, description="requests that a key may make in any minute; default: no limit. Beyond it: 429, Retry-After"
    )
    requests_per_hour: Count | None = Field(None, description="the same in any hour; default: no limit")
    tokens_per_min: Count | None = Field(
        None,
        description=(
            "tokens, prompts and answers together, that a key may use in any minute; reserved by estimate when a "
            "request comes in and set right when it has ended; default: no limit"
        ),
    )
    concurrency_max: Count | None = Field(
        None, description="requests that a key may have under way at once; default: no limit"
    )


class AuthKeyFile(Section):
    """One key that clients may use."""

    tenant: Text | None = Field(None, description="name of whoever holds the key, as it stands in the books; required")
    key_env: EnvName | None = Field(
        None, description="environment variable that holds the key (or NAME_FILE: a file with it); required"
    )
    admin: bool = Field(False, description="may see the usage of all tenants")
    limits: LimitsFile = Field(
        LimitsFile(),
        description=(
            "what this key may use, with the keys of default_limits; what is not given here is as there, and null is "
            "no limit"
        ),
    )


class AuthFile(Section):
    """Who may use the gateway."""

    required: bool | None = Field(
        None,
        description=(
            "true: every request needs a key; false: any key sent is ignored. Default: true as soon as a key is "
            "configured (ROUTER_API_KEY or auth.keys, set or not), else false, which is allowed on loopback only"
        ),
    )
    keys: tuple[AuthKeyFile, ...] = Field(
        (), description="further keys, one a tenant: [{tenant, key_env, admin, limits}]; ROUTER_API_KEY is the admin's"
    )
    default_limits: LimitsFile = Field(
        LimitsFile(),
        description=(
            "what each key may use that does not say otherwise, ROUTER_API_KEY included; where no key is asked for, "
            "what all callers together may use"
        ),
    )
    metrics_key_env: EnvName | None = Field(
        None,
        description=(
            "environment variable that holds the key /metrics asks for (an admin's key will do as well); default: "
            "/metrics is open to whoever can reach the port, and shows what each tenant spends"
        ),
    )


class ServerFile(Section):
    """The gateway's own process."""

    host: Text = Field("127.0.0.1", description="address to listen on; anything but loopback requires a key")
    port: Annotated[int, Number, Field(ge=0, le=65_535)] = Field(
        8080, description="port to listen on, 0..65535; 0 takes any free one"
    )
    database_url: Text | None = Field(
        None,
        description=(
            "where the books are kept: sqlite:///PATH or postgresql://HOST/NAME; default router.db in data_dir. "
            "A URL with a password belongs into the environment: see database_url_env"
        ),
    )
    database_url_env: EnvName | None = Field(
        None, description="environment variable that holds the database URL, for a URL with a password"
    )
    data_dir: Text = Field("./data", description="folder of everything the gateway writes")
    max_body_bytes: Annotated[int, Number, Field(ge=1_024, le=1_000_000_000)] = Field(
        20_000_000, description="largest request body in bytes, as sent and as unpacked"
    )
    body_timeout_s: Seconds = Field(10.0, description="seconds in which a request body must have arrived")
    drain_grace_s: Annotated[float, Number, Field(ge=0, le=3_600)] = Field(
        30.0, description="seconds that running requests get to finish after SIGTERM"
    )
    gateways: Annotated[int, Number, Field(ge=1, le=1_000)] = Field(
        1,
        description=(
            "gateways that the callers are spread over: each gives out that part of every key's limits (rounded down), "
            "so that all together never give out more than the whole"
        ),
    )
    store_prompts: bool = Field(
        False, description="keep prompts in the records, so that they can be learnt from; without it only their sha256"
    )
    auth: AuthFile = Field(AuthFile(), description="who may use the gateway")
