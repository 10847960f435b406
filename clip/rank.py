"""python -m clip.rank: pictures and texts held against each other by CLIP."""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from clip.command import at_least_one
from clip.index import INDEX, Index, refresh
from clip.pictures import BadPicture, over_white, read_picture
from clip.ranker import DEFAULT_CLIP, LANGUAGES, Ranker

COMMAND = "python -m clip.rank"
EXAMPLES = """examples:
  python -m clip.rank similarity cat.png "a cat" "a dog" "猫"
  python -m clip.rank classify cat.png dog.png --labels cat,dog,fish
  python -m clip.rank classify cat.png                           # among all that the CLIP was taught
  python -m clip.rank caption cat.png --language ja
  python -m clip.rank search outputs "a red apple" --count 5
  python -m clip.rank search outputs --picture cat.png           # the pictures most like this one
  python -m train.data emoji-64 --export pictures && python -m clip.rank search pictures --picture outputs/x.png
                                                                 # is it a picture that the model was trained on?
The first search of a folder reads every picture in it and leaves an index there; a later one reads what is new.

exit codes: 0 done; 2 a mistake in what was asked, said in one sentence; 130 stopped by Ctrl-C, the index kept.
"""


def arguments() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__, epilog=EXAMPLES, formatter_class=raw)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--clip", type=Path, default=DEFAULT_CLIP, help="a CLIP's folder (default: the shipped one)")
    shared.add_argument("--device", default="cpu", help="where it runs (default: %(default)s)")
    shared.add_argument("--json", action="store_true", help="print a line of JSON a row")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, does: Callable[..., int], about: str) -> Callable[..., argparse.Action]:
        added = commands.add_parser(name, parents=[shared], help=about, description=about)
        added.set_defaults(does=does)
        return added.add_argument

    add = command("similarity", similarity, "the cosine of a picture with each text")
    add("picture", type=Path)
    add("texts", nargs="+", metavar="TEXT")

    add = command("classify", classify, "which of the labels a picture shows, without being trained on them")
    add("pictures", nargs="+", type=Path, metavar="PICTURE")
    add("--labels", help="names between commas, in English or Japanese (default: all that the CLIP was taught)")
    add("--templates", nargs="+", metavar="TEXT", help='sentences that a name is put into, as "a drawing of {}"')
    add("--count", type=int, default=5, help="labels a picture, the likeliest first (default: %(default)s)")

    add = command("caption", caption, "a caption of a picture, made of the words that rank highest")
    add("pictures", nargs="+", type=Path, metavar="PICTURE")
    add("--language", choices=LANGUAGES, default="en")

    add = command("search", search, "the pictures of a folder that are closest to a text or to a picture")
    add("folder", type=Path)
    add("text", nargs="?", help="what to look for")
    add("--picture", type=Path, help="look for what is like this picture instead")
    add("--count", type=int, default=10, help="pictures (default: %(default)s)")
    add("--index", type=Path, help=f"where the folder's index is kept (default: FOLDER/{INDEX})")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = arguments().parse_args(argv)
    try:
        return args.does(args)
    except OSError as mistake:
        print(f"{COMMAND}: {mistake.filename or 'a file'}: {mistake.strerror or mistake}.", file=sys.stderr)
    except ValueError as mistake:
        print(f"{COMMAND}: {mistake}", file=sys.stderr)
    return 2


def similarity(args: argparse.Namespace) -> int:
    ranker, image = Ranker(args.clip, args.device), opened(args.picture)
    cosines = (ranker.texts(args.texts) @ ranker.pictures([image])[0]).tolist()
    for text, cosine in sorted(zip(args.texts, cosines, strict=True), key=lambda row: -row[1]):
        report(args, f"{cosine:+.3f}  {text}", text=text, cosine=round(cosine, 6))
    return 0


def classify(args: argparse.Namespace) -> int:
    at_least_one("--count", args.count)
    images = [opened(path) for path in args.pictures]
    ranker = Ranker(args.clip, args.device)
    labels = ranker.concepts.things.get("en", [])
    if args.labels is not None:
        labels = [label.strip() for label in args.labels.split(",")]
    if not labels or not all(labels):
        raise ValueError(f"--labels is {args.labels!r}; expected names between commas, as cat,dog,fish.")
    for template in args.templates or []:
        if "{}" not in template:
            raise ValueError(f"The template {template!r} has no {{}}, the place of the name.")
    chances = ranker.chances(ranker.pictures(images), ranker.names(labels, args.templates))
    for path, row in zip(args.pictures, chances, strict=True):
        best = row.topk(min(args.count, len(labels)))
        ranked = [(labels[i], chance) for chance, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)]
        line = ", ".join(f"{label} {chance:.1%}" for label, chance in ranked)
        report(args, f"{path}: {line}", picture=str(path), labels={label: round(p, 6) for label, p in ranked})
    return 0


def caption(args: argparse.Namespace) -> int:
    images = [opened(path) for path in args.pictures]
    ranker = Ranker(args.clip, args.device)
    for path, image in zip(args.pictures, images, strict=True):
        said = ranker.caption(image, args.language)
        report(args, f"{path}: {said}", picture=str(path), caption=said)
    return 0


def search(args: argparse.Namespace) -> int:
    at_least_one("--count", args.count)
    if (args.text is None) == (args.picture is None):
        raise ValueError("A search takes either a text or --picture FILE.")
    image = opened(args.picture) if args.picture else None
    ranker = Ranker(args.clip, args.device)
    try:
        index = read_all(args.folder, ranker, args.index)
    except KeyboardInterrupt:
        print("Stopped; the index keeps what was read, and the same command goes on.", file=sys.stderr)
        return 130
    query = ranker.texts([args.text])[0] if image is None else ranker.pictures([image])[0]
    for cosine, path in index.search(query, args.count):
        report(args, f"{cosine:+.3f}  {path}", picture=str(path), cosine=round(cosine, 6))
    return 0


def read_all(folder: Path, ranker: Ranker, path: Path | None) -> Index:
    """The folder's index, brought up to date behind a progress bar; what cannot be read is named on stderr."""
    steps = refresh(folder, ranker, path)
    index, left = next(steps)
    with tqdm(total=left, desc=f"reading {folder.name}", unit="picture", disable=None if left else True) as bar:
        for _, still in steps:
            bar.update(left - still - bar.n)
    for name, reason in index.bad.items():
        print(f"passed over {name}: {reason}", file=sys.stderr)
    return index


def opened(path: Path) -> Image.Image:
    try:
        return over_white(read_picture(path))
    except BadPicture as reason:
        raise ValueError(f"{path}: {reason}.") from None


def report(args: argparse.Namespace, line: str, **values: Any) -> None:
    print(json.dumps(values, ensure_ascii=False) if args.json else line)


if __name__ == "__main__":
    sys.exit(main())
