"""One row of a labels file, and of what `classify` reads: checked, and turned into features. No numpy.

A row is one line of JSON: `request_id`, `source`, `messages`, `outcomes` (tier -> quality 0..1 of the tiers that were
judged); optional `domain`, `models`, `output_tokens`, `weight`, `received_at`, `label_source`, `conversation`, and for
logs of a running gateway `taken_tier`, `exploration_probability` (of the tier that was taken), `label_probability`,
`observation_probability` (tier -> probability), `selection_probability` (that such a request is in the file).
"""

from __future__ import annotations

import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from classifier.datamodels import LabelledExample, RequestFeatures
from classifier.features import features

_OPTIONS = re.compile(r"\n[A-P][.)] .*", re.DOTALL)
_NOT_WORD = re.compile(r"[\W_]+")
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_CHARS_PER_TOKEN = 4
_GZIP = b"\x1f\x8b"
_MAX_TIER_CHARS = 200
_LEAST_PROBABILITY = 1e-9  # what is less likely was never seen
_MAX_COUNT = 1_000_000_000  # of tokens; what is more is no count


@contextmanager
def text_of(path: Path, *, newline: str | None = None, errors: str = "surrogateescape") -> Iterator[TextIO]:
    """A file or pipe as text, unpacked if it is gzip's, whatever its name."""
    with path.open("rb") as raw:
        packed = raw.peek(len(_GZIP))[: len(_GZIP)] == _GZIP
        with (
            gzip.GzipFile(fileobj=raw) if packed else nullcontext(raw) as stream,
            io.TextIOWrapper(stream, encoding="utf-8-sig", errors=errors, newline=newline) as text,
        ):
            yield text


def open_text(path: Path) -> Iterator[str]:
    """Lines of a file. Bytes that are no UTF-8 come as lone surrogates.

    Raises OSError where the file cannot be read to its end: damaged or cut short.
    """
    try:
        with text_of(path) as file:
            yield from file
    except (EOFError, zlib.error) as error:
        raise OSError(f"{path.name}: damaged or cut short: {error}") from error


def row_of(line: str) -> dict[str, Any]:
    """The JSON object in a line; raises ValueError (or RecursionError) where there is none."""
    if not line.isascii() and _LONE_SURROGATE.search(line):  # a valid file has them only as \u escapes
        raise ValueError("the line is not UTF-8")
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at character {error.pos + 1}") from error
    if not isinstance(row, dict):
        raise ValueError("not a JSON object")
    return row


def request_features(row: Mapping[str, Any]) -> RequestFeatures:
    """Features of a row, counted as the gateway counts them. Raises ValueError without a list of messages."""
    messages = row.get("messages")
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        raise ValueError("`messages` is not a list of messages")
    texts = [_content(m.get("content")) for m in messages]
    roles = [m.get("role") for m in messages]
    users = [t for t, role in zip(texts, roles, strict=True) if role == "user"]
    known_tokens = _count(row.get("input_tokens"))
    response_format = row.get("response_format")
    return features(
        texts=texts,
        system_text="\n".join(t for t, role in zip(texts, roles, strict=True) if role in ("system", "developer")),
        last_user_text=users[-1] if users else "",
        turns=len(users),
        input_tokens=known_tokens if known_tokens is not None else sum(map(len, texts)) // _CHARS_PER_TOKEN,
        input_tokens_estimated=known_tokens is None,
        has_tools=bool(row.get("tools")),
        has_images=any(_has_image(m.get("content")) for m in messages),
        wants_json=isinstance(response_format, dict) and response_format.get("type") in ("json_object", "json_schema"),
        max_output_tokens=_count(row.get("max_tokens")),
    )


def _count(value: Any) -> int | None:
    """A number of tokens as it was given; `None` for anything else."""
    is_count = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MAX_COUNT
    return value if is_count else None


def _content(content: Any) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "\n".join(str(p["text"]) for p in content if isinstance(p, dict) and isinstance(p.get("text"), str))
    return ""


def _has_image(content: Any) -> bool:
    return isinstance(content, list) and any(isinstance(p, dict) and p.get("type") == "image_url" for p in content)


def stem(text: str) -> str:
    """What a question asks, whatever its answer options, case and punctuation."""
    asked = _NOT_WORD.sub(" ", _OPTIONS.sub("", text).lower()).strip()
    return asked or text.strip()


def parse_row(row: Any) -> LabelledExample:
    """A checked row; raises ValueError with what is wrong."""
    if not isinstance(row, dict):
        raise ValueError("not a JSON object")
    outcomes = row.get("outcomes")
    if not isinstance(outcomes, dict) or not outcomes:
        raise ValueError("`outcomes` names no tier")
    for tier, quality in outcomes.items():
        if not tier.strip() or len(tier) > _MAX_TIER_CHARS or not tier.isprintable():
            raise ValueError(f"`outcomes` holds a tier whose name is empty, too long or not printable: {tier[:40]!r}")
        if isinstance(quality, bool) or not isinstance(quality, int | float) or not 0.0 <= quality <= 1.0:
            raise ValueError(f"`outcomes.{tier}` is not a number from 0 to 1")
    weight = row.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0.0 < weight <= 1e6:
        raise ValueError("`weight` is not a positive number")
    scored = request_features(row)
    received, selection = row.get("received_at"), row.get("selection_probability")
    return LabelledExample(
        request_id=str(row.get("request_id", "")),
        source=str(row.get("source") or "log"),
        features=scored,
        outcomes={str(t): float(q) for t, q in outcomes.items()},
        domain=str(row.get("domain") or ""),
        models=models_of(row),
        output_tokens={t: _tokens(n, t) for t, n in _by_tier(row, "output_tokens").items() if n is not None},
        weight=float(weight),
        received_at_utc=_instant(received) if received else None,
        label_source=str(row.get("label_source") or ""),
        taken_tier=_taken(row),
        observation_probability=_observation(row, outcomes),
        conversation=str(row.get("conversation") or ""),
        stem=stem(scored.text),
        selection_probability=_probability(selection, "selection_probability") if selection is not None else None,
    )


def models_of(row: Mapping[str, Any]) -> dict[str, str]:
    """The models behind the tiers, as far as a row names them. Raises ValueError."""
    return {tier: str(model) for tier, model in _by_tier(row, "models").items()}


def _by_tier(row: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = row.get(name) or {}
    if not isinstance(value, dict):
        raise ValueError(f"`{name}` is not an object with a value for each tier")
    return value


def _taken(row: Mapping[str, Any]) -> str | None:
    taken = row.get("taken_tier")
    if taken is not None and not isinstance(taken, str):
        raise ValueError("`taken_tier` is not the name of a tier")
    return taken


def _tokens(value: Any, tier: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _MAX_COUNT:
        raise ValueError(f"`output_tokens.{tier}` is not a number of tokens")
    return float(value)


def _instant(text: Any) -> datetime:
    try:
        at = datetime.fromisoformat(str(text))
    except ValueError as error:
        raise ValueError(f"`received_at` is no time: {str(text)[:40]!r}; write 2026-11-01T12:00:00Z") from error
    return at.astimezone(UTC) if at.tzinfo else at.replace(tzinfo=UTC)


def _observation(row: Mapping[str, Any], outcomes: Mapping[str, Any]) -> Mapping[str, float] | None:
    """P(outcome observed) per tier, from what the log says; `None` where it says nothing."""
    given = row.get("observation_probability")
    if isinstance(given, dict):
        return {str(t): _probability(p, "observation_probability") for t, p in given.items()}
    action = row.get("exploration_probability")
    if action is None:
        return None
    label = _probability(row.get("label_probability", 1.0), "label_probability")
    taken = _taken(row) or (next(iter(outcomes)) if len(outcomes) == 1 else None)
    if taken is None:
        raise ValueError("`exploration_probability` without `taken_tier` in a row with several outcomes")
    return {str(taken): _probability(action, "exploration_probability") * label}


def _probability(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not _LEAST_PROBABILITY <= value <= 1.0:
        raise ValueError(f"`{name}` is not in (0, 1]")
    return float(value)
