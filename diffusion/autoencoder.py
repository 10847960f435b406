"""Images <=> latents: the autoencoder of latent diffusion (Rombach et al. 2022), diffusers' AutoencoderKL.

It owns the scale and shift that bring its latents near unit variance; nothing outside this file knows them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion.blocks import Attention, Downsample, ResBlock, Upsample, pixels, tokens, zero
from diffusion.config import Config

EPS = 1e-6  # of every group normalisation here
LOGVAR_RANGE = (-30.0, 20.0)


@dataclass(frozen=True)
class AutoencoderConfig(Config):
    """diffusers' AutoencoderKL configuration, field by field; the defaults are diffusers' own."""

    in_channels: int = 3
    out_channels: int = 3
    block_out_channels: tuple[int, ...] = (64,)  # one a level, the finest first
    layers_per_block: int = 1
    latent_channels: int = 4
    norm_num_groups: int = 32
    mid_block_add_attention: bool = True
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    scaling_factor: float = 0.18215
    shift_factor: float | None = None
    latents_mean: tuple[float, ...] | None = None  # of each channel, before it is scaled; with the next or not at all
    latents_std: tuple[float, ...] | None = None
    sample_size: int = 32  # pixels a side in training

    CLASS: ClassVar[str] = "AutoencoderKL"
    BLOCK_TYPES: ClassVar[Mapping[str, str]] = {  # one kind each, so no choice of the configuration
        "down_block_types": "DownEncoderBlock2D",
        "up_block_types": "UpDecoderBlock2D",
    }
    FIXED: ClassVar[Mapping[str, Any]] = {"act_fn": "silu"}
    IGNORED: ClassVar[frozenset[str]] = frozenset({"force_upcast"})  # the caller chooses the dtype

    def __post_init__(self) -> None:
        self.check_groups(self.block_out_channels, self.norm_num_groups)
        counts = [self.latent_channels if each is None else len(each) for each in (self.latents_mean, self.latents_std)]
        one_alone = (self.latents_mean is None) != (self.latents_std is None)
        if one_alone or counts != [self.latent_channels] * 2 or min(self.latents_std or (1,)) <= 0:
            raise ValueError(f"latents_mean={self.latents_mean} with latents_std={self.latents_std} is not supported; "
                             f"expected {self.latent_channels} numbers in each, the latter above 0, or neither.")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        values = dict(values)
        for key, known in cls.BLOCK_TYPES.items():
            for name in values.pop(key, ()):
                if name != known:
                    raise ValueError(f"{key} with {name!r} is not supported; expected {known!r}.")
        return super().from_dict(values)

    def to_dict(self) -> dict[str, Any]:
        levels = len(self.block_out_channels)
        return super().to_dict() | {key: (known,) * levels for key, known in self.BLOCK_TYPES.items()}


class Autoencoder(nn.Module):
    """Images [B, 3, H, W] in [-1, 1] <=> latents [B, channels, H / factor, W / factor]."""

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        self.config = config
        channels = self.channels = config.latent_channels
        self.factor = 2 ** (len(config.block_out_channels) - 1)  # pixels a latent side
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = nn.Conv2d(2 * channels, 2 * channels, 1) if config.use_quant_conv else None
        self.post_quant_conv = nn.Conv2d(channels, channels, 1) if config.use_post_quant_conv else None

    def moments(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the posterior q(z | image), each [B, channels, h, w], not yet scaled.

        Raises ValueError when a side of the images is not a multiple of `factor`.
        """
        height, width = images.shape[-2:]
        if height % self.factor or width % self.factor:
            raise ValueError(f"images of {width}x{height} pixels do not divide into latents; "
                             f"both sides must be multiples of {self.factor}.")
        h = self.encoder(images)
        if self.quant_conv is not None:
            h = self.quant_conv(h)
        mean, logvar = h.chunk(2, dim=1)
        return mean, logvar.clamp(*LOGVAR_RANGE)

    def scale(self, z: Tensor) -> Tensor:
        """z as `moments` describes it => latents, near unit variance."""
        mean, factor = self._units(z)
        return (z - mean) * factor

    def encode(self, images: Tensor) -> Tensor:
        """images => latents: the scaled posterior mean."""
        mean, _ = self.moments(images)
        return self.scale(mean)

    def decode(self, latents: Tensor) -> Tensor:
        """latents => images, near [-1, 1] but not clamped."""
        mean, factor = self._units(latents)
        z = latents / factor + mean
        if self.post_quant_conv is not None:
            z = self.post_quant_conv(z)
        return self.decoder(z)

    def _units(self, like: Tensor) -> tuple[Tensor | float, Tensor | float]:
        """What z has as its mean, and what it is multiplied by; numbers, or [C, 1, 1]."""
        config = self.config
        mean, factor = config.shift_factor or 0.0, config.scaling_factor
        if config.latents_mean is None:
            return mean, factor
        means, spreads = (like.new_tensor(each)[:, None, None] for each in (config.latents_mean, config.latents_std))
        return mean + means, factor / spreads


class PixelSpace(nn.Module):
    """The autoencoder of a model that has none: its latents are the pixels, and diffusion is plain DDPM."""

    factor = 1
    channels = 3

    def moments(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return images, torch.full_like(images, LOGVAR_RANGE[0])

    def scale(self, z: Tensor) -> Tensor:
        return z

    def encode(self, images: Tensor) -> Tensor:
        return images

    def decode(self, latents: Tensor) -> Tensor:
        return latents


class Encoder(nn.Module):
    """images => mean and log-variance: levels of residual blocks, each but the last halving the sides."""

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        channels, groups = config.block_out_channels, config.norm_num_groups
        self.conv_in = nn.Conv2d(config.in_channels, channels[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            DownLevel(a, b, config.layers_per_block, groups, downsample=level < len(channels))
            for level, (a, b) in enumerate(pairwise((channels[0], *channels)), start=1)
        )
        self.mid_block = Middle(channels[-1], groups, config.mid_block_add_attention)
        self.conv_norm_out = nn.GroupNorm(groups, channels[-1], EPS)
        self.conv_out = nn.Conv2d(channels[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        x = self.mid_block(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class Decoder(nn.Module):
    """latents => images: the encoder's mirror, with one residual block more a level."""

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        channels, groups = config.block_out_channels[::-1], config.norm_num_groups
        self.conv_in = nn.Conv2d(config.latent_channels, channels[0], 3, padding=1)
        self.mid_block = Middle(channels[0], groups, config.mid_block_add_attention)
        self.up_blocks = nn.ModuleList(
            UpLevel(a, b, config.layers_per_block + 1, groups, upsample=level < len(channels))
            for level, (a, b) in enumerate(pairwise((channels[0], *channels)), start=1)
        )
        self.conv_norm_out = nn.GroupNorm(groups, channels[-1], EPS)
        self.conv_out = nn.Conv2d(channels[-1], config.out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        x = self.mid_block(x)
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


def residual_blocks(in_channels: int, out_channels: int, count: int, groups: int) -> nn.ModuleList:
    """`count` residual blocks in a row, of which the first changes the width."""
    widths = [in_channels] + [out_channels] * count
    return nn.ModuleList(ResBlock(a, b, groups, EPS) for a, b in pairwise(widths))


class DownLevel(nn.Module):
    """Residual blocks, then half the sides."""

    def __init__(self, in_channels: int, out_channels: int, layers: int, groups: int, downsample: bool):
        super().__init__()
        self.resnets = residual_blocks(in_channels, out_channels, layers, groups)
        self.downsamplers = nn.ModuleList([Downsample(out_channels, padding=0)] if downsample else [])

    def forward(self, x: Tensor) -> Tensor:
        for resnet in self.resnets:
            x = resnet(x)
        for downsample in self.downsamplers:
            x = downsample(x)
        return x


class UpLevel(nn.Module):
    """Residual blocks, then twice the sides."""

    def __init__(self, in_channels: int, out_channels: int, layers: int, groups: int, upsample: bool):
        super().__init__()
        self.resnets = residual_blocks(in_channels, out_channels, layers, groups)
        self.upsamplers = nn.ModuleList([Upsample(out_channels)] if upsample else [])

    def forward(self, x: Tensor) -> Tensor:
        for resnet in self.resnets:
            x = resnet(x)
        for upsample in self.upsamplers:
            x = upsample(x, (2 * x.shape[-2], 2 * x.shape[-1]))
        return x


class Middle(nn.Module):
    """Residual block, attention, residual block, at the coarsest level."""

    def __init__(self, channels: int, groups: int, attention: bool):
        super().__init__()
        self.resnets = residual_blocks(channels, channels, 2, groups)
        self.attentions = nn.ModuleList([PixelAttention(channels, groups)] if attention else [])

    def forward(self, x: Tensor) -> Tensor:
        x = self.resnets[0](x)
        for attention in self.attentions:
            x = attention(x)
        return self.resnets[1](x)


class PixelAttention(Attention):
    """Self-attention with one head over the pixels of a feature map, normalised and residual."""

    def __init__(self, channels: int, groups: int):
        super().__init__(channels, heads=1, bias=True)
        self.group_norm = nn.GroupNorm(groups, channels, EPS)
        zero(self.to_out)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        h = super().forward(tokens(self.group_norm(x)))  # [B, h w, C]
        return x + pixels(h, x.shape[-2:])
