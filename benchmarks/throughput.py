"""Pictures a second of batch jobs: one worker and two, a Ray cluster of one node and of two; and their memory.

Runs alternate, A B A B ..., and count from a tenth of their pictures to the last: what it takes to start is printed
apart. With --memory one job of many pictures is watched instead: the resident memory of its driver and of its worker,
early and late.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks.endurance import command, workers_of, write_requests
from benchmarks.nodes import cluster

HOUR, YEAR = 3600, 365 * 24 * 3600
COMMAND = "python -m benchmarks.throughput"
EXAMPLES = """examples:
  python -m benchmarks.throughput                          # 1 and 2 workers
  python -m benchmarks.throughput --ray                    # 1 and 2 nodes, with a worker each
  python -m benchmarks.throughput --memory --requests 5000 --steps 1

Let the machine be idle: its load before the first run is printed with the figures.
"""


@dataclass(frozen=True)
class Run:
    start: float  # seconds to the first picture
    rate: float  # pictures a second, from then on
    cpu: float  # seconds of all processes but Ray's, to start among them


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog=COMMAND, description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--requests", type=int, default=200, help="a run (default: %(default)s)")
    add("--steps", type=int, help="of each picture (default: the model's own)")
    add("--runs", type=int, default=2, help="of each kind (default: %(default)s)")
    add("--model", default="emoji-64", help="(default: %(default)s)")
    add("--ray", action="store_true", help="measure a Ray cluster of one node and of two")
    add("--memory", action="store_true", help="measure memory at 100 pictures and at the end")
    args = parser.parse_args(argv)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_requests(folder / "jobs.jsonl", args.requests, args.steps)
        memory(args, folder) if args.memory else compare(args, folder)
    print(f"{args.requests} requests a run, {args.steps or 'its own'} steps, {args.model}; load before {load:.2f}.")
    return 0


def compare(args: argparse.Namespace, folder: Path) -> None:
    runs: dict[int, list[Run]] = {1: [], 2: []}
    for number in range(args.runs):
        for size in runs:
            runs[size].append(run(args, folder, folder / f"{number}-{size}", size))
    unit = "node" if args.ray else "worker"
    print(f"| {unit}s | pictures a second | to the first picture, s | CPU seconds in all |\n|---|---|---|---|")
    rates = {size: statistics.median(run.rate for run in each) for size, each in runs.items()}
    for size, each in runs.items():
        said = ", ".join(f"{run.rate:.2f}" for run in each)
        start, cpu = statistics.median(run.start for run in each), statistics.median(run.cpu for run in each)
        print(f"| {size} | {rates[size]:.2f} ({said}) | {start:.1f} | {cpu:.1f} |")
    print(f"Two {unit}s make {rates[2] / rates[1]:.2f} times the pictures of one.")
    cost = 1 / rates[1]
    hours, years, workers = 1e6 * cost / HOUR, 1e9 * cost / YEAR, 1e9 * cost / (24 * HOUR)
    print(f"At {cost:.3f} s a picture, one worker: a million in {hours:,.1f} hours, a billion in {years:,.1f} years;")
    print(f"{workers:,.0f} such workers make a billion in a day.")


def run(args: argparse.Namespace, folder: Path, out: Path, size: int) -> Run:
    """One job, by as many workers or nodes."""
    with ExitStack() as stack:
        args.workers, flags = size, []
        if args.ray:
            address, _ = stack.enter_context(cluster(size))
            flags = ["--ray", address]
        began, before = time.time(), os.times()
        subprocess.run(command(args, folder, out, *flags), check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    times = sorted(path.stat().st_mtime for path in out.glob("*.png"))
    warm = len(times) // 10
    return Run(times[0] - began, (len(times) - 1 - warm) / (times[-1] - times[warm]), cpu)


def memory(args: argparse.Namespace, folder: Path) -> None:
    args.workers, out = 1, folder / "out"
    driver = subprocess.Popen(command(args, folder, out), stdout=subprocess.DEVNULL)
    early: tuple[int, float, float] | None = None
    late = (0, 0.0, 0.0)
    while driver.poll() is None:
        made = len([*out.glob("*.png")])
        if made >= 100 and (workers := workers_of(driver.pid)):
            late = made, resident(driver.pid), resident(workers[0])
            early = early or late
        time.sleep(0.5)
    assert driver.returncode == 0, driver.returncode
    assert early is not None, "fewer than 100 pictures"
    print("| pictures | driver, MiB | worker, MiB |\n|---|---|---|")
    for made, *sizes in (early, late):
        print(f"| {made:,} | {sizes[0]:.0f} | {sizes[1]:.0f} |")


def resident(pid: int) -> float:
    """A process's memory, in MiB."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


if __name__ == "__main__":
    sys.exit(main())
