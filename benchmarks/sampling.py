"""How long a picture takes in a warm process, here and with diffusers, on the same weights, noise, steps and scheduler.

All sides make the same picture in turn, A B C A B C ..., in one process; rows are pairs of them:

    oboro       our pipeline as it is
    plain       the control: our pipeline with every optimisation off, which must take what B0 takes
    B0          diffusers' StableDiffusionPipeline, eager, by its defaults
    B1          the same, tuned: channels last, projections fused, the U-Net compiled

Everything from prompt to picture counts. Ratios are taken round by round; below 1, the first side is faster. Each side
makes a picture before, in which it records or compiles. Memory is what a process of its own takes for one.
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

from benchmarks.activation import bound
from benchmarks.difference import difference
from benchmarks.measure import interval, machine, peak_memory
from benchmarks.stable_diffusion import save_sd15
from diffusion.checkpoint import DEFAULT_MODEL, find_model, load_model
from diffusion.flags import DTYPES
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
    add("--pairs", type=int, default=7, help="rounds measured, after a warm-up (default: %(default)s)")
    add("--batch", type=int, nargs="+", default=[1], help="pictures at a time (default: 1)")
    add("--device", default="cpu")
    add("--dtype", default="float32", choices=DTYPES)
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
    print(f"{work.steps} steps of {work.sampler}, guidance {work.guidance:g}. {args.pairs} pairs, a run before.\n")
    print("| pictures | A | B | A, s | B, s | A / B (95 %) | PSNR, dB | largest | within 1 | A, MiB | B, MiB |")
    print("|--:|:--|:--|--:|--:|:--|--:|--:|--:|--:|--:|")
    for batch in args.batch:
        given = asdict(replace(work, batch=batch))
        rows = [*(("oboro", other) for other in args.against), ("plain", "B0")]
        found = apart("compared", work=given, rows=rows, pairs=args.pairs)
        peaks = {name: apart("peak", work=given, name=name) for name in found["sides"]}
        for (a, b), row in zip(rows, found["rows"], strict=True):
            cells = (batch, a, b, *row["medians"], row["ratio"], row["figures"], peaks[a], peaks[b])
            print(f"| {' | '.join(map(str, cells))} |", flush=True)
        if "B1" in args.against:
            print(f"B1's first picture, which compiles, took {found['first']['B1']:.1f} s.", file=sys.stderr)
        if batch == 1:
            weights, activation = (round(size / 2**20) for size in apart("room", work=given))
            ratio = peaks["oboro"] / (weights + activation)
            print(f"\nWeights {weights} MiB, largest activation {activation} MiB; oboro takes {ratio:.2f} times both.")
    print("\nWhere our time goes, one picture of the last row:\n\n| part | share |\n|:--|--:|")
    for part, share in found["shares"].items():
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


def compared(work: dict[str, Any], rows: list[tuple[str, str]], pairs: int) -> dict[str, Any]:
    """The sides in turn; a row's medians, its ratio with the interval, and how far its pictures are apart."""
    given = Work(**work)
    sides = {name: side(name, given) for name in dict.fromkeys(name for row in rows for name in row)}
    first, pictures = {}, {}
    for name, make in sides.items():
        first[name], (pictures[name], *_) = timed(make, given.device)
    rounds = [{name: timed(make, given.device)[0] for name, make in sides.items()} for _ in range(pairs)]
    found = []
    for a, b in rows:
        low, middle, high = interval([times[a] / times[b] for times in rounds])
        found.append({
            "medians": [f"{statistics.median(times[name] for times in rounds):.3f}" for name in (a, b)],
            "ratio": f"{middle:.3f} ({low:.3f} to {high:.3f})",
            "figures": difference(pictures[a], pictures[b]).figures,
        })
    shares_of_ours = shares(sides["oboro"], given.device)
    return {"sides": list(sides), "rows": found, "first": first, "shares": shares_of_ours}


def room(work: dict[str, Any]) -> tuple[int, int]:
    """Bytes of the weights, and of the largest activation."""
    given = Work(**work)
    return bound(load_model(given.model, getattr(torch, given.dtype)), tuple(given.shape))


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
        return lambda: [picture.image for picture in pipeline.generate(requests, batch=work.batch)]
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


def timed(make: Make, device: str) -> tuple[float, list[Image.Image]]:
    """Seconds, and the pictures."""
    synchronize(device)
    start = time.perf_counter()
    pictures = make()
    synchronize(device)
    return time.perf_counter() - start, pictures


def synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def memory(device: str) -> float:
    """The most that was ever taken, in MiB."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / 2**20
    return peak_memory()


def shares(make: Make, device: str) -> dict[str, float]:
    """The share of each kind of operator in the time that a warm side takes, the largest first."""
    cuda = device.startswith("cuda")
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as taken:
        make()
    spent: dict[str, float] = {}
    for event in taken.key_averages():
        own = event.self_device_time_total if cuda else event.self_cpu_time_total
        kind = next((kind for kind, names in KINDS.items() if any(name in event.key for name in names)), "all else")
        spent[kind] = spent.get(kind, 0.0) + own
    total = sum(spent.values())
    return {kind: own / total for kind, own in sorted(spent.items(), key=lambda item: -item[1])}


TASKS: dict[str, Callable[..., Any]] = {task.__name__: task for task in (resolved, compared, peak, room)}

if __name__ == "__main__":
    sys.exit(main())
