"""`x-router-…` headers of an answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from router.core.decision import Alternative
from router.core.vocabulary import NANO_PER_USD
from router.delivery import AnswerMeta

Headers = list[tuple[bytes, bytes]]

_JSON = (b"content-type", b"application/json")
_SSE = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # a proxy that buffers would hold tokens back
)


def usd_text(nanousd: int) -> str:
    """Nano-dollars as an exact decimal number of dollars without trailing zeros: 89600 -> `0.0000896`."""
    sign = "-" if nanousd < 0 else ""
    whole, rest = divmod(abs(nanousd), NANO_PER_USD)
    return f"{sign}{whole}.{rest:09d}".rstrip("0").rstrip(".") if rest else f"{sign}{whole}"


def answer_headers(meta: AnswerMeta, *, stream: bool, debug: bool, cache: bytes = b"off") -> Headers:
    """Headers of an answer; with `debug` also what the decision weighed, as one line of JSON."""
    headers: Headers = [
        *(_SSE if stream else (_JSON,)),
        (b"x-request-id", meta.request_id.encode()),
        (b"x-router-tier", meta.tier.encode()),
        (b"x-router-model", header_text(meta.model)),
        (b"x-router-reason", meta.reason.encode()),
        (b"x-router-cost-usd", usd_text(meta.cost_nanousd).encode()),
        (b"x-router-cost-basis", b"observed" if meta.cost_observed else b"estimated"),
        (b"x-router-attempts", b"%d" % meta.attempts),
        (b"x-router-cache", cache),
        (b"x-router-overhead-ms", b"%.3f" % (meta.overhead_s * 1e3)),
    ]
    if debug:
        headers.append((b"x-router-decision", _decision_line(meta)))
    return headers


def header_text(text: str) -> bytes:
    """A name as a header may carry it: printable ASCII, everything else escaped."""
    return text.encode("ascii", "backslashreplace").replace(b"\r", b" ").replace(b"\n", b" ")


def _decision_line(meta: AnswerMeta) -> bytes:
    decision = meta.decision
    line = msgspec.json.encode(
        {
            "inputs_hash": decision.inputs_hash,
            "flags": [flag.value for flag in decision.flags],
            "novelty_ratio": decision.score.novelty_ratio if decision.score is not None else None,
            "scorer": decision.score.model_version if decision.score is not None else None,
            "alternatives": alternatives_shown(decision.alternatives),
        }
    )
    return header_text(line.decode())


def alternatives_shown(alternatives: Sequence[Alternative]) -> list[dict[str, Any]]:
    """The alternatives of a decision as people and programs read them."""
    return [
        {
            "name": alt.name,
            "tier": alt.tier.value,
            "reasons_against": [reason.value for reason in alt.reasons],
            "p_adequate": alt.p_adequate,
            "expected_cost_usd": alt.expected_cost_usd,
            "marginal_cost_usd": alt.marginal_cost_usd,
            "standard_cost_usd": alt.standard_cost_usd,
            "objective_usd": alt.objective_usd,
            "tightness": alt.tightness,
            "predicted_ttft_s": alt.ttft_s,
            "predicted_tpot_s": alt.tpot_s,
        }
        for alt in alternatives
    ]
