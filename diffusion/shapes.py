"""The configurations of networks, told from the names and shapes of weights in the original layout.

A single file holds no configuration. What leaves no trace in the shapes is the same in all that is published: heads
are 64 channels wide, but in the U-Net of Stable Diffusion 1.x, which has 8 of them.
"""

from collections.abc import Mapping
from typing import Any

from clip.text import TextConfig
from diffusion.autoencoder import AutoencoderConfig
from diffusion.unet import UNetConfig

Shapes = Mapping[str, tuple[int, ...]]

HEAD = 64  # channels


def unet_config(shapes: Shapes, pooled: int, sizes: int, sample_size: int) -> UNetConfig:
    """The configuration of a U-Net of these weights; `pooled` text and so many `sizes` are embedded, if any are."""
    widths: list[int] = []
    layers: list[int] = []
    depths: list[int] = []
    block, new = 1, True
    while (downsamples := f"input_blocks.{block}.0.op.weight" in shapes) or _has(shapes, f"input_blocks.{block}.0"):
        if downsamples:
            new = True
        elif new:
            widths.append(shapes[f"input_blocks.{block}.0.in_layers.2.weight"][0])
            layers.append(1)
            depths.append(_count(shapes, f"input_blocks.{block}.1.transformer_blocks"))
            new = False
        else:
            layers[-1] += 1
        block += 1
    ups, block = [], 0
    for count in reversed(layers):
        ups.append(_has(shapes, f"output_blocks.{block}.1.transformer_blocks.0"))
        block += count + 1
    downs, depths[-1] = [bool(depth) for depth in depths], _count(shapes, "middle_block.1.transformer_blocks")
    attention = "middle_block.1.transformer_blocks.0.attn2.to_k.weight"
    linear = len(shapes["middle_block.1.proj_in.weight"]) == 2
    added: dict[str, Any] = {}
    if (name := "label_emb.0.0.weight") in shapes:
        joined = shapes[name][1]
        added = {  # the rest of what is embedded is as many sinusoids of every size
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": (joined - pooled) // sizes,
            "projection_class_embeddings_input_dim": joined,
        }
    return UNetConfig(
        sample_size=sample_size,
        in_channels=shapes["input_blocks.0.0.weight"][1],
        out_channels=shapes["out.2.weight"][0],
        block_out_channels=tuple(widths),
        down_block_types=tuple("CrossAttnDownBlock2D" if attends else "DownBlock2D" for attends in downs),
        up_block_types=tuple("CrossAttnUpBlock2D" if attends else "UpBlock2D" for attends in ups),
        layers_per_block=tuple(layers) if len(set(layers)) > 1 else layers[0],
        transformer_layers_per_block=tuple(max(depth, 1) for depth in depths) if max(depths) > 1 else 1,
        attention_head_dim=tuple(width // HEAD for width in widths) if linear else 8,
        cross_attention_dim=shapes[attention][1],
        use_linear_projection=linear,
        time_cond_proj_dim=shapes.get("time_embed.cond_proj.weight", (None, None))[1],
        **added,
    )


def autoencoder_config(shapes: Shapes, scaling_factor: float, sample_size: int) -> AutoencoderConfig:
    levels = _count(shapes, "encoder.down")
    return AutoencoderConfig(
        block_out_channels=tuple(shapes[f"encoder.down.{n}.block.0.conv1.weight"][0] for n in range(levels)),
        layers_per_block=_count(shapes, "encoder.down.0.block"),
        latent_channels=shapes["decoder.conv_in.weight"][1],
        mid_block_add_attention=_has(shapes, "encoder.mid.attn_1"),
        use_quant_conv=_has(shapes, "quant_conv"),
        use_post_quant_conv=_has(shapes, "post_quant_conv"),
        scaling_factor=scaling_factor,
        sample_size=sample_size,
    )


def text_config(shapes: Shapes, quick: bool) -> TextConfig:
    """That of a text encoder whose weights have our names; CLIP's own towers are `quick`, open_clip's are not."""
    vocab_size, width = shapes["token_embedding.weight"]
    return TextConfig(
        vocab_size=vocab_size,
        length=shapes["position_embedding"][0],
        width=width,
        layers=_count(shapes, "transformer.blocks"),
        heads=width // HEAD,
        mlp_width=shapes["transformer.blocks.0.mlp.up.weight"][0],
        activation="quick_gelu" if quick else "gelu",
        projection=shapes["projection.weight"][0] if "projection.weight" in shapes else None,
        eos_token_id=vocab_size - 1,
    )


def _has(shapes: Shapes, module: str) -> bool:
    return any(name.startswith(f"{module}.") for name in shapes)


def _count(shapes: Shapes, list_: str) -> int:
    """Members of a list of modules."""
    return len({name.removeprefix(f"{list_}.").partition(".")[0] for name in shapes if name.startswith(f"{list_}.")})
