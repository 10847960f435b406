"""What a value of a request may be: each check is silent, or a ValueError of one sentence."""

import math
from collections.abc import Iterable
from typing import Any

MAX_SIDE = 2048  # pixels of a picture
MAX_SEED = 2**63 - 1
MAX_STEPS = 1000


def check_number(name: str, value: Any, low: int, high: int, whole: bool) -> None:
    kind = "a whole number" if whole else "a number"
    right = type(value) is int or (not whole and isinstance(value, float) and math.isfinite(value))
    if not right or not low <= value <= high:
        raise ValueError(f"{name} is {value!r:.50}; expected {kind} from {low} to {high}.")


def check_name(name: str, value: Any, known: Iterable[str]) -> None:
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"There is no {name} {value!r:.50}; choose one of {', '.join(known)}.")


def check_side(name: str, side: Any, multiple: int) -> None:
    """Of a picture, or of its latents: they divide into one another."""
    check_number(f"The {name}", side, multiple, MAX_SIDE, whole=True)
    if side % multiple:
        below = side - side % multiple
        raise ValueError(
            f"The {name} {side} is not a multiple of {multiple}, as it must be for this model; "
            f"try {below} or {below + multiple}."
        )


def check_needed(request: Any, names: Iterable[str], by: str) -> None:
    """Raises for the first field that is asked for where `by`, which it goes with, is not."""
    for name in names:
        if getattr(request, name) is not None:
            raise ValueError(f"The {name.replace('_', ' ')} does nothing without {by}; give both or neither.")
