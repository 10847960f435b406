"""python -m train.evaluate: does the object appear that the prompt names?

    prompts  =>  the model's pictures  =>  a judge trained apart, on real pictures alone  =>  which thing is it?

The share of right answers stands beside chance, and beside the same judge's answers on the real pictures that
the prompts describe, as they are and passed through the model's autoencoder: the most that the model can reach.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from clip.command import at_least_one
from clip.durable import write_atomically
from diffusion.checkpoint import DEFAULT_MODEL, find_model, load_model
from diffusion.flags import find_device
from diffusion.metadata import digest
from diffusion.pipeline import Pipeline
from diffusion.request import Request, Resolved, resolve
from train.captions import COLOURS, STYLE_WORDS, WHITE, Colour, with_article
from train.curve import grid
from train.data import composite, emoji_config
from train.emoji import Emoji, Thing, load_emoji
from train.folder import read_picture
from train.judge import Judge, RealPictures, load_real, ranks, train_judge
from train.loop import Stopped
from train.recipe import Recipe

EXAMPLES = """examples:
  python -m train.evaluate emoji-64                              # the shipped model, into runs/emoji-64/judge
  python -m train.evaluate emoji-64 --model runs/emoji-64/model
  python -m train.evaluate emoji-64 --fetched packages           # with the npm packages already in that folder
  python -m train.evaluate emoji-64 --dry-run

Stop it with Ctrl-C whenever you like: the same command goes on from there. The judge is trained once a run
folder, and a picture is made once a model.

exit codes: 0 done; 2 a mistake in what was asked, said in one sentence; 130 stopped by Ctrl-C.
"""

SHEET_COLUMNS = 20
# What prompts look like, by turns. A name alone leaves the style to the model and asks for a white background.
FORMS: dict[str, Callable[[Thing, str, Colour], str]] = {
    "English": lambda thing, style, colour: with_article(thing.label_en),
    "Japanese": lambda thing, style, colour: thing.label_ja,
    "English, style": lambda thing, style, colour: f"{with_article(thing.label_en)}, {STYLE_WORDS[style][0][0]}",
    "Japanese, style": lambda thing, style, colour: f"{thing.label_ja}、{STYLE_WORDS[style][1][0]}",
    "English, background": lambda thing, style, colour: (
        f"{with_article(thing.label_en)} on {with_article(colour.en)} background"
    ),
}


@dataclass(frozen=True)
class Prompt:
    """A text, and the real picture that would answer it: the `style` one of thing number `thing`, on `background`."""

    text: str
    form: str
    thing: int
    style: str
    background: tuple[int, int, int]


@dataclass(frozen=True)
class Row:
    """How often the judge named the right thing first, and among its first five: shares of `n` pictures."""

    pictures: str
    n: int | None  # None: no pictures, a calculation
    top1: float
    top5: float


def main(argv: Sequence[str] | None = None) -> int:
    parser = arguments()
    args = parser.parse_args(argv)
    try:
        run(args)
    except (ValueError, OSError) as mistake:
        print(f"{parser.prog}: {mistake}", file=sys.stderr)
        return 2
    except (Stopped, KeyboardInterrupt) as stopped:
        print(str(stopped) or "Stopped; the same command goes on from there.", file=sys.stderr)
        return 130
    return 0


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m train.evaluate",
        description="Have an independent judge name what a model's pictures show.",
        epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("recipe", help="a shipped recipe's name (emoji-64) or the path of a TOML file")
    add("--model", default=DEFAULT_MODEL, help="a model folder, or a shipped model (default: %(default)s)")
    add("--out", type=Path, help="the run folder, results in its judge/ (default: runs/NAME)")
    add("--fetched", type=Path, help="a folder that already holds the emoji packages")
    add("--prompts", type=int, default=200, help="how many pictures to make (default: %(default)s)")
    add("--steps", type=int, help="training steps of the judge, in place of the recipe's")
    add("--dry-run", action="store_true", help="say what would be done, and stop")
    return parser


def run(args: argparse.Namespace) -> None:
    recipe = Recipe.load(args.recipe)
    if recipe.data.get("source") != "emoji" or "training" not in recipe.judge:
        raise ValueError(
            f'The recipe {recipe.name} has no judge: it takes [data] with source = "emoji", where every picture '
            "shows one named thing, and a table [judge.training]."
        )
    at_least_one("--prompts", args.prompts)
    config, training = emoji_config(recipe.data, recipe.size), recipe.training("judge", args.steps)
    out = args.out or Path("runs") / recipe.name
    if args.dry_run:
        print(f"{recipe.name}: {args.prompts} pictures of {find_model(args.model)}, judged in {out / 'judge'}")
        print(f"  judge: {training}")
        return

    model = load_model(args.model)
    emoji = load_emoji(config, out / "data", args.fetched)
    prompts = prompts_of(emoji, args.prompts)
    requests = [
        resolve(Request(prompt.text, seed=i, width=recipe.size, height=recipe.size), model)
        for i, prompt in enumerate(prompts)
    ]
    real = load_real(emoji.things, config, out / "data", args.fetched)

    folder = out / "judge"
    folder.mkdir(parents=True, exist_ok=True)
    named = [asdict(prompt) | {"thing": emoji.things[prompt.thing].label_en} for prompt in prompts]
    write_json(folder / "prompts.json", named)
    judge = train_judge(real, len(emoji.things), training, folder)
    pipeline = Pipeline(model, find_device("auto"))
    generated = generate(pipeline, requests, folder / "pictures")
    grid(generated, SHEET_COLUMNS, folder / "pictures.png")

    answers = answers_of(emoji, prompts)
    again = reconstruct(pipeline, answers)
    rows = judged(judge, real, prompts, generated=generated, answers=answers, again=again)
    psnr = -10 * F.mse_loss(again / 2, answers / 2).log10().item()  # dB, of pixels in [0, 1]
    write_json(folder / "evaluation.json", {
        "model": model.name, "weights": model.hashes, "judge": asdict(training),
        "rows": [asdict(row) for row in rows], "autoencoder_psnr": psnr if math.isfinite(psnr) else None,
    })  # fmt: skip
    print(table(rows))
    print(f"\nThe autoencoder gives the {len(answers)} real pictures back with a PSNR of {psnr:.2f} dB.")


def prompts_of(emoji: Emoji, count: int) -> list[Prompt]:
    """`count` prompts over things at even strides, each form, style and colour by turns: functions of the number."""
    styles = list(dict.fromkeys(style for _, style in emoji.records))
    prompts = []
    for i in range(count):
        turn, form = divmod(i, len(FORMS))
        name, say = list(FORMS.items())[form]
        thing, style = i * len(emoji.things) // count, styles[turn % len(styles)]
        colour = COLOURS[turn % len(COLOURS)] if "background" in name else WHITE
        prompts.append(Prompt(say(emoji.things[thing], style, colour), name, thing, style, colour.rgb))
    return prompts


def generate(pipeline: Pipeline, requests: Sequence[Resolved], folder: Path) -> Tensor:
    """The requests' pictures, [N, 3, S, S] in [-1, 1]; those that lie in `folder` are not made again."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {f"{digest(request, pipeline.model)}.png": request for request in requests}
    missing = {name: request for name, request in files.items() if not (folder / name).is_file()}
    pictures = tqdm(pipeline.generate(missing.values()), "pictures", len(missing), unit="picture", disable=None)
    for name, picture in zip(missing, pictures, strict=True):
        write_atomically(folder / name, picture.png())
    return signed(torch.stack([read_picture(folder, name, requests[0].width) for name in files]))


def answers_of(emoji: Emoji, prompts: Sequence[Prompt]) -> Tensor:
    """The real pictures that the prompts describe, [N, 3, S, S] in [-1, 1]."""
    number = {record: n for n, record in enumerate(emoji.records)}
    pictures = [composite(emoji.pictures[number[p.thing, p.style]], p.background) for p in prompts]
    return signed(torch.stack(pictures))


@torch.inference_mode()
def reconstruct(pipeline: Pipeline, images: Tensor) -> Tensor:
    """images => latents => images, by the model's autoencoder."""
    autoencoder = pipeline.autoencoder
    batches = (batch.to(pipeline.device) for batch in images.split(32))
    return torch.cat([autoencoder.decode(autoencoder.encode(batch)).clamp(-1, 1).cpu() for batch in batches])


def judged(
    judge: Judge, real: RealPictures, prompts: Sequence[Prompt], generated: Tensor, answers: Tensor, again: Tensor
) -> list[Row]:
    """The table: generated pictures, whole and by form of prompt, between chance and the real ones."""
    wanted = torch.tensor([prompt.thing for prompt in prompts])
    found = ranks(judge, generated, wanted)
    apart = signed(torch.stack([composite(rgba, WHITE.rgb) for rgba in real.rgba[real.held_out]]))
    things = judge.scores.out_features
    rows = {"generated": found}
    for form in FORMS:
        rows[f"generated: {form}"] = found[torch.tensor([prompt.form == form for prompt in prompts])]
    rows["real, through the autoencoder"] = ranks(judge, again, wanted)
    rows["real, as they are"] = ranks(judge, answers, wanted)
    rows["real, held out from the judge"] = ranks(judge, apart, real.labels[real.held_out])
    return [Row("chance", None, 1 / things, min(5, things) / things)] + [
        Row(name, len(found), *((found < k).float().mean().item() for k in (1, 5)))
        for name, found in rows.items()
        if len(found)
    ]


def table(rows: Sequence[Row]) -> str:
    """The rows in Markdown, in percent."""
    lines = ["| pictures | n | top-1 | top-5 |", "| :-- | --: | --: | --: |"]
    lines += [f"| {row.pictures} | {row.n or ''} | {row.top1:.1%} | {row.top5:.1%} |" for row in rows]
    return "\n".join(lines)


def signed(pixels: Tensor) -> Tensor:
    """uint8 => [-1, 1]"""
    return pixels.float() / 127.5 - 1


def write_json(path: Path, value: object) -> None:
    write_atomically(path, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())


if __name__ == "__main__":
    sys.exit(main())
