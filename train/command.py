"""What every training command does around its stages: arguments, data, one sentence for a mistake, exit codes.

Exit codes: 0 done; 2 a mistake of the user's, in one sentence; 130 stopped on Ctrl-C or SIGTERM, checkpoint written.
"""

import argparse
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from train.data import Dataset, open_dataset
from train.loop import Stopped
from train.recipe import Recipe

Stage = Callable[[Recipe, Dataset, Path, int | None, str | None], None]


def run(parser: argparse.ArgumentParser, argv: Sequence[str] | None, stages: Mapping[str, Stage]) -> int:
    """Runs the stages in turn over the recipe that `argv` names."""
    args = parser.parse_args(argv)
    try:
        with _sigterm_as_ctrl_c():
            _run(args, stages)
    except (ValueError, OSError) as mistake:
        print(f"{parser.prog}: {mistake}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return 130
    except KeyboardInterrupt:  # between the loops, which end their step and raise Stopped
        print("Stopped; the same command goes on from here.", file=sys.stderr)
        return 130
    return 0


def _run(args: argparse.Namespace, stages: Mapping[str, Stage]) -> None:
    recipe = Recipe.load(args.recipe)
    out = args.out or Path("runs") / recipe.name
    stages = {name: stage for name, stage in stages.items() if getattr(recipe, name)}  # a recipe may leave out some
    if not stages:
        raise ValueError(f"The recipe {recipe.name} has no table for this stage: choose one that has, or add it.")
    configs = {name: _training(recipe, name, args) for name in stages}
    if args.dry_run:
        source = args.folder or recipe.data.get("source", "the recipe's data")
        print(f"{recipe.name}: {recipe.size}x{recipe.size} pictures of {source} into {out}")
        for name, config in configs.items():
            print(f"  {name}: {config or 'pixels are the latents: nothing to train'}")
        return
    out.mkdir(parents=True, exist_ok=True)
    dataset = open_dataset(recipe.data, recipe.size, out / "data", folder=args.folder, fetched=args.fetched)
    for stage in stages.values():
        stage(recipe, dataset, out, args.steps, args.precision)


@contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _training(recipe: Recipe, stage: str, args: argparse.Namespace) -> object:
    return "training" in getattr(recipe, stage) and recipe.training(stage, args.steps, args.precision)
