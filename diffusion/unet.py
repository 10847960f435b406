"""The network F(x, t, text): a U-Net with cross-attention (Rombach et al. 2022), as UNet2DConditionModel.

Stable Diffusion 1.x, 2.x, XL and the small models trained here are configurations of it.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion.blocks import KeysValues, ResBlock, zero
from diffusion.conditioning import Conditioning
from diffusion.config import Config
from diffusion.levels import Down, Level, Middle, TransformerBlock, Up


class Context(NamedTuple):
    """What the network makes of a conditioning. It depends on neither x nor t: once a picture will do."""

    keys_values: list[KeysValues]  # of every cross-attention, in the order in which the forward pass meets them
    added: Tensor | None = None  # [B, T], to the time's embedding
    guided: Tensor | None = None  # [B, C], to the time's sinusoids


@dataclass(frozen=True)
class UNetConfig(Config):
    """diffusers' UNet2DConditionModel configuration, field by field; the defaults are diffusers' own.

    Levels are listed from the finest. `per_level` reads the fields that take one value or one a level.
    """

    sample_size: int | None = None  # latents a side in training
    in_channels: int = 4
    out_channels: int = 4
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    down_block_types: tuple[str, ...] = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    up_block_types: tuple[str, ...] = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3  # from the coarsest
    layers_per_block: int | tuple[int, ...] = 2
    transformer_layers_per_block: int | tuple[int, ...] = 1
    attention_head_dim: int | tuple[int, ...] = 8  # the NUMBER of heads: a misnomer that diffusers keeps
    cross_attention_dim: int = 1280
    use_linear_projection: bool = False
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    flip_sin_to_cos: bool = True
    freq_shift: int = 0
    addition_embed_type: str | None = None  # text_time: pooled text and sizes are embedded beside the time
    addition_time_embed_dim: int | None = None  # channels a size
    projection_class_embeddings_input_dim: int | None = None  # channels of pooled text and sizes together
    encoder_hid_dim_type: str | None = None  # text_proj: the text is projected to `cross_attention_dim` first
    encoder_hid_dim: int | None = None  # channels of the text before that
    time_cond_proj_dim: int | None = None  # sinusoids of the guidance that a distilled network imitates

    CLASS: ClassVar[str] = "UNet2DConditionModel"
    FIXED: ClassVar[Mapping[str, Any]] = {
        "act_fn": "silu",
        "attention_type": "default",
        "center_input_sample": False,
        "class_embed_type": None,
        "class_embeddings_concat": False,
        "conv_in_kernel": 3,
        "conv_out_kernel": 3,
        "cross_attention_norm": None,
        "downsample_padding": 1,
        "dropout": 0.0,
        "dual_cross_attention": False,
        "mid_block_scale_factor": 1,
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "num_attention_heads": None,
        "num_class_embeds": None,
        "only_cross_attention": False,
        "resnet_out_scale_factor": 1.0,
        "resnet_skip_time_act": False,
        "resnet_time_scale_shift": "default",
        "reverse_transformer_layers_per_block": None,
        "time_embedding_act_fn": None,
        "time_embedding_dim": None,
        "time_embedding_type": "positional",
        "timestep_post_act": None,
    }
    IGNORED: ClassVar[frozenset[str]] = frozenset({
        "addition_embed_type_num_heads",  # these two qualify choices that are refused above
        "mid_block_only_cross_attention",
        "upcast_attention",  # fused attention accumulates in float32 by itself
    })

    def __post_init__(self) -> None:
        levels = len(self.block_out_channels)
        for field, plain in (("down_block_types", "DownBlock2D"), ("up_block_types", "UpBlock2D")):
            names, known = getattr(self, field), (plain, f"CrossAttn{plain}")
            if len(names) != levels:
                raise ValueError(f"{field} names {len(names)} levels; block_out_channels has {levels}.")
            for name in names:
                if name not in known:
                    raise ValueError(f"{field} with {name!r} is not supported; expected one of {known}.")
        for field in ("layers_per_block", "transformer_layers_per_block", "attention_head_dim"):
            if not all(isinstance(value, int) for value in self.per_level(field)):
                raise ValueError(f"{field}={getattr(self, field)!r} is not supported; expected integers.")
        for field in ("cross_attention_dim", "norm_num_groups", "sample_size"):
            value = getattr(self, field)
            if not isinstance(value, int) and not (field == "sample_size" and value is None):
                raise ValueError(f"{field}={value!r} is not supported; expected an integer.")
        if self.addition_embed_type not in (None, "text_time"):
            raise ValueError(f"addition_embed_type={self.addition_embed_type!r} is not supported; "
                             "expected None or 'text_time'.")
        if self.addition_embed_type:
            for field in ("addition_time_embed_dim", "projection_class_embeddings_input_dim"):
                if type(value := getattr(self, field)) is not int or value < 2:
                    raise ValueError(f"{field}={value!r} is not supported; expected a whole number of channels.")
        if self.encoder_hid_dim_type not in (None, "text_proj"):
            raise ValueError(f"encoder_hid_dim_type={self.encoder_hid_dim_type!r} is not supported; "
                             "expected None or 'text_proj'.")
        if self.encoder_hid_dim_type and not self.encoder_hid_dim:
            raise ValueError(f"encoder_hid_dim={self.encoder_hid_dim!r} is not supported; "
                             "expected the number of channels that 'text_proj' reads.")
        if (guided := self.time_cond_proj_dim) is not None and (guided < 4 or guided % 2):
            raise ValueError(f"time_cond_proj_dim={guided} is not supported; expected an even number, 4 or more.")
        self.check_groups(self.block_out_channels, self.norm_num_groups)
        if self.block_out_channels[0] % 2:
            raise ValueError(f"block_out_channels={self.block_out_channels} begins with an odd number; "
                             "expected an even one, for half of the time embedding is sines, half cosines.")
        heads = self.per_level("attention_head_dim")
        if any(width % count for width, count in zip(self.block_out_channels, heads, strict=True)):
            raise ValueError(f"block_out_channels={self.block_out_channels} do not divide by {heads} heads; "
                             "attention_head_dim is the number of heads, not their width.")

    @property
    def text_channels(self) -> int:
        """Numbers a token of the text that the network is told."""
        return self.encoder_hid_dim or self.cross_attention_dim  # diffusers projects wherever the first is said

    def pooled_channels(self, sizes: int) -> int:
        """Channels of the pooled text that is embedded together with so many sizes."""
        assert self.projection_class_embeddings_input_dim
        assert self.addition_time_embed_dim
        return self.projection_class_embeddings_input_dim - sizes * self.addition_time_embed_dim

    def level(self, index: int) -> Level:
        """What the level is made of; the finest is the first."""
        return Level(
            channels=self.block_out_channels[index],
            layers=self.per_level("layers_per_block")[index],
            depth=self.per_level("transformer_layers_per_block")[index],
            heads=self.per_level("attention_head_dim")[index],
            time_channels=4 * self.block_out_channels[0],
            text_channels=self.cross_attention_dim,
            groups=self.norm_num_groups,
            eps=self.norm_eps,
            linear=self.use_linear_projection,
        )

    def per_level(self, field: str) -> tuple[int, ...]:
        """The field's value at each level. Raises ValueError where it does not give one a level."""
        value, levels = getattr(self, field), len(self.block_out_channels)
        values = value if isinstance(value, tuple) else (value,) * levels
        if len(values) != levels:
            raise ValueError(f"{field}={value!r} has {len(values)} values; block_out_channels has {levels}.")
        return values


class UNet(nn.Module):
    """Noisy latents, timesteps and text => the network's raw prediction, of the latents' shape."""

    def __init__(self, config: UNetConfig):
        super().__init__()
        self.config = config
        levels = [config.level(index) for index in range(len(config.block_out_channels))]
        finest, coarsest = levels[0], levels[-1]

        width = finest.channels  # of the feature map, as it passes from module to module
        skips = [width]  # widths of the feature maps that the way down leaves for the way up
        self.conv_in = nn.Conv2d(config.in_channels, width, 3, padding=1)
        self.time_embedding = TimeEmbedding(width, finest.time_channels, config.time_cond_proj_dim)
        self.add_embedding = None
        if config.projection_class_embeddings_input_dim and config.addition_embed_type:
            self.add_embedding = Embedding(config.projection_class_embeddings_input_dim, finest.time_channels)
        self.encoder_hid_proj = None
        if config.encoder_hid_dim:
            self.encoder_hid_proj = nn.Linear(config.encoder_hid_dim, config.cross_attention_dim)
        self.down_blocks = nn.ModuleList()
        for level, kind in zip(levels, config.down_block_types, strict=True):
            self.down_blocks.append(Down(level, width, "CrossAttn" in kind, downsample=level is not coarsest))
            width = level.channels
            skips += [width] * (level.layers + (level is not coarsest))
        self.mid_block = Middle(coarsest)
        self.up_blocks = nn.ModuleList()
        for level, kind in zip(reversed(levels), config.up_block_types, strict=True):
            joined = [skips.pop() for _ in range(level.layers + 1)]
            self.up_blocks.append(Up(level, width, joined, "CrossAttn" in kind, upsample=level is not finest))
            width = level.channels
        assert not skips
        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, width, config.norm_eps)
        self.conv_out = zero(nn.Conv2d(width, config.out_channels, 3, padding=1))

    def context(self, text: Conditioning | Tensor) -> Context:
        """What sampling computes once a picture and passes as the text; a tensor is tokens [B, L, D] alone."""
        text = Conditioning(text) if isinstance(text, Tensor) else text
        blocks = [module for module in self.modules() if isinstance(module, TransformerBlock)]
        tokens = text.tokens if self.encoder_hid_proj is None else self.encoder_hid_proj(text.tokens)
        keys_values = [block.attn2.keys_values(tokens) for block in blocks]
        added = guided = None
        if self.add_embedding is not None:
            assert text.pooled is not None
            assert text.sizes is not None
            sizes = self.waves(text.sizes, self.config.addition_time_embed_dim or 0).flatten(1)
            added = self.add_embedding(torch.cat([text.pooled, sizes], dim=1))
        if self.time_embedding.cond_proj is not None:
            assert text.guidance is not None
            waves = guidance_waves(text.guidance, self.time_embedding.cond_proj.in_features)
            guided = self.time_embedding.cond_proj(waves.to(self.conv_in.weight))
        return Context(keys_values, added, guided)

    def forward(self, x: Tensor, t: Tensor, text: Context | Conditioning | Tensor) -> Tensor:
        """x [B, C, h, w], timesteps t [B] (fractions too), text or what `context` made of it => [B, C, h, w]."""
        keys_values, added, guided = text if isinstance(text, Context) else self.context(text)
        return self.layers(x, self.times(t, added, guided), keys_values)

    def times(self, t: Tensor, added: Tensor | None = None, guided: Tensor | None = None) -> list[Tensor]:
        """What every residual block adds to its feature map, in their order, each [B, channels]."""
        waves = self.waves(t, self.conv_in.out_channels)  # [B, C]
        time = self.time_embedding(waves if guided is None else waves + guided)  # [B, T]
        time = F.silu(time if added is None else time + added)
        blocks = [module for module in self.modules() if isinstance(module, ResBlock)]
        return [block.time_emb_proj(time) for block in blocks if block.time_emb_proj is not None]

    def layers(self, x: Tensor, times: Iterable[Tensor], keys_values: Iterable[KeysValues]) -> Tensor:
        """All that is left, once time and text have become what the blocks need of them."""
        times, context = iter(times), iter(keys_values)
        x = self.conv_in(x)
        skips = [x]
        for block in self.down_blocks:
            x = block(x, times, context, skips)
        x = self.mid_block(x, times, context)
        for block in self.up_blocks:
            x = block(x, times, context, skips)
        return self.conv_out(F.silu(self.conv_norm_out(x)))

    def waves(self, numbers: Tensor, channels: int) -> Tensor:
        """Numbers [...] => sinusoids [..., channels] (Vaswani et al. 2017, section 3.5)."""
        count = channels // 2
        exponents = torch.arange(count, device=numbers.device) / (count - self.config.freq_shift)
        angles = numbers.float()[..., None] * torch.exp(-math.log(10_000) * exponents)  # [..., count]
        halves = [angles.cos(), angles.sin()] if self.config.flip_sin_to_cos else [angles.sin(), angles.cos()]
        return torch.cat(halves, dim=-1).to(self.conv_in.weight)


def guidance_waves(guidance: Tensor, channels: int) -> Tensor:
    """Scales of guidance, less 1 [B] => sinusoids [B, channels], as of a thousand times as large times.

    Meng et al. 2023, section 3; Luo et al. 2023. The angles are so large that the order of their rounding shows.
    """
    count = channels // 2
    rate = torch.tensor(10_000.0, device=guidance.device).log() / (count - 1)
    angles = 1000 * guidance[:, None] * torch.exp(torch.arange(count, device=guidance.device) * -rate)  # [B, count]
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class Embedding(nn.Module):
    """[B, channels] => [B, T]: the small MLP that follows sinusoids."""

    def __init__(self, channels: int, out_channels: int):
        super().__init__()
        self.linear_1 = nn.Linear(channels, out_channels)
        self.linear_2 = nn.Linear(out_channels, out_channels)

    def forward(self, h: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(h)))


class TimeEmbedding(Embedding):
    """The same of the time; `cond_proj` makes what is added to its sinusoids of those of guidance, if there are any."""

    def __init__(self, channels: int, out_channels: int, guidance_channels: int | None):
        super().__init__(channels, out_channels)
        self.cond_proj = nn.Linear(guidance_channels, channels, bias=False) if guidance_channels else None
