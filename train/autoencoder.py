"""python -m train.autoencoder: images => latents => images."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion.autoencoder import Autoencoder, AutoencoderConfig
from diffusion.folder import save_autoencoder
from train.command import run
from train.curve import grid
from train.data import Dataset
from train.loop import LoopConfig, Loss, Metrics, fit, generator, order
from train.recipe import Recipe, arguments, build

EXAMPLES = """examples:
  python -m train.autoencoder emoji-64                 # into runs/emoji-64/model/vae
  python -m train.autoencoder my.toml --folder photos --out runs/mine
  python -m train.autoencoder emoji-64 --dry-run
"""


class Reconstruction(nn.Module):
    """The objective: the error of the pictures, and the KL divergence of the latents to N(0, 1).

    A variational autoencoder (Kingma & Welling 2014).
    """

    def __init__(self, autoencoder: Autoencoder, kl_weight: float) -> None:
        super().__init__()
        self.autoencoder, self.kl_weight = autoencoder, kl_weight

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Images [B, 3, H, W] in [-1, 1], unit noise [B, C, h, w] => loss, squared error, KL a latent number."""
        mean, logvar = self.autoencoder.moments(images)
        latents = self.autoencoder.scale(mean + (0.5 * logvar).exp() * noise)
        loss, squared = picture_error(self.autoencoder.decode(latents), images)
        kl = 0.5 * (mean.float().square() + logvar.float().exp() - 1 - logvar.float()).mean()
        return loss + self.kl_weight * kl, squared, kl


class Decoding(nn.Module):
    """The objective of the decoder alone: pictures from latents that carry `spread` times unit noise."""

    def __init__(self, autoencoder: Autoencoder, spread: float) -> None:
        super().__init__()
        self.autoencoder, self.spread = autoencoder, spread

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with torch.no_grad():
            latents = self.autoencoder.encode(images) + self.spread * noise
        loss, squared = picture_error(self.autoencoder.decode(latents), images)
        return loss, squared, torch.zeros_like(loss)


def picture_error(decoded: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    """A loss, and the squared error in it. Squared errors bring the colours early, absolute ones the detail late,
    and those of the differences between neighbours keep edges sharp."""
    error = (decoded - images).float()
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    squared = error.square().mean()
    return error.abs().mean() + edges + 2 * squared, squared


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
    _, bias = affine(autoencoder.quant_conv)
    bias[autoencoder.channels :] = -6.0  # log-variance: a deviation of 0.05


@torch.no_grad()
def normalise(autoencoder: Autoencoder, images: Tensor) -> None:
    """Makes every latent channel of zero mean and unit deviation over `images`, changing no reconstruction.

    The format has one scale for all channels; the 1x1 convolutions around the latents hold one for each.
    """
    latents = torch.cat([autoencoder.moments(batch)[0] for batch in images.split(64)])
    mean, deviation = latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3))  # [C]
    weight, bias = affine(autoencoder.quant_conv)
    channels = len(mean)
    # mean' = (mean - m) / s and logvar' = logvar - 2 log s
    weight[:channels] /= deviation[:, None, None, None]
    bias[:channels] = (bias[:channels] - mean) / deviation
    bias[channels:] -= 2 * deviation.log()
    weight, bias = affine(autoencoder.post_quant_conv)
    # W (s z + m) + b
    bias += weight[:, :, 0, 0] @ mean
    weight *= deviation[None, :, None, None]


def affine(layer: nn.Conv2d | None) -> tuple[Tensor, Tensor]:
    """The weight and the bias of a 1x1 convolution beside the latents."""
    if layer is None or layer.bias is None:
        raise ValueError("[autoencoder.model]: leave use_quant_conv and use_post_quant_conv on: they scale latents.")
    return layer.weight, layer.bias


def train(
    recipe: Recipe, dataset: Dataset, out: Path, steps: int | None = None, precision: str | None = None
) -> None:
    """Trains the recipe's autoencoder into `out/model/vae`; nothing to do where the recipe works on pixels.

    First both halves at once; then, where the recipe has `[autoencoder.decoder]`, the decoder alone.
    """
    if recipe.autoencoder.get("kind") == "none":
        return
    config = recipe.training("autoencoder", steps, precision)
    torch.manual_seed(config.seed)
    model = recipe.autoencoder["model"] | {"sample_size": recipe.size}
    autoencoder = Autoencoder(AutoencoderConfig.from_dict(model))
    initialise(autoencoder)
    objective = Reconstruction(autoencoder, recipe.autoencoder["kl_weight"])
    fit(objective, reconstruction_loss(dataset, autoencoder, config.seed), config, out / "autoencoder", show(dataset))

    device = next(autoencoder.parameters()).device
    seen = images_at(dataset, list(range(min(len(dataset), 2048))), config.seed, device)
    normalise(autoencoder, seen)
    print(f"autoencoder: {psnr(autoencoder, seen):.2f} dB over {len(seen)} training pictures")
    if "decoder" in recipe.autoencoder:
        refine(recipe, dataset, autoencoder, out, precision)
        print(f"decoder: {psnr(autoencoder, seen):.2f} dB")
    save_autoencoder(autoencoder, out / "model" / "vae")


def refine(
    recipe: Recipe, dataset: Dataset, autoencoder: Autoencoder, out: Path, precision: str | None = None
) -> None:
    """Trains the decoder on, for latents that stay what they are but for the noise that a sampler leaves in them."""
    table = recipe.autoencoder["decoder"]
    config = build(LoopConfig, table["training"] | ({"precision": precision} if precision else {}), "[decoder]")
    autoencoder.requires_grad_(False)
    for part in (autoencoder.decoder, autoencoder.post_quant_conv):
        if part is not None:
            part.requires_grad_(True)
    objective = Decoding(autoencoder, table["noise"])
    fit(objective, reconstruction_loss(dataset, autoencoder, config.seed), config, out / "decoder", show(dataset))
    autoencoder.requires_grad_(True)


def reconstruction_loss(dataset: Dataset, autoencoder: Autoencoder, seed: int) -> Loss:
    """The loss of either objective on the pictures of global sample indices."""
    side = dataset.size // autoencoder.factor
    shape = (autoencoder.channels, side, side)

    def loss(network: nn.Module, indices: list[int]) -> tuple[Tensor, Metrics]:
        device = next(network.parameters()).device
        noise = torch.stack([torch.randn(shape, generator=generator(seed, i)) for i in indices])
        value, squared, kl = network(images_at(dataset, indices, seed, device), noise.to(device))
        return value, {"squared": squared, "kl": kl}

    return loss


def show(dataset: Dataset) -> Callable[[nn.Module, Path], None]:
    """Draws two rows of pictures over what becomes of them."""

    @torch.no_grad()
    def samples(network: nn.Module, folder: Path) -> None:
        assert isinstance(network, Reconstruction | Decoding)
        autoencoder = network.autoencoder
        shown = images_at(dataset, list(range(32)), 0, next(network.parameters()).device)
        grid(torch.cat([shown, autoencoder.decode(autoencoder.encode(shown))]), 16, folder / "samples.png")

    return samples


@torch.no_grad()
def psnr(autoencoder: Autoencoder, images: Tensor) -> float:
    """Decibels between images in [-1, 1] and their reconstructions, over all of them."""
    again = torch.cat([autoencoder.decode(autoencoder.encode(batch)) for batch in images.split(64)])
    return -10 * float(F.mse_loss(again.clamp(-1, 1) / 2, images / 2).log10())


def main(argv: Sequence[str] | None = None) -> int:
    return run(arguments(__doc__, EXAMPLES), argv, {"autoencoder": train})


if __name__ == "__main__":
    sys.exit(main())
