"""python -m benchmarks.ablation: what should read the texts? The same U-Net told by CLIP, by a language model, by both.

Each arm is `python -m train.denoiser` on the recipe's data without what is held out, with the shipped model's frozen
autoencoder and CLIP and the shipped prompt model, of the same seed: the same samples, times and noise. They are judged
by the loss on held-out pictures at noise that is the same for all, in pairs.
"""

import argparse
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from diffusion.checkpoint import Model, find_model, load_model
from diffusion.denoiser import Loss, logit_normal
from train.data import EmojiDataset, emoji_config
from train.denoiser import train
from train.emoji import load_emoji, split
from train.loop import generator
from train.prepared import prepare
from train.recipe import Recipe, Table

EXAMPLES = """examples:
  python -m benchmarks.ablation --out runs/ablation --steps 400      # all arms, one after the other, and the table
  python -m benchmarks.ablation --out runs/ablation --arm both       # one arm, as another process beside the others
"""
ARMS: dict[str, Table] = {"clip": {}, "language": {"language": {"clip": False}}, "both": {"language": {}}}
PARTS = ("held_out", "unseen")  # known things in a style that was held out, things that were held out altogether
DRAWS = 16  # of caption, time and noise, a picture
SEED = 2026


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="the folder of the runs, which are continued")
    parser.add_argument("--steps", type=int, default=400, help="of training, an arm (default: %(default)s)")
    parser.add_argument("--arm", choices=ARMS, help="train this one alone, and judge none")
    parser.add_argument("--fetched", type=Path, help="a folder that already holds the emoji packages")
    args = parser.parse_args(argv)
    recipe = Recipe.load("emoji-64")
    emoji = split(load_emoji(emoji_config(recipe.data, recipe.size), args.out / "data", args.fetched))
    for arm in [args.arm] if args.arm else ARMS:
        start(args.out / arm / "model")
        train(recipe_of(recipe, arm), EmojiDataset(emoji["seen"]), args.out / arm, args.steps, "no")
    if args.arm:
        return
    for part in PARTS:
        pictures = EmojiDataset(emoji[part])
        losses = {arm: judge(args.out / arm, pictures, part, recipe) for arm in ARMS}
        print(f"{part}: {len(pictures)} pictures, {DRAWS} draws each")
        for arm, (told, untold) in losses.items():
            print(f"  {arm:9} loss {interval(told)}   without the text {interval(untold - told, '+')}", end="")
            print(f"   less than CLIP's {interval(losses['clip'][0] - told, '+')}" if arm != "clip" else "")


def start(model: Path) -> None:
    """The shipped model's frozen parts, where the earlier stages of training leave theirs."""
    for part in ("tokenizer", "text_encoder", "vae"):
        shutil.copytree(find_model("emoji-64") / part, model / part, dirs_exist_ok=True)


def recipe_of(recipe: Recipe, arm: str) -> Recipe:
    """The recipe for a short training; all arms attend to keys and values of the same width."""
    unet = recipe.denoiser["model"] | {"cross_attention_dim": recipe.contrastive["text"]["width"]}
    short = {"batch": 32, "warmup": 50, "average": 0.99, "checkpoint_every": 50, "sample_every": 10**6}
    training = recipe.denoiser["training"] | short
    table = recipe.denoiser | {"model": unet, "training": training, "variations": 4} | ARMS[arm]
    return replace(recipe, denoiser=table)


@torch.no_grad()
def judge(run: Path, pictures: EmojiDataset, part: str, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """Each picture's loss, the mean over its draws [N]: told the caption, and told nothing."""
    model: Model = load_model(run / "model")
    data = prepare(
        pictures, model.autoencoder, model.text_encoders, model.tokenizers, model.reading, DRAWS, SEED, run / part
    )
    objective = Loss(model.noise)
    rows = []
    for i in range(len(pictures)):
        draws = [generator(SEED, i * DRAWS + k) for k in range(DRAWS)]
        x0 = data.latents[data.latent_of[i]].float()  # [K, C, h, w]
        normal = torch.cat([torch.randn(1, generator=draw) for draw in draws])
        eps = torch.stack([torch.randn(x0.shape[1:], generator=draw) for draw in draws])
        sigmas = model.noise.quantile(logit_normal(normal, **recipe.denoiser["times"]))
        texts = data.texts[data.text_of[i]].float(), data.texts[:1].float().expand(DRAWS, -1, -1)
        rows.append(torch.stack([objective(model.unet, x0, eps, sigmas, text).mean() for text in texts]))
    told, untold = torch.stack(rows).T
    return told, untold


def interval(values: Tensor, sign: str = "") -> str:
    """The mean over pictures and its 95% interval."""
    return f"{values.mean():{sign}.4f} ± {1.96 * values.std() / len(values) ** 0.5:.4f}"


if __name__ == "__main__":
    main()
