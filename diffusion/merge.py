"""python -m diffusion.merge: models and LoRAs => one model.

    A * (1 - m) + B * m     the weighted sum of two
    A + m * (B - C)         what was learnt between C and B, added to A
    W + up @ down           a LoRA, baked into the weights

The U-Net and the text encoders are merged, in float32; tokenizer, autoencoder, schedule and settings are A's. The
others are read one after the other: two models are in memory at once, never three.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from clip.command import attempt
from clip.durable import aside
from diffusion.adapters import Adapters, Lora, delta, parse_lora
from diffusion.checkpoint import Model, load_model
from diffusion.convert import parts, save
from diffusion.flags import DTYPES
from diffusion.lora import networks

MAX_SHARE = 10
COMMAND = "python -m diffusion.merge"
EXAMPLES = """examples:
  python -m diffusion.merge photos --with paintings --by 0.3 --out both     # 0.7 of photos and 0.3 of paintings
  python -m diffusion.merge mine.safetensors --with tuned.safetensors --minus base --out both.safetensors
  python -m diffusion.merge photos --loras path/to/loras --lora ink:0.8 --lora detail --out inked --dtype float16
  python -m diffusion.merge photos --with paintings --out both --dry-run    # do they go together?

exit codes: 0 done; 2 a mistake in what was asked, said in one sentence; 130 stopped by Ctrl-C, nothing written.
"""


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=COMMAND,
        description="Models and LoRAs => one model.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("model", metavar="A", help="a model, named as for python -m diffusion.sample")
    add("--with", dest="other", metavar="B", help="a model of the same architecture")
    add("--minus", dest="base", metavar="C", help="what B was made from: A + m * (B - C)")
    add("--by", type=float, metavar="M", help="m (default: 0.5, with --minus 1)")
    add("--lora", action="append", type=parse_lora, default=[], metavar="NAME[:WEIGHT]", help="a LoRA; again for more")
    add("--loras", type=Path, metavar="FOLDER", help="where the LoRAs are")
    add("--out", type=Path, required=True, metavar="PATH", help="the new model: a folder, or a .safetensors file")
    add("--tokenizer", type=Path, metavar="FOLDER", help="the vocabulary of single files, where it is not CLIP's")
    add("--dtype", choices=DTYPES, default="float32", help="of the new model's weights (default: %(default)s)")
    add("--dry-run", action="store_true", help="check that all of it goes together, and stop")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = arguments().parse_args(argv)
    try:
        return attempt(COMMAND, lambda: merge(args))
    except KeyboardInterrupt:
        print("Stopped; nothing is written.", file=sys.stderr)
        return 130


def merge(args: argparse.Namespace) -> None:
    steps = steps_of(args)
    if args.out.exists():
        raise ValueError(f"--out {args.out} is there already; name a folder or a file that is not.")
    model = load_model(args.model, tokenizer=args.tokenizer)
    adapters = Adapters(model, args.loras)
    loras = adapters.pin(args.lora)
    for step in steps:
        take(step, model, args)
    if args.dry_run:
        print(f"All of it goes together; {args.out} would be made.")
        return
    bake(adapters, loras)
    for network in parts(model).values():
        network.to(getattr(torch, args.dtype))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with aside(args.out) as part:
        save(model, part, single=args.out.suffix == ".safetensors")
    print(args.out)


def steps_of(args: argparse.Namespace) -> list[tuple[str, float, float]]:
    """What is done one after the other: a model's name, what is kept of the sum so far, what is added of the model."""
    by = args.by if args.by is not None else 1.0 if args.base else 0.5
    if not abs(by) <= MAX_SHARE:
        raise ValueError(f"--by is {by}; expected a number from -{MAX_SHARE} to {MAX_SHARE}.")
    match args.other, args.base:
        case None, None if not args.lora:
            raise ValueError("There is nothing to merge; give a model by --with, or a LoRA by --lora.")
        case None, None if args.by is not None:
            raise ValueError("--by says how much of a model; give the model by --with.")
        case None, None:
            return []
        case None, _:
            raise ValueError("--minus says what a model was made from; give the model by --with.")
        case other, None:
            return [(other, 1 - by, by)]
        case other, base:
            return [(other, 1.0, by), (base, 1.0, -by)]


def take(step: tuple[str, float, float], model: Model, args: argparse.Namespace) -> None:
    """Makes a step of a model, unless only whether it can be made is asked. The other model is forgotten after it."""
    name, kept, share = step
    other = load_model(name, tokenizer=args.tokenizer)
    check_alike(model, other)
    if not args.dry_run:
        add(model, other, kept, share)


def check_alike(model: Model, other: Model) -> None:
    """Raises ValueError, naming the first difference, unless the weights of two models mean the same."""
    ours, theirs = networks(model), networks(other)
    for name in ours.keys() ^ theirs.keys():
        raise ValueError(f"{model.name} and {other.name} cannot be merged: only one has a {name}.")
    for name, network in ours.items():
        one, two = (
            {key: list(weight.shape) for key, weight in each.state_dict().items()} for each in (network, theirs[name])
        )
        for key in sorted(one.keys() | two.keys()):
            if one.get(key) != two.get(key):
                raise ValueError(
                    f"{model.name} and {other.name} cannot be merged: {key} of the {name} "
                    f"is {one.get(key, 'not there')} in the one, {two.get(key, 'not there')} in the other."
                )
    predicted = [each.noise.config.predicts for each in (model, other)]
    if predicted[0] != predicted[1]:
        raise ValueError(f"{model.name} and {other.name} cannot be merged: they predict {' and '.join(predicted)}.")


@torch.no_grad()
def add(model: Model, other: Model, kept: float, share: float) -> None:
    """kept * model + share * other, into the model."""
    pairs = list(zip(networks(model).values(), networks(other).values(), strict=True))
    weights = [pair for one, two in pairs for pair in zip(one.parameters(), two.parameters(), strict=True)]
    for weight, added in tqdm(weights, desc=other.name, unit="weight", disable=None):
        weight.mul_(kept).add_(added, alpha=share)


@torch.no_grad()
def bake(adapters: Adapters, loras: Sequence[Lora]) -> None:
    """The terms of pinned LoRAs, into the weights."""
    changed = [
        (adapters.networks[network].get_submodule(layer).weight, added)
        for network, layers in adapters.parts(loras).items()
        for layer, added in layers.items()
    ]
    for weight, added in tqdm(changed, desc="LoRA", unit="layer", disable=None):
        weight.add_(delta(added, weight))


if __name__ == "__main__":
    sys.exit(main())
