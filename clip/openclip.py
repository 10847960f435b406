"""Weights and configurations of open_clip's models <=> this stack. Its names beside ours are one table."""

from typing import Any

from clip.folder import State, inverse, rename
from clip.image import ImageConfig
from clip.text import LEGACY_EOS, TextConfig
from clip.transformer import Activation

# Theirs: ours. What begins with a dot is a part within a block, the rest begins a key.
OPEN_CLIP = {
    "token_embedding.weight": "text.token_embedding.weight",
    "positional_embedding": "text.position_embedding",
    "transformer.resblocks.": "text.transformer.blocks.",
    "ln_final.": "text.norm.",
    "text_projection": "text.projection.weight",
    "visual.conv1.weight": "image.patch_embedding.weight",
    "visual.class_embedding": "image.class_embedding",
    "visual.positional_embedding": "image.position_embedding",
    "visual.ln_pre.": "image.norm_in.",
    "visual.transformer.resblocks.": "image.transformer.blocks.",
    "visual.ln_post.": "image.norm.",
    "visual.proj": "image.projection.weight",
    "logit_scale": "logit_scale",
    ".ln_1.": ".norm1.",
    ".attn.in_proj_": ".attention.qkv.",
    ".attn.out_proj.": ".attention.out.",
    ".ln_2.": ".norm2.",
    ".c_fc.": ".up.",
    ".c_proj.": ".down.",
}

# A configuration leaves out what equals these.
OPEN_CLIP_DEFAULTS: dict[str, dict[str, Any]] = {
    "text_cfg": {
        "context_length": 77,
        "vocab_size": 49408,
        "width": 512,
        "heads": 8,
        "layers": 12,
        "mlp_ratio": 4.0,
    },
    "vision_cfg": {
        "image_size": 224,
        "patch_size": 16,
        "width": 768,
        "head_width": 64,
        "layers": 12,
        "mlp_ratio": 4.0,
    },
}


def from_open_clip(state: State) -> State:
    """Weights of open_clip's CLIP (the ViT kind) => of `CLIP`."""
    return _transpose_projections(rename(state, OPEN_CLIP))


def to_open_clip(state: State) -> State:
    """The inverse of `from_open_clip`."""
    return rename(_transpose_projections(state), inverse(OPEN_CLIP))


def open_clip_configs(config: dict[str, Any]) -> tuple[TextConfig, ImageConfig]:
    model, pixels = config["model_cfg"], config.get("preprocess_cfg", {})
    for part, defaults in OPEN_CLIP_DEFAULTS.items():
        for name in sorted(model[part].keys() - defaults.keys()):
            raise ValueError(f"{part} asks for {name} = {model[part][name]!r}: open a plain ViT CLIP instead")
    text = OPEN_CLIP_DEFAULTS["text_cfg"] | model["text_cfg"]
    image = OPEN_CLIP_DEFAULTS["vision_cfg"] | model["vision_cfg"]
    activation: Activation = "quick_gelu" if model.get("quick_gelu") else "gelu"
    return TextConfig(
        vocab_size=text["vocab_size"],
        length=text["context_length"],
        width=text["width"],
        layers=text["layers"],
        heads=text["heads"],
        mlp_width=int(text["width"] * text["mlp_ratio"]),
        activation=activation,
        projection=model["embed_dim"],
        eos_token_id=LEGACY_EOS,  # open_clip too takes the highest id for the end
    ), ImageConfig(
        image_size=image["image_size"],
        patch_size=image["patch_size"],
        width=image["width"],
        layers=image["layers"],
        heads=image["width"] // image["head_width"],
        mlp_width=int(image["width"] * image["mlp_ratio"]),
        activation=activation,
        projection=model["embed_dim"],
        mean=tuple(pixels.get("mean", ImageConfig.mean)),
        std=tuple(pixels.get("std", ImageConfig.std)),
    )


def _transpose_projections(state: State) -> State:
    """open_clip multiplies by its projections from the right, nn.Linear from the left."""
    return {key: weight.T if key.endswith(".projection.weight") else weight for key, weight in state.items()}
