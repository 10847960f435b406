"""python -m train.zeroshot: can CLIP name pictures that it never saw, among names that nobody fitted it to?

    each thing's name in a few sentences, each picture  =>  unit vectors  =>  the closest name

Asked of the pictures that its training left out: known things in a style in which they were never shown, and things
that were never shown at all. It leaves in the CLIP's folder, for `python -m clip.rank`, the words that it asks with and
the cosine from which a picture shows a text: one that a hundredth of wrong names reach.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from clip.durable import write_atomically
from clip.ranker import CONCEPTS, LANGUAGES, SENTENCES, Concepts, Ranker
from train.captions import COLOURS, STYLE_WORDS, WHITE
from train.data import composite, emoji_config
from train.emoji import Emoji, load_emoji, split
from train.evaluate import Row, table
from train.judge import ahead
from train.recipe import Recipe

EXAMPLES = """examples:
  python -m train.zeroshot emoji-clip                        # runs/emoji-clip/clip
  python -m train.zeroshot emoji-clip --clip path/to/a/clip
  python -m train.zeroshot emoji-clip --dry-run
"""
PARTS = {"held_out": "a known thing in a style unseen", "unseen": "a thing unseen", "seen": "learnt from"}
BESIDE = 16  # a style's vector is the mean beside every so manieth thing
AT_MOST = 500  # pictures of a part, evenly chosen
FALSE_ALARMS = 0.01


def main(argv: Sequence[str] | None = None) -> int:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m train.zeroshot", description=__doc__, epilog=EXAMPLES, formatter_class=raw
    )
    add = parser.add_argument
    add("recipe", help="a shipped recipe's name (emoji-clip) or the path of a TOML file")
    add("--clip", type=Path, help="a CLIP's folder (default: the run's own)")
    add("--out", type=Path, help="the run folder (default: runs/NAME)")
    add("--fetched", type=Path, help="a folder that already holds the emoji packages")
    add("--dry-run", action="store_true", help="say what would be done, and stop")
    args = parser.parse_args(argv)
    try:
        run(args)
    except (ValueError, OSError) as mistake:
        print(f"{parser.prog}: {mistake}", file=sys.stderr)
        return 2
    return 0


def run(args: argparse.Namespace) -> None:
    recipe = Recipe.load(args.recipe)
    if not recipe.data.get("seen_only"):
        raise ValueError(f"The recipe {recipe.name} leaves no pictures out to try CLIP on: set seen_only in [data].")
    out = args.out or Path("runs") / recipe.name
    if args.dry_run:
        print(f"{recipe.name}: {args.clip or out / 'clip'} is asked about the pictures that its training left out")
        return
    ranker = Ranker(args.clip or out / "clip")
    emoji = load_emoji(emoji_config(recipe.data, recipe.size), out / "data", args.fetched)
    said = concepts(emoji)
    said = replace(said, threshold=threshold(ranker, emoji, said))
    if args.clip is None:
        write_atomically(ranker.folder / CONCEPTS, json.dumps(asdict(said), ensure_ascii=False, indent=0).encode())
    print(table(rows(ranker, emoji, said)))


def concepts(emoji: Emoji) -> Concepts:
    """What the emoji's captions name. The templates are those of the captions, with every style's first words."""
    styles = list(dict.fromkeys(style for _, style in emoji.records))
    manners = {language: [STYLE_WORDS[style][k][0] for style in styles] for k, language in enumerate(LANGUAGES)}
    colours = (WHITE, *COLOURS)
    return Concepts(
        things={"en": [t.label_en for t in emoji.things], "ja": [t.label_ja for t in emoji.things]},
        styles=manners,
        backgrounds={"en": [colour.en for colour in colours], "ja": [colour.ja for colour in colours]},
        templates={
            "en": ["{}", *(f"{{}}, {manner}" for manner in manners["en"])],
            "ja": ["{}", *(f"{{}}の{manner}" for manner in manners["ja"])],
        },
    )


def rows(ranker: Ranker, emoji: Emoji, said: Concepts) -> list[Row]:
    """How often the right name comes first, and among the first five: of things, and of styles, in each language."""
    styles = list(dict.fromkeys(style for _, style in emoji.records))
    found = [Row("chance: thing", None, 1 / len(emoji.things), 5 / len(emoji.things))]
    found.append(Row("chance: style", None, 1 / len(styles), min(1.0, 5 / len(styles))))
    names = {language: ranker.names(said.things[language], said.templates[language]) for language in LANGUAGES}
    manners = {  # a style beside things, as captions have it
        language: ranker.names(
            said.styles[language],
            [SENTENCES[language].format(thing=thing, style="{}") for thing in said.things[language][::BESIDE]],
        )
        for language in LANGUAGES
    }
    for name, part in split(emoji).items():
        pictures, records = looked_at(ranker, part)
        things = torch.tensor([thing for thing, _ in records])
        shown = torch.tensor([styles.index(style) for _, style in records])
        for language in LANGUAGES:
            found.append(row(f"{PARTS[name]}: thing, {language}", pictures @ names[language].T, things))
        for language in LANGUAGES:
            found.append(row(f"{PARTS[name]}: style, {language}", pictures @ manners[language].T, shown))
    return found


def looked_at(ranker: Ranker, part: Emoji) -> tuple[Tensor, list[tuple[int, str]]]:
    """Some pictures of a part, over white => [N, P], and what they show."""
    count = min(AT_MOST, len(part.records))
    chosen = [i * len(part.records) // count for i in range(count)]
    images = [composite(part.pictures[n], WHITE.rgb).permute(1, 2, 0).contiguous().numpy() for n in chosen]
    return ranker.pictures([Image.fromarray(image) for image in images]), [part.records[n] for n in chosen]


def threshold(ranker: Ranker, emoji: Emoji, said: Concepts) -> float:
    """The cosine that a hundredth of all wrong names have with known things in styles unseen."""
    pictures, records = looked_at(ranker, split(emoji)["held_out"])
    wrong = torch.ones(len(records), len(emoji.things), dtype=torch.bool)
    wrong[range(len(records)), [thing for thing, _ in records]] = False
    names = (ranker.names(said.things[language], said.templates[language]) for language in LANGUAGES)
    cosines = torch.cat([(pictures @ of.T)[wrong] for of in names])
    return round(cosines.kthvalue(round(len(cosines) * (1 - FALSE_ALARMS))).values.item(), 3)


def row(name: str, cosines: Tensor, right: Tensor) -> Row:
    """Cosines [N, M], the right ones' numbers [N]"""
    before = ahead(cosines, right)
    return Row(name, len(right), *((before < k).float().mean().item() for k in (1, 5)))


if __name__ == "__main__":
    sys.exit(main())
