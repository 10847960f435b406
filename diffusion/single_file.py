"""Single files in the original layout of Stable Diffusion 1.x, 2.x and XL: all networks' weights, and no more.

    model.diffusion_model.       the U-Net
    first_stage_model.           the autoencoder
    cond_stage_model. (1.x, 2.x), conditioner.embedders. (XL)   text encoders, named by transformers or by open_clip

Configurations are told from the weights' names and shapes. The noise process leaves no trace there: `diffusion.marks`
finds what else tells of it. What was saved here has all configurations in its metadata. No vocabulary is there:
`diffusion.vocabulary` finds one.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from clip.folder import Undrawn
from clip.openclip import from_open_clip, to_open_clip
from clip.pretrained import from_transformers, text_encoder_of, to_transformers
from clip.text import TextConfig, TextEncoder
from diffusion.autoencoder import Autoencoder, AutoencoderConfig, PixelSpace
from diffusion.conditioning import PLAIN, REFINER, XL, Reading
from diffusion.config import checked
from diffusion.folder import faults_of
from diffusion.marks import MARKS, latents, marks_of, noise_config
from diffusion.model import CONSISTENCY, Defaults, Model
from diffusion.noise import Noise
from diffusion.original import autoencoder_names, original_name, original_names
from diffusion.schedulers import NoiseConfig
from diffusion.shapes import autoencoder_config, text_config, unet_config
from diffusion.unet import UNet, UNetConfig
from diffusion.vocabulary import find_tokenizers
from diffusion.weights import Entry, Safetensors, check_weights, strict_json, write_safetensors

T = TypeVar("T")

UNET, VAE = "model.diffusion_model.", "first_stage_model."
# Text encoders where they may stand; those with transformers' names are CLIP's own, those with open_clip's OpenCLIP's.
CLIP_L, OPEN_CLIP = "cond_stage_model.transformer.", "cond_stage_model.model."
XL_CLIP_L, XL_OPEN_CLIP = "conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."
REFINER_CLIP = "conditioner.embedders.0.model."
OPEN_CLIPS = (OPEN_CLIP, XL_OPEN_CLIP, REFINER_CLIP)
CONFIG = "oboro"  # the key of our metadata
SD2_V_SAMPLE_SIZE = 96
FACTOR = 8  # pixels a latent side, in all that is published
PIXEL_ATTENTION = ".attn_1."
UNUSED = ("loss.", "model_ema.")  # what training leaves in a file
OTHERS = {  # what else a file may be, by a part of a name in it
    "lora_": "is a LoRA, which changes a model and is none by itself",
    "control_model.": "is a ControlNet, which is no model by itself",
    "double_blocks.": "is a model of FLUX's kind; give a folder that diffusers opens",
    "joint_blocks.": "is a Stable Diffusion 3; give a folder that diffusers opens",
}


@dataclass(frozen=True)
class Kind:
    """What the published models of a kind share, and no shape tells."""

    name: str  # as modelspec.architecture has it
    text: tuple[str, ...]  # prefixes of the text encoders
    reading: Reading
    scaling_factor: float
    sample_size: int  # of the latents


SD1 = Kind("stable-diffusion-v1", (CLIP_L,), PLAIN, 0.18215, 64)
SD2 = Kind("stable-diffusion-v2", (OPEN_CLIP,), PLAIN, 0.18215, 64)
SDXL = Kind("stable-diffusion-xl-v1-base", (XL_CLIP_L, XL_OPEN_CLIP), XL, 0.13025, 128)
SDXL_REFINER = Kind("stable-diffusion-xl-v1-refiner", (REFINER_CLIP,), REFINER, 0.13025, 128)


def load_single_file(
    path: Path,
    dtype: torch.dtype | None,
    others: torch.dtype | None,
    prediction_type: str | None = None,
    tokenizer: Path | None = None,
) -> Model:
    """Reads a single file: the U-Net in `dtype`, the other networks in `others`; None is as they are stored.

    `prediction_type` overrides what the file says, `tokenizer` names a folder with a vocabulary other than CLIP's.
    Where the file has no autoencoder, the model has `PixelSpace`.
    """
    file = Safetensors(path)
    kind, said = kind_of(file), _said(file)
    entries = {prefix: under(file.entries, prefix) for prefix in (UNET, VAE, *kind.text)}
    with faults_of(path):
        texts = [_text_config(prefix, entries[prefix], said, n) for n, prefix in enumerate(kind.text)]
        tokenizers = find_tokenizers(path, texts, [prefix in OPEN_CLIPS for prefix in kind.text], tokenizer)
        with Undrawn(len(file.entries)), torch.device("meta"):
            unet = UNet(_unet_config(kind, entries[UNET], said, texts[-1]))
            vae = Autoencoder(_vae_config(kind, entries[VAE], said)) if entries[VAE] else None
        places = {UNET: Place(unet, original_names(unet.config))}
        if vae is not None:
            places[VAE] = Place(vae, autoencoder_names(vae.config))
    for prefix, place in places.items():
        place.check(entries[prefix], path)

    states: dict[str, dict[str, Tensor]] = {prefix: {} for prefix in entries}
    marks: dict[str, Tensor] = {}
    for name, tensor in file.tensors():
        if name in MARKS:
            marks[name] = tensor
        for prefix, state in states.items():
            if name.startswith(prefix):
                wanted = dtype if prefix == UNET else others
                whole = wanted is None or not tensor.is_floating_point()
                state[name.removeprefix(prefix)] = tensor if whole else tensor.to(wanted)
    with faults_of(path), Undrawn(len(file.entries)):
        for prefix, place in places.items():
            place.fill(states.pop(prefix))
        encoders = [
            text_encoder_of(config, _text_state(prefix, states.pop(prefix)), path).eval()
            for prefix, config in zip(kind.text, texts, strict=True)
        ]
        if "scheduler" in said:
            noise = Noise(_noise_config(said, prediction_type))
        else:
            noise = Noise(noise_config(marks, file.metadata, unet, kind is SD2, prediction_type))
        if vae is not None and not said.get("vae"):
            vae.config = replace(vae.config, **latents(marks))
        if kind is SD2 and not said and noise.config.prediction_type == "v_prediction":
            unet.config = replace(unet.config, sample_size=SD2_V_SAMPLE_SIZE)
        size = (unet.config.sample_size or kind.sample_size) * (FACTOR if vae is None else vae.factor)
        own = CONSISTENCY if unet.config.time_cond_proj_dim else {}
        defaults = replace(Defaults(size=size, **own), **checked(Defaults, said.get("defaults", {})))
        reading = replace(kind.reading, **checked(Reading, said.get("reading", {})))
    assert file.sha256 is not None
    hashes = {path.name: file.sha256}
    autoencoder = PixelSpace() if vae is None else vae
    return Model(tokenizers, tuple(encoders), unet, autoencoder, noise, defaults, path, path.stem, hashes, reading)


def load_single_autoencoder(
    path: Path, scale: Mapping[str, Any], dtype: torch.dtype | None = torch.float32
) -> tuple[Autoencoder, str]:
    """The autoencoder of a single file, which may hold no more than that; and the file's SHA-256.

    Neither names nor shapes tell the scale of its latents: it is that of the model which they are for, `scale_of` it.
    """
    file = Safetensors(path)
    prefix = VAE if any(name.startswith(VAE) for name in file.entries) else ""
    entries = under(file.entries, prefix)
    if "decoder.mid.block_1.conv1.weight" not in entries:
        raise ValueError(f"{path} has no autoencoder in the original layout; name a file or a folder that has one.")
    with faults_of(path), Undrawn(len(entries)), torch.device("meta"):
        said = _said(file)
        config = _vae_config(SD1, entries, said)
        network = Autoencoder(config if said.get("vae") else replace(config, **scale))
    place = Place(network, autoencoder_names(network.config))
    place.check(entries, path)
    weights = {name: tensor if dtype is None else tensor.to(dtype) for name, tensor in file.tensors()}
    place.fill(under(weights, prefix))
    assert file.sha256 is not None
    return network, file.sha256


def save_single_file(path: Path, model: Model) -> None:
    """Writes a model's networks in the dtype that they have. The tokenizers have no place in such a file."""
    encoders = [encoder for encoder in model.text_encoders if isinstance(encoder, TextEncoder)]
    if len(encoders) < len(model.text_encoders):
        raise ValueError(f"{model.name} reads texts by a language model, for which a single file has no place; "
                         "write a folder.")
    kind = SDXL if len(encoders) > 1 else SD2 if _is_open_clip(encoders[0]) else SD1
    kind = SDXL_REFINER if model.reading.scored else kind
    autoencoder = model.autoencoder if isinstance(model.autoencoder, Autoencoder) else None
    weights = _prefixed(UNET, Place(model.unet, original_names(model.unet.config)).theirs())
    if autoencoder is not None:
        weights |= _prefixed(VAE, Place(autoencoder, autoencoder_names(autoencoder.config)).theirs())
    for prefix, encoder in zip(kind.text, encoders, strict=True):
        state = _prefixed("text.", encoder.state_dict())
        weights |= _prefixed(prefix, to_open_clip(state) if prefix in OPEN_CLIPS else to_transformers(state))
    noise = model.noise.config
    if kind is SDXL:
        weights |= marks_of(noise, autoencoder.config if autoencoder else None)
    said = {
        "unet": model.unet.config.to_dict(),
        "vae": autoencoder.config.to_dict() if autoencoder else None,
        "text_encoders": [asdict(encoder.config) for encoder in model.text_encoders],
        "scheduler": noise.to_dict(),
        "defaults": asdict(model.defaults),
        "reading": asdict(model.reading),
    }
    metadata = {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": kind.name,
        "modelspec.title": model.name,
        "modelspec.resolution": f"{model.defaults.size}x{model.defaults.size}",
        "modelspec.prediction_type": "v" if noise.prediction_type == "v_prediction" else noise.prediction_type,
        CONFIG: json.dumps(said),
    }
    write_safetensors(path, weights, metadata)


def kind_of(file: Safetensors) -> Kind:
    """What the file is a model of. Raises ValueError for what is none, or is not read here."""
    names = file.entries
    for part, what in OTHERS.items():
        if any(part in name for name in names):
            raise ValueError(f"{file.path} {what}.")
    if not any(name.startswith(UNET) for name in names):
        what = "an autoencoder alone; give it as --vae" if "decoder.conv_in.weight" in names else "no Stable Diffusion"
        raise ValueError(f"{file.path} is {what}: a model's single file has weights named {UNET}...")
    for kind in (SDXL, SDXL_REFINER, SD2, SD1):
        if all(any(name.startswith(prefix) for name in names) for prefix in kind.text):
            return kind
    raise ValueError(f"{file.path} is a U-Net without its text encoder; give a file that has both.")


def scale_of(model: Model) -> dict[str, Any]:
    """Of the latents that a model was trained on, in the fields of AutoencoderConfig."""
    if isinstance(model.autoencoder, Autoencoder):
        config = model.autoencoder.config
        return {name: getattr(config, name) for name in ("scaling_factor", "latents_mean", "latents_std")}
    return {"scaling_factor": (SDXL if model.unet.config.addition_embed_type else SD1).scaling_factor}


class Place:
    """A network, and the file's names of its weights."""

    def __init__(self, network: nn.Module, names: dict[str, str]) -> None:
        self.network = network
        self.names = {original_name(key, names): key for key in network.state_dict()}

    def check(self, entries: Mapping[str, Entry], path: Path) -> None:
        found = {self.names.get(name, name): replace(e, shape=_flat(name, e.shape)) for name, e in entries.items()}
        check_weights(self.network, {name: e for name, e in found.items() if not name.startswith(UNUSED)}, path)

    def fill(self, state: Mapping[str, Tensor]) -> None:
        ours = {self.names[name]: w.view(_flat(name, w.shape)) for name, w in state.items() if name in self.names}
        self.network.load_state_dict(ours, assign=True)
        self.network.eval()

    def theirs(self) -> dict[str, Tensor]:
        state = self.network.state_dict()
        return {name: _deep(name, state[ours]) for name, ours in self.names.items()}


def _flat(name: str, shape: Sequence[int]) -> tuple[int, ...]:
    """Attention over pixels is a 1x1 convolution in the file, and a matrix here."""
    return tuple(shape[:2] if PIXEL_ATTENTION in name else shape)


def _deep(name: str, weight: Tensor) -> Tensor:
    return weight[:, :, None, None] if PIXEL_ATTENTION in name and weight.ndim == 2 else weight


def under(named: Mapping[str, T], prefix: str) -> dict[str, T]:
    return {name.removeprefix(prefix): value for name, value in named.items() if name.startswith(prefix)}


def _prefixed(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: weight for name, weight in state.items()}


def _said(file: Safetensors) -> dict[str, Any]:
    """The configurations in the file's metadata, where it was saved here."""
    text = file.metadata.get(CONFIG)
    return {} if text is None else strict_json(text.encode(), f"{file.path}: its metadata")


def _is_open_clip(encoder: TextEncoder) -> bool:
    return encoder.config.activation != "quick_gelu"


def _text_state(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A text encoder's weights under our names; of 2.x's, without the last layer, which nothing reads."""
    if prefix not in OPEN_CLIPS:
        return under(from_transformers(state), "text.")
    state = {name: weight for name, weight in state.items() if name not in ("logit_scale", "attn_mask")}
    named = {name: weight.contiguous() for name, weight in under(from_open_clip(state), "text.").items()}
    if prefix == OPEN_CLIP and "projection.weight" in named:  # whole; other programs, and ours, leave both out
        del named["projection.weight"]
        last = max(int(name.split(".")[2]) for name in named if name.startswith("transformer.blocks."))
        named = {name: w for name, w in named.items() if not name.startswith(f"transformer.blocks.{last}.")}
    return named


def _text_config(prefix: str, entries: Mapping[str, Entry], said: Mapping[str, Any], number: int) -> TextConfig:
    if "text_encoders" in said:
        return TextConfig(**checked(TextConfig, said["text_encoders"][number]))
    state = {name: torch.empty(entry.shape, device="meta") for name, entry in entries.items()}
    named = _text_state(prefix, state)
    return text_config({name: tuple(weight.shape) for name, weight in named.items()}, prefix not in OPEN_CLIPS)


def _unet_config(kind: Kind, entries: Mapping[str, Entry], said: Mapping[str, Any], text: TextConfig) -> UNetConfig:
    if "unet" in said:
        return UNetConfig.from_dict(said["unet"])
    shapes = {name: entry.shape for name, entry in entries.items()}
    return unet_config(shapes, text.projection or 0, kind.reading.sizes, kind.sample_size)


def _vae_config(kind: Kind, entries: Mapping[str, Entry], said: Mapping[str, Any]) -> AutoencoderConfig:
    if said.get("vae"):
        return AutoencoderConfig.from_dict(said["vae"])
    return autoencoder_config({name: entry.shape for name, entry in entries.items()}, kind.scaling_factor, 512)


def _noise_config(said: Mapping[str, Any], prediction_type: str | None) -> NoiseConfig:
    config = NoiseConfig.from_dict(said["scheduler"])
    return replace(config, prediction_type=prediction_type or config.prediction_type)
