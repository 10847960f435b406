"""Writing files so that a crash leaves the old one or the new one, never half of one."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def aside(path: Path, part: str | None = None) -> Iterator[Path]:
    """A path in the same folder; the file, or the new folder, that is written there is flushed and renamed to `path`.

    Whatever is raised inside leaves nothing behind, and `path` as it was. `part` is its name, where others are to
    find what a writer that was killed left of it; no two may write there at once.
    """
    # The name aside is of fixed length: one made from the file's own could be too long for the file system.
    written = path.with_name(part or f".{secrets.token_hex(8)}.part")
    try:
        yield written
        for file in [*written.rglob("*"), written]:
            if file.is_file() or os.name == "posix":
                flush(file)
        os.replace(written, path)
    except BaseException:
        if written.is_dir():
            shutil.rmtree(written)
        written.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # elsewhere a folder cannot be opened, and the rename is journalled
        flush(path.parent)


def write_atomically(path: Path, data: bytes, part: str | None = None) -> None:
    """Writes `data` aside, flushes it to disk and renames it to `path`; `part` is as for `aside`.

    Raises OSError, leaving nothing behind, where the folder cannot be written or the disk is full.
    """
    with aside(path, part) as written:
        written.write_bytes(data)


def flush(path: Path) -> None:
    """Has the disk hold what was written to a file, or which files are in a folder."""
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
