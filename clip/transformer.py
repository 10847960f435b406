"""The Transformer: a stack of pre-norm residual blocks over a sequence of vectors.

Vaswani et al., "Attention Is All You Need" (2017); pre-norm as in GPT-2 and CLIP. Where the vectors come
from, and what is read off the result, is the business of the towers: `clip.text` and `clip.image`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Activation = Literal["quick_gelu", "gelu"]


def quick_gelu(x: Tensor) -> Tensor:
    """The sigmoid approximation of GELU (Hendrycks & Gimpel 2016) that OpenAI trained CLIP with."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"quick_gelu": quick_gelu, "gelu": F.gelu}


@dataclass(frozen=True)
class TransformerConfig:
    width: int
    layers: int
    heads: int
    mlp_width: int
    activation: Activation = "quick_gelu"
    mask: Literal["causal", "full"] = "causal"
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}: change either")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation {self.activation!r} is unknown: choose {' or '.join(ACTIVATIONS)}")


class Attention(nn.Module):
    """Multi-head self-attention, x [B, L, D] -> [B, L, D]. One matrix makes queries, keys and values."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.heads = config.heads
        self.causal = config.mask == "causal"
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.out = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))  # [B, L, 3, H, D / H]
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each [B, H, L, D / H]
        x = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out(x.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.up = nn.Linear(config.width, config.mlp_width)
        self.down = nn.Linear(config.mlp_width, config.width)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.activation(self.up(x)))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.attention = Attention(config)
        self.norm2 = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    """The stack. Its weights start as CLIP's, by GPT-2's scheme: what writes to the residual stream is scaled
    down by sqrt(2 * layers), so that the stream's variance does not grow with depth."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))

        read, write = config.width**-0.5, (2 * config.layers * config.width) ** -0.5
        for module in self.modules():
            if isinstance(module, Attention):
                _init_linear(module.qkv, read)
                _init_linear(module.out, write)
            elif isinstance(module, MLP):
                _init_linear(module.up, (2 * config.width) ** -0.5)
                _init_linear(module.down, write)

    def forward(self, x: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """x [B, L, D] through the blocks from `start` to before `stop` -> [B, L, D]. No norm follows."""
        for block in self.blocks[start:stop]:
            x = block(x)
        return x


def _init_linear(linear: nn.Linear, std: float) -> None:
    nn.init.normal_(linear.weight, std=std)
    nn.init.zeros_(linear.bias)
