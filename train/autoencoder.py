"""python -m train.autoencoder: images => latents => images."""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion.autoencoder import Autoencoder, AutoencoderConfig
from diffusion.checkpoint import save_autoencoder
from train.command import run
from train.curve import grid
from train.data import Dataset
from train.loop import Metrics, fit, generator, order
from train.recipe import Recipe, arguments

EXAMPLES = """examples:
  python -m train.autoencoder emoji-64                 # into runs/emoji-64/model/vae
  python -m train.autoencoder my.toml --folder photos --out runs/mine
  python -m train.autoencoder emoji-64 --dry-run
"""


class Reconstruction(nn.Module):
    """The objective: errors of pixels and of their differences, and the KL divergence of the latents to N(0, 1).

    A variational autoencoder (Kingma & Welling 2014). Squared errors bring the colours early, absolute ones the
    detail late, and those of the differences between neighbours keep edges sharp.
    """

    def __init__(self, autoencoder: Autoencoder, kl_weight: float) -> None:
        super().__init__()
        self.autoencoder, self.kl_weight = autoencoder, kl_weight

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Images [B, 3, H, W] in [-1, 1], unit noise [B, C, h, w] => loss, squared error, KL a latent number."""
        mean, logvar = self.autoencoder.moments(images)
        latents = mean + (0.5 * logvar).exp() * noise
        error = (self.autoencoder.decode(self.autoencoder.scale(latents)) - images).float()
        edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
        squared = error.square().mean()
        kl = 0.5 * (mean.float().square() + logvar.float().exp() - 1 - logvar.float()).mean()
        return error.abs().mean() + edges + 2 * squared + self.kl_weight * kl, squared, kl


def images_at(dataset: Dataset, indices: list[int], seed: int, device: torch.device) -> Tensor:
    """The pictures of global sample indices, in [-1, 1]; each visit is another variation.  # [B, 3, S, S]"""
    pictures = order(indices, len(dataset), seed)
    visits = [index // len(dataset) for index in indices]
    pixels = torch.stack([dataset.variation(i, k, seed)[0] for i, k in zip(pictures, visits, strict=True)])
    return pixels.to(device).float() / 127.5 - 1


@torch.no_grad()
def initialise(autoencoder: Autoencoder) -> None:
    """A start that learns sooner than PyTorch's: signals keep their size, latents hold hardly any noise."""
    for module in autoencoder.modules():
        if (
            isinstance(module, nn.Conv2d) and module.weight.any()
        ):  # residual branches start at zero and stay so
            nn.init.xavier_normal_(module.weight)
    autoencoder.quant_conv.bias[autoencoder.channels :] = -6.0  # log-variance: a deviation of 0.05


@torch.no_grad()
def normalise(autoencoder: Autoencoder, images: Tensor) -> None:
    """Makes every latent channel of zero mean and unit deviation over `images`, changing no reconstruction.

    The format has one scale for all channels; the 1x1 convolutions around the latents hold one for each.
    """
    latents = torch.cat([autoencoder.moments(batch)[0] for batch in images.split(64)])
    mean, deviation = latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3))  # [C]
    encode, decode = autoencoder.quant_conv, autoencoder.post_quant_conv
    channels = len(mean)
    # mean' = (mean - m) / s and logvar' = logvar - 2 log s
    encode.weight[:channels] /= deviation[:, None, None, None]
    encode.bias[:channels] = (encode.bias[:channels] - mean) / deviation
    encode.bias[channels:] -= 2 * deviation.log()
    # W (s z + m) + b
    decode.bias += decode.weight[:, :, 0, 0] @ mean
    decode.weight *= deviation[None, :, None, None]


def train(
    recipe: Recipe, dataset: Dataset, out: Path, steps: int | None = None, precision: str | None = None
) -> None:
    """Trains the recipe's autoencoder into `out/model/vae`; nothing to do where the recipe works on pixels."""
    if recipe.autoencoder.get("kind") == "none":
        return
    config = recipe.training("autoencoder", steps, precision)
    torch.manual_seed(config.seed)
    autoencoder = Autoencoder(
        AutoencoderConfig.from_dict(recipe.autoencoder["model"] | {"sample_size": recipe.size})
    )
    initialise(autoencoder)
    objective = Reconstruction(autoencoder, recipe.autoencoder["kl_weight"])
    side = recipe.size // autoencoder.factor
    shape = (autoencoder.channels, side, side)

    def loss(network: nn.Module, indices: list[int]) -> tuple[Tensor, Metrics]:
        device = next(network.parameters()).device
        noise = torch.stack([torch.randn(shape, generator=generator(config.seed, i)) for i in indices]).to(
            device
        )
        value, squared, kl = network(images_at(dataset, indices, config.seed, device), noise)
        return value, {"squared": squared, "kl": kl}

    @torch.no_grad()
    def samples(network: nn.Module, folder: Path) -> None:
        device = next(network.parameters()).device
        shown = images_at(dataset, list(range(32)), config.seed, device)
        autoencoder = network.autoencoder
        grid(torch.cat([shown, autoencoder.decode(autoencoder.encode(shown))]), 16, folder / "samples.png")

    fit(objective, loss, config, out / "autoencoder", samples)
    device = next(objective.parameters()).device
    seen = images_at(dataset, list(range(min(len(dataset), 2048))), config.seed, device)
    normalise(autoencoder, seen)
    with torch.no_grad():
        again = torch.cat([autoencoder.decode(autoencoder.encode(batch)) for batch in seen.split(64)])
    psnr = -10 * F.mse_loss(again.clamp(-1, 1) / 2, seen / 2).log10()
    print(f"autoencoder: PSNR {psnr:.2f} dB over {len(seen)} training pictures")
    save_autoencoder(autoencoder, out / "model" / "vae")


def main(argv: Sequence[str] | None = None) -> int:
    return run(arguments(__doc__, EXAMPLES), argv, {"autoencoder": train})


if __name__ == "__main__":
    sys.exit(main())
