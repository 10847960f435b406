"""The pieces that the autoencoder and the U-Net share: residual block, attention, resampling.

Attributes are named as in diffusers, so that its state dicts load without a map.
"""

from collections.abc import Sequence
from typing import TypeVar

from torch import Tensor, nn
from torch.nn import functional as F

L = TypeVar("L", bound=nn.Module)
KeysValues = tuple[Tensor, Tensor]  # each [B, heads, L, channels / heads]


def zero(layer: L) -> L:
    """Zero a layer's parameters, so that a residual branch starts as nothing (Dhariwal & Nichol 2021)."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class ResBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x))) + time))): the block of DDPM (Ho et al. 2020, appendix B)."""

    def __init__(
        self, in_channels: int, out_channels: int, groups: int, eps: float, time_channels: int | None = None
    ):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels, eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_emb_proj = nn.Linear(time_channels, out_channels) if time_channels else None
        self.norm2 = nn.GroupNorm(groups, out_channels, eps)
        self.conv2 = zero(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.conv_shortcut = None if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        """x [B, C, h, w] and what `time_emb_proj` makes of the activated time [B, out] => [B, out, h, w]."""
        h = self.conv1(F.silu(self.norm1(x)))
        if time is not None:
            h = h + time[:, :, None, None]
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Attention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017) of tokens to themselves or to a context of another width."""

    def __init__(self, channels: int, heads: int, context_channels: int | None = None, bias: bool = False):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(channels, channels, bias)
        self.to_k = nn.Linear(context_channels or channels, channels, bias)
        self.to_v = nn.Linear(context_channels or channels, channels, bias)
        self.to_out = nn.Sequential(nn.Linear(channels, channels))

    def split(self, x: Tensor) -> Tensor:
        """[B, L, C] => [B, heads, L, C / heads], a view."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def keys_values(self, context: Tensor) -> KeysValues:
        """What this layer needs of a context [B, L, D]; a text's is the same at every step of sampling."""
        return self.split(self.to_k(context)), self.split(self.to_v(context))

    def forward(self, x: Tensor, context: KeysValues | None = None) -> Tensor:
        """Tokens [B, N, C] attend to the context's keys and values, or to themselves."""
        keys, values = context or self.keys_values(x)
        h = F.scaled_dot_product_attention(self.split(self.to_q(x)), keys, values)  # [B, heads, N, C / heads]
        return self.to_out(h.transpose(1, 2).flatten(2))


class Downsample(nn.Module):
    """Halve the sides by a convolution of stride 2."""

    def __init__(self, channels: int, padding: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        # A convolution without padding of its own is padded at the right and the bottom only, as in VQGAN.
        return self.conv(x if self.conv.padding[0] else F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Enlarge to `size` (h, w) by repeating pixels, then convolve."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: Sequence[int]) -> Tensor:
        return self.conv(F.interpolate(x, tuple(size)))


def tokens(x: Tensor) -> Tensor:
    """The pixels of a feature map as a sequence: [B, C, h, w] => [B, h w, C], a view."""
    return x.flatten(2).transpose(1, 2)


def pixels(x: Tensor, sides: Sequence[int]) -> Tensor:
    """The inverse of `tokens`: [B, h w, C] => [B, C, h, w], a view."""
    return x.transpose(1, 2).unflatten(2, sides)
