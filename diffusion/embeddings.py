"""Textual inversion (Gal et al. 2022): words that stand for vectors of their own, read from a folder of files.

A file's name, without its suffix, is the word: in AUTOMATIC1111's syntax wherever it stands, in ComfyUI's after
`embedding:`. Its vectors take the place of so many tokens.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from clip.language_encoder import LanguageEncoder
from clip.tokenizer import Tokenizer
from diffusion.files import PICKLES
from diffusion.model import Model
from diffusion.weights import Safetensors, read_weights, shown

SAFE = ".safetensors"
XL = ("clip_l", "clip_g")  # the tensors of a file for two text encoders, in their order


@dataclass(frozen=True, eq=False)
class Embedding:
    name: str
    sha256: str  # of the file
    vectors: tuple[Tensor, ...]  # [n, D] for each text encoder


class Vector(NamedTuple):
    """What stands in a text in the place of a token."""

    embedding: Embedding
    row: int


class Embeddings:
    """The files of a folder, for a model. One is read when a prompt first asks for it."""

    def __init__(self, model: Model, folder: Path | None = None) -> None:
        self.model = model
        self.folder = folder
        self.read: dict[Path, Embedding] = {}

    @cached_property
    def paths(self) -> dict[str, Path]:
        """The files, by the words that they stand for. safetensors come before what cannot be read."""
        if self.folder is None:
            return {}
        if not self.folder.is_dir():
            raise ValueError(f"There is no folder {self.folder} of embeddings; check the path.")
        if any(isinstance(encoder, LanguageEncoder) for encoder in self.model.text_encoders):
            raise ValueError(f"Embeddings are vectors of CLIP's, and {self.model.name} has a language model; leave out "
                             f"{self.folder}.")
        files = sorted(path for path in self.folder.rglob("*") if path.suffix in {SAFE, *PICKLES})
        return {path.stem: path for path in sorted(files, key=lambda path: path.suffix == SAFE)}

    @cached_property
    def words(self) -> dict[Tokenizer, list[tuple[list[int], str]]]:
        """The words as each tokenizer spells them, the longest first."""
        spelt = {tokenizer: [(tokenizer.encode(name), name) for name in self.paths] for tokenizer in self.tokenizers}
        return {
            tokenizer: sorted((word for word in words if word[0]), key=lambda word: -len(word[0]))
            for tokenizer, words in spelt.items()
        }

    @property
    def tokenizers(self) -> tuple[Tokenizer, ...]:
        return self.model.tokenizers

    def replace(self, ids: list[int], tokenizer: Tokenizer) -> Iterator[list[int | Vector]]:
        """A text's tokens one by one, and the vectors of each embedding together."""
        position = 0
        while position < len(ids):
            spelt = next((w for w in self.words[tokenizer] if ids[position : position + len(w[0])] == w[0]), None)
            if spelt is None:
                yield [ids[position]]
                position += 1
            else:
                yield self.vectors(spelt[1])
                position += len(spelt[0])

    def vectors(self, name: str) -> list[int | Vector]:
        """Raises ValueError for a file that is not there, cannot be read safely, or does not fit the model."""
        if name not in self.paths:
            there = f"{self.folder} has {', '.join(sorted(self.paths)) or 'none'}"
            raise ValueError(f"There is no embedding {name!r}; {there if self.folder else 'give --embeddings'}.")
        path = self.paths[name]
        if path not in self.read:
            self.read[path] = self._read(path)
        embedding = self.read[path]
        return [Vector(embedding, row) for row in range(len(embedding.vectors[0]))]

    def pin(self, used: Iterable[Embedding], meant: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
        """Names and hashes of those that a request's prompts name. Raises ValueError where others were meant."""
        found = {embedding.name: embedding.sha256 for embedding in used}
        for name, pin in meant:
            if name not in found:
                raise ValueError(f"The request was made with the embedding {name!r}; give its folder by --embeddings.")
            if found[name] != pin:
                what = f"{self.paths[name]} is not the embedding that was meant"
                raise ValueError(f"{what}: its SHA-256 is {found[name]}, not {pin}.")
        return tuple(found.items())

    def _read(self, path: Path) -> Embedding:
        if path.suffix != SAFE:
            raise ValueError(f"{path} can run code when it is loaded; convert it to safetensors where that is safe.")
        file, encoders = Safetensors(path), self.model.text_encoders
        tensors = read_weights([file], torch.float32)
        names = [name for name in XL if name in tensors] or list(tensors)
        for name in names:
            if not tensors[name].is_floating_point() or not tensors[name].numel():
                raise ValueError(f"{path} has {shown(name)} as {tensors[name].dtype}; expected floating-point numbers.")
        if len(names) != len(encoders):
            expected = "clip_l and clip_g" if len(encoders) > 1 else "one tensor"
            has = " and ".join(map(shown, names[:3])) or "nothing"
            raise ValueError(f"{path} has {has}; this model reads {expected}.")
        vectors = tuple(torch.atleast_2d(tensors[name]).flatten(0, -2) for name in names)
        for tensor, encoder in zip(vectors, encoders, strict=True):
            if tensor.shape[1] != encoder.config.width:
                raise ValueError(
                    f"{path} is of another kind of model: its vectors have {tensor.shape[1]} numbers, not the "
                    f"{encoder.config.width} of this model's text encoder."
                )
        counts, room = {len(tensor) for tensor in vectors}, min(tokenizer.length for tokenizer in self.tokenizers) - 2
        if len(counts) > 1 or not 0 < max(counts) <= room:
            raise ValueError(f"{path} has {' and '.join(map(str, counts))} vectors; expected 1 to {room}.")
        return Embedding(path.stem, str(file.sha256), vectors)


def describe(embeddings: Iterable[tuple[str, str]]) -> dict[str, str]:
    """What a picture's `parameters` say of them: names without what would end a name, and short hashes."""
    said = [f"{re.sub('[:,]', '', name)}: {digest[:12]}" for name, digest in embeddings]
    return {"TI hashes": ", ".join(said)} if said else {}
