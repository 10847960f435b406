"""Whether diffusers' StableDiffusionPipeline makes the same pictures of the same folder, noise and steps.

With `--samplers`, of every sampler in turn, and of Stable Diffusion 1.x, 2.x and XL at tiny size with random weights.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from benchmarks.difference import CLOSE, PSNR, difference
from benchmarks.samplers import print_table
from diffusion.checkpoint import DEFAULT_MODEL, find_model, load_model
from diffusion.pipeline import Pipeline
from diffusion.request import Request, Resolved, resolve
from tests.models import KINDS, save_model

PROMPTS = ("a red apple", "a flat illustration of a fox", "りんごの3Dイラスト", "a blue star on yellow")
COMMAND = "python -m benchmarks.parity"
EXAMPLES = """examples:
  python -m benchmarks.parity
  python -m benchmarks.parity "a green car" "青い傘" --steps 50
  python -m benchmarks.parity --model path/to/folder
  python -m benchmarks.parity --samplers

exit codes: 0 every picture is the same; 1 one is not; 2 a mistake in what was asked.
"""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog=COMMAND, description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("prompts", nargs="*", default=PROMPTS, metavar="PROMPT")
    parser.add_argument("--model", default=DEFAULT_MODEL, help="a model folder (default: %(default)s)")
    parser.add_argument("--steps", type=int, help="sampling steps (default: the model's own)")
    parser.add_argument("--samplers", action="store_true", help="every sampler, on tiny models of every kind")
    args = parser.parse_args(argv)
    if args.samplers:
        return verdict(every_sampler())
    try:
        ours = Pipeline(load_model(args.model))
        requests = [same_steps(ours, Request(prompt, steps=args.steps)) for prompt in args.prompts]
    except ValueError as mistake:
        print(f"{COMMAND}: {mistake}", file=sys.stderr)
        return 2
    theirs = open_with_diffusers(args.model)

    first, scheduler = requests[0], type(theirs.scheduler).__name__
    print(f"Model {ours.model.name}, float32: {first.steps} steps of {scheduler} there and of {first.sampler} here,")
    print(f"guidance {first.guidance:g}, {first.width}x{first.height}. torch {version('torch')}, ", end="")
    print(f"diffusers {version('diffusers')}, transformers {version('transformers')}.\n")
    print("| prompt | PSNR, dB | largest difference of 255 | values within 1 |\n|---|---|---|---|")
    differences = []
    for request in requests:
        (picture,) = ours.generate([request])
        found = difference(picture.image, make_with_diffusers(theirs, ours, request))
        print(f"| {request.prompt} | {found.figures} |", flush=True)
        differences.append(found)
    return verdict(all(found.within_rounding for found in differences))


def every_sampler() -> bool:
    with tempfile.TemporaryDirectory() as folder:
        return print_table({kind: save_model(kind, Path(folder) / kind) for kind in KINDS})


def verdict(same: bool) -> int:
    print(f"\nAt least {PSNR:g} dB and {CLOSE:.1%} within 1: {'holds' if same else 'does not hold'}.")
    return 0 if same else 1


def same_steps(pipeline: Pipeline, request: Request) -> Resolved:
    """The request, sampled as the folder's scheduler_config.json asks: that is all that diffusers goes by."""
    resolved = resolve(request, pipeline.model)
    return replace(resolved, sampler=pipeline.model.noise.config.sampler, schedule="automatic")


def open_with_diffusers(model: str) -> StableDiffusionPipeline:
    """The same folder there, without its progress bars."""
    pipeline = StableDiffusionPipeline.from_pretrained(
        find_model(model), torch_dtype=torch.float32, local_files_only=True
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def make_with_diffusers(theirs: StableDiffusionPipeline, ours: Pipeline, request: Resolved) -> Image.Image:
    """The picture of a request there, from the noise that it begins with here."""
    return theirs(
        request.prompt,
        negative_prompt=request.negative,
        latents=ours.noise(request)(),
        num_inference_steps=request.steps,
        guidance_scale=request.guidance,
        width=request.width,
        height=request.height,
    ).images[0]


if __name__ == "__main__":
    sys.exit(main())
