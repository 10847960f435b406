"""What commands say of a mistake."""

import os
import sys
from collections.abc import Callable


def attempt(command: str, work: Callable[[], int | None]) -> int:
    """The exit code: the work's own, 0 where it has none, or 2 after a user's mistake, told in a sentence on stderr.

    Where what is printed has lost its reader, as in `| head -1`, the work ends in silence, as by SIGPIPE.
    """
    try:
        return work() or 0
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is flushed at the exit
        return 141
    except OSError as mistake:
        print(f"{command}: {mistake.filename or 'a file'}: {mistake.strerror or mistake}", file=sys.stderr)
    except ValueError as mistake:
        print(f"{command}: {mistake}", file=sys.stderr)
    return 2


def at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name} is {value}; expected 1 or more.")
