"""Model folders in and out, in the layout of diffusers' StableDiffusionPipeline.

    model_index.json          the classes of the parts
    generation_config.json    what a request gets where it says nothing: steps, sampler, ... (ours alone)
    tokenizer/                vocab.json, merges.txt, ...
    text_encoder/             config.json, model.safetensors
    unet/                     config.json, diffusion_pytorch_model.safetensors
    vae/                      the same; a model of pixels has none
    scheduler/                scheduler_config.json

A folder may come from anyone: weights are safetensors, the classes of parts are on a list, and no
configuration can ask for code to be run.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from clip.pretrained import save_text_encoder, text_encoder_from_folder
from clip.text import TextEncoder
from clip.tokenizer import Tokenizer
from diffusion.autoencoder import Autoencoder, AutoencoderConfig, PixelSpace
from diffusion.conditioning import PLAIN, Reading
from diffusion.config import DIFFUSERS_VERSION
from diffusion.durable import write_atomically
from diffusion.noise import Noise
from diffusion.schedulers import SCHEDULERS, NoiseConfig
from diffusion.unet import UNet, UNetConfig
from diffusion.weights import Undrawn, check_safetensors, kind, load_weights, strict_json, write_safetensors

SHIPPED = Path(__file__).parent / "models"
DEFAULT_MODEL = "emoji-64"
WEIGHTS, TEXT_WEIGHTS = "diffusion_pytorch_model.safetensors", "model.safetensors"
PICKLES = {".bin", ".ckpt", ".pt", ".pth", ".pkl"}

# Each part, and what model_index.json may name for it: a library and classes.
PARTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "tokenizer": ("transformers", ("CLIPTokenizer", "CLIPTokenizerFast")),
    "text_encoder": ("transformers", ("CLIPTextModel",)),
    "unet": ("diffusers", ("UNet2DConditionModel",)),
    "vae": ("diffusers", ("AutoencoderKL",)),
    "scheduler": ("diffusers", tuple(SCHEDULERS)),
}
UNREAD = {"safety_checker", "feature_extractor", "image_encoder"}  # parts that a folder may have besides
RUNS_CODE = {"auto_map", "custom_pipeline", "custom_pipelines", "trust_remote_code"}
WHOLE = "fetch or save the model again, whole"

# The autoencoder's attention, as diffusers named its layers before 0.15 and Stable Diffusion 1.x still does.
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
OLD_NAMES = {f".attentions.0.{old}.": f".attentions.0.{new}." for old, new in OLD_ATTENTION.items()}

T = TypeVar("T")
N = TypeVar("N", bound=nn.Module)


@dataclass(frozen=True)
class Defaults:
    """What a request gets where it says nothing itself."""

    steps: int = 25
    sampler: str = "dpmpp_2m"
    schedule: str = "automatic"
    guidance: float = 7.5
    size: int = 512  # pixels a side


@dataclass(frozen=True)
class Model:
    """All that makes a picture of a request. The networks are loaded in float32, to evaluate, on the CPU."""

    tokenizers: tuple[Tokenizer, ...]  # one a text encoder
    text_encoders: tuple[TextEncoder, ...]
    unet: UNet
    autoencoder: Autoencoder | PixelSpace
    noise: Noise
    defaults: Defaults
    folder: Path
    reading: Reading = PLAIN

    @property
    def name(self) -> str:
        return self.folder.name

    @cached_property
    def hashes(self) -> dict[str, str]:
        """The SHA-256 of every weight file, by its path inside the folder."""
        names = [f"{part}/{file}" for part in PARTS for file in (WEIGHTS, TEXT_WEIGHTS)]
        return {name: sha256(self.folder / name) for name in names if (self.folder / name).is_file()}


def save_model(
    folder: Path,
    tokenizers: tuple[Tokenizer, ...],
    text_encoders: tuple[TextEncoder, ...],
    unet: UNet,
    autoencoder: Autoencoder | PixelSpace,
    noise: Noise,
    defaults: Defaults,
) -> None:
    """Writes a model folder. Weights keep the dtype that they have: `unet.half()` first halves the file."""
    folder.mkdir(parents=True, exist_ok=True)
    index = {part: [library, classes[0]] for part, (library, classes) in PARTS.items()}
    index["scheduler"] = ["diffusers", noise.config.scheduler]
    (tokenizer,), (text_encoder,) = tokenizers, text_encoders
    tokenizer.save(folder / "tokenizer")
    save_text_encoder(text_encoder, folder / "text_encoder")
    save_unet(unet, folder / "unet")
    if isinstance(autoencoder, Autoencoder):
        save_autoencoder(autoencoder, folder / "vae")
    else:
        del index["vae"]
    save_noise(noise, folder / "scheduler")
    _write_json(folder / "generation_config.json", asdict(defaults))
    # The index comes last: a folder without it is no model, so that half of one is never taken for a whole.
    pipeline = {"_class_name": "StableDiffusionPipeline", "_diffusers_version": DIFFUSERS_VERSION}
    absent = {"safety_checker": [None, None], "feature_extractor": [None, None]}
    _write_json(folder / "model_index.json", pipeline | index | absent | {"requires_safety_checker": False})


def save_unet(unet: UNet, folder: Path) -> None:
    _save_network(folder, unet, unet.config.to_dict())


def save_autoencoder(autoencoder: Autoencoder, folder: Path) -> None:
    _save_network(folder, autoencoder, autoencoder.config.to_dict())


def save_noise(noise: Noise, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    config = noise.config.to_dict() | {"_diffusers_version": DIFFUSERS_VERSION}
    _write_json(folder / "scheduler_config.json", config)


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


def load_model(model: str | Path = DEFAULT_MODEL) -> Model:
    """Reads the model that is named by its folder's path, or by its name where it is shipped.

    Raises ValueError, in one sentence, for a folder of another kind, or one that is not whole, not sound, or
    asks for what is not done here.
    """
    folder = find_model(model)
    parts = _read_index(folder)
    tokenizer = load_tokenizer(folder / "tokenizer")
    text_encoder = load_text_encoder(folder / "text_encoder")
    unet = load_unet(folder / "unet")
    autoencoder = load_autoencoder(folder / "vae") if "vae" in parts else PixelSpace()
    noise = load_noise(folder / "scheduler")
    _check_fit(folder, tokenizer, text_encoder, unet, autoencoder)
    size = (unet.config.sample_size or Defaults.size // autoencoder.factor) * autoencoder.factor
    defaults = _load_defaults(folder, Defaults(sampler=noise.config.sampler, size=size))
    return Model((tokenizer,), (text_encoder,), unet, autoencoder, noise, defaults, folder)


def load_tokenizer(folder: Path) -> Tokenizer:
    if (folder / "tokenizer_config.json").is_file():
        _read_config(folder / "tokenizer_config.json")
    return _build(folder, lambda: Tokenizer.from_folder(folder))


def load_text_encoder(folder: Path) -> TextEncoder:
    _read_config(folder / "config.json")
    check_safetensors(_weights(folder, TEXT_WEIGHTS))
    with Undrawn():
        return _build(folder, lambda: text_encoder_from_folder(folder)).float().eval()


def load_unet(folder: Path) -> UNet:
    return _load_network(folder, lambda config: UNet(UNetConfig.from_dict(config)))


def load_autoencoder(folder: Path) -> Autoencoder:
    return _load_network(folder, lambda config: Autoencoder(AutoencoderConfig.from_dict(config)), OLD_NAMES)


def load_noise(folder: Path) -> Noise:
    config = _read_config(folder / "scheduler_config.json")
    return _build(folder, lambda: Noise(NoiseConfig.from_dict(config)))


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _load_defaults(folder: Path, otherwise: Defaults) -> Defaults:
    path = folder / "generation_config.json"
    if not path.is_file():
        return otherwise
    said, known = _read_config(path), [field.name for field in fields(Defaults)]
    for name in said:
        if name not in known:
            raise ValueError(f"{path} has no setting {name!r}; it takes {', '.join(known)}.")
    return replace(otherwise, **said)


def _save_network(folder: Path, network: nn.Module, config: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(folder / WEIGHTS, network)
    _write_json(folder / "config.json", config)


def _load_network(
    folder: Path, build: Callable[[dict[str, Any]], N], names: dict[str, str] | None = None
) -> N:
    config = _read_config(folder / "config.json")
    with Undrawn(), torch.device("meta"):
        network = _build(folder, lambda: build(config))
    load_weights(network, _weights(folder, WEIGHTS), names)
    return network.float().eval()


def _build(folder: Path, part: Callable[[], T]) -> T:
    """The part that `folder` describes. What a wrong one raises becomes one sentence that names it."""
    try:
        return part()
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{folder}: {error}") from error


def _read_index(folder: Path) -> set[str]:
    """The parts that model_index.json names: each is known here, and lies in the folder."""
    if not (folder / "model_index.json").is_file():
        raise ValueError(f"{folder} {_other_kind(folder)}; give a model folder, as diffusers saves one.")
    index = _read_config(folder / "model_index.json")
    if (name := index.get("_class_name")) != "StableDiffusionPipeline":
        raise ValueError(f"{folder} is a model for {name}; only those of StableDiffusionPipeline are read.")
    named = {part: value for part, value in index.items() if isinstance(value, list)}
    parts = {part: value for part, value in named.items() if value != [None, None]}
    for part, value in parts.items():
        library, classes = PARTS.get(part, ("", ()))
        if part not in UNREAD and value not in [[library, name] for name in classes]:
            expected = f"expected {' or '.join(classes)} of {library}" if classes else "no such part is known"
            raise ValueError(f"{folder} has as its {part} {'.'.join(map(str, value))}; {expected}.")
    for part in PARTS:
        if part not in parts and part != "vae":
            raise ValueError(f"{folder / 'model_index.json'} names no {part}; {WHOLE}.")
        if part in parts and not (folder / part).is_dir():
            raise ValueError(f"{folder} has no folder {part}, which its model_index.json names; {WHOLE}.")
    return set(parts)


def _other_kind(folder: Path) -> str:
    """What a folder without a model_index.json is."""
    names = {path.name for path in folder.iterdir()}
    if "adapter_config.json" in names or any("lora" in name.lower() for name in names):
        return "is a LoRA, which changes a model and is none by itself"
    if "config.json" in names:
        config = _read_json(folder / "config.json")
        return f"is a {config.get('_class_name') or config.get('model_type') or 'network'} alone"
    return "has no model_index.json" if names else "is empty"


def _check_fit(
    folder: Path, tokenizer: Tokenizer, text: TextEncoder, unet: UNet, autoencoder: Autoencoder | PixelSpace
) -> None:
    """Raises ValueError unless what each part makes is what the next one reads."""
    read, written = unet.config.in_channels, unet.config.out_channels
    for what, made, fits, wanted in (
        ("tokens of the tokenizer", tokenizer.vocab_size, tokenizer.vocab_size <= text.config.vocab_size,
         f"the text encoder knows {text.config.vocab_size}"),
        ("ids a text", tokenizer.length, tokenizer.length <= text.config.length,
         f"the text encoder reads {text.config.length}"),
        ("numbers a token", text.config.width, text.config.width == unet.config.cross_attention_dim,
         f"the U-Net reads {unet.config.cross_attention_dim}"),
        ("channels of latents", autoencoder.channels, autoencoder.channels == read == written,
         f"the U-Net reads {read} and writes {written}"),
    ):  # fmt: skip
        if not fits:
            raise ValueError(f"The parts of {folder} are not of one model: {made} {what}, where {wanted}.")


def _weights(folder: Path, name: str) -> Path:
    """The weight file of a part, or a sentence on what is there instead."""
    if (folder / name).is_file():
        return folder / name
    for path in sorted(folder.glob("*")):
        if path.suffix in PICKLES:
            raise ValueError(
                f"{path} can run code when it is loaded, and there is no {name} beside it: convert it to "
                "safetensors where that is safe, with save_pretrained() of the library that made it."
            )
    raise ValueError(f"{folder} has no {name}; {WHOLE}.")


def _read_config(path: Path) -> dict[str, Any]:
    """A configuration; one that has a key for running code of its own is refused."""
    if not path.is_file():
        raise ValueError(f"{path.parent} has no {path.name}; {WHOLE}.")
    config = _read_json(path)
    for key in sorted(RUNS_CODE & set(config)):
        raise ValueError(f"{path} asks by {key} for code of its own to be run; no model can do that here.")
    return config


def _read_json(path: Path) -> dict[str, Any]:
    return strict_json(path.read_bytes(), str(path))


def _write_json(path: Path, values: dict[str, Any]) -> None:
    write_atomically(path, (json.dumps(values, indent=2) + "\n").encode())
