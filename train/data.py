"""What a training learns from: pictures with captions, of the emoji recipe or of a folder, seen one way."""

import hashlib
import json
import random
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from clip.durable import write_atomically
from train.captions import COLOURS, WHITE, caption
from train.emoji import Emoji, EmojiConfig, load_emoji, split, words_of
from train.folder import Folder, load_folder
from train.packages import NAMES, PACKAGES
from train.recipe import Recipe, build

WHITE_SHARE = 0.75  # of the emoji's backgrounds
WHITE_SAID = 0.1  # of them: a prompt without a background must mean a white one


class Dataset(Protocol):
    """`len(dataset)` square pictures of `size` pixels, each in as many variations as one likes."""

    size: int

    def __len__(self) -> int: ...

    def variation(self, i: int, k: int, seed: int) -> tuple[Tensor, str]:
        """Variation `k` of picture `i`: (uint8 [3, size, size], caption), a pure function of (seed, i, k)."""
        ...

    def captions(self) -> Iterator[str]:
        """All captions, or a fair sample where they are endless: what a tokenizer is trained on."""
        ...


def open_dataset(
    table: Mapping[str, Any], size: int, cache: Path, folder: Path | None = None, fetched: Path | None = None
) -> Dataset:
    """The dataset that a recipe's [data] table describes, at `size` pixels; `folder` takes the table's place.

    `source = "folder"` takes a `path`; `source = "emoji"` takes the settings of EmojiConfig, and its pictures
    are kept in `cache`; with `seen_only = true` those that `emoji.split` keeps for trials are left out.
    `fetched` is a folder that already holds the emoji packages.
    """
    if folder is not None:
        return FolderDataset(load_folder(folder, size))
    source = table.get("source")
    if source == "folder":
        if set(table) != {"source", "path"}:
            raise ValueError('[data] with source = "folder" takes one more setting, path')
        return FolderDataset(load_folder(Path(table["path"]), size))
    if source == "emoji":
        emoji = load_emoji(emoji_config(table, size), cache, fetched)
        return EmojiDataset(split(emoji)["seen"] if table.get("seen_only") else emoji)
    raise ValueError(f'[data] has source = {source!r}: it must be "emoji" or "folder"')


def emoji_config(table: Mapping[str, Any], size: int) -> EmojiConfig:
    settings = {key: value for key, value in table.items() if key not in ("source", "seen_only")}
    return build(EmojiConfig, settings | {"size": size}, "[data]")


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
        white = rng.random() < WHITE_SHARE
        colour = WHITE if white else rng.choice(COLOURS)
        said = colour if not white or rng.random() < WHITE_SAID else None
        image = composite(self.emoji.pictures[i], colour.rgb)
        return image, caption(self.emoji.things[thing], style, said, rng)

    def captions(self) -> Iterator[str]:
        for thing in self.emoji.things:
            yield from sorted(words_of(thing))
        for i in range(len(self)):
            for k in range(8):
                yield self.variation(i, k, seed=0)[1]


class FolderDataset:
    """Somebody's own pictures, as they are: a variation draws one of the captions."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self.size = folder.pictures.shape[-1]

    def __len__(self) -> int:
        return len(self.folder.texts)

    def variation(self, i: int, k: int, seed: int) -> tuple[Tensor, str]:
        return self.folder.pictures[i], draws(seed, i, k).choice(self.folder.texts[i])

    def captions(self) -> Iterator[str]:
        for texts in self.folder.texts:
            yield from texts


def draws(seed: int, i: int, k: int) -> random.Random:
    """The randomness of variation `k` of picture `i`, whatever was drawn before it."""
    return random.Random(hashlib.sha256(f"{seed} {i} {k}".encode()).digest())


def composite(rgba: Tensor, background: tuple[int, int, int]) -> Tensor:
    """uint8 RGBA [4, S, S] over a colour => uint8 [3, S, S], rounded."""
    alpha, behind = rgba[3:].int(), torch.tensor(background).view(3, 1, 1)
    return ((rgba[:3].int() * alpha + behind * (255 - alpha) + 127) // 255).to(torch.uint8)


# the command

EXAMPLES = """examples:
  python -m train.data emoji-64                     # fetch, render into runs/emoji-64/data, show
  python -m train.data emoji-64 --fetched packages  # with the npm packages already in that folder
  python -m train.data emoji-64 --folder photos     # would my own images do?
  python -m train.data emoji-64 --export pictures   # write them as a folder of images with metadata.jsonl
  python -m train.data emoji-64 --dry-run
"""
SHEET = 256  # pictures on the contact sheet at most


def main(argv: Sequence[str] | None = None) -> int:
    parser = ArgumentParser(
        prog="python -m train.data", description="Prepare a recipe's pictures and captions, and show them.",
        epilog=EXAMPLES, formatter_class=RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("recipe", help="a shipped recipe's name (emoji-64) or the path of a TOML file")
    parser.add_argument("--out", type=Path, help="the run folder (default: runs/NAME)")
    parser.add_argument("--folder", type=Path, help="look at this folder of images with captions instead")
    parser.add_argument("--fetched", type=Path, help="a folder that already holds the emoji packages")
    parser.add_argument("--export", type=Path, metavar="FOLDER", help="write the pictures as such a folder")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and stop")
    args = parser.parse_args(argv)
    try:
        recipe = Recipe.load(args.recipe)
        cache = (args.out or Path("runs") / recipe.name) / "data"
        if args.dry_run:
            print(f"{recipe.name}: pictures of {recipe.size} pixels a side, into {cache}, of")
            print("\n".join(f"  {line}" for line in sources(recipe, args.folder)))
            return 0
        dataset = open_dataset(recipe.data, recipe.size, cache, folder=args.folder, fetched=args.fetched)
        cache.mkdir(parents=True, exist_ok=True)
        write_atomically(cache / "sheet.png", png(contact_sheet(dataset)))
        print(f"{len(dataset)} pictures, {dataset.size} pixels a side, shown in {cache / 'sheet.png'}:")
        for i in range(0, len(dataset), max(1, len(dataset) // 8)):
            print(f"  {dataset.variation(i, 0, seed=0)[1]}")
        if args.export:
            export(dataset, args.export)
            print(f"written to {args.export}")
    except (ValueError, OSError) as mistake:
        print(f"{parser.prog}: {mistake}", file=sys.stderr)
        return 2
    return 0


def sources(recipe: Recipe, folder: Path | None) -> list[str]:
    if folder is not None or recipe.data.get("source") == "folder":
        return [str(folder or recipe.data.get("path"))]
    config = emoji_config(recipe.data, recipe.size)
    packages = [PACKAGES[key] for key in (NAMES, *config.styles)]
    return [f"{package.spec}, {package.licence}: {package.attribution}" for package in packages]


def contact_sheet(dataset: Dataset) -> Tensor:
    """The first variation of up to SHEET pictures, evenly chosen, in a square grid. uint8 [3, H, W]."""
    shown = [i * len(dataset) // min(SHEET, len(dataset)) for i in range(min(SHEET, len(dataset)))]
    columns = int(len(shown) ** 0.5 + 0.999)
    rows = -(-len(shown) // columns)
    sheet = torch.full((3, rows * dataset.size, columns * dataset.size), 255, dtype=torch.uint8)
    for cell, i in enumerate(shown):
        top, left = (place * dataset.size for place in divmod(cell, columns))
        sheet[:, top : top + dataset.size, left : left + dataset.size] = dataset.variation(i, 0, seed=0)[0]
    return sheet


def export(dataset: Dataset, folder: Path) -> None:
    """Writes variation 0 of every picture as a PNG, and `metadata.jsonl`: a folder that `--folder` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty: export into a new folder")
    rows = []
    for i in range(len(dataset)):
        image, text = dataset.variation(i, 0, seed=0)
        rows.append({"file_name": f"{i:06d}.png", "text": text})
        (folder / rows[-1]["file_name"]).write_bytes(png(image))
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_atomically(folder / "metadata.jsonl", lines.encode())  # last: a folder that has it is whole


def png(image: Tensor) -> bytes:
    """uint8 [3, H, W] => the bytes of a PNG file."""
    file = BytesIO()
    Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(file, "PNG")
    return file.getvalue()


if __name__ == "__main__":
    sys.exit(main())
