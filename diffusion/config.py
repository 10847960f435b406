"""Network configurations: frozen dataclasses whose fields are the keys of diffusers' config.json."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Self

DIFFUSERS_VERSION = "0.30.0"  # the oldest release that knows every key written here


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
                raise ValueError(f"{cls.CLASS} with {key}={value!r} is not supported; expected {neutral!r}.")
        return cls(**{key: _frozen(value) for key, value in values.items() if key in names})

    def to_dict(self) -> dict[str, Any]:
        """A config.json that diffusers opens."""
        return {"_class_name": self.CLASS, "_diffusers_version": DIFFUSERS_VERSION, **asdict(self)}

    def check_groups(self, channels: tuple[int, ...], groups: int) -> None:
        """Group normalisation splits the channels of every level evenly, or the configuration is an error."""
        if any(width % groups for width in channels):
            raise ValueError(f"block_out_channels={channels} are not multiples of norm_num_groups={groups}.")


def _frozen(value: Any) -> Any:
    """JSON's lists as tuples, so that equal configurations compare and hash equal."""
    return tuple(_frozen(item) for item in value) if isinstance(value, list | tuple) else value
