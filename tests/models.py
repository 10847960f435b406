"""Stable Diffusion models at tiny size with random weights, as diffusers and transformers make and save them."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from clip.tokenizer import Tokenizer
from tests.networks import randomize

Config = dict[str, Any]

CAPTIONS = ["a red apple", "a blue star", "a green apple beside a red star", "赤いりんご", "青い星"] * 2
KINDS = ("sd1", "sd2", "xl")

UNETS: dict[str, Config] = {
    "sd1": {"attention_head_dim": 8, "cross_attention_dim": 64},
    "sd2": {"attention_head_dim": (1, 2), "cross_attention_dim": 128, "use_linear_projection": True},
    "xl": {
        "attention_head_dim": (1, 2),
        "cross_attention_dim": 192,
        "use_linear_projection": True,
        "transformer_layers_per_block": (1, 2),
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 96 + 6 * 8,
    },
}
NOISES: dict[str, Config] = {
    "sd1": {},
    "sd2": {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
    "xl": {},
}


def save_model(kind: str, folder: Path, length: int = 77) -> Path:
    """A model folder of SD 1.x, SD 2.x or XL, written by diffusers, with a vocabulary of its own."""
    torch.manual_seed(0)
    Tokenizer.train(CAPTIONS, vocab_size=560, length=length).save(folder / "vocabulary")
    vae = AutoencoderKL(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        sample_size=16,
        scaling_factor=0.13025 if kind == "xl" else 0.18215,
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(64, 128),
        down_block_types=("DownBlock2D" if kind == "xl" else "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D" if kind == "xl" else "CrossAttnUpBlock2D"),
        layers_per_block=1,
        **UNETS[kind],
    )
    noise = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "timestep_spacing": "leading"}
    scheduler = EulerDiscreteScheduler(**noise | {"steps_offset": 1} | NOISES[kind])
    tokenizer = CLIPTokenizer.from_pretrained(folder / "vocabulary")
    (folder / "vocabulary" / "special_tokens_map.json").unlink()
    second = CLIPTokenizer.from_pretrained(folder / "vocabulary", pad_token="!")  # as open_clip pads
    clip: Config = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": length,
        "num_hidden_layers": 3,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id,
    }
    narrow: Config = {"hidden_size": 64, "num_attention_heads": 1, "intermediate_size": 128, "hidden_act": "quick_gelu"}
    wide: Config = {"hidden_size": 128, "num_attention_heads": 2, "intermediate_size": 256, "hidden_act": "gelu"}
    first = CLIPTextModel(CLIPTextConfig(**clip, **(wide if kind == "sd2" else narrow)))
    parts: Config = {"vae": vae, "unet": unet, "text_encoder": first, "scheduler": scheduler}
    if kind == "xl":
        parts["text_encoder_2"] = CLIPTextModelWithProjection(CLIPTextConfig(**clip, **wide, projection_dim=96))
    for seed, part in enumerate((*parts.values(),)):
        if isinstance(part, torch.nn.Module):
            randomize(part, seed + 10 * KINDS.index(kind))
    if kind == "xl":
        pipeline = StableDiffusionXLPipeline(**parts, tokenizer=tokenizer, tokenizer_2=second)
    else:
        parts |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        pipeline = StableDiffusionPipeline(**parts, tokenizer=second if kind == "sd2" else tokenizer)
    pipeline.save_pretrained(folder)
    shutil.rmtree(folder / "vocabulary")
    if kind == "sd2":  # as it was published, with two files that disagree
        edit(folder / "tokenizer" / "tokenizer_config.json", pad_token="<|endoftext|>")
        (folder / "tokenizer" / "special_tokens_map.json").write_text('{"pad_token": "!"}')
    return folder


def edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
