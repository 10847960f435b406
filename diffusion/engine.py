"""How the same arithmetic is made fast: a network as it was trained => its twin, for sampling.

A twin is around the same weights. Each of its blocks has the interface of the block that it stands for, and does
the same in another order: a picture is the same up to rounding. No gradient flows through a twin.

    accelerate(network)    the twin, of a U-Net or an autoencoder
"""

import copy
from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch
from torch import Tensor, nn

from diffusion.autoencoder import Decoder, Encoder, PixelAttention
from diffusion.blocks import Attention, KeysValues, ResBlock, Upsample, pixels, tokens
from diffusion.convolution import bands, convolve, doubled, normed
from diffusion.heap import trim
from diffusion.levels import GEGLU, FeedForward, Transformer, TransformerBlock, Up
from diffusion.onednn import attention, linear
from diffusion.recording import Recordings, recorded
from diffusion.unet import Context, UNet

M = TypeVar("M", bound=nn.Module)

# Numbers of the largest map, but for a batch, of what is recorded. Above, kernels take so long that the way to them is
# nothing, and buffers would be large.
RECORDED = 2**18
WEIGHTS = 2**26  # of the largest network that is recorded: a recording keeps what it makes of weights
TOKENS = 512  # that go through a feed-forward at a time
TABLED = 1000  # times whose embeddings are kept
TRIMMED = 64 * 64  # latent pixels whose decoding is the most that a picture takes: the heap is made small before it


def accelerate(network: M) -> M:
    """The network's twin. The network's own weights are laid out anew, channels last, and are shared."""
    return _twin(network.to(memory_format=torch.channels_last))


def _twin(module: M) -> M:
    twin = copy.copy(module)
    twin._modules = {name: child and _twin(child) for name, child in module._modules.items()}
    twin.__class__ = TWINS.get(type(module), type(module))  # type: ignore[assignment]
    if isinstance(twin, FastUNet | FastDecoder):
        twin.prepare()
    return twin


def projected(x: Tensor, layer: nn.Linear | nn.Conv2d) -> Tensor:
    """Tokens [B, N, C] through a linear layer, or through a 1x1 convolution, which is one."""
    return linear(x, layer.weight.flatten(1), layer.bias)


def _is_small(network: nn.Module) -> bool:
    return sum(weight.numel() for weight in network.parameters()) <= WEIGHTS


def _is_recorded(network: "FastUNet | FastDecoder", x: Tensor) -> bool:
    return network.small and x.is_cpu and x[0, 0].numel() * network.numbers <= RECORDED


class FastUNet(UNet):
    """Times are looked up, and steps of small latents played back from a recording."""

    def prepare(self) -> None:
        self.widths = [module.conv1.out_channels for module in self.modules() if isinstance(module, ResBlock)]
        self.table: dict[float, Tensor] = {}
        self.numbers = self.config.block_out_channels[0]  # of the largest map, for each pixel of latents
        self.recordings = Recordings(self.flat)
        self.small = _is_small(self)

    def forward(self, x: Tensor, t: Tensor, text: Context) -> Tensor:  # type: ignore[override]
        """As the network's, but for a batch that is all at one time."""
        keys_values, added, guided = text
        if x.stride(0) == 0 and added is None and guided is None:
            x = x[:1]  # equal rows part at the first text that they attend to
        inputs = [x, self.time(t, added, guided), *(tensor for pair in keys_values for tensor in pair)]
        return self.recordings(*inputs) if _is_recorded(self, x) else self.flat(*inputs)

    def time(self, t: Tensor, added: Tensor | None, guided: Tensor | None) -> Tensor:
        """`times` of all blocks side by side, with a row for all of the batch where nothing is added to the time."""
        if added is not None or guided is not None:
            return torch.cat(self.times(t, added, guided), dim=1)
        time = t[0].item()
        if time not in self.table:
            if len(self.table) == TABLED:
                self.table.clear()
            self.table[time] = torch.cat(self.times(t[:1]), dim=1)
        return self.table[time]

    def flat(self, x: Tensor, times: Tensor, *context: Tensor) -> Tensor:
        return self.layers(x, times.split(self.widths, dim=1), zip(context[::2], context[1::2], strict=True))


class FastResBlock(ResBlock):
    """The time joins the bias of the first convolution; activations in place, large maps in bands."""

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        if time is not None and len(time) == 1:
            h = normed(x, self.norm1, self.conv1, time[0])
        else:
            h = normed(x, self.norm1, self.conv1)
            h = h if time is None else h.add_(time[:, :, None, None])
        h = normed(h, self.norm2, self.conv2, over=True)
        if self.conv_shortcut is None:
            return h.add_(x)
        for top, end in bands(x):
            band = x[:, :, top:end]
            h[:, :, top:end].add_(pixels(projected(tokens(band), self.conv_shortcut), band.shape[-2:]))
        return h


class FastUp(Up):
    def join(self, x: Tensor, skip: Tensor) -> Tensor:
        """Channels last, also where the skip is one for all rows."""
        maps = (h.permute(0, 2, 3, 1).expand(len(x), -1, -1, -1) for h in (x, skip))
        return torch.cat(list(maps), dim=-1).permute(0, 3, 1, 2)


class FastUpsample(Upsample):
    def forward(self, x: Tensor, size: Iterable[int]) -> Tensor:
        height, width = x.shape[-2:]
        return doubled(x, self.conv) if tuple(size) == (2 * height, 2 * width) else super().forward(x, tuple(size))


class FastAttention(Attention):
    @property
    def out(self) -> nn.Linear:
        (layer,) = self.to_out
        assert isinstance(layer, nn.Linear)
        return layer

    def keys_values(self, context: Tensor) -> KeysValues:
        """Where it takes less work, the text's keys and values are multiplied by the layers around them.

        The scores of x are (x Q) K^T = x (Q K^T), and what comes of the values V, (W V) O = W (V O): so all heads
        are two products with matrices [B, C, H L] and [B, H L, C], which are made once a picture.
        """
        keys, values = super().keys_values(context)  # [B, H, L, D]
        batch, heads, length, depth = keys.shape
        channels = self.to_q.in_features
        if not keys.is_cpu or keys.dtype != torch.float32 or heads * length > channels:
            return keys, values
        queries = self.to_q.weight.view(heads, depth, channels).transpose(1, 2) * depth**-0.5  # [H, C, D]
        scores = (queries @ keys.transpose(2, 3)).permute(0, 2, 1, 3)  # [B, C, H, L]
        mixes = values @ self.out.weight.view(-1, heads, depth).permute(1, 2, 0)  # [B, H, L, C]
        return scores.reshape(batch, channels, -1), mixes.reshape(batch, heads * length, -1)

    def forward(self, x: Tensor, context: KeysValues | None = None) -> Tensor:
        if context is not None and context[0].dim() == 3:
            scores, mixes = context
            weights = torch.bmm(x.expand(len(scores), -1, -1), scores).unflatten(2, (self.heads, -1))
            weights = torch.softmax(weights, dim=-1).flatten(2)  # [B, N, H L]
            return torch.baddbmm(self.out.bias, weights, mixes)
        if context is None and recorded() and self.to_q.bias is None:
            joined = torch.cat([self.to_q.weight, self.to_k.weight, self.to_v.weight])
            q, k, v = map(self.split, linear(x, joined).chunk(3, dim=-1))
        else:
            k, v = context or super().keys_values(x)
            q = self.split(self.to_q(x)).expand(len(k), -1, -1, -1)
        h = attention(q, k, v)  # [B, H, N, D]
        return self.to_out(h.transpose(1, 2).flatten(2))


class FastLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class FastConv2d(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return convolve(x, self)


class FastTransformerBlock(TransformerBlock):
    def forward(self, x: Tensor, context: KeysValues) -> Tensor:
        x = self.attn1(self.norm1(x)).add_(x)
        x = self.attn2(self.norm2(x), context).add_(x)
        return self.ff(self.norm3(x)).add_(x)


class FastTransformer(Transformer):
    """Channels last, pixels are tokens already: both projections are linear layers."""

    def forward(self, x: Tensor, context: Iterator[KeysValues]) -> Tensor:
        h = projected(tokens(self.norm(x)), self.proj_in)
        for block in self.transformer_blocks:
            h = block(h, next(context))
        return pixels(projected(h, self.proj_out), x.shape[-2:]).add_(x)


class FastFeedForward(FeedForward):
    """Some tokens at a time: what is four times as wide stays in the cache."""

    def forward(self, x: Tensor) -> Tensor:
        if not x.is_cpu or x.shape[:-1].numel() <= TOKENS:
            return super().forward(x)
        parts = x.flatten(0, -2).split(TOKENS)
        return torch.cat([*map(super().forward, parts)]).view_as(x)


class FastGEGLU(GEGLU):
    """Value and gate by two products, each of which is a block of memory."""

    def forward(self, x: Tensor) -> Tensor:
        if not isinstance(self.proj, FastLinear):  # an adapted layer's weight is a sum, which it does without
            return super().forward(x)
        (value, gate), (bias, gate_bias) = self.proj.weight.chunk(2), self.proj.bias.chunk(2)
        return linear(x, value, bias).mul_(linear(x, gate, gate_bias, gelu=True))


class FastPixelAttention(PixelAttention, FastAttention):  # type: ignore[misc]  # it takes no context
    """`PixelAttention` around `FastAttention`."""


class FastEncoder(Encoder):
    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for layer in _layers(self.down_blocks):
            x = layer(x)
        return normed(self.mid_block(x), self.conv_norm_out, self.conv_out)


class FastDecoder(Decoder):
    """Pictures of small networks are played back from a recording."""

    def prepare(self) -> None:
        doublings = sum(isinstance(layer, Upsample) for layer in _layers(self.up_blocks))
        self.numbers = 4**doublings * self.conv_out.in_channels  # as of the U-Net
        self.recordings = Recordings(self.layers)
        self.small = _is_small(self)

    def forward(self, x: Tensor) -> Tensor:
        if x.is_cpu and x[0, 0].numel() >= TRIMMED:
            trim()
        if _is_recorded(self, x):
            return self.recordings(x.clone()).clone()  # neither is kept by who gave it or gets it
        return self.layers(x)

    def layers(self, x: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(x))
        for layer in _layers(self.up_blocks):
            x = layer(x, (2 * x.shape[-2], 2 * x.shape[-1])) if isinstance(layer, Upsample) else layer(x)
        return normed(x, self.conv_norm_out, self.conv_out)


def _layers(levels: nn.ModuleList) -> Iterator[nn.Module]:
    """Those of all levels in one row: the levels' own loops would keep a level's input until its end."""
    return (layer for level in levels for part in level.children() for layer in part.children())


TWINS: dict[type[nn.Module], type[nn.Module]] = {
    UNet: FastUNet,
    nn.Linear: FastLinear,
    nn.Conv2d: FastConv2d,
    ResBlock: FastResBlock,
    Up: FastUp,
    Upsample: FastUpsample,
    Attention: FastAttention,
    Transformer: FastTransformer,
    TransformerBlock: FastTransformerBlock,
    FeedForward: FastFeedForward,
    GEGLU: FastGEGLU,
    PixelAttention: FastPixelAttention,
    Encoder: FastEncoder,
    Decoder: FastDecoder,
}
