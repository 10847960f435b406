"""python -m diffusion.jobs: what is queued in a folder, being made, done and parked; and what shall become of it."""

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from tqdm import tqdm

from clip.command import attempt
from diffusion.job import ENDED, STATES, Job
from diffusion.request import to_json
from diffusion.store import Store

LOOK = 0.5  # seconds between two looks of --watch
COMMAND = "python -m diffusion.jobs"
EXAMPLES = """examples:
  python -m diffusion.jobs folder                           # the newest first
  python -m diffusion.jobs folder --state parked failed     # and why
  python -m diffusion.jobs folder --watch                   # until all have ended
  python -m diffusion.jobs folder --cancel 3kTq9vXaPZ0d     # a job, or a whole group, by its id
  python -m diffusion.jobs folder --retry                   # all that failed, was parked or cancelled

exit codes: 0 done; 2 a mistake in what was asked, said in one sentence; 130 stopped by Ctrl-C, which stops no job.
"""


def arguments() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__, epilog=EXAMPLES, formatter_class=raw)
    add = parser.add_argument
    add("folder", type=Path, metavar="FOLDER", help="of a batch job or of a server; or one store in it, a .sqlite file")
    add("--state", nargs="+", choices=STATES, help="list those that are in one of these states")
    add("--limit", type=int, default=20, help="list so many, the newest (default: %(default)s)")
    add("--json", action="store_true", help="list a line of JSON a job")
    add("--watch", action="store_true", help="show how far they are until all have ended")
    add("--cancel", nargs="+", metavar="ID", help="end these jobs, or all of these groups, that have not ended")
    add("--retry", nargs="*", metavar="ID", help="queue these again, of those that failed, were parked or cancelled")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = arguments().parse_args(argv)
    try:
        return attempt(COMMAND, lambda: run(args))
    except KeyboardInterrupt:
        return 130


def run(args: argparse.Namespace) -> None:
    stores = open_stores(args.folder)
    if args.cancel is not None:
        change("cancelled", [id for store in stores for id in store.cancel(args.cancel)], args.cancel)
    elif args.retry is not None:
        change("queued again", [id for store in stores for id in store.retry(args.retry or None)], args.retry)
    elif args.watch:
        watch(stores)
    else:
        for store in stores:
            for job in store.jobs(states=args.state, limit=args.limit):
                print(line(job, args.json))
        if not args.json:
            print(summary(counts(stores)))


def open_stores(path: Path) -> list[Store]:
    """Of a folder: a batch job in shards has one for each."""
    found = [path] if path.is_file() else sorted(path.glob("jobs*.sqlite"))
    if not found:
        raise ValueError(f"There are no jobs in {path}; name the --out of a batch job, or a server's folder.")
    return [Store(file.parent, file.name) for file in found]


def change(what: str, ids: Sequence[str], asked: Sequence[str]) -> None:
    if asked and not ids:
        raise ValueError(f"Nothing is {what}: there is no such job or group as {asked[0]!r}, or its state forbids it.")
    print(f"{len(ids)} {what}.")


def counts(stores: Sequence[Store]) -> dict[str, int]:
    each = [store.counts() for store in stores]
    return {state: sum(one[state] for one in each) for state in STATES}


def watch(stores: Sequence[Store]) -> None:
    said = counts(stores)
    ended = lambda: sum(said[state] for state in ENDED)
    with tqdm(total=sum(said.values()), initial=ended(), unit="picture", file=sys.stderr) as bar:
        while said["queued"] + said["running"]:
            time.sleep(LOOK)
            said = counts(stores)
            bar.total = sum(said.values())
            bar.set_postfix({state: count for state, count in said.items() if count}, refresh=False)
            bar.update(ended() - bar.n)
    print(summary(said))


def summary(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {state}" for state, count in counts.items() if count) or "There are none."


def line(job: Job, as_json: bool) -> str:
    if as_json:
        return json.dumps(asdict(job) | {"request": to_json(job.request), "file": job.file}, ensure_ascii=False)
    state = job.state
    if state == "running" and job.evaluations:
        state += f" {job.evaluation}/{job.evaluations}"
    said = f"{job.id}  {state:<15} {job.name}  seed {job.request.seed}  {job.request.prompt:.60}"
    return said + (f"\n    {job.error}" if job.error else "")


if __name__ == "__main__":
    sys.exit(main())
