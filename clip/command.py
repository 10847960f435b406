"""What commands say of a mistake."""

import sys
from collections.abc import Callable


def attempt(command: str, work: Callable[[], int | None]) -> int:
    """The exit code: the work's own, 0 where it has none, or 2 after a user's mistake, told in a sentence on stderr."""
    try:
        return work() or 0
    except OSError as mistake:
        print(f"{command}: {mistake.filename or 'a file'}: {mistake.strerror or mistake}", file=sys.stderr)
    except ValueError as mistake:
        print(f"{command}: {mistake}", file=sys.stderr)
    return 2


def at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name} is {value}; expected 1 or more.")
