"""Weights and configurations of open_clip's models <=> this stack. Its names beside ours are one table.

Every text tower of its own that it publishes a configuration of opens here, CoCa's and SigLIP's among them, also where
the image tower beside it does not. Towers that it borrows (`hf_…`, `timm_…`) are refused by name.
"""

from collections.abc import Mapping
from typing import Any

from clip.folder import State, inverse, rename
from clip.image import ImageConfig
from clip.text import TextConfig
from clip.transformer import Activation, LayerScale

# Theirs: ours. What begins with a dot is a part within a block, the rest begins a key.
OPEN_CLIP = {
    "token_embedding.weight": "text.token_embedding.weight",
    "positional_embedding": "text.position_embedding",
    "cls_emb": "text.class_embedding",
    "transformer.resblocks.": "text.transformer.blocks.",
    "ln_final.": "text.norm.",
    "text_projection.": "text.projection.",
    "visual.conv1.weight": "image.patch_embedding.weight",
    "visual.class_embedding": "image.class_embedding",
    "visual.positional_embedding": "image.position_embedding",
    "visual.ln_pre.": "image.norm_in.",
    "visual.transformer.resblocks.": "image.transformer.blocks.",
    "visual.ln_post.": "image.norm.",
    "visual.proj.": "image.projection.",
    "logit_scale": "logit_scale",
    ".ln_1.": ".norm1.",
    ".attn.in_proj_": ".attention.qkv.",
    ".attn.out_proj.": ".attention.out.",
    ".ls_1.gamma": ".scale1.gain",
    ".ln_2.": ".norm2.",
    ".c_fc.": ".up.",
    ".c_proj.": ".down.",
    ".ls_2.gamma": ".scale2.gain",
}

# A configuration leaves out what equals these.
TEXT_DEFAULTS: dict[str, Any] = {
    "context_length": 77,
    "vocab_size": 49408,
    "width": 512,
    "heads": 8,
    "layers": 12,
    "mlp_ratio": 4.0,
    "ls_init_value": None,
    "embed_cls": False,
    "pad_id": 0,
    "eos_id": 2,
    "no_causal_mask": False,
    "pool_type": "argmax",
    "proj_type": "linear",
    "proj_bias": False,
    "act_kwargs": None,
    "norm_kwargs": None,
}
IMAGE_DEFAULTS: dict[str, Any] = {
    "image_size": 224,
    "patch_size": 16,
    "width": 768,
    "head_width": 64,
    "layers": 12,
    "mlp_ratio": 4.0,
    "ls_init_value": None,
    "no_ln_pre": False,
    "pool_type": "tok",
    "final_ln_after_pool": False,
    "act_kwargs": None,
    "norm_kwargs": None,
}
# Options that are the tokenizer's business, or choose what is returned beside the embedding.
ELSEWHERE = {"hf_tokenizer_name", "tokenizer_kwargs", "tokenizer_mode", "output_tokens"}


def from_open_clip(state: State) -> State:
    """Weights of open_clip's CLIP or CustomTextCLIP (the ViT kind), or of their towers => of `CLIP`, or its part."""
    named = {}
    for key, weight in state.items():
        key = key.removeprefix("text.")  # CustomTextCLIP keeps its text tower under a name, CLIP does not
        if key in ("text_projection", "visual.proj"):  # matrices multiplied from the right; nn.Linear's from the left
            key, weight = f"{key}.weight", weight.T
        named[key] = weight
    return rename(named, OPEN_CLIP)


def to_open_clip(state: State, custom_text: bool = False) -> State:
    """The inverse of `from_open_clip`, for a CLIP or a CustomTextCLIP."""
    theirs = {}
    for key, weight in rename(state, inverse(OPEN_CLIP)).items():
        name = key.removesuffix(".weight")
        if name == "visual.proj" or (name == "text_projection" and "text.projection.bias" not in state):
            key, weight = name, weight.T
        in_text = custom_text and not key.startswith("visual.") and key != "logit_scale"
        theirs[f"text.{key}" if in_text else key] = weight
    return theirs


def only_text(state: State) -> State:
    """What is of the text tower among the weights of a whole model, whose image tower may be of any kind."""
    others = ("visual.", "text_decoder.", "logit_")
    return {key: weight for key, weight in state.items() if not key.startswith(others)}


def open_clip_text_config(model: Mapping[str, Any]) -> TextConfig:
    """The text tower of a `model_cfg`. Raises ValueError by name for what is not done here."""
    text = _options("text_cfg", model["text_cfg"], TEXT_DEFAULTS)
    return TextConfig(
        vocab_size=text["vocab_size"],
        length=text["context_length"],
        width=text["width"],
        layers=text["layers"],
        heads=text["heads"],
        mlp_width=int(text["width"] * text["mlp_ratio"]),
        activation=_activation(model, text),
        projection=None if text["proj_type"] == "none" else model["embed_dim"],
        projection_bias=text["proj_bias"] and text["proj_type"] != "none",
        eos_token_id=text["eos_id"],
        norm_eps=_norm_eps(text),
        mask="full" if text["no_causal_mask"] else "causal",
        pool=text["pool_type"],
        class_token=text["embed_cls"],
        pad_token_id=text["pad_id"],
        layer_scale=text["ls_init_value"] is not None,
    )


def open_clip_configs(config: Mapping[str, Any]) -> tuple[TextConfig, ImageConfig]:
    """Both towers of an open_clip_config.json. Raises ValueError by name for what is not done here."""
    model, pixels = config["model_cfg"], config.get("preprocess_cfg", {})
    image = _options("vision_cfg", model["vision_cfg"], IMAGE_DEFAULTS)
    average = image["pool_type"] == "avg"
    if average != bool(image["final_ln_after_pool"]) or image["pool_type"] not in ("tok", "avg"):
        raise ValueError(
            f"vision_cfg asks for pool_type = {image['pool_type']!r} with final_ln_after_pool = "
            f"{image['final_ln_after_pool']!r}: 'tok' with false, or 'avg' with true, can be opened"
        )
    if model.get("init_logit_bias") is not None:
        raise ValueError(f"the model asks for init_logit_bias = {model['init_logit_bias']!r}, which CLIP has not")
    return open_clip_text_config(model), ImageConfig(
        image_size=image["image_size"],
        patch_size=image["patch_size"],
        width=image["width"],
        layers=image["layers"],
        heads=image["width"] // image["head_width"],
        mlp_width=int(image["width"] * image["mlp_ratio"]),
        activation=_activation(model, image),
        projection=model["embed_dim"],
        norm_eps=_norm_eps(image),
        mean=tuple(pixels.get("mean", ImageConfig.mean)),
        std=tuple(pixels.get("std", ImageConfig.std)),
        pool="average" if average else "class",
        norm_in=not image["no_ln_pre"],
        layer_scale=image["ls_init_value"] is not None,
    )


def open_clip_json(text: TextConfig, image: ImageConfig) -> dict[str, Any]:
    """The open_clip_config.json of two towers: the inverse of `open_clip_configs`."""
    for tower in (text, image):
        if tower.activation not in ("quick_gelu", "gelu", "gelu_tanh"):
            raise ValueError(f"open_clip has no CLIP with activation = {tower.activation!r}: save it otherwise")
    quick = {tower.activation == "quick_gelu" for tower in (text, image)}
    if len(quick) == 2:
        raise ValueError("open_clip has no CLIP with quick_gelu in one tower alone: give both the same activation")
    text_cfg = {
        "context_length": text.length,
        "vocab_size": text.vocab_size,
        "width": text.width,
        "heads": text.heads,
        "layers": text.layers,
        **_json_of_both(text),
        "embed_cls": text.class_token,
        "pad_id": text.pad_token_id,
        "eos_id": text.eos_token_id,
        "no_causal_mask": text.mask == "full",
        "pool_type": text.pool,
        "proj_bias": text.projection_bias,
    }
    average = image.pool == "average"
    vision_cfg = {
        "image_size": image.image_size,
        "patch_size": image.patch_size,
        "width": image.width,
        "head_width": image.width // image.heads,
        "layers": image.layers,
        **_json_of_both(image),
        "no_ln_pre": not image.norm_in,
        "pool_type": "avg" if average else "tok",
        "final_ln_after_pool": average,
    }
    model = {"embed_dim": image.projection, "quick_gelu": True in quick, "custom_text": text.class_token}
    pixels = {"size": [image.image_size] * 2, "mean": image.mean, "std": image.std}
    return {"model_cfg": model | {"text_cfg": text_cfg, "vision_cfg": vision_cfg}, "preprocess_cfg": pixels}


def _json_of_both(tower: TextConfig | ImageConfig) -> dict[str, Any]:
    ratio = tower.mlp_width / tower.width
    if int(tower.width * ratio) != tower.mlp_width:  # open_clip multiplies and cuts
        ratio = (tower.mlp_width + 0.5) / tower.width
    return {
        "mlp_ratio": ratio,
        "ls_init_value": LayerScale.START if tower.layer_scale else None,
        "act_kwargs": {"approximate": "tanh"} if tower.activation == "gelu_tanh" else None,
        "norm_kwargs": {"eps": tower.norm_eps},
    }


def _options(where: str, given: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    for name, value in sorted(given.items()):
        if name not in defaults and name not in ELSEWHERE and value not in (None, False):
            raise ValueError(f"{where} asks for {name} = {value!r}: only open_clip's own plain ViT kind can be opened")
    return {**defaults, **given}


def _activation(model: Mapping[str, Any], tower: Mapping[str, Any]) -> Activation:
    asked = tower["act_kwargs"] or {}
    if asked not in ({}, {"approximate": "none"}, {"approximate": "tanh"}):
        raise ValueError(f"act_kwargs = {asked!r} cannot be followed: approximate = 'tanh' or 'none' can")
    if model.get("quick_gelu"):
        return "quick_gelu"
    return "gelu_tanh" if asked.get("approximate") == "tanh" else "gelu"


def _norm_eps(tower: Mapping[str, Any]) -> float:
    asked = tower["norm_kwargs"] or {}
    if asked.keys() - {"eps"}:
        raise ValueError(f"norm_kwargs = {asked!r} cannot be followed: eps alone can")
    return asked.get("eps", 1e-5)
