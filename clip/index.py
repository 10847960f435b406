"""A folder of pictures, ready to be searched: one unit vector a file, kept on disk beside them.

The index is a safetensors file: `vectors` float16 [N, P], and in its metadata the CLIP that made them and, of every
file, the name, size and time of change. A file that did not change is not read again.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from clip.durable import write_atomically
from clip.pictures import FORMATS, BadPicture, over_white, read_picture
from clip.ranker import BATCH, Ranker

INDEX = ".clip-index.safetensors"
FORMAT = 1


@dataclass
class Index:
    """The vectors of a folder's pictures, by name relative to the folder; `bad` says why files were passed over."""

    folder: Path
    vectors: Tensor  # float16 [N, P]
    files: list[tuple[str, int, int]]  # N: name, bytes, time of change in ns
    bad: dict[str, str] = field(default_factory=dict)

    def search(self, query: Tensor, count: int) -> list[tuple[float, Path]]:
        """The `count` pictures closest to a unit vector [P]: cosine and path, the closest first."""
        if not self.files:
            return []
        cosines = self.vectors.float() @ query
        best = cosines.topk(min(count, len(self.files)))
        return [(score, self.folder / self.files[i][0]) for score, i in zip(*map(Tensor.tolist, best), strict=True)]


def refresh(folder: Path, ranker: Ranker, path: Path | None = None) -> Iterator[tuple[Index, int]]:
    """Brings a folder's index up to date, batch by batch: yields it with how many files are still to be read.

    What was done when the caller stops, or is stopped, is on disk. `path` is where the index lies if not inside the
    folder. Raises ValueError where there is no folder, or no picture in it.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; give one with PNG, JPEG or WebP pictures in it.")
    path = path or folder / INDEX
    key = _key(ranker)
    found = _files(folder)
    if not found:
        raise ValueError(f"{folder} has no pictures in it; PNG, JPEG and WebP are read.")
    vectors, known = _load(path, key)
    old = {file: n for n, file in enumerate(known)}
    kept = [file for file in found if file in old]
    missing = [file for file in found if file not in old]
    index = Index(folder, vectors[[old[file] for file in kept]], kept)
    if not missing and len(kept) == len(known):
        yield index, 0
        return
    done = 0
    try:
        yield index, len(missing)
        while done < len(missing):
            batch = missing[done : done + BATCH]
            _add(index, batch, ranker)
            done += len(batch)
            yield index, len(missing) - done
    finally:
        if done or len(kept) != len(known):
            _save(path, index, key)


def _add(index: Index, batch: Sequence[tuple[str, int, int]], ranker: Ranker) -> None:
    images = []
    for file in batch:
        try:
            images.append(over_white(read_picture(index.folder / file[0])))
            index.files.append(file)
        except BadPicture as reason:
            index.bad[file[0]] = str(reason)
    if images:
        index.vectors = torch.cat([index.vectors, ranker.pictures(images).half()])


def _files(folder: Path) -> list[tuple[str, int, int]]:
    """Every picture below the folder, in an order that depends on the names alone."""
    names = sorted(path for path in folder.rglob("*") if path.suffix.lower() in FORMATS and path.is_file())
    stats = ((path, path.stat()) for path in names)
    return [(path.relative_to(folder).as_posix(), stat.st_size, stat.st_mtime_ns) for path, stat in stats]


def _key(ranker: Ranker) -> str:
    """The CLIP that vectors are of: they can be compared with no other's."""
    digest = hashlib.sha256()
    for path in sorted(ranker.folder.glob("*.safetensors")):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _load(path: Path, key: str) -> tuple[Tensor, list[tuple[str, int, int]]]:
    """What the index holds, if it is one of this CLIP and whole; else nothing, and it is made again."""
    try:
        with safe_open(path, framework="pt") as file:
            said = json.loads((file.metadata() or {}).get("index", "{}"))
            vectors = file.get_tensor("vectors")
        files = [(str(name), int(size), int(changed)) for name, size, changed in said["files"]]
        if said["format"] == FORMAT and said["clip"] == key and len(files) == len(vectors):
            return vectors, files
    except (OSError, SafetensorError, ValueError, LookupError, TypeError):
        pass
    return torch.empty(0, dtype=torch.float16), []


def _save(path: Path, index: Index, key: str) -> None:
    said = json.dumps({"format": FORMAT, "clip": key, "files": index.files})
    write_atomically(path, save({"vectors": index.vectors.contiguous()}, {"index": said}))
