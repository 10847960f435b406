"""What pictures cost that go through the network together, and how much of a picture that is.

All sizes of a batch take turns, A B C A B C ..., in one process; or, with --served, each in a server of its own, which
is asked over HTTP by as many clients at the same time as there are pictures.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import torch

from benchmarks.measure import interval, machine
from benchmarks.served import serving
from diffusion.flags import DTYPES, find_device
from diffusion.open import open_pipeline
from diffusion.request import Request

PROMPT, PICTURES = "a red apple", 16
COMMAND = "python -m benchmarks.batching"
EXAMPLES = """examples:
  OMP_NUM_THREADS=1 python -m benchmarks.batching            # the shipped model, on one core
  OMP_NUM_THREADS=1 python -m benchmarks.batching --served   # what clients of python -m ui see of it
  python -m benchmarks.batching --device cuda --sizes 1 8 32
"""
Make = Callable[[int], None]  # a batch's size => PICTURES pictures


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
    add("--served", action="store_true", help="ask servers")
    args = parser.parse_args(argv)
    load = os.getloadavg()[0]
    with ExitStack() as servers:
        make = asked(args, servers) if args.served else called(args)

        def seconds(size: int) -> float:
            start = time.perf_counter()
            make(size)
            return (time.perf_counter() - start) / PICTURES

        for size in args.sizes:
            seconds(size)  # records, or compiles
        rounds = [[seconds(size) for size in args.sizes] for _ in range(args.rounds)]
    print("| pictures at once | seconds a picture | of the first row (95 %) |\n|--:|--:|:--|")
    for size, column in zip(args.sizes, zip(*rounds, strict=True), strict=True):
        low, middle, high = interval([took / row[0] for took, row in zip(column, rounds, strict=True)])
        print(f"| {size} | {statistics.median(column):.3f} | {middle:.2f} ({low:.2f} to {high:.2f}) |")
    print(f"\n{args.model}, {args.device}, {args.dtype}; {machine()}; load before {load:.2f}.")
    return 0


def called(args: argparse.Namespace) -> Make:
    """Pictures by a pipeline of this process."""
    pipeline = open_pipeline(args.model, find_device(args.device), getattr(torch, args.dtype))
    requests = [Request(PROMPT, seed=seed) for seed in range(PICTURES)]

    def make(size: int) -> None:
        for _ in pipeline.generate(requests, batch=size):
            pass

    return make


def asked(args: argparse.Namespace, servers: ExitStack) -> Make:
    """Pictures by a server for each size."""
    flags = ["--no-demo", "--model", args.model, "--device", args.device, "--dtype", args.dtype]
    started = {size: servers.enter_context(serving(*flags, "--batch", str(size), module="ui")) for size in args.sizes}
    clients = servers.enter_context(ThreadPoolExecutor(PICTURES))

    def make(size: int) -> None:
        server = started[size]

        def ask(seed: int) -> None:
            body = {"prompt": PROMPT, "seed": seed}
            server.client.post(f"{server.url}/v1/images/generations", json=body).raise_for_status()

        [*clients.map(ask, range(PICTURES))]

    return make


if __name__ == "__main__":
    sys.exit(main())
