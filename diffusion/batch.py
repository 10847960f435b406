"""python -m diffusion.batch: a file of requests => a folder of pictures, and a manifest that says what they are."""

import argparse
import hashlib
import itertools
import json
import os
import secrets
import signal
import sqlite3
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

from clip.command import at_least_one, attempt
from clip.durable import write_atomically
from diffusion.cluster import RayCrew
from diffusion.crew import Crew, Place
from diffusion.flags import add_model, find_device, open_model
from diffusion.manifest import Manifest
from diffusion.metadata import digest, model_digest
from diffusion.open import AnyPipeline
from diffusion.request import Resolved, to_json
from diffusion.rows import FIELDS, NO_AXIS, Axis, Said, expand, read_rows, request_of
from diffusion.sheet import labelled
from diffusion.shelf import Shared
from diffusion.store import Store
from diffusion.texts import encode_picture

CHUNK = 256  # requests that are queued in one transaction
LOOK = 0.2  # seconds between two looks at what the workers have done
COMMAND = "python -m diffusion.batch"
EXAMPLES = """examples:
  python -m diffusion.batch jobs.jsonl --out folder             # {"prompt": "a red apple", "seed": 7} a line
  python -m diffusion.batch jobs.csv --out folder --workers 2   # a column a field: prompt,seed,steps,sampler,...
  python -m diffusion.batch prompts.txt --out folder --count 4  # a prompt a line; seeds 0 to 3 of each
  python -m diffusion.batch prompts.txt --out folder --set steps=30 --set negative=blurry
  python -m diffusion.batch prompts.txt --out folder --x sampler=euler,heun --y guidance=2,5    # a sheet a prompt
  python -m diffusion.batch jobs.jsonl --out folder --shard 0/4 # the first of four machines; each has a manifest
  accelerate launch --num_processes 4 -m diffusion.batch jobs.jsonl --out folder     # a shard a process, a GPU each
  python -m diffusion.batch jobs.jsonl --out folder --ray auto --workers 16 --gpus-per-worker 1
  python -m diffusion.jobs folder --watch                       # how far it is, from another terminal

The same command again makes what is missing, be it that it was stopped or killed, that the job file has grown, or that
pictures were deleted; and tries again what failed.

exit codes: 0 every picture is there; 1 some could not be made, as the manifest says; 2 a mistake in what was asked,
said in one sentence; 130 stopped by Ctrl-C, what is done is kept.
"""


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=COMMAND,
        description="A file of requests => a folder of pictures, each named by its request, and manifest.jsonl.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument_group("what is made").add_argument
    columns = f"*.jsonl, *.csv or *.txt (a prompt a line); columns: {', '.join(FIELDS)}"
    add("file", type=Path, metavar="FILE", help=columns)
    add("--out", type=Path, required=True, metavar="FOLDER", help="where the pictures go")
    add("--set", action="append", default=[], metavar="FIELD=VALUE", help="for rows that do not say")
    add("--count", type=int, default=1, help="pictures a row, of seeds that follow one another (default: 1)")
    add("--x", metavar="FIELD=A,B,...", help="all of these: a sheet of them a row")
    add("--y", metavar="FIELD=A,B,...", help="down the sheet")
    add("--dry-run", action="store_true", help="check everything, print what would be made, and stop")
    add("--json", action="store_true", help="of --dry-run: print a line of JSON a picture, not its path alone")

    add = parser.add_argument_group("who makes it").add_argument
    add("--workers", type=int, default=1, help="processes, each with the model; GPUs go round (default: 1)")
    add("--threads", type=int, help="of each, on a CPU (default: the cores, divided among them)")
    add("--batch", type=int, default=1, help="pictures of one shape that are made at once, of each worker (default: 1)")
    add("--shard", metavar="I/N", help="the I-th of N parts, from 0; under accelerate launch, each process its own")
    add_model(parser)

    add = parser.add_argument_group("on a Ray cluster; see docs/cluster.md").add_argument
    add("--ray", metavar="ADDRESS", help="of the cluster, or auto: --workers are actors there")
    add("--cpus-per-worker", type=float, default=1, metavar="N", help="(default: 1)")
    add("--gpus-per-worker", type=float, default=0, metavar="N", help="a part of one is shared (default: 0)")
    add("--pictures", metavar="URL", help="let them write to storage that all see, by fsspec: s3://..., file:///...")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = arguments().parse_args(argv)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return attempt(COMMAND, lambda: run(args))
    except sqlite3.OperationalError as error:  # the disk is full, or the store was taken away
        print(f"{COMMAND}: the store of jobs in {args.out}: {error}.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"Stopped; what is done is in {args.out}, and the same command goes on from there.", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)


def run(args: argparse.Namespace) -> int:
    for flag in ("count", "workers", "batch"):
        at_least_one(f"--{flag}", getattr(args, flag))
    args.x, args.y = (NO_AXIS if text is None else Axis.of(text) for text in (args.x, args.y))
    part, parts = shard(args)
    if (args.x or args.y) and (parts > 1 or args.pictures):
        raise ValueError("--x and --y make sheets of all pictures, here; leave --shard and --pictures out.")
    if args.pictures and not args.ray:
        raise ValueError("--pictures is for the actors of --ray; give both or neither.")
    total = sum(1 for _ in said(args, part, parts))  # every mistake in the file is found before the work begins
    if not args.ray:
        find_device(args.device)
    pipeline = open_model(argparse.Namespace(**vars(args) | {"device": "cpu"}))  # it only checks what is asked for
    if args.dry_run:
        return dry_run(args, requests(args, part, parts, pipeline), pipeline)

    suffix = f"-{part}-of-{parts}" if parts > 1 else ""
    args.out.mkdir(parents=True, exist_ok=True)
    with alone(args.out / f".batch{suffix}.lock", args.out):
        shelf = Shared(args.pictures) if args.pictures else None
        store, group = Store(args.out, f"jobs{suffix}.sqlite", shelf), f"batch-{secrets.token_urlsafe(6)}"
        store.dismiss("batch-*")  # of a run that was killed, or had another file
        crew = hire(args, store, model_digest(pipeline.model))
        # Ray prints what its nodes log to stdout, which is for what was made.
        with redirect_stdout(sys.stderr):
            try:
                asked = requests(args, part, parts, pipeline)
                names = [name for name in queue(asked, total, pipeline, store, group, crew) if args.x or args.y]
                del pipeline  # the workers have their own
                manifest = Manifest(args.out / f"manifest{suffix}.jsonl", store, group)
                see_through(manifest, crew, quiet=part > 0)
            finally:
                crew.stop()
        for path in sheets(args, names):
            print(path)
        store.close()
    print(manifest.path)
    if failed := manifest.rows - manifest.counts.get("done", 0):
        print(f"{failed} of {manifest.rows} pictures could not be made; {manifest.path} says why.", file=sys.stderr)
    return 1 if failed else 0


def hire(args: argparse.Namespace, store: Store, model: str) -> Crew | RayCrew:
    """Who makes the pictures: nobody, before they are tended."""
    if args.ray:
        return RayCrew(args, store, model, args.workers)
    threads = args.threads or max(torch.get_num_threads() // args.workers, 1)
    return Crew(args, Place(store.folder, store.path.name, args.batch, threads), store, args.workers)


def said(args: argparse.Namespace, part: int, parts: int) -> Iterator[tuple[str, int, Said]]:
    """Every picture of a shard, as the file and the flags ask for it: where that is written, its place, the row."""
    defaults = {}
    for axis in map(Axis.of, args.set):
        if len(axis.values) != 1:
            raise ValueError(f"--set {axis.field} has {len(axis.values)} values; give one, or a grid by --x.")
        defaults[axis.field] = axis.values[0]
    place = 0
    for where, row in read_rows(args.file):
        with at(where):
            for one in expand(defaults | row, args.count, args.x, args.y):
                if place % parts == part:
                    yield where, place, one
                place += 1
    if not place:
        raise ValueError(f"{args.file} has no rows; write one request a line.")


def requests(args: argparse.Namespace, part: int, parts: int, pipeline: AnyPipeline) -> Iterator[Resolved]:
    for where, place, row in said(args, part, parts):
        with at(where):
            request = request_of(row, place)
            if args.loras and "loras" not in row:
                request = replace(request, loras=tuple(args.loras))
            resolved = pipeline.resolve(request)
        yield resolved


@contextmanager
def at(where: str) -> Iterator[None]:
    """Mistakes inside say where in the file they are."""
    try:
        yield
    except ValueError as mistake:
        raise ValueError(str(mistake) if str(mistake).startswith(where) else f"{where}: {mistake}") from None


def queue(
    asked: Iterator[Resolved], total: int, pipeline: AnyPipeline, store: Store, group: str, crew: Crew | RayCrew
) -> Iterator[str]:
    """Has the store require every request, the workers beginning with the first; the pictures' names."""
    missing = 0
    with tqdm(desc="queueing", total=total, unit="request", disable=None, file=sys.stderr, leave=False) as bar:
        while chunk := [*itertools.islice(asked, CHUNK)]:
            missing += store.require(chunk, pipeline.model, group)
            bar.update(len(chunk))
            if missing:
                crew.tend()
            yield from (f"{digest(request, pipeline.model)}.png" for request in chunk)


def see_through(manifest: Manifest, crew: Crew | RayCrew, quiet: bool) -> None:
    """Keeps the workers alive and the manifest up to date until all jobs have ended."""
    store, group = manifest.store, manifest.group
    manifest.begin()
    total = sum(store.counts(group).values())
    with tqdm(
        desc="pictures", total=total, initial=manifest.rows, unit="picture", file=sys.stderr, disable=quiet or None
    ) as bar:
        try:
            while manifest.rows < total or waiting(store, group):
                crew.tend()
                crew.wait(LOOK)
                manifest.follow()
                bar.update(manifest.rows - bar.n)
        except KeyboardInterrupt:
            bar.close()
            crew.stop()
            manifest.follow()
            raise


def waiting(store: Store, group: str) -> bool:
    counts = store.counts(group)
    return counts["queued"] + counts["running"] > 0


def sheets(args: argparse.Namespace, names: Sequence[str]) -> Iterator[Path]:
    """Each row's pictures on a sheet with labels."""
    across, down = ([f"{axis.field}={label}" for label in axis.labels] or [""] for axis in (args.x, args.y))
    if names and not all(map(str.isascii, across + down)):
        print("Letters that a sheet's font does not have stand there as their codes.", file=sys.stderr)
    size = len(across) * len(down)
    for cells in (names[i : i + size] for i in range(0, len(names), size)):
        paths = [args.out / name for name in cells]
        images = [Image.open(path).convert("RGB") if path.is_file() else None for path in paths]
        if any(images):
            path = args.out / f"sheet-{hashlib.sha256(repr([cells, across, down]).encode()).hexdigest()[:12]}.png"
            write_atomically(path, encode_picture(labelled(images, across, down), {}))
            yield path


def dry_run(args: argparse.Namespace, asked: Iterable[Resolved], pipeline: AnyPipeline) -> int:
    """Prints what is missing."""
    names = set[str]()
    for request in asked:
        name = f"{digest(request, pipeline.model)}.png"
        if name not in names and not (args.out / name).is_file():
            path = str(args.out / name)
            print(json.dumps({"path": path, **to_json(request)}) if args.json else path)
        names.add(name)
    return 0


def shard(args: argparse.Namespace) -> tuple[int, int]:
    """Which part of how many: as the flag says, else as `accelerate launch` and its like tell each process."""
    text = args.shard
    if text is None:
        rank, world = (int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1)))
        if world > 1 and args.device in ("auto", "cuda") and torch.cuda.is_available():
            args.device = f"cuda:{int(os.environ.get('LOCAL_RANK', rank)) % torch.cuda.device_count()}"
        return rank, world
    part, _, parts = text.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and int(part) < int(parts)):
        raise ValueError(f"--shard is {text!r}; expected as 0/4, the first of four, to 3/4, the last.")
    return int(part), int(parts)


@contextmanager
def alone(path: Path, folder: Path) -> Iterator[None]:
    """No second command works on the same jobs. The lock is SQLite's: it ends with its process, on every system."""
    lock = sqlite3.connect(path, timeout=5, isolation_level=None)
    try:
        lock.execute("BEGIN EXCLUSIVE")
    except sqlite3.OperationalError:
        lock.close()
        raise ValueError(f"Another command is at work in {folder}; wait for it, or name another --out.") from None
    try:
        yield
    finally:
        lock.close()


if __name__ == "__main__":
    sys.exit(main())
