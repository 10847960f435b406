"""Where a store's pictures lie: in its folder, or in storage that other machines write to."""

from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from clip.durable import write_atomically


class Shelf(Protocol):
    def path(self, name: str) -> str:
        """Where a picture is, as a manifest says it."""

    def holds(self, name: str) -> bool: ...

    def put(self, name: str, data: bytes, part: str | None = None) -> None:
        """Writes a file whole, or not at all; on the disk when it returns."""

    def drop(self, part: str) -> None:
        """Removes what a writer that was killed left under such a name."""


class Folder:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, name: str) -> str:
        return name

    def holds(self, name: str) -> bool:
        return (self.folder / name).is_file()

    def put(self, name: str, data: bytes, part: str | None = None) -> None:
        write_atomically(self.folder / name, data, part)

    def drop(self, part: str) -> None:
        (self.folder / part).unlink(missing_ok=True)


class Shared:
    """A folder of any storage that fsspec knows: s3://…, gs://…, file:///…; objects of it appear whole."""

    def __init__(self, url: str) -> None:
        try:
            from fsspec.core import url_to_fs
        except ImportError:
            raise ValueError(f"{url} is reached by fsspec: pip install 'oboro[ray]'.") from None
        try:
            self.files, self.root = url_to_fs(url)
            self.files.makedirs(self.root, exist_ok=True)
        except (ImportError, OSError, ValueError) as error:
            raise ValueError(f"{url} cannot be used: {' '.join(str(error).split())}") from None
        self.url = url.rstrip("/")

    @cached_property
    def there(self) -> set[str]:
        """What was there in the beginning, asked once: to ask for each would take a journey each."""
        return {str(path).rpartition("/")[2] for path in self.files.ls(self.root, detail=False)}

    def path(self, name: str) -> str:
        return f"{self.url}/{name}"

    def holds(self, name: str) -> bool:
        return name in self.there or self.files.exists(f"{self.root}/{name}")

    def put(self, name: str, data: bytes, part: str | None = None) -> None:
        if "file" in _protocols(self.files):
            return Folder(Path(self.root)).put(name, data, part)
        self.files.pipe_file(f"{self.root}/{name}", data)
        return None

    def drop(self, part: str) -> None:
        if "file" in _protocols(self.files):
            Folder(Path(self.root)).drop(part)


def _protocols(files: Any) -> tuple[str, ...]:
    return (files.protocol,) if isinstance(files.protocol, str) else tuple(files.protocol)
