"""Models of other architectures at tiny size, built and saved by diffusers, with random weights."""

from pathlib import Path
from typing import Any

import torch
import transformers
from diffusers import (
    AutoencoderKL,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from networks import randomize
from tokenizers import Tokenizer as Words
from tokenizers import models, pre_tokenizers, processors

from clip.tokenizer import Tokenizer

CAPTIONS = ["a red apple", "a blue star", "a green apple beside a red star"]
WIDTH = 32  # of every text encoder


def clip_tokenizer(folder: Path) -> Any:
    Tokenizer.train(CAPTIONS, vocab_size=530, length=16).save(folder)
    return transformers.CLIPTokenizer.from_pretrained(folder)


def clip_encoder(tokenizer: Any, kind: Any) -> Any:
    config = transformers.CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=16, projection_dim=WIDTH, eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return kind(config)


def t5_tokenizer() -> Any:
    words = sorted({word for caption in CAPTIONS for word in caption.split()})
    vocab = {word: id for id, word in enumerate(["<pad>", "</s>", "<unk>", *words])}
    tokenizer = Words(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=24
    )


def t5_encoder(tokenizer: Any, width: int = WIDTH) -> Any:
    config = transformers.T5Config(
        vocab_size=len(tokenizer), d_model=width, d_kv=8, d_ff=37, num_layers=2, num_heads=4, is_encoder_decoder=False
    )
    return transformers.T5EncoderModel(config)


def autoencoder(channels: int = 4, shift: float | None = None) -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16), layers_per_block=1, latent_channels=channels, norm_num_groups=4, sample_size=16,
        scaling_factor=1.5, shift_factor=shift, use_quant_conv=False, use_post_quant_conv=False,
    )  # fmt: skip


def save(pipeline: Any, folder: Path) -> Path:
    for network in pipeline.components.values():
        if isinstance(network, torch.nn.Module):
            randomize(network)
    pipeline.save_pretrained(folder)
    return folder


def save_sd3(folder: Path) -> Path:
    """Stable Diffusion 3: two CLIPs and a T5, joint attention, flow matching."""
    transformer = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8,
        num_attention_heads=4, joint_attention_dim=2 * WIDTH, caption_projection_dim=32,
        pooled_projection_dim=2 * WIDTH, pos_embed_max_size=16,
    )  # fmt: skip
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    clip, t5 = clip_tokenizer(folder / "tokenizer"), t5_tokenizer()
    one, other = (clip_encoder(clip, transformers.CLIPTextModelWithProjection) for _ in range(2))
    texts = one, clip, other, clip, t5_encoder(t5, 2 * WIDTH), t5
    return save(StableDiffusion3Pipeline(transformer, scheduler, autoencoder(shift=0.06), *texts), folder)


def save_pixart(folder: Path) -> Path:
    """PixArt: a T5, cross-attention, epsilon and DPM-Solver."""
    transformer = PixArtTransformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=8, num_layers=2, num_attention_heads=2,
        attention_head_dim=16, cross_attention_dim=32, caption_channels=WIDTH, norm_num_groups=8,
        use_additional_conditions=False,
    )  # fmt: skip
    t5 = t5_tokenizer()
    scheduler = DPMSolverMultistepScheduler()
    return save(PixArtAlphaPipeline(t5, t5_encoder(t5), autoencoder(), transformer, scheduler), folder)


def save_flux(folder: Path) -> Path:
    """FLUX: a CLIP and a T5, guidance as an input, latents in patches."""
    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=WIDTH, pooled_projection_dim=WIDTH, axes_dims_rope=(4, 4, 8), guidance_embeds=True,
    )  # fmt: skip
    clip, t5 = clip_tokenizer(folder / "tokenizer"), t5_tokenizer()
    scheduler = FlowMatchEulerDiscreteScheduler()
    texts = clip_encoder(clip, transformers.CLIPTextModel), clip, t5_encoder(t5), t5
    return save(FluxPipeline(scheduler, autoencoder(shift=0.06), *texts, transformer), folder)
