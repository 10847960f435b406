"""Stable Diffusion 1.5 at its true size, 859.5 million parameters in the U-Net, with random weights."""

import gc
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import nn

from benchmarks.difference import difference
from clip.folder import Undrawn
from clip.text import TextConfig, TextEncoder
from diffusion.autoencoder import Autoencoder, AutoencoderConfig
from diffusion.checkpoint import Defaults, load_model, save_model
from diffusion.noise import Noise
from diffusion.pipeline import Pipeline
from diffusion.request import Request
from diffusion.schedulers import NoiseConfig
from diffusion.unet import UNet, UNetConfig
from diffusion.vocabulary import find_tokenizers

PARAMETERS = {"text_encoder": 123_060_480, "unet": 859_520_964, "vae": 83_653_863}


def randomized(network: nn.Module) -> nn.Module:
    """Half-precision weights from one row of random numbers, repeated: a billion draws would take a minute."""
    row = torch.randn(1_000_003, generator=torch.Generator().manual_seed(0))
    network.half()
    for name, parameter in network.named_parameters():
        values = row.repeat(parameter.numel() // len(row) + 1)[: parameter.numel()].view(parameter.shape)
        scale = 0.1 if parameter.ndim < 2 else parameter[0].numel() ** -0.5
        centre = float("norm" in name and name.endswith("weight"))
        parameter.data.copy_(values * scale + centre)
    return network


@pytest.mark.slow
def test_stable_diffusion_1_5_is_the_one_of_diffusers(tmp_path: Path) -> None:
    with Undrawn(2000):
        text = randomized(TextEncoder(TextConfig()))
        unet = randomized(UNet(UNetConfig(sample_size=64, cross_attention_dim=768)))
        levels = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "sample_size": 512}
        autoencoder = randomized(Autoencoder(AutoencoderConfig(**levels)))
    counts = [sum(p.numel() for p in network.parameters()) for network in (text, unet, autoencoder)]
    assert counts == list(PARAMETERS.values())
    tokenizers = find_tokenizers(tmp_path, [TextConfig()], [False], None)
    noise = Noise(NoiseConfig(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1))
    save_model(tmp_path / "model", tokenizers, (text,), unet, autoencoder, noise, Defaults())
    del text, unet, autoencoder
    gc.collect()

    pipeline = Pipeline(load_model(tmp_path / "model"))
    request = Request("an astronaut riding a horse", seed=1, steps=2, sampler="euler", width=64, height=64)
    (ours,) = pipeline.generate([request])
    assert len(set(ours.image.tobytes())) > 100  # values of 256: it is a picture of something
    start = pipeline.noise(ours.request)()
    del pipeline
    gc.collect()

    theirs = StableDiffusionPipeline.from_pretrained(tmp_path / "model", torch_dtype=torch.float32)
    theirs.set_progress_bar_config(disable=True)
    picture = theirs(request.prompt, latents=start, num_inference_steps=2, width=64, height=64).images[0]
    found = difference(ours.image, picture)
    assert found.within_rounding, found
