"""YAML and environment to checked, frozen `Settings`; every mistake in one report.

Two stages: the file's own shape (`settings_schema`, where keys may be unset), then the shape the product works with
(`settings_types`, where nothing is). Environment variables `ROUTER_SECTION__KEY` win over the file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import resources
from pathlib import Path as FilePath
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from router.errors import ConfigError
from router.settings_build import API_KEY_ENV, build_classifier, build_learning, build_policy, build_server
from router.settings_checks import Secrets, did_you_mean
from router.settings_fields import Section
from router.settings_schema import ConfigFile
from router.settings_tiers import build_tiers
from router.settings_types import (
    QUALITY_TARGETS,
    ApiModel,
    AuthKey,
    AuthSettings,
    ClassifierSettings,
    Engine,
    Hardware,
    LaunchSettings,
    LearningSettings,
    LocalSettings,
    ModelChoice,
    PolicySettings,
    PriceOverride,
    RentedHardware,
    ServerSettings,
    Settings,
    TierSettings,
    TimeoutSettings,
    Wire,
)
from router.settings_yaml import (
    MAX_CONFIG_BYTES,
    Path,
    Problem,
    Tree,
    in_environment,
    overlay_environment,
    read_yaml,
    show_path,
)

__all__ = [
    "NOT_ACTED_ON",
    "QUALITY_TARGETS",
    "ApiModel",
    "AuthKey",
    "AuthSettings",
    "ClassifierSettings",
    "Engine",
    "Hardware",
    "LaunchSettings",
    "LearningSettings",
    "LocalSettings",
    "ModelChoice",
    "PolicySettings",
    "PriceOverride",
    "RentedHardware",
    "ServerSettings",
    "Settings",
    "TierSettings",
    "TimeoutSettings",
    "Wire",
    "find_config",
    "load_settings",
    "parse_settings",
]

NOT_ACTED_ON: Mapping[Path, str] = {}
"""Keys that are accepted and do nothing in this release, with what happens instead."""

SHIPPED_SOURCE = "shipped default"
_SECTIONS = tuple(ConfigFile.model_fields)
_RESERVED_ENV = frozenset({API_KEY_ENV, f"{API_KEY_ENV}_FILE"})
_ROUNDS = 8
_WORDS = (
    (r"a valid tuple", "a list"),
    (r"a valid dictionary or (?:object to extract fields from|instance of \w+)", "a section with keys of its own"),
)
"""What pydantic calls a thing, and what a writer of YAML calls it."""


def find_config(config: FilePath | None, directory: FilePath) -> FilePath | None:
    """The file to read: the one that was named, else `router.yaml` in `directory`, else `None` (shipped default)."""
    if config is not None:
        return config
    local = directory / "router.yaml"
    return local if local.is_file() else None


FurtherCheck = Callable[[TierSettings], Iterable[tuple[ApiModel, str]]]
"""What is wrong with which model, for checks that need more than the file."""


def load_settings(
    config: FilePath | None = None,
    environ: Mapping[str, str] | None = None,
    *,
    further: FurtherCheck | None = None,
    serving: bool = True,
) -> Settings:
    """Settings from `config` (else `./router.yaml`, else the shipped default) and `environ` (default: the process's).

    Raises `ConfigError` with every mistake at once, those that `further` finds included. `serving=False` is for
    commands that only read: they need no key of anybody's, and whoever runs them may not have one.
    """
    environ = os.environ if environ is None else environ
    path = find_config(config, FilePath())
    if path is None:
        text = resources.files("router").joinpath("shipped/router.yaml").read_text(encoding="utf-8")
        return parse_settings(text, environ, source=SHIPPED_SOURCE, further=further, serving=serving)
    return parse_settings(_read(path), environ, source=str(path), further=further, serving=serving)


def parse_settings(
    text: str,
    environ: Mapping[str, str],
    *,
    source: str = "config",
    further: FurtherCheck | None = None,
    serving: bool = True,
) -> Settings:
    """Settings from the text of a file and an environment. Raises `ConfigError` as `load_settings` does."""
    tree = read_yaml(text)
    overlay_environment(tree, environ, sections=_SECTIONS, reserved=_RESERVED_ENV)
    problems: list[Problem] = list(tree.problems)
    if problems and not tree.data:
        raise ConfigError(problems, source)
    file, refused = _file_shape(tree, problems)

    def note(path: Path, what: str) -> None:
        # A value refused above was left out, so whatever is missing there now is not a second mistake.
        if not any(bad[: len(path)] == path or path[: len(bad)] == bad for bad in refused):
            problems.append(tree.problem(path, what))

    def note_unset(path: Path, what: str) -> None:
        if serving:
            note(path, what)

    secrets = Secrets(environ, lambda variable, what: problems.append(in_environment(variable, what)))
    url_path: Path = ("server", "database_url")
    url_from_file = url_path in tree.lines and url_path not in tree.env
    server = build_server(file.server, secrets, note, note_unset, url_from_file=url_from_file)
    tiers = build_tiers(file.tiers, secrets, note, note_unset)
    policy = build_policy(file.policy)
    learning = build_learning(file.learning, tiers, note)
    for model, what in further(tiers) if further is not None else ():
        place = _path_of(tree, model.path)
        # A mistake in the model's own section may be why it looks wrong here.
        if not any(bad[: len(place) - 1] == place[:-1] for bad in refused):
            problems.append(tree.problem(place, what))
    if problems:
        unique = dict.fromkeys(problems)
        raise ConfigError(sorted(unique, key=lambda problem: (problem[0] is None, problem[0] or 0)), source)
    return Settings(
        source=source,
        server=server,
        timeouts=TimeoutSettings(**file.timeouts.model_dump()),
        tiers=tiers,
        policy=policy,
        learning=learning,
        classifier=build_classifier(file.classifier, server.data_dir),
        not_acted_on=tuple(show_path(path) for path in NOT_ACTED_ON if _asks_for(file, path)),
        ignored_env=tuple(tree.ignored_env),
        places={model.path: _place(tree, model.path) for _, model in tiers.api_models()},
    )


def _place(tree: Tree, shown: str) -> tuple[int | None, str]:
    line, name, _ = tree.problem(_path_of(tree, shown), "")
    return line, name


def _path_of(tree: Tree, shown: str) -> Path:
    return next((path for path in (*tree.env, *tree.lines) if show_path(path) == shown), ())


def _read(path: FilePath) -> str:
    try:
        with path.open("rb") as stream:
            raw = stream.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise ConfigError([(None, "(file)", f"cannot be read: {error.strerror}")], str(path)) from error
    if len(raw) > MAX_CONFIG_BYTES:
        raise ConfigError([(None, "(file)", f"is larger than {MAX_CONFIG_BYTES} bytes; that is no config")], str(path))
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError([(line, "(file)", "is not UTF-8; save it as UTF-8")], str(path)) from error


def _file_shape(tree: Tree, problems: list[Problem]) -> tuple[ConfigFile, list[Path]]:
    """The file's shape, and the paths whose values were refused and left out so that all the rest can be checked."""
    refused: list[Path] = []
    for _ in range(_ROUNDS):
        try:
            return ConfigFile.model_validate(tree.data), refused
        except ValidationError as error:
            for detail in error.errors(include_url=False, include_context=False):
                path = _path_in(tree.data, detail["loc"])
                problems.append(tree.problem(path, _text(path, detail)))
                refused.append(path)
        for path in refused:
            _leave_out(tree.data, path)
    return ConfigFile(), [()]


def _asks_for(file: ConfigFile, path: Path) -> bool:
    """Whether the config wants something else than the default at `path`."""
    section: object = file
    for part in path[:-1]:
        section = getattr(section, str(part), None)
    if not isinstance(section, Section):
        return False
    field = type(section).model_fields.get(str(path[-1]))
    return field is not None and getattr(section, str(path[-1])) != field.default


def _path_in(data: Any, loc: tuple[str | int, ...]) -> Path:
    """`loc` without the tags that pydantic adds for the members of a union."""
    path: list[str | int] = []
    node = data
    for position, part in enumerate(loc):
        inside = (isinstance(node, dict) and part in node) or (
            isinstance(node, list) and isinstance(part, int) and part < len(node)
        )
        if inside:
            path.append(part)
            node = node[part]
        elif position == len(loc) - 1 and isinstance(node, dict):
            break
    return tuple(path)


def _leave_out(data: Any, path: Path) -> None:
    node = data
    for part in path[:-1]:
        if isinstance(node, dict):
            node = node.get(part)
        elif isinstance(node, list) and isinstance(part, int):
            node = node[part]
        else:
            return
    if path == ("tiers", "local", "engines"):
        node["engines"] = []  # without any, the keys beside it would be taken for those of one engine
    elif isinstance(node, dict) and path:
        node.pop(path[-1], None)
    elif isinstance(node, list) and isinstance(path[-1], int):
        if path[-2] in {"models", "keys", "engines"}:
            node[path[-1]] = {}
        else:
            _leave_out(data, path[:-1])


def _text(path: Path, detail: ErrorDetails) -> str:
    section, description = _schema_at(path)
    if detail["type"] == "extra_forbidden":
        key = str(path[-1])
        if key in {"api_key", "key", "secret", "token", "password"}:
            return f"secrets never stand in the config; write {key}_env and the name of an environment variable"
        if key in section:  # of a neighbour of the same union
            return "is no key of this kind; remove it, or say another kind"
        return f"unknown key{did_you_mean(key, section) or '; known here: ' + ', '.join(sorted(section))}"
    message = detail["msg"].removeprefix("Value error, ").replace("Input should", "should")
    for theirs, ours in _WORDS:
        message = re.sub(theirs, ours, message)
    if detail["type"] == "string_pattern_mismatch":
        message = "is not the name of an environment variable (letters, digits, _)"
    elif detail["type"].startswith("union_tag"):
        message = "should say which kind it is"
    else:
        message = f"{_shown(path, detail['input'])} {message}"
    return f"{message} ({description})" if description else message


def _shown(path: Path, value: Any) -> str:
    """A value as it may be shown: nothing that may hide a secret, nothing long."""
    if any(word in str(path[-1:]) for word in ("env", "key", "url", "secret", "token")):
        return "the value"
    if isinstance(value, dict | list | tuple):
        return "the value"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _schema_at(path: Path) -> tuple[set[str], str]:
    """The keys known in the section that holds `path`, and the description of `path` itself."""
    sections: list[type[BaseModel]] = [ConfigFile]
    known: set[str] = set(ConfigFile.model_fields)
    description = ""
    for part in path:
        if isinstance(part, int):
            continue
        known = {name for section in sections for name in section.model_fields}
        fields = [section.model_fields[part] for section in sections if part in section.model_fields]
        description = next((field.description or "" for field in fields), "")
        sections = [found for field in fields for found in _sections_in(field.annotation)]
    return known, description


def _sections_in(annotation: Any) -> Iterator[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for argument in get_args(annotation):
        yield from _sections_in(argument)
