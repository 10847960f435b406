"""LoRA files (Hu et al. 2021): low-rank terms that are added to a model's layers. In, and named as our layers are.

    read_lora(path)      the terms of a file, by the file's own names for the layers
    places(model)        every name that a file may have for a layer of a model => where it is here

Read are the files of diffusers and peft, the older ones of diffusers, and kohya's, with convolutions (LoCon).
"""

import hashlib
import math
import re
from collections import defaultdict
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from clip.language_encoder import LanguageEncoder
from clip.pretrained import to_transformers
from diffusion.conditioning import encoder_names
from diffusion.model import Model
from diffusion.original import original_name, original_names
from diffusion.weights import Safetensors, shown, strict_json

KEPT = 8  # files
NOTES = "lora_adapter_metadata"  # where peft says how its terms are scaled
UNET, TEXT_ENCODER = "unet", "text_encoder"
WEIGHT = re.compile(r"(?P<layer>.+?)[._]lora(?:_linear_layer)?[._](?P<side>A|B|down|up)\.weight")
ALPHA = re.compile(r"(?P<layer>.+?)(?:[._]lora)?\.alpha")
OTHERS = {  # what else files hold, and what that makes them
    "dora_scale": "a DoRA",
    "lora_magnitude_vector": "a DoRA",
    "hada_": "a LoHa",
    "lokr_": "a LoKr",
    "lora_mid": "a LoCon in Tucker's form",
    "oft_": "an OFT",
}


class Term(NamedTuple):
    """What is added to a layer's weight: scale * up @ down."""

    down: Tensor  # [r, I], or [r, I, h, w] for a convolution
    up: Tensor  # [O, r]
    scale: float  # alpha / r


class Place(NamedTuple):
    """A layer, or that part of one that others have as a layer of its own."""

    network: str  # "unet", "text_encoder" or "text_encoder_2"
    layer: str  # its name in the network
    start: int  # the first row of its weight
    rows: int
    columns: int  # numbers a row


class LoraFile(NamedTuple):
    terms: dict[str, Term]  # by the file's names for the layers
    sha256: str
    tensors_sha256: str  # of all but the header, where notes may change: how AUTOMATIC1111 and Civitai know a LoRA


def read_lora(path: Path) -> LoraFile:
    """Raises ValueError, in one sentence, for a file that is no LoRA, another kind of one, or unsound."""
    state = path.stat()
    return _read(path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=KEPT)
def _read(path: Path, changed: int, size: int) -> LoraFile:
    """What is read is kept while the file stays as it is."""
    file, digest = Safetensors(path), hashlib.sha256()
    sides: dict[str, dict[str, Tensor]] = defaultdict(dict)
    alphas: dict[str, float] = {}
    for key, tensor in file.tensors():
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
        name = key.replace(".processor.", ".")
        if match := ALPHA.fullmatch(name):
            if tensor.numel() != 1:
                raise ValueError(f"{path} is damaged: {shown(key)} is not one number; fetch it again.")
            alphas[match["layer"]] = float(tensor)
        elif match := WEIGHT.fullmatch(name):
            if not tensor.is_floating_point():
                raise ValueError(f"{path} has {shown(key)} as {tensor.dtype}; expected floating-point numbers.")
            sides[match["layer"]]["down" if match["side"] in ("A", "down") else "up"] = tensor.float()
        else:
            kind = next((kind for part, kind in OTHERS.items() if part in key), f"no LoRA: it has {shown(key)}")
            raise ValueError(f"{path} is {kind}; only plain LoRA files are read here.")
    if not sides:
        raise ValueError(f"{path} is empty; it changes no layer.")
    notes = strict_json(file.metadata.get(NOTES, "{}").encode(), f"{path}: {NOTES}")
    terms = {}
    for layer, pair in sides.items():
        shapes = {side: list(tensor.shape) for side, tensor in pair.items()}
        match shapes:
            case {"down": [rank, _, *_], "up": [_, other, *_]} if rank == other > 0:
                scale = _scale(layer, rank, alphas.get(layer), notes)
                terms[layer] = Term(pair["down"], pair["up"].flatten(1), scale)
            case _:
                raise ValueError(f"{path} is damaged: {shown(layer)} has {shapes}, no two matrices; fetch it again.")
    return LoraFile(terms, str(file.sha256), digest.hexdigest())


def _scale(layer: str, rank: int, alpha: float | None, notes: dict[str, Any]) -> float:
    """alpha / r; where a file says nothing of alpha it is r. peft says it in the metadata, with exceptions."""
    if alpha is not None:
        return alpha / rank
    network, _, name = layer.partition(".")
    alpha = notes.get(f"{network}.lora_alpha", rank)
    for pattern, value in (notes.get(f"{network}.alpha_pattern") or {}).items():
        if name == pattern or name.endswith(f".{pattern}"):
            alpha = value
    return float(alpha) / (math.sqrt(rank) if notes.get(f"{network}.use_rslora") else rank)


def networks(model: Model) -> dict[str, nn.Module]:
    """Those that a LoRA may change, as diffusers names them: the U-Net, then the text encoders."""
    names = encoder_names(model.text_encoders, model.reading)
    return {UNET: model.unet, **dict(zip(names, model.text_encoders, strict=True))}


def places(model: Model) -> dict[str, Place]:
    """Every name by which a file may call a layer of a model."""
    found: dict[str, Place] = {}
    originals = original_names(model.unet.config)
    for network, module in networks(model).items():
        if isinstance(module, LanguageEncoder):
            continue  # the files have no names for its layers
        for name, place in _renamed(network, module).items():
            under = name.replace(".", "_")
            if network == UNET:
                short = name.removesuffix(".0") if name.endswith("to_out.0") else name  # in older files of diffusers
                original = original_name(name, originals).replace(".", "_")  # in kohya's files for XL
                names = [name, short, f"unet.{name}", f"unet.{short}", f"lora_unet_{under}", f"lora_unet_{original}"]
            else:
                number = network.removeprefix(TEXT_ENCODER).lstrip("_") or "1"
                bare = name.removeprefix("text_model.")  # as transformers 5 has it
                names = [f"{network}.{name}", f"{network}.{bare}", f"{network}.{_old(name)}"]
                names += [f"lora_te{number}_{under}", *([f"lora_te_{under}"] if number == "1" else [])]
            found |= dict.fromkeys(names, place)
    return found


def _renamed(network: str, module: nn.Module) -> dict[str, Place]:
    """Where each layer of a network is, by the name that diffusers or transformers has for it.

    In place of weights, the conversion of names is given the numbers of their rows: where it cuts them shows.
    """
    layers = [(name, layer) for name, layer in module.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    rows = {
        f"{name}.weight": torch.stack([torch.full([len(layer.weight)], index), torch.arange(len(layer.weight))], dim=1)
        for index, (name, layer) in enumerate(layers)
    }
    found = {}
    theirs = rows if network == UNET else to_transformers({f"text.{name}": weight for name, weight in rows.items()})
    for name, weight in theirs.items():
        index, start = weight[0].tolist()
        path, layer = layers[index]
        columns = layer.weight[0].numel()
        found[name.removesuffix(".weight")] = Place(network, path, start, len(weight), columns)
    return found


def _old(name: str) -> str:
    """A layer of transformers' CLIP as older files of diffusers have it."""
    for part in ("q", "k", "v", "out"):
        name = name.replace(f"self_attn.{part}_proj", f"self_attn.to_{part}")
    return name
