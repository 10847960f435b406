"""A whole model folder at tiny size, with random weights: what the tests of the way to a picture share."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from networks import randomize

from clip.text import TextConfig, TextEncoder
from clip.tokenizer import Tokenizer
from diffusion.autoencoder import Autoencoder, AutoencoderConfig, PixelSpace
from diffusion.checkpoint import Defaults, save_model
from diffusion.noise import Noise
from diffusion.schedulers import NoiseConfig
from diffusion.unet import UNet, UNetConfig

CAPTIONS = ["a red apple", "a blue star", "a green apple beside a red star", "赤いりんご", "青い星"] * 2
LENGTH = 16  # tokens, start and end among them


def save_tiny(folder: Path, autoencoder: Autoencoder | PixelSpace) -> Path:
    """A model with weights of a fixed seed, in float16, as shipped models are."""
    torch.manual_seed(0)
    tokenizer = Tokenizer.train(CAPTIONS, vocab_size=560, length=LENGTH)
    text_encoder = TextEncoder(
        TextConfig(
            vocab_size=tokenizer.vocab_size,
            length=LENGTH,
            width=32,
            layers=2,
            heads=2,
            mlp_width=64,
            eos_token_id=tokenizer.end,
        )
    )
    unet = UNet(
        UNetConfig(
            sample_size=16 // autoencoder.factor,
            in_channels=autoencoder.channels,
            out_channels=autoencoder.channels,
            block_out_channels=(32, 64),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            attention_head_dim=4,
            cross_attention_dim=32,
            norm_num_groups=8,
        )
    )
    # Those layers that start at zero would make a network blind to its input.
    for network in (unet, autoencoder):
        randomize(network)
    noise = Noise(NoiseConfig(prediction_type="v_prediction", timestep_spacing="trailing"))
    defaults = Defaults(steps=4, sampler="euler", guidance=3.0, size=16)
    networks = (text_encoder.half(),), unet.half(), autoencoder.half()
    save_model(folder, (tokenizer,), *networks, noise, defaults)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = AutoencoderConfig(
        block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8, sample_size=16, scaling_factor=0.5
    )
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny", Autoencoder(config))


@pytest.fixture(scope="session")
def sd_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny Stable Diffusion, "sd1", "sd2" or "xl", that diffusers made; each is made once."""
    from models import save_model as save  # diffusers is slow to import, and few tests need it

    root = tmp_path_factory.mktemp("sd")
    return lambda kind: root / kind if (root / kind).is_dir() else save(kind, root / kind)


@pytest.fixture(scope="session")
def pixel_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("models") / "pixels", PixelSpace())
