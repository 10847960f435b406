"""Stable Diffusion 1.5 at its full size with random weights: the costs of the real one, without its 3.4 GB download."""

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from clip.text import TextConfig
from diffusion.vocabulary import find_tokenizers


def save_sd15(folder: Path, seed: int = 0) -> Path:
    """A model folder in float32, 4.3 GB, in the published configurations; one that is there is left as it is."""
    if (folder / "model_index.json").is_file():
        return folder
    torch.manual_seed(seed)
    (tokenizer,) = find_tokenizers(folder, [TextConfig()], [False], None)
    tokenizer.save(folder / "tokenizer")
    StableDiffusionPipeline(
        unet=UNet2DConditionModel(sample_size=64, cross_attention_dim=768),
        vae=AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            sample_size=512,
        ),
        text_encoder=CLIPTextModel(
            CLIPTextConfig(
                vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12,
                num_attention_heads=12, projection_dim=768, bos_token_id=49406, eos_token_id=49407,
            )
        ),
        tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        scheduler=PNDMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
        ),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(folder)  # fmt: skip
    settings = {"steps": 50, "sampler": "plms", "schedule": "automatic", "guidance": 7.5, "size": 512}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    return folder
