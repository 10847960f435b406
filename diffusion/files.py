"""The files of a model folder, each of them verified as it is read.

A folder may come from anyone: weights are safetensors, and no configuration can ask for code to be run. Where it has
a file SHA256SUMS, as `sha256sum` writes it and every folder saved here has, each file that is read must be the one
that is named there: one flipped bit, and the model is refused. No link leads out of the folder.
"""

import hashlib
import os
import posixpath
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusion.weights import Safetensors, read_weights, shown, strict_json

SUMS = "SHA256SUMS"
LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")
RUNS_CODE = {"auto_map", "custom_pipeline", "custom_pipelines", "trust_remote_code"}
PICKLES = {".bin", ".ckpt", ".pt", ".pth", ".pkl"}
WHOLE = "fetch or save the model again, whole"
STEMS = {"model", "diffusion_pytorch_model"}  # of weights, as transformers and diffusers name them
CONFIG_CAP = 4_000_000  # bytes; the largest files that are read whole are tokenizers', of two million
TOKENIZER, TOKENIZER_CAP = "tokenizer.json", 20_000_000  # a language model's has up to 17 million


class Files:
    """What lies below a folder. Names are paths inside it, with slashes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        _check_links(root)
        self.sums = read_sums(root / SUMS) if (root / SUMS).is_file() else None
        self.hashes: dict[str, str] = {}  # of the weight files that were read, by name

    def has(self, name: str) -> bool:
        """Whether a file is there that may be missing. One that SHA256SUMS names may not be."""
        if (self.root / name).is_file():
            return True
        if os.path.lexists(self.root / name):
            raise ValueError(f"{self.root / name} is not a file; {WHOLE}.")
        if self.sums and name in self.sums:
            raise ValueError(f"{self.root} has no {name}, which its {SUMS} names; {WHOLE}.")
        return False

    def config(self, name: str) -> dict[str, Any]:
        """A JSON object; one that has a key for running code of its own is refused."""
        path = self.root / name
        if not path.is_file():
            raise ValueError(f"{path.parent} has no {path.name}; {WHOLE}.")
        data = _read(path)
        self.verify(name, hashlib.sha256(data).hexdigest())
        return _config(data, path)

    def check(self, part: str) -> None:
        """Raises ValueError for what is seen at once to be wrong: before anything large is read, or built."""
        here = {path.relative_to(self.root).as_posix() for path in (self.root / part).iterdir()}
        for name in sorted(here | {name for name in self.sums or () if name.startswith(f"{part}/")}):
            path = self.root / name
            if path.suffix == ".json" and self.has(name):
                self.config(name)
            if path.suffix == ".safetensors" and path.stem in STEMS and self.has(name):
                Safetensors(path)

    def weights(self, part: str, stem: str) -> list[Safetensors]:
        """The weight files of a part, still unread: one, or the shards that an index names.

        Raises ValueError, with a sentence on what is there instead, where there are none.
        """
        folder = self.root / part
        for variant in ("", ".fp16"):  # as diffusers and transformers name them; the whole numbers first
            if (folder / f"{stem}{variant}.safetensors").is_file():
                return [Safetensors(folder / f"{stem}{variant}.safetensors")]
            index = posixpath.join(part, f"{stem}.safetensors.index{variant}.json")
            if (self.root / index).is_file():
                return [Safetensors(folder / name) for name in self._shards(index)]
        for path in sorted(folder.glob("*")):
            if path.suffix in PICKLES:
                raise ValueError(
                    f"{path} can run code when it is loaded, and there is no {stem}.safetensors beside it: convert it "
                    "to safetensors where that is safe, with save_pretrained() of the library that made it."
                )
        raise ValueError(f"{folder} has no {stem}.safetensors; {WHOLE}.")

    def _shards(self, index: str) -> list[str]:
        path, places = self.root / index, self.config(index).get("weight_map")
        if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
            raise ValueError(f"{path} has no weight_map of names and files; {WHOLE}.")
        shards = sorted(set(places.values()))
        for name in shards:
            if Path(name).name != name or not (path.parent / name).is_file():
                raise ValueError(f"{path} names a file {shown(name)}, which does not lie beside it; {WHOLE}.")
        return shards

    def read(self, files: Sequence[Safetensors], dtype: torch.dtype | None) -> dict[str, Tensor]:
        """The tensors of weight files, verified; floating-point ones in `dtype`, or as they are stored."""
        weights = read_weights(files, dtype)
        for file in files:
            assert file.sha256 is not None
            name = file.path.relative_to(self.root).as_posix()
            self.hashes[name] = file.sha256
            self.verify(name, file.sha256)
        return weights

    def verify_all(self, part: str) -> None:
        """For what reads its files by itself."""
        for path in sorted((self.root / part).iterdir()) if self.sums is not None else ():
            if path.is_file():
                self.verify(path.relative_to(self.root).as_posix(), sha256(path))

    def verify(self, name: str, found: str) -> None:
        if self.sums is not None and self.sums.get(name) != found:
            what = "is damaged or was changed" if name in self.sums else "was added"
            raise ValueError(
                f"{self.root / name} {what} since {SUMS} was written beside it: fetch or save the model again, or "
                f"delete {SUMS} if that was meant."
            )


def read_config(path: Path) -> dict[str, Any]:
    """What `Files.config` reads, of a file that nothing verifies."""
    return _config(_read(path), path)


def _read(path: Path) -> bytes:
    if (size := path.stat().st_size) > (TOKENIZER_CAP if path.name == TOKENIZER else CONFIG_CAP):
        raise ValueError(f"{path} has {size} bytes, more than any configuration; {WHOLE}.")
    return path.read_bytes()


def _check_links(root: Path) -> None:
    """Raises ValueError where a link leads out of a folder. The Hub's cache keeps files beside a model's folders."""
    home = next((folder.parent for folder in root.parents if folder.name == "snapshots"), root).resolve()
    for path in root.rglob("*"):
        if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(home):
            raise ValueError(f"{path} is a link out of the model's folder; put the file itself there.")


def _config(data: bytes, path: Path) -> dict[str, Any]:
    config = strict_json(data, str(path))
    for key in sorted(RUNS_CODE & set(config)):
        raise ValueError(f"{path} asks by {key} for code of its own to be run; no model can do that here.")
    return config


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_sums(path: Path) -> dict[str, str]:
    """Name => SHA-256. Raises ValueError unless every line is one of `sha256sum`'s."""
    sums = {}
    for number, line in enumerate(_read(path).decode("utf-8", "replace").splitlines(), start=1):
        match = LINE.fullmatch(line)
        if match is None or match[2] in sums:
            raise ValueError(f"{path} is damaged in line {number}; {WHOLE}.")
        sums[match[2]] = match[1]
    return sums


def sums_of(folder: Path) -> dict[str, str]:
    """Name => SHA-256, of every file below a folder but hidden ones and the sums' own."""
    paths = [path for path in folder.rglob("[!.]*") if path.is_file() and path.name != SUMS]
    return {path.relative_to(folder).as_posix(): sha256(path) for path in paths}


def format_sums(sums: dict[str, str]) -> bytes:
    """What `sha256sum --check` reads."""
    return "".join(f"{sum}  {name}\n" for name, sum in sorted(sums.items())).encode()
