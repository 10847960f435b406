"""python -m diffusion.sample: prompts => pictures in files."""

import argparse
import hashlib
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

import torch
from tqdm import tqdm

from clip.command import at_least_one, attempt
from clip.durable import write_atomically
from clip.language import PromptModel
from clip.language_model import Sampling
from clip.ranker import DEFAULT_CLIP, Ranker
from diffusion.best import best
from diffusion.canvas import FILLS
from diffusion.credentials import Signer
from diffusion.flags import add_model, open_model, read_file
from diffusion.grammar import SYNTAXES
from diffusion.image import RESIZE
from diffusion.metadata import digest
from diffusion.open import AnyPipeline
from diffusion.request import DEFAULT_SYNTAX, FILES, Request, Resolved, draw_prompts, to_json
from diffusion.samplers import SAMPLERS, options
from diffusion.schedules import SCHEDULES
from diffusion.sheet import sheet
from diffusion.texts import FORMATS, encode_picture
from diffusion.upscale import UPSCALERS
from diffusion.wildcards import combinations

EXPANSION = 16  # tokens that --expand adds at most
COMMAND = "python -m diffusion.sample"
EXAMPLES = """examples:
  python -m diffusion.sample "a red apple"                      # into outputs/
  python -m diffusion.sample "a red apple" --out apple.png      # or apple.jpg, apple.webp
  python -m diffusion.sample "a red apple" "a blue star" --count 4 --grid
  python -m diffusion.sample "a red apple" --count 16 --batch 8 # eight at once, in about half of the time
  python -m diffusion.sample "a red apple" --count 2 --best-of 4 # two pictures, each the best of four
  python -m diffusion.sample "a cat" --seed 7 --steps 50 --sampler heun --guidance 5
  python -m diffusion.sample "a cat" --seed 7 --variation-strength 0.2 --count 4
  python -m diffusion.sample "a green apple" --image apple.png --strength 0.9
  python -m diffusion.sample "a worm" --image apple.png --mask hole.png --padding 16
  python -m diffusion.sample "two apples" --image apple.png --outpaint 0,0,64,0
  python -m diffusion.sample "a red apple" --hires-scale 2      # a second pass, twice as large
  python -m diffusion.sample "a {red|blue} (apple:1.2)" "a {e$$cat|dog} at [night:noon:0.3]"
  python -m diffusion.sample "a red" --expand --count 4         # four pictures, each of a longer prompt
  python -m diffusion.sample "a cat" --model path/to/folder --size 512x768 --device cuda --dtype float16
  python -m diffusion.sample "a cat" --model path/to/model.safetensors --vae path/to/vae.safetensors
  python -m diffusion.sample "a cat" --model organisation/model --allow-download
  python -m diffusion.sample "a cat" --model path/to/folder --loras path/to/loras --lora ink:0.8 --lora detail

exit codes: 0 done; 2 a mistake in what was asked, said in one sentence; 130 stopped by Ctrl-C.
"""


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=COMMAND,
        description="Prompts => pictures. Each file says how it was made; the same request makes the same bytes.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    # A flag that bears the name of a field of Request is that field; None is the model's own default.
    add = parser.add_argument_group("what they show").add_argument
    add("prompts", nargs="+", metavar="PROMPT")
    add("--negative", default="", metavar="PROMPT", help="what to lead the pictures away from")
    add("--expand", action="store_true", help="let a language model go on from each prompt, drawing by the seed")
    add("--size", metavar="WxH", help="pixels, as 64x96, or 64 for a square")
    add("--seed", type=int, default=0, help="picture i of a prompt has seed + i; -1 draws one (default: 0)")
    add("--count", type=int, default=1, help="pictures a prompt (default: 1)")
    add("--batch", type=int, default=1, metavar="N", help="make N at once: sooner, each the same up to rounding")
    add("--best-of", type=int, default=1, metavar="N", help="make N for each, keep the one that --clip ranks highest")
    add("--clip", type=Path, default=DEFAULT_CLIP, metavar="FOLDER", help="of a CLIP (default: the shipped emoji-clip)")

    add = parser.add_argument_group("how they are sampled; by default, as the model's own settings say").add_argument
    add("--steps", type=int, help="of the sampler")
    add("--sampler", metavar="NAME", help=", ".join(SAMPLERS))
    add("--schedule", metavar="NAME", help=f"{', '.join(SCHEDULES)}; or a list of sigmas: 14.6,3.1,0.5,0")
    add("--guidance", type=float, help="how closely to follow the prompt; 1 is the plain model")
    add("--guidance-rescale", type=float, metavar="0..1", help="keeps strong guidance from overexposing; try 0.7")
    add("--guidance-interval", type=float, nargs=2, metavar=("LOW", "HIGH"), help="guide between these sigmas alone")

    add = parser.add_argument_group("how prompts are read; python -m diffusion.prompt explains one").add_argument
    default = f"(default: {DEFAULT_SYNTAX}; long prompts are read in chunks, nothing is cut)"
    add("--prompt-syntax", metavar="NAME", help=f"{', '.join(SYNTAXES)} {default}")
    add("--clip-skip", type=int, help="read the text encoders' n-th last layer; 1 is the last")
    add("--wildcards", type=Path, metavar="FOLDER", help="__name__ in a prompt is a line of FOLDER/name.txt")

    add = parser.add_argument_group("options of some samplers; by default, the sampler's own").add_argument
    add("--eta", type=float, help="how much noise is added on the way: 0 none, 1 all of the SDE's; " + _that("eta"))
    add("--s-churn", type=float, help="noise added before each step, in sum; " + _that("s_churn"))
    add("--s-tmin", type=float, metavar="SIGMA", help="the least sigma at which it is")
    add("--s-tmax", type=float, metavar="SIGMA", help="the largest")
    add("--s-noise", type=float, metavar="FACTOR", help="of all noise that is added; " + _that("s_noise"))

    add = parser.add_argument_group("from an image").add_argument
    add("--image", type=Path, metavar="FILE", help="a PNG, JPEG or WebP to begin with, not noise alone")
    add("--strength", type=float, metavar="0..1", help="how far to go from it (default: 0.75; into the empty, 1)")
    add("--resize", metavar="HOW", help=f"to --size: {', '.join(RESIZE)} (default: stretch)")
    add("--outpaint", metavar="L,T,R,B", help="go on beyond its edges: pixels left, top, right, bottom")
    add("--mask", type=Path, metavar="FILE", help="white changes, black stays; else what is transparent changes")
    add("--mask-blur", type=float, metavar="PIXELS", help="how softly (default: a 128th of the shorter side)")
    add("--fill", metavar="WITH", help=f"under the mask, before: {', '.join(FILLS)} (default: original)")
    add("--padding", type=int, metavar="PIXELS", help="show the model the masked part alone, and so much around it")

    add = parser.add_argument_group("a second, larger pass; large pictures").add_argument
    add("--hires-scale", type=float, metavar="TIMES", help="by which to enlarge the picture, and go over it")
    add("--hires-steps", type=int, metavar="STEPS", help="as in the first pass by default")
    add("--hires-strength", type=float, metavar="0..1", help="how much of it to make anew (default: 0.7)")
    add("--hires-upscaler", metavar="NAME", help=f"{', '.join(UPSCALERS)} (default: latent)")
    add("--tile", type=int, metavar="PIXELS", help="decode large pictures in overlapping tiles: less memory; try 512")

    add = parser.add_argument_group("variations").add_argument
    add("--variation-seed", type=int, metavar="SEED", help="of a second noise; picture i has this + i, all one --seed")
    add("--variation-strength", type=float, metavar="0..1", help="how far to go from the first noise to the second")

    add_model(parser)

    add = parser.add_argument_group("what is written").add_argument
    add("--out", type=Path, default=Path("outputs"), help="a folder, or a file (default: %(default)s)")
    add("--format", choices=sorted(set(FORMATS.values())), type=str.upper, help="of files in a folder (default: PNG)")
    add("--sign", nargs=2, type=Path, metavar=("CERTIFICATE", "KEY"), help="sign that a model made them: C2PA, offline")
    add("--grid", action="store_true", help="write all pictures on one sheet, too")
    add("--json", action="store_true", help="print a line of JSON a picture, not its path alone")
    add("--dry-run", action="store_true", help="check everything, print what would be made, and stop")
    return parser


def _that(option: str) -> str:
    return ", ".join(name for name in SAMPLERS if option in options(name))


def main(argv: Sequence[str] | None = None) -> int:
    args = arguments().parse_intermixed_args(argv)  # prompts may stand between options
    try:
        return attempt(COMMAND, lambda: run(args))
    except torch.OutOfMemoryError:
        print(f"{COMMAND}: the memory of {args.device} is too small; try a smaller --size.", file=sys.stderr)
        return 2


def run(args: argparse.Namespace) -> int:
    signer = Signer(*args.sign) if args.sign else None
    pipeline = open_model(args)
    requests = requests_of(args, pipeline)
    paths = paths_of(args.out, args.format, args.best_of, requests, pipeline)
    if args.dry_run:
        for path, request in zip(paths, requests, strict=True):
            report(path, request, args.json)
        return 0

    folder = paths[0].parent
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):  # raises now, not after the work, where nothing can be written
        pass
    ranker = Ranker(args.clip, pipeline.device) if args.best_of > 1 else None
    images = []
    evaluations = sum(map(pipeline.evaluations, requests))
    with tqdm(total=evaluations, unit="step", disable=None, file=sys.stderr) as bar:
        made = zip(paths, pipeline.generate(requests, lambda _: bar.update(), args.batch), strict=True)
        try:
            for path, picture in best(made, args.best_of, ranker) if ranker else made:
                format = FORMATS[path.suffix.lower()]
                file = picture.file(format)
                write_atomically(path, signer.sign(file, format) if signer else file)
                images.append(picture.image)
                report(path, picture.request, args.json)
        except KeyboardInterrupt:
            bar.close()
            asked = len(requests) // args.best_of
            print(f"Stopped; {len(images)} of {asked} pictures are in {folder}.", file=sys.stderr)
            return 130
    if args.grid:
        names = hashlib.sha256("".join(path.name for path in paths).encode()).hexdigest()
        path = folder / f"grid-{names[:12]}.png"
        rows_of_prompts = len(args.prompts) > 1 and args.count > 1
        write_atomically(path, encode_picture(sheet(images, args.count if rows_of_prompts else 0), {}))
        print(json.dumps({"grid": str(path)}) if args.json else path)
    return 0


def requests_of(args: argparse.Namespace, pipeline: AnyPipeline) -> list[Resolved]:
    """Every picture to be made: prompt by prompt, seed by seed."""
    for flag, value in (("--count", args.count), ("--best-of", args.best_of), ("--batch", args.batch)):
        at_least_one(flag, value)
    said = {field.name: getattr(args, field.name) for field in fields(Request) if hasattr(args, field.name)}
    said["loras"] = tuple(args.loras or ())
    said |= {name: read_file(said[name]) for name in FILES if said[name] is not None}
    if args.outpaint:
        said["outpaint"] = edges(args.outpaint)
    if args.size:
        said["width"], said["height"] = size(args.size)
    language = PromptModel.from_folder() if args.expand else None
    requests = []
    for prompt in args.prompts:
        for template in [prompt] if args.prompt_syntax == "plain" else combinations(prompt):
            asked = Request(template, **said)
            first = pipeline.resolve(asked)
            asked = replace(asked, seed=first.seed, variation_seed=first.variation_seed)
            # Pictures of one prompt differ in their seed; variations of one picture in the seed that they go to.
            seed = "seed" if first.variation_seed is None else "variation_seed"
            for i in range(args.count * args.best_of):
                request = replace(asked, **{seed: getattr(first, seed) + i})
                request = pipeline.resolve(draw_prompts(request, args.wildcards) if args.wildcards else request)
                if language:  # those of which the best is kept show the same
                    drawn = request.seed - (i % args.best_of if seed == "seed" else 0)
                    request = pipeline.resolve(expanded(request, language, drawn))
                requests.append(request)
    return requests


def expanded(request: Resolved, language: PromptModel, seed: int) -> Resolved:
    """The request with its prompt as the language model goes on from it; both prompts are recorded."""
    longer = language.complete(request.prompt, Sampling(temperature=0.8), seed, most=EXPANSION)
    return replace(request, prompt=longer, expanded_from=request.prompt)


def paths_of(
    out: Path, format: str | None, best_of: int, requests: Sequence[Resolved], pipeline: AnyPipeline
) -> list[Path]:
    """Where the pictures go: into the file that `out` names by its suffix, or into the folder that it is."""
    named = FORMATS.get(out.suffix.lower())
    if named is None or out.is_dir():
        suffix = next(suffix for suffix, known in FORMATS.items() if known == (format or "PNG"))
        return [out / f"{digest(request, pipeline.model)}{suffix}" for request in requests]
    if format not in (None, named):
        raise ValueError(f"--out {out} is a {named} file and --format is {format}; leave one out.")
    if (pictures := len(requests) // best_of) > 1:
        raise ValueError(f"--out {out} names one picture and {pictures} are asked for; give a folder.")
    return [out] * best_of


def edges(text: str) -> tuple[int, ...]:
    """ "0,0,32,0" => pixels to the left, top, right and bottom."""
    parts = text.split(",")
    if len(parts) != 4 or not all(part.strip().isdecimal() for part in parts):
        raise ValueError(f"--outpaint is {text!r}; expected left, top, right and bottom, as 0,0,32,0.")
    return tuple(map(int, parts))


def size(text: str) -> tuple[int, int]:
    """ "64x96" => 64, 96, and "64" => 64, 64."""
    width, x, height = text.lower().partition("x")
    if not width.isdecimal() or (x and not height.isdecimal()):
        raise ValueError(f"--size is {text!r}; expected pixels as 64x96, or 64 for a square.")
    return int(width), int(height or width)


def report(path: Path, request: Resolved, as_json: bool) -> None:
    """Prints where a picture is, clear of the progress bar."""
    tqdm.write(json.dumps({"path": str(path), **to_json(request)}) if as_json else str(path), file=sys.stdout)


if __name__ == "__main__":
    sys.exit(main())
