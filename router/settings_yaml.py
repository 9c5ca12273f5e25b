"""YAML and environment to one plain tree that remembers where each value came from.

YAML 1.1 is narrowed to what a config means: only `true` and `false` are booleans (so that the key `on` stays a key),
no dates, no sexagesimal or octal numbers, no merge keys, no tags, no duplicate keys.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import yaml

Path = tuple[str | int, ...]
Problem = tuple[int | None, str, str]

ENV_PREFIX = "ROUTER_"
MAX_CONFIG_BYTES = 1_000_000
_MAX_DEPTH = 30
_MAX_NODES = 20_000
_PLAIN_TAGS = frozenset(f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null", "map", "seq"))


class _Loader(yaml.SafeLoader):
    """SafeLoader with the resolvers below only."""

    yaml_implicit_resolvers: ClassVar[dict[str, list[tuple[str, re.Pattern[str]]]]] = {}  # type: ignore[misc]


for _kind, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", r"[-+]?(?:0|[1-9][0-9_]*)", "-+0123456789"),
    (
        "float",
        r"[-+]?(?:(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)",
        "-+.0123456789",
    ),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(rf"^(?:{_pattern})$"), list(_first))


@dataclass(slots=True)
class Tree:
    """The merged config: `data`, the line of each path in the file, the variable of each path from the environment."""

    data: dict[str, Any] = field(default_factory=dict)
    lines: dict[Path, int] = field(default_factory=dict)
    env: dict[Path, str] = field(default_factory=dict)
    ignored_env: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def problem(self, path: Path, text: str) -> Problem:
        """A mistake at `path`, located as closely as is known: the variable, the line, or the parent's line."""
        for end in range(len(path), -1, -1):
            if path[:end] in self.env:
                variable = self.env[path[:end]]
                return in_environment(variable, text if end == len(path) else f"{show_path(path)}: {text}")
            if path[:end] in self.lines:
                return self.lines[path[:end]], show_path(path), text
        return None, show_path(path), text


def in_environment(variable: str, text: str) -> Problem:
    """A mistake in an environment variable."""
    return None, f"{variable} (environment)", text


def show_path(path: Path) -> str:
    """`tiers.premium.models[0].model`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text or "(file)"


def read_yaml(text: str) -> Tree:
    """Parse a config file. Mistakes of form are in `problems`; what could be read is in `data` all the same."""
    tree = Tree()
    try:
        node = _Loader(text).get_single_node()
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        tree.problems.append((line, "(file)", f"holds the character {chr(error.character)!r}; remove it"))
        return tree
    except yaml.YAMLError as error:
        tree.problems.append(_syntax_problem(error))
        return tree
    except RecursionError:
        tree.problems.append((1, "(file)", f"is nested deeper than {_MAX_DEPTH} levels; a config needs five"))
        return tree
    if node is None:
        return tree
    tree.lines[()] = node.start_mark.line + 1
    if not isinstance(node, yaml.MappingNode):
        tree.problems.append(
            (tree.lines[()], "(file)", "should be a mapping with the keys server, timeouts, tiers, policy")
        )
        return tree
    tree.data = _Reader(tree).read(node, ())
    return tree


def _syntax_problem(error: yaml.YAMLError) -> Problem:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    what = getattr(error, "problem", None) or "cannot be read"
    line = mark.line + 1 if mark is not None else None
    return line, "(file)", f"is not valid YAML: {what}; check quotes, colons and indentation around this line"


class _Reader:
    """Nodes to plain values, noting lines. Stops early on trees that only an attacker would write."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._constructor = yaml.constructor.SafeConstructor()
        self._nodes = 0
        self._open: set[int] = set()

    def read(self, node: yaml.Node, path: Path) -> Any:
        self._tree.lines.setdefault(path, node.start_mark.line + 1)
        self._nodes += 1
        if self._nodes > _MAX_NODES:
            if self._nodes == _MAX_NODES + 1:
                self._note(node, path, f"is part of a config of more than {_MAX_NODES} values; that is no config")
            return None
        if node.tag not in _PLAIN_TAGS:
            tag = node.tag.removeprefix("tag:yaml.org,2002:")
            self._note(node, path, f"has the tag {tag!r}; write a plain value without one")
            return None
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)
        if id(node) in self._open or len(path) > _MAX_DEPTH:
            self._note(node, path, "is an alias of its own parent, or nested too deep; write it out")
            return None
        self._open.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode):
                return self._mapping(node, path)
            return [self.read(item, (*path, index)) for index, item in enumerate(node.value)]
        finally:
            self._open.discard(id(node))

    def _mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        data: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self._note(key_node, path, "a key should be a plain word")
                continue
            key = str(key_node.value)
            child = (*path, key)
            if key in data:
                first = self._tree.lines[child]
                self._note(key_node, child, f"stands twice (first in line {first}); keep one of them")
                continue
            self._tree.lines[child] = key_node.start_mark.line + 1
            data[key] = self.read(value_node, child)
        return data

    def _scalar(self, node: yaml.Node, path: Path) -> Any:
        try:
            return self._constructor.construct_object(node)
        except (yaml.YAMLError, ValueError):
            self._note(node, path, f"cannot be read as {node.tag.rsplit(':', 1)[-1]}")
            return None

    def _note(self, node: yaml.Node, path: Path, text: str) -> None:
        self._tree.problems.append((node.start_mark.line + 1, show_path(path), text))


def overlay_environment(
    tree: Tree, environ: Mapping[str, str], *, sections: Collection[str], reserved: Collection[str]
) -> None:
    """Lay `ROUTER_SECTION__KEY=value` over the file; values are read like YAML scalars or flow collections.

    A name without `__` that is no section is not ours: Kubernetes sets ROUTER_PORT=tcp://… for a Service called
    `router`. Those are noted in `ignored_env`. Empty values count as not set.
    """
    for name in sorted(environ):
        if not name.startswith(ENV_PREFIX) or name in reserved or not environ[name].strip():
            continue
        parts = name[len(ENV_PREFIX) :].lower().split("__")
        if len(parts) == 1 and parts[0] not in sections:
            tree.ignored_env.append(name)
            continue
        if not all(parts):
            tree.problems.append(in_environment(name, f"has an empty part; write {ENV_PREFIX}SECTION__KEY"))
            continue
        _put(tree, name, parts, _env_value(environ[name]))


def _put(tree: Tree, name: str, parts: list[str], value: Any) -> None:
    node: Any = tree.data
    path: Path = ()
    for part in parts[:-1]:
        step: str | int = int(part) if isinstance(node, list) and part.isdecimal() else part
        path = (*path, step)
        if isinstance(node, list):
            if not isinstance(step, int) or step >= len(node):
                tree.problems.append(
                    in_environment(name, f"{show_path(path)} is not an item of the list; lists count from 0")
                )
                return
        elif node.get(step) is None:
            node[step] = {}
        node = node[step]
        if not isinstance(node, dict | list):
            tree.problems.append(
                in_environment(name, f"{show_path(path)} is a single value in the file, not a section")
            )
            return
    last: str | int = parts[-1]
    if isinstance(node, list):
        if not parts[-1].isdecimal() or int(parts[-1]) >= len(node):
            tree.problems.append(
                in_environment(name, f"{show_path(path)} is a list; give an item of it, counted from 0")
            )
            return
        last = int(parts[-1])
    node[last] = value
    tree.env[(*path, last)] = name


def _env_value(text: str) -> Any:
    text = text.strip()
    tree = Tree()
    try:
        node = _Loader(text).get_single_node()
    except (yaml.YAMLError, RecursionError):
        return text
    plain_text = isinstance(node, yaml.CollectionNode) and text[0] not in "{["
    value = text if node is None or plain_text else _Reader(tree).read(node, ())
    return text if tree.problems else value
