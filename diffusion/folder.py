"""Model folders in the layout of diffusers' StableDiffusionPipeline and StableDiffusionXLPipeline.

    model_index.json                 the classes of the parts
    generation_config.json           what a request gets where it says nothing: steps, sampler, ... (ours alone)
    tokenizer/, tokenizer_2/         vocab.json, merges.txt, ...
    text_encoder/, text_encoder_2/   config.json, model.safetensors; XL has two
    unet/                            config.json, diffusion_pytorch_model.safetensors
    vae/                             the same; a model of pixels has none
    scheduler/                       scheduler_config.json
    language_model/                  a GPT-2, LLaMA or T5 with its tokenizer, in CLIP's place or after it (ours alone)
    SHA256SUMS                       of all of these (ours alone)

Weights may be in shards that an index names, or in a `.fp16` variant. The classes of parts are on a list.
"""

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from pathlib import Path
from posixpath import join
from typing import Any, TypeVar

import torch
from torch import nn

from clip.durable import write_atomically
from clip.folder import Undrawn
from clip.language import tokenizer_from_folder
from clip.language_encoder import (
    SETTINGS,
    EncoderSettings,
    LanguageEncoder,
    LanguageTokenizer,
    language_encoder_from_weights,
    save_language_encoder,
)
from clip.language_formats import FORMATS
from clip.pretrained import save_text_encoder, text_encoder_from_weights
from clip.pretrained_language import kind_of
from clip.text import TextConfig, TextEncoder
from clip.tokenizer import Tokenizer
from diffusion.autoencoder import Autoencoder, AutoencoderConfig, PixelSpace
from diffusion.conditioning import LANGUAGE, PLAIN, REFINER, XL, Encoder, Reading, encoder_names
from diffusion.config import DIFFUSERS_VERSION, checked
from diffusion.files import SUMS, WHOLE, Files, format_sums, sums_of
from diffusion.model import CONSISTENCY, Defaults, Model
from diffusion.noise import Noise
from diffusion.scheduler_table import SCHEDULERS
from diffusion.schedulers import NoiseConfig
from diffusion.unet import UNet, UNetConfig
from diffusion.weights import check_weights, sentence, shapes, shown, write_safetensors

INDEX, DEFAULTS = "model_index.json", "generation_config.json"
SCORED = "requires_aesthetics_score"  # what the index of XL's refiner says
WEIGHTS, TEXT_WEIGHTS = "diffusion_pytorch_model", "model"  # .safetensors

# The pipelines whose models are read here; what a pipeline does with them is no matter.
LANGUAGE_PIPELINE = "LanguagePipeline"  # ours alone: diffusers has none of that name, and opens its parts one by one
CONSISTENCY_PIPELINES = ["LatentConsistencyModelPipeline", "LatentConsistencyModelImg2ImgPipeline"]
PIPELINES = [
    f"{kind}{task}Pipeline" for kind in ("StableDiffusion", "StableDiffusionXL") for task in ("", "Img2Img", "Inpaint")
] + [*CONSISTENCY_PIPELINES, LANGUAGE_PIPELINE]
# Each part, and what model_index.json may name for it: a library and classes.
LANGUAGE_MODEL = "language_model"
LANGUAGE_CLASSES = tuple(name for form in FORMATS.values() for name in (form.head_class, form.bare_class))
TOKENIZER = ("transformers", ("CLIPTokenizer", "CLIPTokenizerFast"))
PARTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "tokenizer": TOKENIZER,
    "text_encoder": ("transformers", ("CLIPTextModel", "CLIPTextModelWithProjection")),
    "tokenizer_2": TOKENIZER,
    "text_encoder_2": ("transformers", ("CLIPTextModelWithProjection",)),
    "unet": ("diffusers", ("UNet2DConditionModel",)),
    "vae": ("diffusers", ("AutoencoderKL",)),
    "scheduler": ("diffusers", tuple(SCHEDULERS)),
    LANGUAGE_MODEL: ("transformers", LANGUAGE_CLASSES),
}
UNREAD = {"safety_checker", "feature_extractor", "image_encoder"}  # parts that a folder may have besides

# The autoencoder's attention, as diffusers named its layers before 0.15 and Stable Diffusion 1.x still does.
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
OLD_NAMES = {f".attentions.0.{old}.": f".attentions.0.{new}." for old, new in OLD_ATTENTION.items()}

N = TypeVar("N", bound=nn.Module)


def load_folder(root: Path, dtype: torch.dtype | None, others: torch.dtype | None, name: str) -> Model:
    """Reads a model folder: the U-Net in `dtype`, the other networks in `others`; None is as they are stored."""
    files = Files(root)
    index, parts = _read_index(files)
    for part in sorted(parts & PARTS.keys()):
        if not part.startswith("tokenizer"):  # checked where they are read: they come first, and cost the most
            files.check(part)
    noise, said = load_noise(files, "scheduler"), _read_defaults(files)
    clips = [n for n in ("", "_2") if f"text_encoder{n}" in parts]
    tokenizers = [load_tokenizer(files, f"tokenizer{n}") for n in clips]
    text_encoders: list[Encoder] = [load_text_encoder(files, f"text_encoder{n}", others) for n in clips]
    reading = PLAIN
    if "text_encoder_2" in parts:
        reading = REFINER if index.get(SCORED) else XL
        reading = replace(reading, empty_is_zero=bool(index.get("force_zeros_for_empty_prompt", True)))
    if LANGUAGE_MODEL in parts:
        reading = LANGUAGE
        tokenizer, encoder = load_language_encoder(files, LANGUAGE_MODEL, others)
        tokenizers.append(tokenizer)
        text_encoders.append(encoder)
    autoencoder = load_autoencoder(files, "vae", others) if "vae" in parts else PixelSpace()
    unet = load_unet(files, "unet", dtype)
    own = CONSISTENCY if index["_class_name"] in CONSISTENCY_PIPELINES else {}
    own = own | {"sampler": noise.config.sampler, "size": picture_size(unet, autoencoder)}
    defaults = Defaults(**own | said)
    return Model(
        tuple(tokenizers), tuple(text_encoders), unet, autoencoder, noise, defaults, root, name, files.hashes, reading
    )


def picture_size(unet: UNet, autoencoder: Autoencoder | PixelSpace) -> int:
    """Pixels a side of the pictures that a model was trained on."""
    return (unet.config.sample_size or Defaults.size // autoencoder.factor) * autoencoder.factor


def load_tokenizer(files: Files, part: str = "") -> Tokenizer:
    files.verify_all(part)
    files.check(part)
    with faults_of(files.root / part):
        return Tokenizer.from_folder(files.root / part)


def load_text_encoder(files: Files, part: str = "", dtype: torch.dtype | None = torch.float32) -> TextEncoder:
    folder, config = files.root / part, files.config(join(part, "config.json"))
    weights = files.read(files.weights(part, TEXT_WEIGHTS), dtype)
    with faults_of(folder):
        encoder = text_encoder_from_weights(config, weights, folder).eval()
        checked(TextConfig, asdict(encoder.config))
        return encoder


def load_language_encoder(
    files: Files, part: str = "", dtype: torch.dtype | None = torch.float32
) -> tuple[LanguageTokenizer, LanguageEncoder]:
    folder, config = files.root / part, files.config(join(part, "config.json"))
    files.verify_all(part)
    settings, weights = files.config(join(part, SETTINGS)), files.read(files.weights(part, TEXT_WEIGHTS), dtype)
    with faults_of(folder):
        described = EncoderSettings(**checked(EncoderSettings, settings))
        encoder = language_encoder_from_weights(config, weights, described, folder)
        return LanguageTokenizer(tokenizer_from_folder(folder), encoder.config), encoder


def load_unet(files: Files, part: str = "", dtype: torch.dtype | None = torch.float32) -> UNet:
    return _load_network(files, part, dtype, lambda config: UNet(UNetConfig.from_dict(config)))


def load_autoencoder(files: Files, part: str = "", dtype: torch.dtype | None = torch.float32) -> Autoencoder:
    return _load_network(files, part, dtype, lambda said: Autoencoder(AutoencoderConfig.from_dict(said)), OLD_NAMES)


def load_noise(files: Files, part: str = "") -> Noise:
    config = files.config(join(part, "scheduler_config.json"))
    with faults_of(files.root / part):
        return Noise(NoiseConfig.from_dict(config))


def save_folder(
    folder: Path,
    tokenizers: Sequence[Tokenizer],
    text_encoders: Sequence[Encoder],
    unet: UNet,
    autoencoder: Autoencoder | PixelSpace,
    noise: Noise,
    defaults: Defaults,
    reading: Reading | None = None,
) -> None:
    """Writes a model folder. Weights keep the dtype that they have: `unet.half()` first halves the file."""
    folder.mkdir(parents=True, exist_ok=True)
    parts: dict[str, list[str]] = {}
    named = encoder_names(text_encoders, reading or PLAIN)
    for part, tokenizer, text_encoder in zip(named, tokenizers, text_encoders, strict=True):
        if isinstance(text_encoder, LanguageEncoder):
            assert isinstance(tokenizer, LanguageTokenizer)
            save_language_encoder(text_encoder, tokenizer, folder / part)
            parts[part] = ["transformers", FORMATS[kind_of(text_encoder.config.language)].head_class]
        else:
            words = part.replace("text_encoder", "tokenizer")
            tokenizer.save(folder / words)
            save_text_encoder(text_encoder, folder / part)
            parts |= {each: _first(each) for each in (words, part)}
    parts["unet"] = _first("unet")
    save_unet(unet, folder / "unet")
    if isinstance(autoencoder, Autoencoder):
        save_autoencoder(autoencoder, folder / "vae")
        parts["vae"] = _first("vae")
    parts["scheduler"] = ["diffusers", noise.config.scheduler]
    save_noise(noise, folder / "scheduler")
    write_atomically(folder / DEFAULTS, _json(asdict(defaults)))

    index = _json({**_kind(named, unet, reading), "_diffusers_version": DIFFUSERS_VERSION, **parts})
    # The index comes last: a folder without it is no model, so that half of one is never taken for a whole.
    (folder / INDEX).unlink(missing_ok=True)
    sums = sums_of(folder) | {INDEX: hashlib.sha256(index).hexdigest()}
    write_atomically(folder / SUMS, format_sums(sums))
    write_atomically(folder / INDEX, index)


def _kind(named: Collection[str], unet: UNet, reading: Reading | None) -> dict[str, Any]:
    """What model_index.json says besides the parts, for those that read texts: the pipeline, and what it lacks."""
    if LANGUAGE_MODEL in named:
        return {"_class_name": LANGUAGE_PIPELINE}
    none = [None, None]
    task = "Inpaint" if unet.config.in_channels > unet.config.out_channels else ""
    if "text_encoder_2" not in named:
        lacks = {"safety_checker": none, "feature_extractor": none, "requires_safety_checker": False}
        return {"_class_name": f"StableDiffusion{task}Pipeline", **lacks}
    empty = {"force_zeros_for_empty_prompt": (reading or XL).empty_is_zero}
    if "text_encoder" in named:
        return {"_class_name": f"StableDiffusionXL{task}Pipeline", **empty}
    refiner = {SCORED: True, "tokenizer": none, "text_encoder": none}
    return {"_class_name": "StableDiffusionXLImg2ImgPipeline", **empty, **refiner}


def save_unet(unet: UNet, folder: Path) -> None:
    _save_network(folder, unet, unet.config.to_dict())


def save_autoencoder(autoencoder: Autoencoder, folder: Path) -> None:
    _save_network(folder, autoencoder, autoencoder.config.to_dict())


def save_noise(noise: Noise, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    config = noise.config.to_dict() | {"_diffusers_version": DIFFUSERS_VERSION}
    write_atomically(folder / "scheduler_config.json", _json(config))


def other_kind(folder: Path) -> str:
    """What a folder without a model_index.json is."""
    names = {path.name for path in folder.iterdir()}
    if "adapter_config.json" in names or any("lora" in name.lower() for name in names):
        return "is a LoRA, which changes a model and is none by itself"
    if "config.json" in names:
        config = Files(folder).config("config.json")
        return f"is a {config.get('_class_name') or config.get('model_type') or 'network'} alone"
    return "has no model_index.json" if names else "is empty"


def _read_index(files: Files) -> tuple[dict[str, Any], set[str]]:
    """model_index.json, and the parts that it names: each is known here, and lies in the folder."""
    folder = files.root
    if not files.has(INDEX):
        raise ValueError(f"{folder} {other_kind(folder)}; give a model folder, as diffusers saves one.")
    index = files.config(INDEX)
    name = index.get("_class_name")
    if not isinstance(name, str) or name not in PIPELINES:
        known = "only those of Stable Diffusion 1.x, 2.x and XL are read"
        raise ValueError(f"{folder} is a model for {name!s:.80}; {known}.")
    named = {part: value for part, value in index.items() if isinstance(value, list)}
    parts = {part: value for part, value in named.items() if value != [None, None]}
    for part, value in parts.items():
        library, classes = PARTS.get(part, ("", ()))
        if part not in UNREAD and value not in [[library, name] for name in classes]:
            expected = f"expected {', '.join(classes)} of {library}" if classes else "no such part is known"
            raise ValueError(f"{folder} has as its {shown(part)} {'.'.join(map(str, value)):.80}; {expected}.")
    if (name == LANGUAGE_PIPELINE) != (LANGUAGE_MODEL in parts) or {LANGUAGE_MODEL, "text_encoder_2"} <= parts.keys():
        raise ValueError(f"{folder} is a {name} of {', '.join(parts)}: a {LANGUAGE_PIPELINE}, and no other, has a "
                         f"{LANGUAGE_MODEL}, alone or after one text_encoder.")
    optional = {"vae", LANGUAGE_MODEL}
    if "text_encoder_2" not in parts:
        optional |= {"tokenizer_2", "text_encoder_2"}
    if "text_encoder" not in parts and (LANGUAGE_MODEL in parts or (index.get(SCORED) and "text_encoder_2" in parts)):
        optional |= {"tokenizer", "text_encoder"}
    for part in PARTS:
        if part not in parts and part not in optional:
            raise ValueError(f"{folder / INDEX} names no {part}; {WHOLE}.")
        if part in parts and not (folder / part).is_dir():
            raise ValueError(f"{folder} has no folder {part}, which its {INDEX} names; {WHOLE}.")
    return index, set(parts)


def _read_defaults(files: Files) -> dict[str, Any]:
    """What a folder's generation_config.json says, if it has one."""
    said = files.config(DEFAULTS) if files.has(DEFAULTS) else {}
    known = [field.name for field in fields(Defaults)]
    for name in said:
        if name not in known:
            path = files.root / DEFAULTS
            raise ValueError(f"{path} has no setting {shown(name)!r}; it takes {', '.join(known)}.")
    with faults_of(files.root / DEFAULTS):
        return checked(Defaults, said)


def _load_network(
    files: Files,
    part: str,
    dtype: torch.dtype | None,
    build: Callable[[dict[str, Any]], N],
    names: dict[str, str] | None = None,
) -> N:
    """`names` are parts of names in the file, and what stands for them in the network."""
    config, stored = files.config(join(part, "config.json")), files.weights(part, WEIGHTS)
    with faults_of(files.root / part), Undrawn(len(shapes(stored))), torch.device("meta"):
        network = build(config)

    def ours(name: str) -> str:
        for old, new in (names or {}).items():
            name = name.replace(old, new)
        return name

    check_weights(network, {ours(name): entry for name, entry in shapes(stored).items()}, stored[0].path)
    network.load_state_dict({ours(name): w for name, w in files.read(stored, dtype).items()}, assign=True)
    return network.eval()


def _save_network(folder: Path, network: nn.Module, config: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(folder / f"{WEIGHTS}.safetensors", network.state_dict())
    write_atomically(folder / "config.json", _json(config))


@contextmanager
def faults_of(path: Path) -> Iterator[None]:
    """What a wrong configuration raises inside becomes one sentence that names the path."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        said = sentence(error)
        raise ValueError(f"{said}." if said.startswith(str(path)) else f"{path}: {said}.") from error


def _first(part: str) -> list[str]:
    """What model_index.json says of a part, where there is nothing to choose."""
    library, classes = PARTS[part]
    return [library, classes[0]]


def _json(values: dict[str, Any]) -> bytes:
    return (json.dumps(values, indent=2) + "\n").encode()
