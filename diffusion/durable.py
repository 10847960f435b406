"""Writing files so that a crash leaves the old one or the new one, never half of one."""

import os
import secrets
from pathlib import Path


def write_atomically(path: Path, data: bytes) -> None:
    """Writes `data` aside in the same folder, flushes it to disk and renames it to `path`.

    Raises OSError, leaving nothing behind, where the folder cannot be written or the disk is full.
    """
    # The name aside is of fixed length: one made from the file's own could be too long for the file system.
    aside = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        with aside.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # elsewhere a folder cannot be opened, and the rename is journalled
        flush(path.parent)


def flush(path: Path) -> None:
    """Has the disk hold what was written to a file, or which files are in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
