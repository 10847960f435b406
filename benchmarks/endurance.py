"""What is left of a batch job when its workers and its driver are killed again and again: nothing may be missing.

Two runs of the same requests. One is left alone. The other is hit by SIGKILL at random moments of a fixed seed, and
its command is started again after each death of the driver. A watcher looks at every picture as it appears: it must be
whole from the start, and must never be written again. With --ray the second run is on a cluster on this machine, one
node of which is taken away with all its processes, and brought back.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.nodes import cluster

PROMPTS = Path(__file__).parent.parent / "docs/prompts.txt"
END = b"IEND\xaeB`\x82"  # of every whole PNG
LOOK = 0.03  # seconds
COMMAND = "python -m benchmarks.endurance"
EXAMPLES = """examples:
  python -m benchmarks.endurance                            # 2,000 requests, 40 kills of workers, 5 of the driver
  python -m benchmarks.endurance --requests 100 --kills 4 --driver-kills 1
  python -m benchmarks.endurance --ray --requests 400       # a node goes and comes back
"""


@dataclass
class Watcher:
    """Sees the pictures of a folder as they appear."""

    folder: Path
    seen: dict[str, tuple[int, int]] = field(default_factory=dict)  # name => inode and time of its last change
    partial: set[str] = field(default_factory=set)
    again: set[str] = field(default_factory=set)

    def look(self) -> int:
        """How many pictures there are."""
        for entry in os.scandir(self.folder) if self.folder.is_dir() else ():
            if entry.name.endswith(".png"):
                status = entry.stat()
                mark = status.st_ino, status.st_mtime_ns
                if entry.name not in self.seen and not Path(entry.path).read_bytes().endswith(END):
                    self.partial.add(entry.name)
                if self.seen.setdefault(entry.name, mark) != mark:
                    self.again.add(entry.name)
                    self.seen[entry.name] = mark
        return len(self.seen)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog=COMMAND, description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--requests", type=int, default=2000, help="(default: %(default)s)")
    add("--steps", type=int, default=2, help="of each picture (default: %(default)s)")
    add("--kills", type=int, default=40, help="of workers (default: %(default)s)")
    add("--driver-kills", type=int, default=5, help="(default: %(default)s)")
    add("--workers", type=int, default=2, help="(default: %(default)s)")
    add("--seed", type=int, default=0, help="of the moments (default: %(default)s)")
    add("--model", default="emoji-64", help="(default: %(default)s)")
    add("--ray", action="store_true", help="take a node of a Ray cluster away and bring it back, in place of kills")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_requests(folder / "jobs.jsonl", args.requests, args.steps)
        calm, storm = folder / "calm", Watcher(folder / "storm")
        start = time.monotonic()
        subprocess.run(command(args, folder, calm), check=True)
        between = time.monotonic()
        hits = ray_storm(args, folder, storm) if args.ray else kill_storm(args, folder, storm)
        storm.look()
        print(f"calm run {between - start:.0f} s, the other {time.monotonic() - between:.0f} s")
        return report(args, calm, storm, hits)


def write_requests(path: Path, count: int, steps: int | None) -> None:
    """Requests that all differ; where no number of steps is named, of the model's own."""
    prompts, more = PROMPTS.read_text(encoding="utf-8").splitlines(), {"steps": steps} if steps else {}
    rows = ({"prompt": prompts[i % len(prompts)], "seed": i, **more} for i in range(count))
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def command(args: argparse.Namespace, folder: Path, out: Path, *flags: str) -> list[str]:
    said = [sys.executable, "-m", "diffusion.batch", str(folder / "jobs.jsonl"), "--out", str(out)]
    return [*said, "--model", args.model, "--workers", str(args.workers), *flags]


def kill_storm(args: argparse.Namespace, folder: Path, storm: Watcher) -> dict[str, int]:
    """Runs the command to its end, through kills that are spread over its pictures."""
    draw = random.Random(args.seed)
    kinds = ["worker"] * args.kills + ["driver"] * args.driver_kills
    plan = sorted((draw.uniform(0, 0.97 * args.requests), kind) for kind in kinds)
    hits = {"worker": 0, "driver": 0}
    driver = subprocess.Popen(command(args, folder, storm.folder))
    while plan or driver.poll() is None:
        made = storm.look()
        if driver.poll() is not None:
            driver = subprocess.Popen(command(args, folder, storm.folder))
        if plan and made >= plan[0][0]:
            kind = plan[0][1]
            time.sleep(draw.uniform(0, 0.2))
            if kind == "driver":
                driver.kill()
                driver.wait()
            elif workers := workers_of(driver.pid):
                os.kill(draw.choice(workers), signal.SIGKILL)
            else:
                continue  # none has started yet
            hits[kind] += 1
            plan.pop(0)
        time.sleep(LOOK)
    assert driver.returncode == 0, driver.returncode
    return hits


def ray_storm(args: argparse.Namespace, folder: Path, storm: Watcher) -> dict[str, int]:
    """Runs the command on a cluster of two nodes; at a third of the pictures one goes, at two thirds it is back."""
    with cluster(nodes=2) as (address, nodes):
        driver = subprocess.Popen(command(args, folder, storm.folder, "--ray", address))
        hits = {"node taken away": 0, "node brought back": 0}
        while driver.poll() is None:
            made = storm.look()
            if made >= args.requests / 3 and not hits["node taken away"]:
                nodes.take()
                hits["node taken away"] += 1
            if made >= args.requests * 2 / 3 and not hits["node brought back"]:
                nodes.add()
                hits["node brought back"] += 1
            time.sleep(LOOK)
    assert driver.returncode == 0, driver.returncode
    return hits


def workers_of(pid: int) -> list[int]:
    """The processes that the driver has spawned and that are alive."""
    found = []
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        try:
            if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                found.append(int(child))
        except OSError:
            continue
    return found


def report(args: argparse.Namespace, calm: Path, storm: Watcher, hits: dict[str, int]) -> int:
    """Prints what came out; the exit code is 0 where nothing is wrong."""
    expected = {path.name: path.read_bytes() for path in calm.glob("*.png")}
    rows = [json.loads(line) for line in (storm.folder / "manifest.jsonl").read_text().splitlines()]
    names = [row["path"] for row in rows if row["state"] == "done"]
    files = {path.name: path.read_bytes() for path in storm.folder.glob("*.png")}
    wrong = {
        "lost": len(expected.keys() - files.keys()) + len(expected.keys() - {*names}),
        "made twice": len(storm.again) + len(names) - len({*names}),
        "partial": len(storm.partial) + len([*storm.folder.glob(".*.part")]),
        "of other bytes than the calm run's": sum(files.get(name) != data for name, data in expected.items()),
        "nobody asked for": len(files.keys() - expected.keys()),
    }
    print(f"{len(expected)} pictures of {args.model}, {args.steps} steps, {args.workers} workers.")
    print("hits: " + ", ".join(f"{count} x {kind}" for kind, count in hits.items()))
    for what, count in wrong.items():
        print(f"{count:6d} {what}")
    return int(any(wrong.values()) or len(expected) != args.requests)


if __name__ == "__main__":
    sys.exit(main())
