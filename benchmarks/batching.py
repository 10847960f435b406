"""What pictures cost that go through the network together, and how much of a picture that is.

All sizes of a batch take turns in one process, A B C A B C ..., and make the same pictures.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Sequence

import torch

from benchmarks.measure import interval, machine
from diffusion.flags import DTYPES, find_device
from diffusion.open import open_pipeline
from diffusion.request import Request

COMMAND = "python -m benchmarks.batching"
EXAMPLES = """examples:
  OMP_NUM_THREADS=1 python -m benchmarks.batching            # the shipped model, on one core
  python -m benchmarks.batching --device cuda --sizes 1 8 32
"""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog=COMMAND, description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", default="emoji-64", help="(default: %(default)s)")
    add("--sizes", type=int, nargs="+", default=[1, 2, 4, 8], help="pictures at once (default: 1 2 4 8)")
    add("--rounds", type=int, default=7, help="(default: %(default)s)")
    add("--device", default="auto")
    add("--dtype", choices=DTYPES, default="float32")
    args = parser.parse_args(argv)
    load = os.getloadavg()[0]
    pipeline = open_pipeline(args.model, find_device(args.device), getattr(torch, args.dtype))
    requests = [Request("a red apple", seed=seed) for seed in range(max(args.sizes))]

    def seconds(size: int) -> float:
        start = time.perf_counter()
        for _ in pipeline.generate(requests, batch=size):
            pass
        return (time.perf_counter() - start) / len(requests)

    for size in args.sizes:
        seconds(size)  # records, or compiles
    rounds = [[seconds(size) for size in args.sizes] for _ in range(args.rounds)]
    print("| pictures at once | seconds a picture | of the first row (95 %) |\n|--:|--:|:--|")
    for size, column in zip(args.sizes, zip(*rounds, strict=True), strict=True):
        low, middle, high = interval([took / row[0] for took, row in zip(column, rounds, strict=True)])
        print(f"| {size} | {statistics.median(column):.3f} | {middle:.2f} ({low:.2f} to {high:.2f}) |")
    print(f"\n{args.model}, {args.device}, {args.dtype}; {machine()}; load before {load:.2f}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
