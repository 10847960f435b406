"""What commands say of a mistake."""

import sys
from collections.abc import Callable


def attempt(command: str, work: Callable[[], object]) -> int:
    """The exit code: 0, or 2 after a user's mistake, told in one sentence on stderr."""
    try:
        work()
    except OSError as mistake:
        print(f"{command}: {mistake.filename or 'a file'}: {mistake.strerror or mistake}", file=sys.stderr)
        return 2
    except ValueError as mistake:
        print(f"{command}: {mistake}", file=sys.stderr)
        return 2
    return 0
