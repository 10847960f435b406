"""What the U-Net's levels are made of: residual blocks, and transformers over pixels that attend to the text.

`times` and `context` hold what the time and the text have become for each block, in the order in which blocks are met.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion.blocks import Attention, Downsample, KeysValues, ResBlock, Upsample, pixels, tokens, zero


@dataclass(frozen=True)
class Level:
    """What one level of the U-Net is made of; it makes its modules."""

    channels: int
    layers: int
    depth: int  # transformer blocks in a transformer
    heads: int
    time_channels: int
    text_channels: int
    groups: int
    eps: float
    linear: bool

    def resnets(self, widths: Iterable[int]) -> nn.ModuleList:
        """One residual block for each width of its input."""
        return nn.ModuleList(
            ResBlock(width, self.channels, self.groups, self.eps, self.time_channels) for width in widths
        )

    def transformers(self, count: int) -> nn.ModuleList:
        return nn.ModuleList(Transformer(self) for _ in range(count))

    def projection(self) -> nn.Linear | nn.Conv2d:
        width = self.channels
        return nn.Linear(width, width) if self.linear else nn.Conv2d(width, width, 1)


class Down(nn.Module):
    """Residual blocks, each followed by a transformer where the level attends; then half the sides."""

    def __init__(self, level: Level, in_channels: int, attends: bool, downsample: bool):
        super().__init__()
        self.resnets = level.resnets([in_channels] + [level.channels] * (level.layers - 1))
        self.attentions = level.transformers(level.layers if attends else 0)
        self.downsamplers = nn.ModuleList([Downsample(level.channels, padding=1)] if downsample else [])

    def forward(self, x: Tensor, times: Iterator[Tensor], context: Iterator[KeysValues], skips: list[Tensor]) -> Tensor:
        for i, resnet in enumerate(self.resnets):
            x = resnet(x, next(times))
            if self.attentions:
                x = self.attentions[i](x, context)
            skips.append(x)
        for downsample in self.downsamplers:
            x = downsample(x)
            skips.append(x)
        return x


class Middle(nn.Module):
    """Residual block, transformer, residual block, at the coarsest level."""

    def __init__(self, level: Level):
        super().__init__()
        self.resnets = level.resnets([level.channels] * 2)
        self.attentions = level.transformers(1)

    def forward(self, x: Tensor, times: Iterator[Tensor], context: Iterator[KeysValues]) -> Tensor:
        x = self.resnets[0](x, next(times))
        x = self.attentions[0](x, context)
        return self.resnets[1](x, next(times))


class Up(nn.Module):
    """The mirror of Down: every residual block also sees the feature map that the way down left for it."""

    def __init__(self, level: Level, in_channels: int, skips: list[int], attends: bool, upsample: bool):
        super().__init__()
        widths = [in_channels] + [level.channels] * (len(skips) - 1)
        self.resnets = level.resnets(width + skip for width, skip in zip(widths, skips, strict=True))
        self.attentions = level.transformers(len(skips) if attends else 0)
        self.upsamplers = nn.ModuleList([Upsample(level.channels)] if upsample else [])

    def forward(self, x: Tensor, times: Iterator[Tensor], context: Iterator[KeysValues], skips: list[Tensor]) -> Tensor:
        for i, resnet in enumerate(self.resnets):
            x = resnet(self.join(x, skips.pop()), next(times))
            if self.attentions:
                x = self.attentions[i](x, context)
        for upsample in self.upsamplers:
            x = upsample(x, skips[-1].shape[-2:])  # not always twice: the way down rounds odd sides up
        return x

    def join(self, x: Tensor, skip: Tensor) -> Tensor:
        return torch.cat([x, skip], dim=1)


class Transformer(nn.Module):
    """Transformer blocks over the pixels of a feature map, between two projections; the whole is residual."""

    def __init__(self, level: Level):
        super().__init__()
        channels = level.channels
        # SD 1.x projects pixels by 1x1 convolutions, later models tokens by linear layers: the same map.
        self.linear = level.linear
        self.norm = nn.GroupNorm(level.groups, channels, eps=1e-6)  # whatever norm_eps is
        self.proj_in = level.projection()
        self.transformer_blocks = nn.ModuleList(TransformerBlock(level) for _ in range(level.depth))
        self.proj_out = zero(level.projection())

    def forward(self, x: Tensor, context: Iterator[KeysValues]) -> Tensor:
        sides = x.shape[-2:]
        h = self.norm(x)
        h = self.proj_in(tokens(h)) if self.linear else tokens(self.proj_in(h))  # [B, h w, C]
        for block in self.transformer_blocks:
            h = block(h, next(context))
        h = pixels(self.proj_out(h), sides) if self.linear else self.proj_out(pixels(h, sides))
        return x + h


class TransformerBlock(nn.Module):
    """Self-attention, attention to the text, feed-forward; each normalised before and residual."""

    def __init__(self, level: Level):
        super().__init__()
        channels = level.channels
        self.norm1 = nn.LayerNorm(channels)
        self.attn1 = Attention(channels, level.heads)
        self.norm2 = nn.LayerNorm(channels)
        self.attn2 = Attention(channels, level.heads, level.text_channels)
        self.norm3 = nn.LayerNorm(channels)
        self.ff = FeedForward(channels)

    def forward(self, x: Tensor, context: KeysValues) -> Tensor:
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class FeedForward(nn.Module):
    """The gated MLP, GEGLU (Shazeer 2020), four times as wide as the tokens."""

    def __init__(self, channels: int):
        super().__init__()
        wide = 4 * channels
        # The Identity stands where diffusers has a dropout, to keep the key names.
        self.net = nn.Sequential(GEGLU(channels, wide), nn.Identity(), nn.Linear(wide, channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class GEGLU(nn.Module):
    """value * gelu(gate), both linear in x."""

    def __init__(self, channels: int, out_channels: int):
        super().__init__()
        self.proj = nn.Linear(channels, 2 * out_channels)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)
