"""python -m train.denoiser: the U-Net, by noising and denoising."""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from clip.language import SHIPPED, PromptModel
from clip.language_encoder import EncoderSettings, language_encoder
from clip.pretrained import text_encoder_from_folder
from clip.tokenizer import Tokenizer
from diffusion.autoencoder import Autoencoder, PixelSpace
from diffusion.checkpoint import Defaults, save_model
from diffusion.conditioning import LANGUAGE, PLAIN, Conditioning, Encoder
from diffusion.denoiser import Denoiser, Loss, logit_normal
from diffusion.files import Files
from diffusion.folder import load_autoencoder
from diffusion.guidance import always, guide
from diffusion.noise import Noise
from diffusion.samplers import SAMPLERS
from diffusion.schedulers import NoiseConfig
from diffusion.schedules import schedule
from diffusion.unet import UNet, UNetConfig
from train.command import run
from train.curve import grid
from train.data import Dataset
from train.loop import Metrics, fit, generator, order
from train.prepared import embed, prepare
from train.recipe import Recipe, Table, arguments, build

EXAMPLES = """examples:
  python -m train.denoiser emoji-64                    # after the autoencoder and CLIP, into runs/emoji-64/model
  python -m train.denoiser my.toml --folder photos --out runs/mine
  python -m train.denoiser emoji-64 --dry-run
"""
BINS = 4  # of noise levels that the loss is logged by
SHOWN = 32  # pictures in a sample grid


def train(
    recipe: Recipe, dataset: Dataset, out: Path, steps: int | None = None, precision: str | None = None
) -> None:
    """Trains the recipe's U-Net on what `out/model` holds so far, and completes the model folder."""
    config = recipe.training("denoiser", steps, precision)
    tokenizers, text_encoders, autoencoder = frozen_parts(recipe, out / "model")
    reading = LANGUAGE if "language" in recipe.denoiser else PLAIN
    noise = Noise(NoiseConfig(**recipe.denoiser["noise"]))
    data = prepare(
        dataset, autoencoder, text_encoders, tokenizers, reading,
        recipe.denoiser["variations"], config.seed, out / "denoiser" / "prepared",
    )  # fmt: skip
    shape = data.latents.shape[1:]  # [C, h, w]

    torch.manual_seed(config.seed)
    unet = UNet(UNetConfig.from_dict(unet_config(recipe.denoiser, shape, text_encoders)))
    objective = Loss(noise, recipe.denoiser.get("min_snr_gamma"))
    times, dropout = recipe.denoiser["times"], recipe.denoiser["caption_dropout"]

    def loss(network: nn.Module, indices: list[int]) -> tuple[Tensor, Metrics]:
        device = next(network.parameters()).device
        pictures = torch.tensor(order(indices, len(dataset), config.seed))
        # One row of draws a sample: variation, caption drop and time, then the noise.
        generators = [generator(config.seed, i) for i in indices]
        draws = torch.stack([torch.rand(2, generator=g) for g in generators])  # [B, 2]
        normal = torch.stack([torch.randn(1, generator=g) for g in generators]).squeeze(1)  # [B]
        eps = torch.stack([torch.randn(shape, generator=g) for g in generators]).to(device)  # [B, C, h, w]
        variation = (draws[:, 0] * data.latent_of.shape[1]).long()
        x0 = data.latents[data.latent_of[pictures, variation]].float().to(device)  # [B, C, h, w]
        captions = data.text_of[pictures, variation].where(draws[:, 1] >= dropout, 0)
        text = data.texts[captions].float().to(device)  # [B, L, D]
        quantile = logit_normal(normal, **times)
        errors = objective(network, x0, eps, noise.quantile(quantile), text)  # [B]
        return errors.mean(), by_noise_level(errors.detach(), quantile)

    @torch.no_grad()
    def samples(network: nn.Module, folder: Path) -> None:
        device = next(network.parameters()).device
        defaults = Defaults(**recipe.defaults)
        prompts = [dataset.variation(i * len(dataset) // SHOWN, 0, config.seed)[1] for i in range(SHOWN)]
        texts = (embed(text_encoders, tokenizers, reading, p).to(device) for p in (prompts, [""] * SHOWN))
        text, negative = (always(Conditioning(tokens)) for tokens in texts)
        sigmas = schedule(noise, defaults.schedule, defaults.steps)
        denoise = guide(Denoiser(network, noise), [text], negative, defaults.guidance)
        draw = generator(config.seed, 0)
        first = torch.randn(SHOWN, *shape, generator=draw).to(device) * noise.start(sigmas[0].item())
        latents = SAMPLERS[defaults.sampler](
            denoise, first, sigmas, lambda: torch.randn(first.shape, generator=draw).to(device)
        )
        grid(autoencoder.cpu().decode(latents.cpu()), 8, folder / "samples.png")

    fit(unet, loss, config, out / "denoiser", samples)
    # fp16 halves the files and moves no picture visibly; who loads them computes in what precision they like.
    save_model(
        out / "model", tokenizers, [encoder.cpu().half() for encoder in text_encoders], unet.cpu().half(),
        autoencoder.cpu().half(), noise, Defaults(**recipe.defaults | {"size": recipe.size}), reading,
    )  # fmt: skip


def unet_config(table: Table, shape: Sequence[int], text_encoders: Sequence[Encoder]) -> Table:
    """The recipe's network for latents of a shape [C, h, w]; what a language model says is projected first."""
    channels, widths = shape[0], [encoder.config.width for encoder in text_encoders]
    fitting = {"sample_size": shape[-1], "in_channels": channels, "out_channels": channels}
    if "language" not in table:
        return table["model"] | fitting | {"cross_attention_dim": widths[0]}
    projected = {"encoder_hid_dim_type": "text_proj", "encoder_hid_dim": sum(widths)}
    return {"cross_attention_dim": widths[0]} | table["model"] | fitting | projected


def frozen_parts(
    recipe: Recipe, model: Path
) -> tuple[list[Tokenizer], list[Encoder], Autoencoder | PixelSpace]:
    """What the earlier stages left in the model folder. Raises ValueError that says which stage has to come first.

    With a table [denoiser.language] a language model reads the texts too, or alone where it says `clip = false`:
    of the folder `model`, the shipped one where none is named, as its settings of EncoderSettings say.
    """
    pixels = recipe.autoencoder.get("kind") == "none"
    language: Table = dict(recipe.denoiser.get("language", {}))
    clip, folder = language.pop("clip", True), language.pop("model", SHIPPED)
    needed = [("tokenizer", "contrastive"), ("text_encoder", "contrastive")] if clip else []
    for part, stage in [*needed, *([] if pixels else [("vae", "autoencoder")])]:
        if not (model / part).is_dir():
            raise ValueError(f"{model / part} is not there yet: run python -m train.{stage} first, or python -m train.")
    tokenizers: list[Tokenizer] = []
    encoders: list[Encoder] = []
    if clip:
        tokenizers.append(Tokenizer.from_folder(model / "tokenizer"))
        encoders.append(text_encoder_from_folder(model / "text_encoder"))
    if "language" in recipe.denoiser:
        settings = build(EncoderSettings, language, "[denoiser.language]")
        tokenizer, encoder = language_encoder(PromptModel.from_folder(folder), settings)
        tokenizers.append(tokenizer)
        encoders.append(encoder)
    autoencoder = PixelSpace() if pixels else load_autoencoder(Files(model / "vae"))
    frozen = [encoder.float().eval().requires_grad_(False) for encoder in encoders]
    return tokenizers, frozen, autoencoder.eval().requires_grad_(False)


def by_noise_level(errors: Tensor, quantile: Tensor) -> Metrics:
    """The loss by noise level: the mean over the batch's samples in each quarter of the times."""
    level = (quantile * BINS).long().clamp(max=BINS - 1).to(errors.device)
    means = {}
    for bin in range(BINS):
        inside = level == bin
        means[f"loss_{bin}"] = (errors * inside).sum() / inside.sum().clamp(min=1)
    return means


def main(argv: Sequence[str] | None = None) -> int:
    return run(arguments(__doc__, EXAMPLES), argv, {"denoiser": train})


if __name__ == "__main__":
    sys.exit(main())
