"""`docs/configuration.md`, made from the schema, so that it cannot be out of date.

python -m router.commands.config_docs            writes the page to stdout
python -m router.commands.config_docs --check F  exits 1 when F differs
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from local_llm.coefficients import PRESETS
from router.settings import NOT_ACTED_ON
from router.settings_fields import Section
from router.settings_hosts import PROVIDERS
from router.settings_schema import ConfigFile

_HEAD = """# Configuration

<!-- Made by `python -m router.commands.config_docs`; do not edit. -->

One YAML file: `--config F`, else `./router.yaml`, else the one that comes with the package. An unknown key is an error.
`hybrid-llm-router check-config F` says every mistake at once, with its line and cure.

Every key can also be given as an environment variable, which wins over the file: `ROUTER_` and the path in capitals,
its parts joined by two underscores, such as `ROUTER_SERVER__PORT=9000` or `ROUTER_POLICY__PRESET=cheap`. A list is
written in YAML: `ROUTER_TIERS__PREMIUM__MODELS='[{model: openai/gpt-6.1-sol}]'`.

Secrets never stand in the file. A key ending in `_env` names the environment variable that holds the secret; where
`NAME` is not set, `NAME_FILE` may name a file with it. The gateway's own key is `ROUTER_API_KEY` (or
`ROUTER_API_KEY_FILE`). A model whose key is not set is unavailable, which is an error only when no tier can answer.
"""


_REPEATS = ("models", "engines", "premium", "limits")
"""Sections whose keys stand in the table already."""


def render() -> str:
    """The whole page."""
    lines = [_HEAD]
    for name, field in ConfigFile.model_fields.items():
        lines += [
            f"## `{name}`",
            "",
            f"{_sentence(field)}",
            "",
            "| key | value | default | meaning |",
            "|---|---|---|---|",
        ]
        lines += [_line(path, sub) for path, sub in _leaves(name, field)]
        lines.append("")
    lines += [
        "## Providers",
        "",
        "A model is written `provider/model`. The keys below are read when `api_key_env` is not given",
    ]
    lines += ["(never for a model with its own `api_base`).", "", "| provider | key | address |", "|---|---|---|"]
    lines += [
        f"| `{name}` | `{host.key_env}` | {host.api_base or 'through litellm'} |"
        for name, host in sorted(PROVIDERS.items())
    ]
    lines += [
        "",
        "## Coefficient presets",
        "",
        "| name | t0_s | c_seq_s | c_kv_s | c_prefill_s | c_att_s |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| `{c.name}` | {c.t0_s:.3g} | {c.c_seq_s:.3g} | {c.c_kv_s:.3g} | {c.c_prefill_s:.3g} | {c.c_att_s:.3g} |"
        for c in PRESETS.values()
    ]
    if NOT_ACTED_ON:
        lines += ["", "## Accepted, not acted on yet", ""]
        lines += [f"- `{'.'.join(map(str, path))}`: {text}" for path, text in NOT_ACTED_ON.items()]
    return "\n".join(lines) + "\n"


def _leaves(path: str, field: FieldInfo) -> Iterator[tuple[str, FieldInfo]]:
    sections = list(_sections(field.annotation))
    if not sections:
        yield path, field
        return
    listed = any(get_origin(part) is tuple for part in _parts(field.annotation))
    if path.count(".") and (listed or len(sections) > 1 or _has_plain_form(field)):
        yield path, field
    for section in sections:
        at = f"{path}[]" if listed else path
        if len(sections) > 1:
            at = f"{at} (kind: {section.model_fields['kind'].default})"
        for name, sub in section.model_fields.items():
            if name in _REPEATS:
                yield f"{at}.{name}", sub
            elif name != "kind":
                yield from _leaves(f"{at}.{name}", sub)


def _has_plain_form(field: FieldInfo) -> bool:
    return any(part is str for part in _parts(field.annotation))


def _parts(annotation: Any) -> Iterator[Any]:
    yield annotation
    if get_origin(annotation) is tuple:
        yield tuple
    for argument in get_args(annotation):
        yield from _parts(argument)


def _sections(annotation: Any) -> Iterator[type[Section]]:
    for part in _parts(annotation):
        if isinstance(part, type) and not get_args(part) and issubclass(part, Section):
            yield part


def _line(path: str, field: FieldInfo) -> str:
    meaning = (field.description or "").replace("|", "\\|")
    return f"| `{path}` | {_kind(field)} | {_default(field)} | {meaning} |"


def _kind(field: FieldInfo) -> str:
    parts = list(_parts(field.annotation))
    choices = [str(choice) for part in parts if get_origin(part) is Literal for choice in get_args(part)]
    if choices:
        return " \\| ".join(f"`{choice}`" for choice in dict.fromkeys(choices))
    if any(get_origin(part) is tuple for part in parts):
        return "list"
    if list(_sections(field.annotation)):
        return "name or section" if _has_plain_form(field) else "section"
    names = {"str": "text", "int": "whole number", "float": "number", "Decimal": "number", "bool": "`true` \\| `false`"}
    kind = next((names[part.__name__] for part in parts if isinstance(part, type) and part.__name__ in names), "text")
    return kind + _bounds([*field.metadata, *(item for part in parts for item in getattr(part, "__metadata__", ()))])


def _bounds(metadata: list[Any]) -> str:
    found = []
    for item in metadata:
        items = item.metadata if isinstance(item, FieldInfo) else [item]
        found += [bound for bound in items if isinstance(bound, Ge | Gt | Le)]
    low = next((f"≥ {b.ge}" if isinstance(b, Ge) else f"> {b.gt}" for b in found if isinstance(b, Ge | Gt)), "")
    high = next((f"≤ {b.le}" for b in found if isinstance(b, Le)), "")
    text = ", ".join(part for part in (low, high) if part)
    return f" {text}" if text else ""


def _default(field: FieldInfo) -> str:
    value = field.default
    if value is None or value is PydanticUndefined or isinstance(value, Section):
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return "`[]`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def _sentence(field: FieldInfo) -> str:
    text = field.description or ""
    return f"{text[:1].upper()}{text[1:]}."


def main(arguments: list[str]) -> int:
    """Write the page, or compare it with a file."""
    page = render()
    if arguments[:1] != ["--check"]:
        sys.stdout.write(page)
        return 0
    file = Path(arguments[1])
    if file.is_file() and file.read_text(encoding="utf-8") == page:
        return 0
    sys.stderr.write(f"{file} is out of date: python -m router.commands.config_docs > {file}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
