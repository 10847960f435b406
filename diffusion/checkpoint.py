"""Models in and out: found by name, read from whichever layout they have, checked to be of one piece."""

from dataclasses import replace
from pathlib import Path

import torch

from diffusion.conditioning import SIZES
from diffusion.files import Files
from diffusion.folder import load_autoencoder, load_folder
from diffusion.folder import save_folder as save_model
from diffusion.model import Defaults, Model
from diffusion.weights import kind

__all__ = ["DEFAULT_MODEL", "SHIPPED", "Defaults", "Model", "find_model", "load_model", "save_model"]

SHIPPED = Path(__file__).parent / "models"
DEFAULT_MODEL = "emoji-64"


def find_model(model: str | Path) -> Path:
    """The folder of a model that is named by its path, or by its name where it is shipped."""
    path, shipped = Path(model), sorted(folder.name for folder in SHIPPED.glob("*/"))
    if path.is_dir():
        return path.resolve()
    if str(model) in shipped:
        return SHIPPED / model
    if path.is_file():
        with path.open("rb") as file:
            what = "is a single file" if path.suffix == ".safetensors" else kind(file.read(512))
        raise ValueError(f"{path} {what}; give a model folder, as diffusers saves one.")
    names = f", or the name of a shipped model: {', '.join(shipped)}" if shipped else ""
    raise ValueError(f"There is no model {str(model)!r}; give the path of a model folder{names}.")


def load_model(
    model: str | Path = DEFAULT_MODEL, dtype: torch.dtype = torch.float32, vae: str | Path | None = None
) -> Model:
    """Reads the model that is named by its folder's path, or by its name where it is shipped.

    `dtype` is what the U-Net shall run in: it is read into that, tensor by tensor. `vae` is a folder with another
    autoencoder. Raises ValueError, in one sentence, for a folder of another kind, or one that is not whole, not
    sound, or asks for what is not done here.
    """
    path = find_model(model)
    loaded = load_folder(path, dtype, torch.float32, path.name)
    if vae is not None:
        loaded = with_autoencoder(loaded, Path(vae))
    check_fit(loaded)
    return loaded


def with_autoencoder(model: Model, path: Path) -> Model:
    """The model with the autoencoder of a folder: one alone, or a model's `vae/`."""
    root = path / "vae" if (path / "vae").is_dir() else path
    files = Files(root)
    autoencoder = load_autoencoder(files)
    hashes = {name: sum for name, sum in model.hashes.items() if not name.startswith("vae/")}
    hashes |= {f"vae/{name}": sum for name, sum in files.hashes.items()}
    return replace(model, autoencoder=autoencoder, hashes=hashes, vae=path)


def check_fit(model: Model) -> None:
    """Raises ValueError unless what each part makes is what the next one reads."""
    unet, autoencoder = model.unet.config, model.autoencoder
    tokens = sum(encoder.config.width for encoder in model.text_encoders)
    facts = [
        ("numbers a token", tokens, tokens == unet.cross_attention_dim,
         f"the U-Net reads {unet.cross_attention_dim}"),
        # An inpainting U-Net also reads a mask, and the latents of what is not to be painted over.
        ("channels of latents", autoencoder.channels,
         unet.out_channels == autoencoder.channels
         and unet.in_channels in (autoencoder.channels, 2 * autoencoder.channels + 1),
         f"the U-Net reads {unet.in_channels} and writes {unet.out_channels}"),
    ]  # fmt: skip
    for tokenizer, encoder in zip(model.tokenizers, model.text_encoders, strict=True):
        config = encoder.config
        facts += [
            ("tokens of the tokenizer", tokenizer.vocab_size, tokenizer.vocab_size <= config.vocab_size,
             f"the text encoder knows {config.vocab_size}"),
            ("ids a text", tokenizer.length, tokenizer.length <= config.length,
             f"the text encoder reads {config.length}"),
        ]  # fmt: skip
    if unet.addition_embed_type:
        pooled = model.text_encoders[-1].config.projection or 0
        read = unet.pooled_channels(SIZES)
        facts += [("numbers of pooled text", pooled, pooled == read, f"the U-Net reads {read}")]
    for what, made, fits, wanted in facts:
        if not fits:
            raise ValueError(f"The parts of {model.path} are not of one model: {made} {what}, where {wanted}.")
