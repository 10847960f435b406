"""The layers of a U-Net and an autoencoder by their names in the original layout: that of CompVis and Stability's
single files, and of LoRAs that kohya's scripts train for Stable Diffusion XL.

In the U-Net the blocks are counted through, from fine to coarse and back: a residual block and the transformer after
it are one block, a change of resolution is one of its own on the way down, and belongs to the last one on the way up.
In the autoencoder both ways count the levels from the finest.
"""

from collections.abc import Iterator
from itertools import count

from diffusion.autoencoder import AutoencoderConfig
from diffusion.unet import UNetConfig

RESIDUAL_BLOCK = {  # the layers of one, ours: theirs; those of a transformer have the same names
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


AUTOENCODER_BLOCK = {
    **{name: name for name in ("norm1", "conv1", "norm2", "conv2")},
    "conv_shortcut": "nin_shortcut",
}
PIXEL_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def original_names(config: UNetConfig) -> dict[str, str]:
    """Every block, and every layer outside them, ours: theirs. `original_name` finds a layer in it."""
    return dict(_pairs(config))


def original_name(layer: str, names: dict[str, str]) -> str:
    """The original name of a layer or a weight."""
    block = max((name for name in names if f"{layer}.".startswith(f"{name}.")), key=len)
    return names[block] + layer.removeprefix(block)


def _pairs(config: UNetConfig) -> Iterator[tuple[str, str]]:
    yield "conv_in", "input_blocks.0.0"
    blocks, layers = count(1), config.per_level("layers_per_block")
    for i, kind in enumerate(config.down_block_types):
        for j in range(layers[i]):
            block = f"input_blocks.{next(blocks)}"
            yield from _inside(f"down_blocks.{i}.resnets.{j}", f"{block}.0", RESIDUAL_BLOCK)
            if "CrossAttn" in kind:
                yield f"down_blocks.{i}.attentions.{j}", f"{block}.1"
        if i < len(layers) - 1:
            yield f"down_blocks.{i}.downsamplers.0.conv", f"input_blocks.{next(blocks)}.0.op"

    yield from _inside("mid_block.resnets.0", "middle_block.0", RESIDUAL_BLOCK)
    yield "mid_block.attentions.0", "middle_block.1"
    yield from _inside("mid_block.resnets.1", "middle_block.2", RESIDUAL_BLOCK)

    blocks = count()
    for i, kind in enumerate(config.up_block_types):
        for j in range(layers[-1 - i] + 1):
            block = f"output_blocks.{next(blocks)}"
            yield from _inside(f"up_blocks.{i}.resnets.{j}", f"{block}.0", RESIDUAL_BLOCK)
            if "CrossAttn" in kind:
                yield f"up_blocks.{i}.attentions.{j}", f"{block}.1"
        if i < len(layers) - 1:
            yield f"up_blocks.{i}.upsamplers.0.conv", f"{block}.{2 if 'CrossAttn' in kind else 1}.conv"

    yield "time_embedding.linear_1", "time_embed.0"
    yield "time_embedding.linear_2", "time_embed.2"
    yield "time_embedding.cond_proj", "time_embed.cond_proj"
    yield "add_embedding.linear_1", "label_emb.0.0"
    yield "add_embedding.linear_2", "label_emb.0.2"
    yield "conv_norm_out", "out.0"
    yield "conv_out", "out.2"


def autoencoder_names(config: AutoencoderConfig) -> dict[str, str]:
    """The same of an autoencoder."""
    return dict(_autoencoder_pairs(config))


def _autoencoder_pairs(config: AutoencoderConfig) -> Iterator[tuple[str, str]]:
    levels, layers = len(config.block_out_channels), config.layers_per_block
    for side in ("encoder", "decoder"):
        yield f"{side}.conv_in", f"{side}.conv_in"
        for n in (0, 1):
            yield from _inside(f"{side}.mid_block.resnets.{n}", f"{side}.mid.block_{n + 1}", AUTOENCODER_BLOCK)
        yield from _inside(f"{side}.mid_block.attentions.0", f"{side}.mid.attn_1", PIXEL_ATTENTION)
        yield f"{side}.conv_norm_out", f"{side}.norm_out"
        yield f"{side}.conv_out", f"{side}.conv_out"
    for level in range(levels):
        down, up = f"encoder.down.{level}", f"decoder.up.{levels - 1 - level}"
        for layer in range(layers):
            ours = f"encoder.down_blocks.{level}.resnets.{layer}"
            yield from _inside(ours, f"{down}.block.{layer}", AUTOENCODER_BLOCK)
        for layer in range(layers + 1):
            ours = f"decoder.up_blocks.{level}.resnets.{layer}"
            yield from _inside(ours, f"{up}.block.{layer}", AUTOENCODER_BLOCK)
        yield f"encoder.down_blocks.{level}.downsamplers.0.conv", f"{down}.downsample.conv"
        yield f"decoder.up_blocks.{level}.upsamplers.0.conv", f"{up}.upsample.conv"
    yield "quant_conv", "quant_conv"
    yield "post_quant_conv", "post_quant_conv"


def _inside(ours: str, theirs: str, layers: dict[str, str]) -> Iterator[tuple[str, str]]:
    yield from ((f"{ours}.{one}", f"{theirs}.{other}") for one, other in layers.items())
