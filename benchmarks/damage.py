"""A thousand damaged files, drawn from a seed: what accidents and enemies make of a model."""

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import deeds
from benchmarks.deeds import Header

Random = random.Random


@dataclass(frozen=True)
class Case:
    kind: str
    file: str  # the one to be damaged, by its path inside the folder
    damage: Callable[[Path], None]  # damages it in its place
    accident: bool  # which the folder's SHA256SUMS tells; an enemy leaves that file out


# Accidents, to any file: bytes => bytes.


def flip(data: bytes, rng: Random) -> bytes:
    changed = bytearray(data)
    changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def cut(data: bytes, rng: Random) -> bytes:
    return data[: rng.randrange(len(data))]


def lose(data: bytes, rng: Random) -> bytes:
    """A block of the disk that reads as zeros, or not at all."""
    begin = rng.randrange(len(data))
    end = begin + rng.randint(1, 512)
    block = data[begin:end]
    return data[:begin] + (bytes(len(block)) if rng.random() < 0.5 and any(block) else b"") + data[end:]


def grow(data: bytes, rng: Random) -> bytes:
    return data + rng.randbytes(rng.randint(1, 64))


def garble(data: bytes, rng: Random) -> bytes:
    return rng.randbytes(len(data))


ACCIDENTS = {"bit flipped": flip, "cut short": cut, "block lost": lose, "bytes appended": grow, "garbled": garble}


def cases(root: Path, canary: Path, count: int, seed: int) -> list[Case]:
    """Every deed that can be done to the files below a folder, and accidents to those of its models up to `count`."""
    rng = Random(seed)
    files = sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
    files = [file for file in files if not file.endswith(("SHA256SUMS", ".md"))]  # sums, and what no program reads
    found = [case for file in files for case in all_deeds(file, canary, rng)][:count]
    summed = [file for file in files if (root / file.partition("/")[0] / "SHA256SUMS").exists()]
    while len(found) < count:
        kind, file = rng.choice(sorted(ACCIDENTS)), rng.choice(summed)
        change = partial(_change, partial(ACCIDENTS[kind], rng=Random(rng.random())))
        found.append(Case(f"accident: {kind}", file, change, accident=True))
    return found


def all_deeds(file: str, canary: Path, rng: Random) -> Iterator[Case]:
    weights, config = file.endswith(".safetensors"), file.endswith(".json")
    if weights:
        place = file.partition("/")[0]
        todo = [(kind, deed) for kind, deed in deeds.HEADERS.items() if deed not in deeds.LEGAL.get(place, ())]
        todo += [("its configuration", deeds.configure)] * (30 if place == "single" else 0)
        for kind, deed in todo:
            change = partial(_change, partial(_with_header, deed, Random(rng.random())))
            yield Case(f"weights: {kind}", file, change, accident=False)
    if config:
        for kind, make in deeds.NOT_JSON.items():
            yield Case(f"configuration: {kind}", file, partial(_replace, make), accident=False)
        for key, value in deeds.CODE.items():
            yield Case(f"configuration: {key}", file, partial(_edit, key, value), accident=False)
    part = file.partition("/")[2]
    for key in deeds.SIZES.get(part, ()):
        for value in [*deeds.HUGE, *deeds.WRONG]:
            yield Case(f"configuration: {key}", file, partial(_edit, key, value), accident=False)
    if part == "model_index.json":
        for key in ("unet", "tokenizer", "scheduler", "_class_name"):
            for value in deeds.CLASSES:
                yield Case(f"configuration: {key}", file, partial(_edit, key, value), accident=False)
    if weights or part == "model_index.json":
        for kind, data in deeds.others(canary).items():
            yield Case(f"another file: {kind}", file, partial(_replace, partial(bytes, data)), accident=False)
    if weights or config:
        for kind, damage in deeds.PLACES.items():
            yield Case(f"no file: {kind}", file, damage, accident=kind == "missing")


def _change(change: Callable[[bytes], bytes], path: Path) -> None:
    path.write_bytes(change(path.read_bytes()))


def _with_header(deed: Callable[[Header, bytes, Random], bytes], rng: Random, file: bytes) -> bytes:
    end = 8 + int.from_bytes(file[:8], "little")
    return deed(json.loads(file[8:end]), file[end:], rng)


def _replace(make: Callable[[], bytes], path: Path) -> None:
    path.write_bytes(make())


def _edit(key: str, value: Any, path: Path) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
