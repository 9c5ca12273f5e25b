"""The caller's wishes to the router itself: `x-router-*` headers, or the same under the body's `router` member."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from decimal import ROUND_FLOOR, Decimal
from typing import Any

from router.core.chat import NO_CONTROLS, RouterControls
from router.core.vocabulary import NANO_PER_USD, Locality
from router.errors import BadRequest

MAX_SESSION_CHARS = 256
MAX_COST_USD = 1_000_000
# Where a request goes and with whose key is never the caller's to say.
CONNECTION_FIELDS = frozenset({"api_base", "base_url", "api_key"})

_PLAIN_NUMBER = re.compile(r"\+?(?:\d{1,30}(?:\.\d{0,30})?|\.\d{1,30})(?:[eE][+-]?\d{1,2})?", re.ASCII)
_BOOLEANS = {"true": True, "false": False}
_LOCALITIES = {"local": Locality.LOCAL_ONLY, "any": Locality.ANY}


def read_controls(headers: Mapping[str, str], member: object) -> RouterControls:
    """Controls from `headers` (lower-case names) and the body's `router` member (`None` where absent).

    Raises `BadRequest` on a value out of range, an unknown member, and where header and body disagree.
    """
    given: dict[str, Any] = {}
    if member is not None:
        _read_member(member, given)
    for name, (header, key, read) in _CONTROLS.items():
        text = headers.get(header)
        if text is None:
            continue
        value = read(text.strip(), header)
        if given.setdefault(key, value) != value:
            raise BadRequest(
                f"header {header} and body member router.{name} differ; send one of them",
                code="conflicting_controls",
                param=header,
            )
    return RouterControls(**given) if given else NO_CONTROLS


def _read_member(member: object, given: dict[str, Any]) -> None:
    if type(member) is not dict:
        raise BadRequest("router must be an object", code="invalid_type", param="router")
    for name, value in member.items():
        control = _CONTROLS.get(name)
        if control is None:
            raise _unknown(name)
        if value is not None:
            _, key, read = control
            given[key] = read(value, f"router.{name}")


def _unknown(name: str) -> BadRequest:
    param = f"router.{name[:100]}"
    if name in CONNECTION_FIELDS:
        return refuse_connection_field(param)
    return BadRequest(f"{param} is not known; there are: {', '.join(_CONTROLS)}", code="unknown_parameter", param=param)


def refuse_connection_field(param: str) -> BadRequest:
    """The refusal of a field that would redirect a call or swap its key."""
    return BadRequest(
        f"{param} cannot be set by a client; remove it: addresses and keys come from the router's own config",
        code="unsupported_parameter",
        param=param,
    )


def _number(value: object, param: str) -> Decimal:
    """A finite decimal, not below 0, without building numbers from absurd exponents."""
    text = repr(value) if type(value) in (int, float) else value
    if not isinstance(text, str) or _PLAIN_NUMBER.fullmatch(text) is None:
        raise BadRequest(f"{param} must be a number, not negative", code="invalid_value", param=param)
    return Decimal(text)


def _quality(value: object, param: str) -> float:
    ratio = _number(value, param)
    if ratio > 1:
        raise BadRequest(f"{param} is {ratio}; it must be from 0 to 1", code="invalid_value", param=param)
    return float(ratio)


def _max_cost(value: object, param: str) -> int:
    usd = _number(value, param)
    if usd > MAX_COST_USD:
        raise BadRequest(f"{param} must be at most {MAX_COST_USD} US dollars", code="invalid_value", param=param)
    return int((usd * NANO_PER_USD).to_integral_value(ROUND_FLOOR))


def _locality(value: object, param: str) -> Locality:
    place = _LOCALITIES.get(value.lower()) if isinstance(value, str) else None
    if place is None:
        raise BadRequest(f"{param} must be `local` or `any`", code="invalid_value", param=param)
    return place


def _session(value: object, param: str) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= MAX_SESSION_CHARS or not value.isprintable():
        raise BadRequest(
            f"{param} must be 1 to {MAX_SESSION_CHARS} printable characters", code="invalid_value", param=param
        )
    return value


def _debug(value: object, param: str) -> bool:
    flag = value if isinstance(value, bool) else _BOOLEANS.get(value.lower()) if isinstance(value, str) else None
    if flag is None:
        raise BadRequest(f"{param} must be true or false", code="invalid_value", param=param)
    return flag


# name in the body -> (header, field of RouterControls, reader of either's value)
_CONTROLS: dict[str, tuple[str, str, Callable[[object, str], Any]]] = {
    "quality": ("x-router-quality", "quality_floor_ratio", _quality),
    "max_cost_usd": ("x-router-max-cost-usd", "max_nanousd", _max_cost),
    "locality": ("x-router-locality", "locality", _locality),
    "session": ("x-router-session", "session", _session),
    "debug": ("x-router-debug", "debug", _debug),
}
