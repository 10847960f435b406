"""Models in and out: found by name, read from whichever layout they have, checked to be of one piece."""

from dataclasses import replace
from pathlib import Path

import torch

from diffusion.autoencoder import PixelSpace
from diffusion.files import Files
from diffusion.folder import faults_of, load_autoencoder, load_folder
from diffusion.folder import save_folder as save_model
from diffusion.hub import cached, download, is_name, name_of
from diffusion.model import Defaults, Model
from diffusion.noise import Noise
from diffusion.single_file import load_single_autoencoder, load_single_file, scale_of

__all__ = ["DEFAULT_MODEL", "SHIPPED", "Defaults", "Model", "find_model", "load_model", "save_model"]

SHIPPED = Path(__file__).parent / "models"
DEFAULT_MODEL = "emoji-64"


def find_model(model: str | Path, allow_download: bool = False) -> Path:
    """The folder or the single file of a model that is named by its path, or by its name.

    Names are of shipped models, or of models of the Hugging Face Hub that lie in its local cache, or are fetched into
    it where that is allowed.
    """
    path, shipped = Path(model), sorted(folder.name for folder in SHIPPED.glob("*/"))
    if path.is_dir():
        return path.resolve()
    if str(model) in shipped:
        return SHIPPED / model
    if path.is_file():
        return path.resolve()
    if is_name(str(model)):
        if folder := cached(str(model)):
            return folder
        if allow_download:
            return download(str(model))
        raise ValueError(
            f"There is no model {str(model)!r}, neither as a path nor in the cache of the Hugging Face Hub; "
            "--allow-download fetches it from there."
        )
    names = f", or the name of a shipped model: {', '.join(shipped)}" if shipped else ""
    raise ValueError(f"There is no model {str(model)!r}; give the path of a model folder or file{names}.")


def load_model(
    model: str | Path = DEFAULT_MODEL,
    dtype: torch.dtype | None = torch.float32,
    *,
    vae: str | Path | None = None,
    prediction_type: str | None = None,
    tokenizer: str | Path | None = None,
    allow_download: bool = False,
    others: torch.dtype | None = torch.float32,
) -> Model:
    """Reads the model that is named by its path, or by its name.

    Raises ValueError, in one sentence, for what is no model, is not whole, not sound, or asks for what is not done
    here.

    Args:
        dtype: what the U-Net shall run in: it is read into that, tensor by tensor. None is as it is stored.
        vae: another autoencoder, of a folder or a single file.
        prediction_type: what the network predicts, where the model is known to say it wrong, or not at all.
        tokenizer: a folder with the vocabulary of a single file, which itself has none, where it is not CLIP's.
        allow_download: whether a model of the Hugging Face Hub may be fetched.
        others: the same as `dtype`, of the other networks.
    """
    path = find_model(model, allow_download)
    if path.is_dir():
        loaded = load_folder(path, dtype, others, name_of(path))
        if prediction_type is not None:
            with faults_of(path):
                config = replace(loaded.noise.config, prediction_type=prediction_type)
                loaded = replace(loaded, noise=Noise(config))
    else:
        folder = None if tokenizer is None else Path(tokenizer)
        loaded = load_single_file(path, dtype, others, prediction_type, folder)
    loaded = replace(loaded, prediction_type=prediction_type)
    if vae is not None:
        loaded = with_autoencoder(loaded, Path(vae), others)
    check_fit(loaded)
    return loaded


def with_autoencoder(model: Model, path: Path, dtype: torch.dtype | None = torch.float32) -> Model:
    """The model with another autoencoder: of a folder, alone or a model's `vae/`, or of a single file."""
    hashes = {name: sum for name, sum in model.hashes.items() if not name.startswith("vae/")}
    if path.is_dir():
        files = Files(path)
        autoencoder = load_autoencoder(files, "vae" if (path / "vae").is_dir() else "", dtype)
        found = {f"vae/{Path(name).name}": sum for name, sum in files.hashes.items()}
    elif path.is_file():
        autoencoder, sum = load_single_autoencoder(path, scale_of(model), dtype)
        found = {f"vae/{path.name}": sum}
    else:
        raise ValueError(f"There is no autoencoder {str(path)!r}; give the path of a folder or a file.")
    return replace(model, autoencoder=autoencoder, hashes=hashes | found, vae=path)


def check_fit(model: Model) -> None:
    """Raises ValueError unless what each part makes is what the next one reads."""
    unet, autoencoder = model.unet.config, model.autoencoder
    if isinstance(autoencoder, PixelSpace) and unet.out_channels != PixelSpace.channels:
        raise ValueError(f"{model.path} has no autoencoder; name one with --vae.")
    tokens = sum(encoder.config.width for encoder in model.text_encoders)
    facts = [
        ("numbers a token", tokens, tokens == unet.text_channels,
         f"the U-Net reads {unet.text_channels}"),
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
        read = unet.pooled_channels(model.reading.sizes)
        facts += [("numbers of pooled text", pooled, pooled == read, f"the U-Net reads {read}")]
    for what, made, fits, wanted in facts:
        if not fits:
            raise ValueError(f"The parts of {model.path} are not of one model: {made} {what}, where {wanted}.")
