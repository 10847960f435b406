"""python -m train RECIPE: the whole recipe, from nothing to a model folder, stage by stage."""

import sys
from collections.abc import Sequence

from train import autoencoder, contrastive, denoiser
from train.command import run
from train.recipe import arguments

EXAMPLES = """examples:
  python -m train emoji-64                         # the shipped model, into runs/emoji-64/model
  python -m train emoji-64 --fetched packages      # with the npm packages already in that folder
  python -m train emoji-64 --folder photos --out runs/mine
  python -m train emoji-64 --dry-run

Stop it with Ctrl-C whenever you like: the same command goes on from the newest checkpoint.
"""
STAGES = {"autoencoder": autoencoder.train, "contrastive": contrastive.train, "denoiser": denoiser.train}


def main(argv: Sequence[str] | None = None) -> int:
    parser = arguments(__doc__, EXAMPLES)
    parser.prog = "python -m train"
    return run(parser, argv, STAGES)


if __name__ == "__main__":
    sys.exit(main())
