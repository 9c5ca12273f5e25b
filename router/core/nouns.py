"""What the nouns of the router are made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import Field, fields, make_dataclass
from typing import Any, ClassVar

import msgspec

_fields: dict[type, Mapping[str, Field[Any]]] = {}


class _AsDataclass:
    """The fields of a noun, as `dataclasses.replace`, `fields` and `asdict` look for them."""

    def __get__(self, _noun: object, kind: type[msgspec.Struct]) -> Mapping[str, Field[Any]]:
        found = _fields.get(kind)
        if found is None:
            like = make_dataclass(kind.__name__, kind.__struct_fields__)
            found = _fields[kind] = {field.name: field for field in fields(like)}
        return found


class Noun(msgspec.Struct, frozen=True):
    """A frozen record. Made in C: a frozen dataclass takes ten times as long to be made, and a request needs dozens.

    The functions of `dataclasses` work on it; on the path of a request `msgspec.structs.replace` is the fast one.
    """

    __dataclass_fields__: ClassVar[Any] = _AsDataclass()
