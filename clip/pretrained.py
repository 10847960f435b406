"""CLIP's weights and configurations in the forms of transformers and of open_clip <=> this stack.

Both libraries hold the same numbers under other names, so each is one table of names. `clip.model.CLIP` is
the common ground: a tower alone is the part of it under `text.` or `image.`.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from clip.image import ImageConfig, ImageEncoder
from clip.model import CLIP
from clip.text import LEGACY_EOS, TextConfig, TextEncoder
from clip.transformer import Activation

State = dict[str, Tensor]
Module = TypeVar("Module", bound=nn.Module)

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


def from_transformers(state: State) -> State:
    """Weights of transformers' CLIPModel, or of its text or image part => of `CLIP`, or its part."""
    named = {}
    for key, weight in state.items():
        # transformers 5 writes a bare CLIPTextModel without the prefix that every earlier one has.
        if key.startswith(("embeddings.", "encoder.", "final_layer_norm.")):
            key = f"text_model.{key}"
        if not key.endswith("position_ids"):  # 0, 1, 2, ...: a buffer that old files keep
            named[key] = weight

    ours = _rename(named, TRANSFORMERS)
    for key in [key for key in ours if ".q_proj." in key]:
        parts = [ours.pop(key.replace(".q_proj.", f".{part}_proj.")) for part in "qkv"]
        ours[key.replace(".q_proj.", ".qkv.")] = torch.cat(parts)
    return ours


def to_transformers(state: State) -> State:
    """The inverse of `from_transformers`. Its names open in every version of transformers."""
    split = {}
    for key, weight in state.items():
        if ".qkv." in key:
            for part, third in zip("qkv", weight.chunk(3), strict=True):
                split[key.replace(".qkv.", f".{part}_proj.")] = third
        else:
            split[key] = weight
    return _rename(split, _inverse(TRANSFORMERS))


def from_open_clip(state: State) -> State:
    """Weights of open_clip's CLIP (the ViT kind) => of `CLIP`."""
    return _transpose_projections(_rename(state, OPEN_CLIP))


def to_open_clip(state: State) -> State:
    """The inverse of `from_open_clip`."""
    return _rename(_transpose_projections(state), _inverse(OPEN_CLIP))


def text_encoder_from_folder(folder: str | Path) -> TextEncoder:
    """Open config.json and model.safetensors of a CLIPTextModel, with a projection or without, in float32."""
    folder = Path(folder)
    state = _part("text.", from_transformers(_read_weights(folder / "model.safetensors")))
    # A CLIPTextModel's configuration names a projection_dim too: the weights alone say whether it is there.
    projection = len(state["projection.weight"]) if "projection.weight" in state else None
    config = _text_config(_read_json(folder / "config.json"), projection)
    with torch.device("meta"):
        encoder = TextEncoder(config)
    return _load(encoder, state, folder)


def save_text_encoder(encoder: TextEncoder, folder: str | Path) -> None:
    """Write config.json and model.safetensors, which transformers' CLIPTextModel opens."""
    state = {f"text.{key}": weight for key, weight in encoder.state_dict().items()}
    _write_folder(Path(folder), _text_json(encoder.config), to_transformers(state))


def clip_from_folder(folder: str | Path) -> CLIP:
    """Open a CLIP in float32: transformers' CLIPModel, or open_clip's where its open_clip_config.json is."""
    folder = Path(folder)
    if (folder / "open_clip_config.json").is_file():
        text, image = _open_clip_configs(_read_json(folder / "open_clip_config.json"))
        state = from_open_clip(_read_weights(folder / "open_clip_model.safetensors"))
    else:
        text, image = _transformers_configs(folder)
        state = from_transformers(_read_weights(folder / "model.safetensors"))
    with torch.device("meta"):
        clip = CLIP(TextEncoder(text), ImageEncoder(image))
    return _load(clip, state, folder)


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
    _write_folder(folder, config, to_transformers(clip.state_dict()))
    pixels = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": image.image_size},
        "crop_size": {"height": image.image_size, "width": image.image_size},
        "image_mean": image.mean,
        "image_std": image.std,
    }
    _write_json(folder / "preprocessor_config.json", pixels)


# Names


def _rename(state: State, names: dict[str, str]) -> State:
    heads = {old: new for old, new in names.items() if not old.startswith(".")}
    parts = {old: new for old, new in names.items() if old.startswith(".")}
    renamed = {}
    for key, weight in state.items():
        head = next((old for old in heads if key.startswith(old)), None)
        if head is None:
            raise ValueError(f"weight {key!r} is not of a CLIP: only those of plain ViT kind can be opened")
        tail = key.removeprefix(head)
        # In "0.norm1.weight" a part stands between dots, so none can match half of another's name.
        for old, new in parts.items():
            tail = tail.replace(old, new)
        renamed[heads[head] + tail] = weight
    return renamed


def _inverse(names: dict[str, str]) -> dict[str, str]:
    return {ours: theirs for theirs, ours in names.items()}


def _transpose_projections(state: State) -> State:
    """open_clip multiplies by its projections from the right, nn.Linear from the left."""
    return {key: weight.T if key.endswith(".projection.weight") else weight for key, weight in state.items()}


def _part(prefix: str, state: State) -> State:
    return {key.removeprefix(prefix): weight for key, weight in state.items() if key.startswith(prefix)}


# Configurations. Both libraries leave out what equals the defaults of their classes, given here.

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


def _known(config: dict[str, Any], fields: dict[str, str]) -> dict[str, Any]:
    return {ours: config[theirs] for theirs, ours in fields.items() if theirs in config}


def _text_config(config: dict[str, Any], projection: int | None) -> TextConfig:
    default = TextConfig(width=512, heads=8, mlp_width=2048, projection=projection)
    return replace(default, **_known(config, TEXT_FIELDS))


def _text_json(config: TextConfig) -> dict[str, Any]:
    return {
        "architectures": ["CLIPTextModel" if config.projection is None else "CLIPTextModelWithProjection"],
        "model_type": "clip_text_model",
        **{theirs: getattr(config, ours) for theirs, ours in TEXT_FIELDS.items()},
        "projection_dim": config.projection or config.width,
        "bos_token_id": None,  # the tokenizer's concern; transformers' default is outside a small vocabulary
        "pad_token_id": None,
    }


def _image_json(config: ImageConfig) -> dict[str, Any]:
    fields = {theirs: getattr(config, ours) for theirs, ours in IMAGE_FIELDS.items()}
    return {"model_type": "clip_vision_model", **fields}


def _transformers_configs(folder: Path) -> tuple[TextConfig, ImageConfig]:
    config = _read_json(folder / "config.json")
    projection = config.get("projection_dim", 512)
    # Old folders say the same twice; the `_dict` is the one that counts.
    text = (config.get("text_config") or {}) | (config.get("text_config_dict") or {})
    image = (config.get("vision_config") or {}) | (config.get("vision_config_dict") or {})
    pixels = _read_json(path) if (path := folder / "preprocessor_config.json").is_file() else {}
    return _text_config(text, projection), replace(
        ImageConfig(),
        **_known(image | {"projection_dim": projection}, IMAGE_FIELDS),
        mean=tuple(pixels.get("image_mean", ImageConfig.mean)),
        std=tuple(pixels.get("image_std", ImageConfig.std)),
    )


def _open_clip_configs(config: dict[str, Any]) -> tuple[TextConfig, ImageConfig]:
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


# Files


def _load(module: Module, state: State, folder: Path) -> Module:
    """Give a module made on the "meta" device its weights; nothing is initialised only to be thrown away."""
    try:
        module.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise ValueError(f"the weights in {folder} do not fit its configuration: {error}") from error
    return module.float()


def _read_weights(path: Path) -> State:
    if not path.is_file():
        raise ValueError(f"{path} is missing: weights are read from safetensors alone, so convert others")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}): fetch or save it again") from error


def _write_folder(folder: Path, config: dict[str, Any], state: State) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "config.json", config)
    # transformers refuses files that do not name their "format".
    state = {key: weight.contiguous() for key, weight in state.items()}
    aside = folder / ".model.safetensors.part"  # a crash leaves the old file or the new one
    aside.write_bytes(save(state, metadata={"format": "pt"}))
    aside.replace(folder / "model.safetensors")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as JSON ({error}): fetch or save it again") from error


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
