"""What the frozen networks say about the data, computed once and cached: latents and text embeddings.

Every picture has K prepared variations (backgrounds, captions). Equal pictures and equal captions are encoded once.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor
from tqdm import tqdm

from clip.durable import write_atomically
from clip.tokenizer import Tokenizer
from diffusion.autoencoder import Autoencoder, PixelSpace
from diffusion.conditioning import Encoder, Reading, encode, join
from train.data import Dataset


@dataclass(frozen=True)
class Prepared:
    """Variation k of picture i: `latents[latent_of[i, k]]`, `texts[text_of[i, k]]`; text 0 is the empty prompt."""

    latents: Tensor  # [U, C, h, w] bf16
    texts: Tensor  # [V, L, D] bf16
    latent_of: Tensor  # [N, K]
    text_of: Tensor  # [N, K]


@torch.no_grad()
def prepare(
    dataset: Dataset,
    autoencoder: Autoencoder | PixelSpace,
    text_encoders: Sequence[Encoder],
    tokenizers: Sequence[Tokenizer],
    reading: Reading,
    variations: int,
    seed: int,
    cache: Path,
) -> Prepared:
    """Encodes `variations` of every picture, or reads them from `cache` where they were made by these very weights."""
    key = _key(dataset, autoencoder, text_encoders, reading, variations, seed)
    path = cache / f"{key}.safetensors"
    if path.exists():
        return Prepared(**load_file(path))
    images: dict[bytes, int] = {}
    captions: dict[str, int] = {"": 0}
    latent_of = torch.empty(len(dataset), variations, dtype=torch.long)
    text_of = torch.empty_like(latent_of)
    for i in range(len(dataset)):
        for k in range(variations):
            image, caption = dataset.variation(i, k, seed)
            latent_of[i, k] = images.setdefault(image.numpy().tobytes(), len(images))
            text_of[i, k] = captions.setdefault(caption, len(captions))
    size = dataset.size
    pixels = torch.frombuffer(bytearray(b"".join(images)), dtype=torch.uint8).view(-1, 3, size, size)
    device = next(text_encoders[0].parameters()).device
    latents = torch.cat([
        autoencoder.encode(batch.to(device).float() / 127.5 - 1).bfloat16().cpu()
        for batch in tqdm(pixels.split(64), desc="encoding pictures", unit="batch")
    ])  # fmt: skip
    said = list(captions)
    texts = torch.cat([
        embed(text_encoders, tokenizers, reading, said[first : first + 64]).bfloat16().cpu()
        for first in tqdm(range(0, len(said), 64), desc="encoding captions", unit="batch")
    ])  # fmt: skip
    cache.mkdir(parents=True, exist_ok=True)
    for old in cache.glob("*.safetensors"):
        old.unlink()
    prepared = {"latents": latents, "texts": texts, "latent_of": latent_of, "text_of": text_of}
    write_atomically(path, save(prepared))
    return Prepared(**prepared)


def embed(
    text_encoders: Sequence[Encoder], tokenizers: Sequence[Tokenizer], reading: Reading, texts: Sequence[str]
) -> Tensor:
    """Texts, cut to what is read at once => what the U-Net is told of them [B, L, D]."""
    device = next(text_encoders[0].parameters()).device
    return join(encode(text_encoders, [tokenizer(texts).to(device) for tokenizer in tokenizers], reading)[0], reading)


def _key(
    dataset: Dataset,
    autoencoder: Autoencoder | PixelSpace,
    text_encoders: Sequence[Encoder],
    reading: Reading,
    variations: int,
    seed: int,
) -> str:
    """A digest of all that the prepared tensors depend on: not of the decoder; of the data, their first variation."""
    digest = hashlib.sha256(f"{dataset.size} {len(dataset)} {variations} {seed} {reading}".encode())
    for encoder in text_encoders:
        digest.update(repr(encoder.config).encode())
    for module in (autoencoder, *text_encoders):
        for name, tensor in module.state_dict().items():
            if name.startswith(("decoder.", "post_quant_conv.")):
                continue
            digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    for i in range(len(dataset)):
        image, caption = dataset.variation(i, 0, seed)
        digest.update(image.numpy().tobytes() + caption.encode())
    return digest.hexdigest()[:16]
