"""What a training learns from: pictures and captions, from a folder of images or from the emoji recipe, behind one interface.

    python -m train.data train/recipes/emoji-64.toml
"""

import argparse
import csv
import hashlib
import json
import random
import sys
import tomllib
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

from train.captions import COLOURS, WHITE, caption
from train.emoji import Emoji, EmojiConfig, load_emoji

PIXEL_LIMIT = 64_000_000  # an image's header is believed up to this many pixels; beyond, nothing is decoded
TOLERANCE = 0.1  # a folder with a larger share of bad samples is not what its owner thinks it is
WHITE_SHARE = 0.75  # of the emoji pictures; also what a prompt that names no background gets
MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK"}  # eight bits a channel


class Dataset(Protocol):
    """`len(dataset)` square pictures of `size` pixels; each can be seen in as many variations as one likes."""

    size: int

    def __len__(self) -> int: ...

    def variation(self, i: int, k: int, seed: int) -> tuple[Tensor, str]:
        """Variation `k` of picture `i`: (uint8 [3, size, size], caption), a pure function of (seed, i, k)."""

    def captions(self) -> Iterator[str]:
        """Every caption, or a fair sample of them where they are drawn: what a tokenizer is trained on."""


def load_dataset(table: Mapping[str, Any], cache: Path, fetched: Path | None = None) -> Dataset:
    """The dataset that a recipe's [data] table describes: `source = "emoji"` or `source = "folder"`."""
    options = dict(table)
    source = options.pop("source", None)
    if source == "emoji":
        return EmojiDataset(load_emoji(emoji_config(options), cache, fetched))
    if source == "folder":
        if set(options) != {"path", "size"}:
            raise ValueError(f'[data] with source = "folder" wants path and size, not {", ".join(options) or "nothing"}')
        return load_folder(Path(options["path"]), options["size"])
    raise ValueError(f'[data] has source = {source!r}: it must be "emoji" or "folder"')


def emoji_config(options: Mapping[str, Any]) -> EmojiConfig:
    known = {field.name for field in fields(EmojiConfig)}
    for name in options:
        if name not in known:
            raise ValueError(f"[data] has an unknown key {name!r}: the emoji recipe knows {', '.join(sorted(known))}")
    return EmojiConfig(**{name: tuple(value) if isinstance(value, list) else value for name, value in options.items()})


def draws(seed: int, i: int, k: int) -> random.Random:
    """Randomness that belongs to variation `k` of picture `i`, whatever was drawn before."""
    return random.Random(hashlib.sha256(f"{seed} {i} {k}".encode()).digest())


def composite(rgba: Tensor, background: tuple[int, int, int]) -> Tensor:
    """uint8 [4, S, S] over a colour => uint8 [3, S, S], rounded."""
    alpha = rgba[3:].int()
    behind = torch.tensor(background, dtype=torch.int32).view(3, 1, 1)
    return ((rgba[:3].int() * alpha + behind * (255 - alpha) + 127) // 255).to(torch.uint8)


class EmojiDataset:
    """Emoji over plain backgrounds: a variation draws the background and the caption."""

    def __init__(self, emoji: Emoji) -> None:
        self.emoji = emoji
        self.size = emoji.pictures.shape[-1]

    def __len__(self) -> int:
        return len(self.emoji.records)

    def variation(self, i: int, k: int, seed: int) -> tuple[Tensor, str]:
        rng = draws(seed, i, k)
        thing, style = self.emoji.records[i]
        # A colour is always said, white seldom: so a prompt without a background means white.
        white = rng.random() < WHITE_SHARE
        colour = WHITE if white else rng.choice(COLOURS)
        said = None if white and rng.random() < 0.9 else colour
        return composite(self.emoji.pictures[i], colour.rgb), caption(self.emoji.things[thing], style, said, rng)

    def captions(self) -> Iterator[str]:
        for thing in self.emoji.things:
            yield from (thing.label_en, thing.label_ja, *thing.tags_en, *thing.tags_ja)
        for i in range(len(self)):
            for k in range(8):
                yield self.variation(i, k, seed=0)[1]


class FolderDataset:
    """Pictures in memory (100,000 of 64 pixels are 1.2 GB), each with one or more captions; a variation draws one of them."""

    def __init__(self, pictures: Tensor, texts: list[tuple[str, ...]]) -> None:
        self.pictures, self.texts = pictures, texts  # [N, 3, S, S], N
        self.size = pictures.shape[-1]

    def __len__(self) -> int:
        return len(self.texts)

    def variation(self, i: int, k: int, seed: int) -> tuple[Tensor, str]:
        return self.pictures[i], draws(seed, i, k).choice(self.texts[i])

    def captions(self) -> Iterator[str]:
        for texts in self.texts:
            yield from texts
