"""How long a picture takes in a warm process, here and with diffusers, on the same weights, noise, steps and scheduler.

Rows are pairs of sides that make the same picture in turn, A B A B ..., each pair in a process of its own:

    oboro       our pipeline as it is
    plain       the control: our pipeline with every optimisation off, which must take what B0 takes
    B0          diffusers' StableDiffusionPipeline, eager, by its defaults
    B1          the same, tuned: channels last, projections fused, the U-Net compiled

Everything from prompt to picture counts. Ratios are taken pair by pair; below 1, the first side is faster.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.difference import difference
from benchmarks.measure import interval, machine, peak_memory
from benchmarks.stable_diffusion import save_sd15
from diffusion.checkpoint import DEFAULT_MODEL, find_model, load_model
from diffusion.pipeline import Pipeline
from diffusion.request import Request
from diffusion.seeds import seeded

COMMAND = "python -m benchmarks.sampling"
EXAMPLES = """examples:
  python -m benchmarks.sampling                                             # the shipped model
  python -m benchmarks.sampling --against B1                                # and diffusers, compiled
  python -m benchmarks.sampling --sd15 cache/sd15 --steps 2 --pairs 7       # Stable Diffusion 1.5, random weights
  python -m benchmarks.sampling --sd15 cache/sd15 --device cuda --dtype bfloat16 --batch 1 32 --steps 20 --against B1
  OMP_NUM_THREADS=1 python -m benchmarks.sampling                           # on one core

Let the machine be idle: its load before the first run is printed with the figures.
"""
PROMPT, SEED = "a red apple", 0
# What takes the time, by the names of PyTorch's operators. The first that a name holds, counts.
KINDS = {
    "convolution": ("conv",),
    "attention": ("scaled_dot_product", "flash", "softmax"),
    "matrix products": ("mm", "linear", "matmul", "einsum"),
    "normalisation": ("norm", "var_mean"),
    "activation": ("silu", "gelu", "sigmoid"),
}
Make = Callable[[], list[Image.Image]]


@dataclass(frozen=True)
class Settings:
    """What all sides are given."""

    model: str
    device: str
    dtype: str
    size: int | None
    steps: int | None


@dataclass(frozen=True)
class Work(Settings):
    """The same with nothing left open. The folder's scheduler says how to sample: diffusers goes by nothing else."""

    size: int
    steps: int
    guidance: float
    sampler: str
    shape: tuple[int, ...]  # of a picture's latents, [1, C, h, w]
    batch: int = 1

    def noise(self) -> Tensor:
        """What the pictures begin with, [B, C, h, w]."""
        return torch.cat([seeded(SEED + i, tuple(self.shape), torch.device("cpu"))() for i in range(self.batch)])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog=COMMAND, description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", default=DEFAULT_MODEL, help="a folder of Stable Diffusion's kind (default: %(default)s)")
    add("--sd15", type=Path, metavar="FOLDER", help="its full size with random weights, made in FOLDER: 4.3 GB")
    add("--size", type=int, help="pixels a side (default: the model's own)")
    add("--steps", type=int, help="default: the model's own")
    add("--pairs", type=int, default=7, help="measured, after a warm-up (default: %(default)s)")
    add("--batch", type=int, nargs="+", default=[1], help="pictures at a time (default: 1)")
    add("--device", default="cpu")
    add("--dtype", default="float32", choices=("float32", "float16", "bfloat16"))
    add("--against", nargs="+", choices=("B0", "B1"), default=["B0"], help="sides to compare with (default: B0)")
    add("--task", help=argparse.SUPPRESS)  # what a process of its own has to do, as JSON
    args = parser.parse_args(argv)
    if args.task:
        task = json.loads(args.task)
        print(json.dumps(TASKS[task.pop("what")](**task)))
        return 0
    try:
        model = str(save_sd15(args.sd15) if args.sd15 else find_model(args.model))
    except ValueError as mistake:
        print(f"{COMMAND}: {mistake}", file=sys.stderr)
        return 2
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    settings = asdict(Settings(model, args.device, args.dtype, args.size, args.steps))
    work = Work(**apart("resolved", settings=settings))
    print(f"{Path(model).name}, {args.device}, {args.dtype}: {PROMPT!r}, {work.size}x{work.size}, ", end="")
    print(f"{work.steps} steps of {work.sampler}, guidance {work.guidance:g}. {args.pairs} pairs, two runs before.\n")
    print("| pictures | A | B | A, s | B, s | A / B (95 %) | PSNR, dB | largest | within 1 | A, MiB | B, MiB |")
    print("|--:|:--|:--|--:|--:|:--|--:|--:|--:|--:|--:|")
    for batch in args.batch:
        given = asdict(replace(work, batch=batch))
        for a, b in [*(("oboro", other) for other in args.against), ("plain", "B0")]:
            row = apart("compared", work=given, a=a, b=b, pairs=args.pairs)
            peaks = [apart("peak", work=given, name=name) for name in (a, b)]
            cells = (batch, a, b, *row["medians"], row["ratio"], row["figures"], *peaks)
            print(f"| {' | '.join(map(str, cells))} |", flush=True)
            if b == "B1":
                print(f"B1's first picture, which compiles, took {row['first'][1]:.1f} s.", file=sys.stderr)
    print("\nWhere our time goes, one picture:\n\n| part | share |\n|:--|--:|")
    for part, share in apart("shares", work=asdict(work)).items():
        print(f"| {part} | {share:.1%} |")
    print(f"\n{machine()}; load before the first run {load:.2f}.")
    return 0


def apart(what: str, **arguments: Any) -> Any:
    """What a function of TASKS gives in a process of its own, whose errors are on stderr."""
    task = json.dumps({"what": what, **arguments})
    command = [sys.executable, "-m", "benchmarks.sampling", "--task", task]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    return json.loads(done.stdout.splitlines()[-1])


def resolved(settings: dict[str, Any]) -> dict[str, Any]:
    """The request that all sides are given."""
    given = Settings(**settings)
    pipeline = Pipeline(load_model(given.model), fast=False)
    sampler = pipeline.model.noise.config.sampler
    asked = pipeline.resolve(
        Request(PROMPT, steps=given.steps, sampler=sampler, schedule="automatic", width=given.size, height=given.size)
    )
    more = {"size": asked.width, "steps": asked.steps, "guidance": asked.guidance, "sampler": sampler}
    return settings | more | {"shape": pipeline.shape(asked)}


def compared(work: dict[str, Any], a: str, b: str, pairs: int) -> dict[str, Any]:
    """The two sides in turn: medians, the ratio with its interval, and how far their pictures are apart."""
    given = Work(**work)
    sides = [side(name, given) for name in (a, b)]
    first = [seconds(make, given.device) for make in sides]  # records, or compiles
    pictures = [make()[0] for make in sides]
    times = [tuple(seconds(make, given.device) for make in sides) for _ in range(pairs)]
    low, middle, high = interval([ours / theirs for ours, theirs in times])
    return {
        "medians": [f"{statistics.median(column):.3f}" for column in zip(*times, strict=True)],
        "ratio": f"{middle:.3f} ({low:.3f} to {high:.3f})",
        "figures": difference(*pictures).figures,
        "first": first,
    }


def peak(work: dict[str, Any], name: str) -> int:
    """The most memory that a side takes to open the model and make a picture: MiB above what its imports took."""
    given = Work(**work)
    start = memory(given.device)
    side(name, given)()
    return round(memory(given.device) - start)


def side(name: str, work: Work) -> Make:
    """What makes the pictures of one side."""
    dtype = getattr(torch, work.dtype)
    if name in ("oboro", "plain"):
        pipeline = Pipeline(load_model(work.model, dtype), work.device, dtype, fast=name == "oboro")
        asked = Request(
            PROMPT, steps=work.steps, sampler=work.sampler, schedule="automatic", guidance=work.guidance,
            width=work.size, height=work.size,
        )  # fmt: skip
        requests = [replace(asked, seed=SEED + i) for i in range(work.batch)]
        return lambda: [picture.image for picture in pipeline.generate(requests)]
    theirs = StableDiffusionPipeline.from_pretrained(work.model, torch_dtype=dtype, local_files_only=True)
    theirs = theirs.to(work.device)
    theirs.set_progress_bar_config(disable=True)
    if name == "B1":
        for network in (theirs.unet, theirs.vae):
            network.to(memory_format=torch.channels_last)
        theirs.fuse_qkv_projections()
        theirs.unet = torch.compile(theirs.unet, mode="max-autotune" if work.device.startswith("cuda") else None)
    latents = work.noise().to(work.device, dtype)
    return lambda: theirs(
        PROMPT, latents=latents, num_inference_steps=work.steps, guidance_scale=work.guidance,
        width=work.size, height=work.size, num_images_per_prompt=work.batch,
    ).images  # fmt: skip


def seconds(make: Make, device: str) -> float:
    synchronize(device)
    start = time.perf_counter()
    make()
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def memory(device: str) -> float:
    """The most that was ever taken, in MiB."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / 2**20
    return peak_memory()


def shares(work: dict[str, Any]) -> dict[str, float]:
    """The share of each kind of operator in the time that one picture of ours takes, the largest first."""
    given = Work(**work)
    make, cuda = side("oboro", given), given.device.startswith("cuda")
    make()
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as taken:
        make()
    spent: dict[str, float] = {}
    for event in taken.key_averages():
        own = event.self_device_time_total if cuda else event.self_cpu_time_total
        kind = next((kind for kind, names in KINDS.items() if any(name in event.key for name in names)), "all else")
        spent[kind] = spent.get(kind, 0.0) + own
    total = sum(spent.values())
    return {kind: own / total for kind, own in sorted(spent.items(), key=lambda item: -item[1])}


TASKS: dict[str, Callable[..., Any]] = {task.__name__: task for task in (resolved, compared, peak, shares)}

if __name__ == "__main__":
    sys.exit(main())
