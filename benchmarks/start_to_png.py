"""What one picture costs from process start to PNG on disk, here and with diffusers.

Both sides are child processes that read the same model folder, take the same steps from the same noise and
write a PNG. They run in turn, A B A B ..., after a warm-up each. Everything counts: the interpreter, imports,
reading weights, sampling, encoding. CPU seconds (of all threads) and peak memory are the kernel's account.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops

from benchmarks.measure import interval, machine
from diffusion.checkpoint import DEFAULT_MODEL, find_model
from diffusion.files import Files
from diffusion.folder import load_noise

TARGET = 0.4  # of the CPU seconds that diffusers takes
PROMPT = "a red apple"
COMMAND = "python -m benchmarks.start_to_png"
EXAMPLES = """examples:
  python -m benchmarks.start_to_png
  python -m benchmarks.start_to_png --steps 50 --runs 11
  python -m benchmarks.start_to_png --model path/to/folder
  OMP_NUM_THREADS=1 taskset -c 0 python -m benchmarks.start_to_png    # on one core

Let the machine be idle: its load before the first run is printed with the figures.
"""

# The shortest script that makes the same picture with diffusers.
THEIRS = """\
import torch
from diffusers import StableDiffusionPipeline

pipeline = StableDiffusionPipeline.from_pretrained({folder!r}, torch_dtype=torch.float32, local_files_only=True)
image = pipeline(
    {prompt!r}, num_inference_steps={steps}, guidance_scale={guidance}, width={width}, height={height},
    generator=torch.Generator().manual_seed({seed}),
).images[0]
image.save({out!r})
"""


@dataclass(frozen=True)
class Cost:
    """What one process used."""

    cpu: float  # seconds, user and system, of all threads
    wall: float  # seconds
    memory: float  # MiB, the largest resident set


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog=COMMAND, description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=DEFAULT_MODEL, help="a model folder (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=5, help="how many pairs are measured (default: %(default)s)")
    parser.add_argument("--steps", type=int, help="sampling steps (default: the model's own)")
    args = parser.parse_args(argv)
    if args.runs < 1:
        parser.error(f"--runs is {args.runs}; expected 1 or more.")
    try:
        compare(args.model, args.runs, args.steps)
    except ValueError as mistake:
        print(f"{COMMAND}: {mistake}", file=sys.stderr)
        return 2
    return 0


def compare(model: str, runs: int, steps: int | None) -> None:
    """Measures both sides and prints what came out, as Markdown."""
    folder = find_model(model)
    scheduler = load_noise(Files(folder), "scheduler").config
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as temporary:
        pngs = [Path(temporary, "oboro.png"), Path(temporary, "diffusers.png")]
        # diffusers follows the folder's scheduler; so do we, whatever else the model's defaults prefer.
        ours = [sys.executable, "-m", "diffusion.sample", PROMPT, "--model", str(folder), "--seed", "0",
                "--sampler", scheduler.sampler, "--schedule", "automatic", "--out", str(pngs[0])]  # fmt: skip
        ours += [] if steps is None else ["--steps", str(steps)]
        request = dry_run(ours)
        theirs = [sys.executable, "-c", THEIRS.format(folder=str(folder), out=str(pngs[1]), **request)]
        pairs = []
        for pair in range(runs + 1):
            a, b = (cost(command) for command in (ours, theirs))
            print(f"{pair or 'warm-up'}: {a.cpu:.2f} and {b.cpu:.2f} CPU seconds", file=sys.stderr)
            pairs.append((a, b))
        del pairs[0]  # the warm-up: files come from the disk then
        difference = largest_difference(*pngs)

    print(f"{PROMPT!r}, {request['width']}x{request['height']}, {request['steps']} steps of {scheduler.scheduler}, "
          f"guidance {request['guidance']:g}, model {folder.name}.")  # fmt: skip
    print(f"{runs} pairs after a warm-up: median (least to most). The pictures differ by {difference}/255 at most.\n")
    print("| | CPU seconds | seconds | peak memory, MiB |\n|---|---|---|---|")
    for name, costs in zip(("oboro", "diffusers"), zip(*pairs, strict=True), strict=True):
        print(f"| {name} | {spread(costs, 'cpu', 2)} | {spread(costs, 'wall', 2)} | {spread(costs, 'memory', 0)} |")
    print(f"\n{machine()}; load before the first run {load:.2f}.")
    low, middle, high = interval([a.cpu / b.cpu for a, b in pairs])
    print(f"CPU seconds, pair by pair: {middle:.3f} of diffusers' (95 % interval {low:.3f} to {high:.3f}).")
    holds = "holds" if high <= TARGET else "does not hold"  # where the whole interval says so
    print(f"Target, at most {TARGET}: {holds}.")


def dry_run(command: Sequence[str]) -> dict[str, Any]:
    """The request as the command fills it up with the model's defaults.

    Asked of a child: the peak memory of each later one is at least what this process has reached.
    """
    done = subprocess.run([*command, "--dry-run", "--json"], capture_output=True, text=True)
    if done.returncode:
        raise ValueError(done.stderr.strip())
    request: dict[str, Any] = json.loads(done.stdout)
    return request


def cost(command: Sequence[str]) -> Cost:
    """Runs a command to its end. Raises ValueError, with what it said, where it fails."""
    with tempfile.TemporaryFile("w+") as said:
        start = time.perf_counter()
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said)
        _, status, usage = os.wait4(child.pid, 0)
        wall = time.perf_counter() - start
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            said.seek(0)
            raise ValueError(f"{command[1]} {command[2]} ended with {child.returncode}:\n{said.read().strip()}")
    unit = 2**20 if sys.platform == "darwin" else 2**10  # of ru_maxrss, a MiB
    return Cost(usage.ru_utime + usage.ru_stime, wall, usage.ru_maxrss / unit)


def largest_difference(ours: Path, theirs: Path) -> int:
    """Of any channel of any pixel: the two sides are comparable only where they made the same picture."""
    with Image.open(ours) as a, Image.open(theirs) as b:
        return max(ImageChops.difference(a.convert("RGB"), b.convert("RGB")).tobytes())


def spread(costs: Sequence[Cost], figure: str, digits: int) -> str:
    values = [getattr(cost, figure) for cost in costs]
    middle, least, most = (f"{f(values):.{digits}f}" for f in (statistics.median, min, max))
    return f"{middle} ({least} to {most})"


if __name__ == "__main__":
    sys.exit(main())
