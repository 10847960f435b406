"""THE Transformer: a stack of pre-norm residual blocks over a sequence of vectors, under four choices.

    positions   learned (the tower adds them) | rotary | relative
    norm        layer | rms
    activation  of the mlp: gelu | gelu_tanh | quick_gelu | relu, or gated: swiglu | geglu
    mask        causal | full; padding besides

CLIP's towers, GPT-2, LLaMA and T5's encoder are configurations of it (Vaswani et al., "Attention Is All You
Need", 2017; pre-norm as in GPT-2). Where the vectors come from, and what is read off the result, is the
business of the towers: `clip.text`, `clip.image` and `clip.language_model`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clip.positions import Relative, Rotary, Rotation, bucket, rotate, rotation

Activation = Literal["quick_gelu", "gelu", "gelu_tanh", "relu", "swiglu", "geglu"]
Mask = Literal["causal", "full"]


def quick_gelu(x: Tensor) -> Tensor:
    """The sigmoid approximation of GELU (Hendrycks & Gimpel 2016) that OpenAI trained CLIP with."""
    return x * torch.sigmoid(1.702 * x)


gelu_tanh = partial(F.gelu, approximate="tanh")
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "quick_gelu": quick_gelu,
    "gelu": F.gelu,
    "gelu_tanh": gelu_tanh,
    "relu": F.relu,
    "swiglu": F.silu,
    "geglu": gelu_tanh,
}
GATED = {"swiglu", "geglu"}  # Shazeer, "GLU Variants Improve Transformer" (2020)
NORMS: dict[str, type[nn.LayerNorm] | type[nn.RMSNorm]] = {"layer": nn.LayerNorm, "rms": nn.RMSNorm}


@dataclass(frozen=True)
class TransformerConfig:
    """The defaults are the text tower of CLIP."""

    width: int
    layers: int
    heads: int
    mlp_width: int
    activation: Activation = "quick_gelu"
    mask: Mask = "causal"
    norm: Literal["layer", "rms"] = "layer"
    norm_eps: float = 1e-5
    positions: Literal["learned"] | Rotary | Relative = "learned"
    kv_heads: int | None = None  # as many as heads; fewer are shared by groups of them (Ainslie et al. 2023)
    head_width: int | None = None  # width / heads
    attention_bias: bool = True
    mlp_bias: bool = True
    attention_scale: float | None = None  # of the scores: 1 / sqrt(head_width); T5 has 1
    layer_scale: bool = False  # a learned gain on all that a block adds (Touvron et al. 2021)

    def __post_init__(self) -> None:
        if self.head_width is None and self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}: change either")
        if self.heads % (self.kv_heads or self.heads):
            raise ValueError(f"heads {self.heads} are not a multiple of kv_heads {self.kv_heads}: change either")
        for name, value, known in (
            ("activation", self.activation, ACTIVATIONS),
            ("norm", self.norm, NORMS),
            ("mask", self.mask, ("causal", "full")),
        ):
            if value not in known:
                raise ValueError(f"{name} {value!r} is unknown: choose {' or '.join(known)}")

    @property
    def head(self) -> int:
        """The width of a head."""
        return self.head_width or self.width // self.heads

    def make_norm(self) -> nn.Module:
        return NORMS[self.norm](self.width, eps=self.norm_eps)


class Cache:
    """Keys and values of the tokens read so far: room for `length` of them, filled in place."""

    def __init__(self, config: TransformerConfig, batch: int, length: int, like: Tensor) -> None:
        shape = (config.layers, 2, batch, config.kv_heads or config.heads, length, config.head)
        self.held = like.new_zeros(shape)  # zeros, for what is masked must still be finite
        self.length = 0

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Takes a layer's next keys and values, each [B, H, L, d], and returns all so far.

        The length rises when every layer has done so, which the stack sees to.
        """
        stop = self.length + keys.shape[2]
        assert stop <= self.held.shape[4], f"the cache has room for {self.held.shape[4]} tokens, not for {stop}"
        self.held[layer, 0, :, :, self.length : stop] = keys
        self.held[layer, 1, :, :, self.length : stop] = values
        return self.held[layer, 0, :, :, :stop], self.held[layer, 1, :, :, :stop]


class Context(NamedTuple):
    """What attention goes by besides the vectors: the same for all layers."""

    mask: Tensor | None = None  # added to the scores, or true where one is seen: [1 | B, 1 | H, L, K]
    causal: bool = False  # in place of a mask
    rotation: Rotation | None = None


class Attention(nn.Module):
    """Multi-head self-attention, x [B, L, D] -> [B, L, D]. One matrix makes queries, keys and values."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.heads, self.kv_heads = config.heads, config.kv_heads or config.heads
        self.scale = config.attention_scale
        inner, bias = config.heads * config.head, config.attention_bias
        self.qkv = nn.Linear(config.width, inner + 2 * self.kv_heads * config.head, bias=bias)
        self.out = nn.Linear(inner, config.width, bias=bias)

    def forward(
        self, x: Tensor, context: Context, append: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None
    ) -> Tensor:
        """`append` puts new keys and values after those of earlier tokens and gives all."""
        qkv = self.qkv(x).unflatten(-1, (self.heads + 2 * self.kv_heads, -1)).transpose(1, 2)  # [B, H, L, d]
        qk, v = qkv.split([self.heads + self.kv_heads, self.kv_heads], dim=1)
        if context.rotation is not None:
            qk = rotate(qk, context.rotation)
        q, k = qk.split([self.heads, self.kv_heads], dim=1)
        if append is not None:
            k, v = append(k, v)
        x = F.scaled_dot_product_attention(
            q, k, v,
            attn_mask=context.mask, is_causal=context.causal,
            scale=self.scale, enable_gqa=self.kv_heads < self.heads,
        )  # fmt: skip
        return self.out(x.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Out of the stream's width and back. Gated, one half of `up` opens or shuts the other."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.gated = config.activation in GATED
        self.activation = ACTIVATIONS[config.activation]
        self.up = nn.Linear(config.width, config.mlp_width * (1 + self.gated), bias=config.mlp_bias)
        self.down = nn.Linear(config.mlp_width, config.width, bias=config.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(x)
        if self.gated:
            gate, x = x.chunk(2, dim=-1)
            return self.down(self.activation(gate) * x)
        return self.down(self.activation(x))


class LayerScale(nn.Module):
    START = 1e-4

    def __init__(self, width: int):
        super().__init__()
        self.gain = nn.Parameter(torch.full((width,), self.START))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gain


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.norm1 = config.make_norm()
        self.attention = Attention(config)
        self.scale1 = LayerScale(config.width) if config.layer_scale else nn.Identity()
        self.norm2 = config.make_norm()
        self.mlp = MLP(config)
        self.scale2 = LayerScale(config.width) if config.layer_scale else nn.Identity()

    def forward(
        self,
        x: Tensor,
        context: Context,
        append: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
    ) -> Tensor:
        x = x + self.scale1(self.attention(self.norm1(x), context, append))
        return x + self.scale2(self.mlp(self.norm2(x)))


class Transformer(nn.Module):
    """The stack. Its weights start as CLIP's, by GPT-2's scheme: what writes to the residual stream is scaled
    down by sqrt(2 * layers), so that the stream's variance does not grow with depth."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.relative = None  # T5 learns its biases once, for all layers
        if isinstance(config.positions, Relative):
            self.relative = nn.Embedding(config.positions.buckets, config.heads)

        read, write = config.width**-0.5, (2 * config.layers * config.width) ** -0.5
        for module in self.modules():
            if isinstance(module, Attention):
                _init_linear(module.qkv, read)
                _init_linear(module.out, write)
            elif isinstance(module, MLP):
                _init_linear(module.up, (2 * config.width) ** -0.5)
                _init_linear(module.down, write)
        if self.relative is not None:
            nn.init.normal_(self.relative.weight, std=read)

    def forward(
        self,
        x: Tensor,
        start: int = 0,
        stop: int | None = None,
        valid: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """x [B, L, D] through the blocks from `start` to before `stop` -> [B, L, D]. No norm follows.

        `valid` [B, K] is false at padding, on whichever side; nothing else looks there. With a `cache`, x
        follows the tokens in it, which `valid` covers too, and is added to them.
        """
        context = self._context(x, valid, cache)
        blocks = list(self.blocks)[start:stop]
        for layer, block in enumerate(blocks, start):
            x = block(x, context, None if cache is None else partial(cache.append, layer))
        if cache is not None:
            cache.length += x.shape[1]
        return x

    def _context(self, x: Tensor, valid: Tensor | None, cache: Cache | None) -> Context:
        config, past = self.config, 0 if cache is None else cache.length
        total = past + x.shape[1]
        turned = None
        if isinstance(config.positions, Rotary):
            turned = rotation(config.positions, config.head, token_positions(x, valid, past), total)
        causal = config.mask == "causal"
        if valid is None and self.relative is None and (past == 0 or total == past + 1):
            return Context(causal=causal and past == 0, rotation=turned)  # a lone new token sees all before it

        queries = torch.arange(past, total, device=x.device)[:, None]
        keys = torch.arange(total, device=x.device)
        mask = (keys <= queries) if causal else torch.ones_like(keys <= queries)  # [L, K]
        if valid is not None:
            mask = mask & valid[:, None, None, :]  # [B, 1, L, K]
            # Padding that sees nothing sees itself, for a softmax over nothing has no value.
            mask = mask | ((keys == queries) & ~mask.any(dim=-1, keepdim=True))
        if self.relative is not None:
            assert isinstance(config.positions, Relative)
            buckets = bucket(keys - queries, config.positions, causal)
            bias = self.relative(buckets).permute(2, 0, 1).to(x.dtype)  # [H, L, K]
            mask = bias.expand(len(x), -1, -1, -1).masked_fill(~mask, -torch.inf)
        return Context(mask, rotation=turned)


def token_positions(x: Tensor, valid: Tensor | None, past: int) -> Tensor:
    """How many tokens stand before each of x [B, L, D], `past` cached ones among them: [L], or [B, L] where
    padding, which is none, may stand before."""
    if valid is None:
        return torch.arange(past, past + x.shape[1], device=x.device)
    return (valid.long().cumsum(dim=1) - 1).clamp(min=0)[:, past:]


def _init_linear(linear: nn.Linear, std: float) -> None:
    nn.init.normal_(linear.weight, std=std)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
