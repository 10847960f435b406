"""CLIP's weights and configurations in transformers' form <=> this stack; open_clip's are in `clip.openclip`.

`clip.model.CLIP` is the common ground: a tower alone is the part of it under `text.` or `image.`.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from clip.folder import (
    CONFIG,
    WEIGHTS,
    State,
    Undrawn,
    activation,
    activation_name,
    fuse,
    inverse,
    load,
    part,
    read_json,
    read_weights,
    rename,
    split,
    write_folder,
    write_json,
)
from clip.image import ImageConfig, ImageEncoder
from clip.model import CLIP
from clip.openclip import (
    from_open_clip,
    only_text,
    open_clip_configs,
    open_clip_json,
    open_clip_text_config,
    to_open_clip,
)
from clip.text import Pool, TextConfig, TextEncoder

OPEN_CLIP_CONFIG, OPEN_CLIP_WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"

# Theirs: ours. What begins with a dot is a part within a block, the rest begins a key.
TRANSFORMERS = {
    "text_model.embeddings.token_embedding.weight": "text.token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "text.position_embedding",
    "text_model.encoder.layers.": "text.transformer.blocks.",
    "text_model.final_layer_norm.": "text.norm.",
    "text_projection.weight": "text.projection.weight",
    "vision_model.embeddings.patch_embedding.weight": "image.patch_embedding.weight",
    "vision_model.embeddings.class_embedding": "image.class_embedding",
    "vision_model.embeddings.position_embedding.weight": "image.position_embedding",
    "vision_model.pre_layrnorm.": "image.norm_in.",  # (sic)
    "vision_model.encoder.layers.": "image.transformer.blocks.",
    "vision_model.post_layernorm.": "image.norm.",
    "visual_projection.weight": "image.projection.weight",
    "logit_scale": "logit_scale",
    ".layer_norm1.": ".norm1.",
    ".self_attn.": ".attention.",
    ".out_proj.": ".out.",
    ".layer_norm2.": ".norm2.",
    ".fc1.": ".up.",
    ".fc2.": ".down.",
}


QKV = (".q_proj.", ".k_proj.", ".v_proj.")


def from_transformers(state: State) -> State:
    """Weights of transformers' CLIPModel, or of its text or image part => of `CLIP`, or its part."""
    named = {}
    for key, weight in state.items():
        # transformers 5 writes a bare CLIPTextModel without the prefix that every earlier one has.
        if key.startswith(("embeddings.", "encoder.", "final_layer_norm.")):
            key = f"text_model.{key}"
        if not key.endswith("position_ids"):  # 0, 1, 2, ...: a buffer that old files keep
            named[key] = weight

    return fuse(rename(named, TRANSFORMERS), ".qkv.", QKV)


def to_transformers(state: State) -> State:
    """The inverse of `from_transformers`. Its names open in every version of transformers."""
    return rename(split(state, ".qkv.", QKV), inverse(TRANSFORMERS))


def text_encoder_from_folder(folder: str | Path) -> TextEncoder:
    """Open a text tower in float32: a CLIPTextModel, with a projection or without, or that of an open_clip model."""
    folder = Path(folder)
    if (folder / OPEN_CLIP_CONFIG).is_file():
        config = open_clip_text_config(read_json(folder / OPEN_CLIP_CONFIG)["model_cfg"])
        state = part("text.", from_open_clip(only_text(read_weights(folder / OPEN_CLIP_WEIGHTS))))
        return text_encoder_of(config, state, folder, torch.float32)
    state = read_weights(folder / WEIGHTS)
    return text_encoder_from_weights(read_json(folder / CONFIG), state, folder, torch.float32)


def text_encoder_from_weights(
    config: dict[str, Any], state: State, folder: Path, dtype: torch.dtype | None = None
) -> TextEncoder:
    """That of a CLIPTextModel read from the folder already; where no dtype is named, in that of the weights."""
    state = part("text.", from_transformers(state))
    # A CLIPTextModel's configuration names a projection_dim too: the weights alone say whether it is there.
    projection = len(state["projection.weight"]) if "projection.weight" in state else None
    return text_encoder_of(_text_config(config, projection), state, folder, dtype)


def text_encoder_of(
    config: TextConfig, state: State, folder: Path, dtype: torch.dtype | None = None
) -> TextEncoder:
    """A text encoder of its own weights."""
    with Undrawn(len(state)), torch.device("meta"):
        encoder = TextEncoder(config)
    return load(encoder, state, folder, dtype)


def save_text_encoder(encoder: TextEncoder, folder: str | Path) -> None:
    """Write config.json and model.safetensors, which transformers' CLIPTextModel opens."""
    state = {f"text.{key}": weight for key, weight in encoder.state_dict().items()}
    write_folder(Path(folder), _text_json(encoder.config), to_transformers(state))


def clip_from_folder(folder: str | Path) -> CLIP:
    """Open a CLIP in float32: transformers' CLIPModel, or open_clip's where its open_clip_config.json is."""
    folder = Path(folder)
    if (folder / OPEN_CLIP_CONFIG).is_file():
        text, image = open_clip_configs(read_json(folder / OPEN_CLIP_CONFIG))
        state = from_open_clip(read_weights(folder / OPEN_CLIP_WEIGHTS))
    else:
        text, image = _transformers_configs(folder)
        state = from_transformers(read_weights(folder / WEIGHTS))
    with Undrawn(len(state)), torch.device("meta"):
        clip = CLIP(TextEncoder(text), ImageEncoder(image))
    return load(clip, state, folder)


def save_open_clip(clip: CLIP, folder: str | Path) -> None:
    """Write open_clip_config.json and open_clip_model.safetensors: open_clip.create_model("local-dir:…") opens them."""
    config = open_clip_json(clip.text.config, clip.image.config)
    state = to_open_clip(clip.state_dict(), custom_text=config["model_cfg"]["custom_text"])
    write_folder(Path(folder), config, state, (OPEN_CLIP_CONFIG, OPEN_CLIP_WEIGHTS))


def save_clip(clip: CLIP, folder: str | Path) -> None:
    """Write {config,preprocessor_config}.json and model.safetensors, which transformers' CLIPModel opens."""
    folder, image = Path(folder), clip.image.config
    config = {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": image.projection,
        "text_config": _text_json(clip.text.config),
        "vision_config": _image_json(image),
    }
    write_folder(folder, config, to_transformers(clip.state_dict()))
    pixels = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": image.image_size},
        "crop_size": {"height": image.image_size, "width": image.image_size},
        "image_mean": image.mean,
        "image_std": image.std,
    }
    write_json(folder / "preprocessor_config.json", pixels)


# configurations; what equals the defaults of transformers' classes is left out there

# Those of text towers written before transformers 4.31 all say that the end token is 2, which it never was.
# There, as in OpenAI's own code, the end token is the highest id.
LEGACY_EOS = 2

TEXT_FIELDS = {  # transformers': ours
    "vocab_size": "vocab_size",
    "max_position_embeddings": "length",
    "hidden_size": "width",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "intermediate_size": "mlp_width",
    "hidden_act": "activation",
    "eos_token_id": "eos_token_id",
    "layer_norm_eps": "norm_eps",
}
IMAGE_FIELDS = {
    "image_size": "image_size",
    "patch_size": "patch_size",
    "hidden_size": "width",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "intermediate_size": "mlp_width",
    "hidden_act": "activation",
    "projection_dim": "projection",
    "layer_norm_eps": "norm_eps",
}


def _known(config: dict[str, Any], fields: dict[str, str]) -> dict[str, Any]:
    known = {ours: config[theirs] for theirs, ours in fields.items() if theirs in config}
    if "activation" in known:
        known["activation"] = activation(known["activation"])
    return known


def _text_config(config: dict[str, Any], projection: int | None) -> TextConfig:
    default = TextConfig(width=512, heads=8, mlp_width=2048, projection=projection)
    pool: Pool = "argmax" if config.get("eos_token_id") == LEGACY_EOS else "eos"
    return replace(default, **_known(config, TEXT_FIELDS), pool=pool)


def _text_json(config: TextConfig) -> dict[str, Any]:
    _check_plain(config, ("mask", "class_token", "layer_scale", "projection_bias"))
    if config.pool not in ("eos", "argmax"):
        raise ValueError(f"transformers' CLIP has no text tower with pool = {config.pool!r}: save it as open_clip's")
    return {
        "architectures": ["CLIPTextModel" if config.projection is None else "CLIPTextModelWithProjection"],
        "model_type": "clip_text_model",
        **{theirs: getattr(config, ours) for theirs, ours in TEXT_FIELDS.items()},
        "hidden_act": activation_name(config.activation),
        "eos_token_id": LEGACY_EOS if config.pool == "argmax" else config.eos_token_id,
        "projection_dim": config.projection or config.width,
        "bos_token_id": None,  # the tokenizer's concern; transformers' default is outside a small vocabulary
        "pad_token_id": None,
    }


def _image_json(config: ImageConfig) -> dict[str, Any]:
    _check_plain(config, ("pool", "norm_in", "layer_scale"))
    fields = {theirs: getattr(config, ours) for theirs, ours in IMAGE_FIELDS.items()}
    return {"model_type": "clip_vision_model", **fields, "hidden_act": activation_name(config.activation)}


def _check_plain(config: TextConfig | ImageConfig, names: tuple[str, ...]) -> None:
    """Raises ValueError where the tower has an option, at other than its default, that transformers' CLIP has not."""
    for name in names:
        if (value := getattr(config, name)) != getattr(type(config), name):
            raise ValueError(f"transformers' CLIP has no tower with {name} = {value!r}: save it as open_clip's")


def _transformers_configs(folder: Path) -> tuple[TextConfig, ImageConfig]:
    config = read_json(folder / CONFIG)
    projection = config.get("projection_dim", 512)
    # Old folders say the same twice; the `_dict` is the one that counts.
    text = (config.get("text_config") or {}) | (config.get("text_config_dict") or {})
    image = (config.get("vision_config") or {}) | (config.get("vision_config_dict") or {})
    pixels = read_json(path) if (path := folder / "preprocessor_config.json").is_file() else {}
    return _text_config(text, projection), replace(
        ImageConfig(),
        **_known(image | {"projection_dim": projection}, IMAGE_FIELDS),
        mean=tuple(pixels.get("image_mean", ImageConfig.mean)),
        std=tuple(pixels.get("image_std", ImageConfig.std)),
    )
