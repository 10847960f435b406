"""Tokenizers for single files, which have none: CLIP's vocabulary, from where another package or model brought it."""

import gzip
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

from clip.text import TextConfig
from clip.tokenizer import ALPHABET, END, SPECIAL_TOKENS, START, WORD_END, Tokenizer
from diffusion.hub import cached

CLIP_MODEL = "openai/clip-vit-large-patch14"  # in whose folder on the Hub the vocabulary lies, too
OPEN_CLIP_FILE = "bpe_simple_vocab_16e6.txt.gz"
SIZE, LENGTH = 49408, 77
OPEN_CLIP_PAD = "!"  # open_clip pads with id 0, which is this token


def find_tokenizers(
    path: Path, texts: Sequence[TextConfig], open_clips: Sequence[bool], folder: Path | None
) -> tuple[Tokenizer, ...]:
    """A tokenizer for each text encoder of the file at `path`; `open_clips` are those that open_clip trained.

    `folder` is one with a vocabulary, or a model folder with its tokenizers. Without it the vocabulary is CLIP's.
    """
    if folder is None:
        return tuple(_clip_tokenizer(path, text, pads) for text, pads in zip(texts, open_clips, strict=True))
    inside = [folder / part for part in ("tokenizer", "tokenizer_2")[: len(texts)] if (folder / part).is_dir()]
    if len(inside) == len(texts):
        return tuple(map(Tokenizer.from_folder, inside))
    tokenizer = Tokenizer.from_folder(folder)
    return tuple(tokenizer.padded(OPEN_CLIP_PAD) if pads else tokenizer for pads in open_clips)


def _clip_tokenizer(path: Path, text: TextConfig, open_clip: bool) -> Tokenizer:
    if (text.vocab_size, text.length) != (SIZE, LENGTH):
        raise ValueError(
            f"{path} has a vocabulary of its own, of {text.vocab_size} tokens, and no such file holds it: name the "
            "folder of its tokenizer with --tokenizer."
        )
    pad = OPEN_CLIP_PAD if open_clip else END
    if folder := cached(CLIP_MODEL):
        return Tokenizer.from_folder(folder).padded(pad)
    if file := _open_clip_file():
        merges = list(_merges(file))
        base = [*ALPHABET, *(byte + WORD_END for byte in ALPHABET)]
        tokens = [*base, *(first + second for first, second in merges), START, END]
        vocab = {token: i for i, token in enumerate(tokens)}
        return Tokenizer(vocab, merges, LENGTH, SPECIAL_TOKENS | {"pad_token": pad})
    raise ValueError(
        f"{path} holds no vocabulary, as no single file does, and CLIP's is not on this machine: pip install "
        "open-clip-torch, which brings it, or name a folder that has vocab.json and merges.txt with --tokenizer."
    )


def _open_clip_file() -> Path | None:
    """The vocabulary inside open_clip, which is not imported for it."""
    spec = find_spec("open_clip")
    file = Path(spec.origin).with_name(OPEN_CLIP_FILE) if spec is not None and spec.origin else None
    return file if file is not None and file.is_file() else None


def _merges(file: Path) -> Iterator[tuple[str, str]]:
    """The merges that CLIP's vocabulary is made of: the first so many of the file, after its heading."""
    count = SIZE - 2 * len(ALPHABET) - 2
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        for line in islice(lines, 1, 1 + count):
            first, second = line.split()
            yield first, second
