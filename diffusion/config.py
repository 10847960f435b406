"""Network configurations: frozen dataclasses whose fields are the keys of diffusers' config.json.

The files come from anyone. Each value is checked to be of its field's type before anything is computed with it, and
no whole number in them is large enough to keep a machine busy.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from types import NoneType, UnionType
from typing import Any, ClassVar, Literal, Self, Union, get_args, get_origin, get_type_hints

DIFFUSERS_VERSION = "0.30.0"  # the oldest release that knows every key written here
UNIONS = (Union, UnionType)  # Python makes the first of `Literal[...] | None`
LARGEST = 1_000_000  # whole number: there are vocabularies of a quarter of it
KINDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", NoneType: "null"}


@dataclass(frozen=True)
class Config:
    """Base of the configurations. A key of diffusers is a field, or FIXED, or IGNORED, or refused by name.

    FIXED: keys honoured at one value only, which is always diffusers' own default and so need not be written.
    IGNORED: keys that change nothing here, whatever their value.
    """

    CLASS: ClassVar[str]
    FIXED: ClassVar[Mapping[str, Any]] = {}
    IGNORED: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read a config.json. Raises ValueError naming the key and value that cannot be honoured."""
        written_for = values.get("_class_name", cls.CLASS)
        if written_for != cls.CLASS:
            raise ValueError(f"this config.json describes a {written_for}; expected a {cls.CLASS}.")
        names = {field.name for field in fields(cls)}
        for key, value in values.items():
            if key.startswith("_") or key in names or key in cls.IGNORED:
                continue
            neutral = cls.FIXED.get(key)
            if value != neutral:
                said = f"{key}={value!r:.60}"
                raise ValueError(f"{cls.CLASS} with {said} is not supported; expected {neutral!r}.")
        return cls(**checked(cls, {key: value for key, value in values.items() if key in names}))

    def to_dict(self) -> dict[str, Any]:
        """A config.json that diffusers opens."""
        return {"_class_name": self.CLASS, "_diffusers_version": DIFFUSERS_VERSION, **asdict(self)}

    def check_groups(self, channels: tuple[int, ...], groups: int) -> None:
        """Group normalisation splits the channels of every level evenly, or the configuration is an error."""
        if any(width % groups for width in channels):
            raise ValueError(f"block_out_channels={channels} are not multiples of norm_num_groups={groups}.")


def checked(config: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Values for fields of a dataclass, JSON's lists as tuples. Raises ValueError for one of another type."""
    types = get_type_hints(config)
    found = {key: _frozen(value) for key, value in values.items()}
    for key, value in found.items():
        if key not in types:
            raise ValueError(f"{key!r:.60} is none of its keys, {', '.join(types)}.")
        if not _fits(value, types[key]):
            raise ValueError(f"{key} is {value!r:.60}; expected {_said(types[key])}.")
    return found


def _fits(value: Any, kind: Any) -> bool:
    if get_origin(kind) in UNIONS:
        return any(_fits(value, one) for one in get_args(kind))
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(_fits(item, get_args(kind)[0]) for item in value)
    if kind is int:
        return type(value) is int and 0 <= value <= LARGEST
    if kind is float:
        return type(value) in (int, float) and math.isfinite(value) and abs(value) <= LARGEST
    return isinstance(value, kind)


def _said(kind: Any) -> str:
    if get_origin(kind) in UNIONS:
        return " or ".join(_said(one) for one in get_args(kind))
    if get_origin(kind) is tuple:
        return f"a list, each {_said(get_args(kind)[0])}"
    if get_origin(kind) is Literal:
        return " or ".join(map(repr, get_args(kind)))
    return f"{KINDS[kind]} from 0 to {LARGEST:,}" if kind is int else KINDS[kind]


def _frozen(value: Any) -> Any:
    """JSON's lists as tuples, so that equal configurations compare and hash equal."""
    return tuple(_frozen(item) for item in value) if isinstance(value, list | tuple) else value
