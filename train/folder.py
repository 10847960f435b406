"""A folder of images with captions, as people keep them, read with suspicion."""

import csv
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from clip.pictures import FORMATS, BadPicture, over_white, square
from clip.pictures import read_picture as read_file

TOLERANCE = 0.1  # a folder with a larger share of bad samples is not what its owner takes it for


@dataclass(frozen=True)
class Folder:
    """Pictures in memory (100,000 of 64 pixels are 1.2 GB), each with one caption or more."""

    pictures: Tensor  # uint8 [N, 3, S, S]
    texts: list[tuple[str, ...]]  # N


class BadSample(Exception):
    """Why one sample cannot be learnt from; the others go on without it."""


def load_folder(path: Path, size: int) -> Folder:
    """PNG, JPEG and WebP images, cropped about their centre to squares of `size` pixels, and their captions.

    Captions come from `metadata.jsonl` or `metadata.csv` with `file_name` and `text` (several: more rows, or a
    list), else from a `.txt` of the same stem beside each image, a caption a line. A bad sample (corrupt, huge,
    of another format, outside the folder, without a caption) is set aside and named on stderr.
    Raises ValueError where more than a tenth are bad, or none is left.
    """
    if not path.is_dir():
        raise ValueError(f"{path} is no folder: expected a folder of images with captions")
    pictures, texts, bad = [], [], []
    for name, captions in tqdm(read_captions(path).items(), desc=f"reading {path.name}", disable=None):
        try:
            if isinstance(captions, BadSample):
                raise captions
            pictures.append(read_picture(path, name, size))
            texts.append(captions)
        except (BadSample, BadPicture) as reason:
            bad.append(f"{name}: {reason}")
            print(f"set aside {bad[-1]}", file=sys.stderr)
    total = len(bad) + len(texts)
    if total == 0:
        raise ValueError(f"{path} has no images with captions: add metadata.jsonl or .txt files beside them")
    if len(bad) > TOLERANCE * total:
        raise ValueError(f"{len(bad)} of {total} samples in {path} are bad ({bad[0]}): mend or remove them")
    return Folder(torch.stack(pictures), texts)


def read_captions(folder: Path) -> dict[str, tuple[str, ...] | BadSample]:
    """Names of images, relative to the folder => captions, in an order that depends on the folder alone."""
    metadata = [path for name in ("metadata.jsonl", "metadata.csv") if (path := folder / name).is_file()]
    if len(metadata) > 1:
        raise ValueError(f"{folder} has both metadata.jsonl and metadata.csv: keep one")
    if not metadata:
        images = sorted(path for path in folder.rglob("*") if path.suffix.lower() in FORMATS)
        return {path.relative_to(folder).as_posix(): read_beside(path) for path in images}
    found: dict[str, tuple[str, ...] | BadSample] = {}
    try:
        for line, row in read_rows(metadata[0]):
            name, text = (row.get("file_name"), row.get("text")) if isinstance(row, dict) else (None, None)
            if not isinstance(name, str):
                found[f"{metadata[0].name}, row {line}"] = BadSample("it has no file_name")
                continue
            captions, earlier = clean(text if isinstance(text, list) else [text]), found.get(name, ())
            known = () if isinstance(earlier, BadSample) else earlier
            found[name] = known + captions or BadSample("it has no caption")
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{metadata[0]} cannot be read ({error}): save it as UTF-8 text") from None
    return found


def read_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """(number, row) of a metadata file; a line that is not JSON gives None."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        if path.suffix == ".csv":
            yield from enumerate(csv.DictReader(file), 1)
            return
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    yield number, json.loads(line)
                except json.JSONDecodeError:
                    yield number, None


def read_beside(image: Path) -> tuple[str, ...] | BadSample:
    try:
        lines = image.with_suffix(".txt").read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError):
        lines = []
    return clean(lines) or BadSample("it has no caption")


def clean(texts: list[Any]) -> tuple[str, ...]:
    return tuple(text.strip() for text in texts if isinstance(text, str) and text.strip())


def read_picture(folder: Path, name: str, size: int) -> Tensor:
    """The image as uint8 [3, size, size], upright, over white where it is transparent. Raises BadPicture."""
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise BadPicture("it lies outside the folder")
    return square(over_white(read_file(path)), size)
