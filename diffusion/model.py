"""A model: all that makes a picture of a request, wherever it was read from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clip.tokenizer import Tokenizer
from diffusion.autoencoder import Autoencoder, PixelSpace
from diffusion.conditioning import PLAIN, Encoder, Reading
from diffusion.noise import Noise
from diffusion.unet import UNet


@dataclass(frozen=True)
class Defaults:
    """What a request gets where it says nothing itself."""

    steps: int = 25
    sampler: str = "dpmpp_2m"
    schedule: str = "automatic"
    guidance: float = 7.5
    size: int = 512  # pixels a side


CONSISTENCY: dict[str, Any] = {"steps": 4, "sampler": "lcm", "guidance": 8.5}  # as diffusers' pipeline of such models


@dataclass(frozen=True)
class Model:
    """The networks are loaded to evaluate, on the CPU, in float32; the U-Net in what it shall run in."""

    tokenizers: tuple[Tokenizer, ...]  # one a text encoder
    text_encoders: tuple[Encoder, ...]
    unet: UNet
    autoencoder: Autoencoder | PixelSpace
    noise: Noise
    defaults: Defaults
    path: Path  # a folder, or a single file
    name: str
    hashes: Mapping[str, str] = field(default_factory=dict)  # SHA-256 of every weight file, by its path in the folder
    reading: Reading = PLAIN
    vae: Path | None = None  # the folder or the file of an autoencoder that stands in for the model's own

    prediction_type: str | None = None  # what was asked for in place of what the model says

    @property
    def distilled(self) -> bool:
        """Whether the U-Net imitates guidance, of which it is told the scale: it has no use for a negative prompt."""
        return self.unet.config.time_cond_proj_dim is not None

    def describe(self) -> dict[str, str]:
        """What AUTOMATIC1111's form says of what is not the model's own."""
        said = {"Prediction type": self.prediction_type} if self.prediction_type else {}
        if self.vae is not None:
            hash = next(sum for name, sum in self.hashes.items() if name.startswith("vae/"))
            said |= {"VAE hash": hash[:10], "VAE": self.vae.name}
        return said
