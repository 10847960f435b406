"""LoRA files (Hu et al. 2021): low-rank terms that are added to a model's layers. In, and named as our layers are.

    read_lora(path)          the terms of a file, by the file's own names for the layers
    places(unet, texts)      every name that a file may have for a layer of a model => where it is here

Read are the files of diffusers and peft, the older ones of diffusers, and kohya's, with convolutions (LoCon).
"""

import hashlib
import json
import math
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor, nn

from clip.pretrained import to_transformers
from diffusion.model import Model
from diffusion.original import original_name, original_names
from diffusion.weights import Safetensors

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


def read_lora(path: Path) -> dict[str, Term]:
    """The terms of a file, by its names for the layers. Raises ValueError for a file that is no LoRA, or unsound."""
    Safetensors(path)
    sides: dict[str, dict[str, Tensor]] = {}
    alphas: dict[str, float] = {}
    with safe_open(path, "pt") as file:
        for key in sorted(file.keys()):
            name = key.replace(".processor.", ".")
            if match := ALPHA.fullmatch(name):
                alphas[match["layer"]] = float(file.get_tensor(key))
            elif match := WEIGHT.fullmatch(name):
                side = "down" if match["side"] in ("A", "down") else "up"
                sides.setdefault(match["layer"], {})[side] = file.get_tensor(key).float()
            else:
                kind = next((kind for part, kind in OTHERS.items() if part in key), f"no LoRA: it has {key}")
                raise ValueError(f"{path} is {kind}; only plain LoRA files are read here.")
        said = json.loads((file.metadata() or {}).get("lora_adapter_metadata", "{}"))
    terms = {}
    for layer, pair in sides.items():
        if pair.keys() != {"down", "up"}:
            raise ValueError(f"{path} is damaged: {layer} has only one of its two matrices; fetch it again.")
        down, up = pair["down"], pair["up"].flatten(1)
        if len(down) != up.shape[1]:
            raise ValueError(f"{path} is damaged: {layer} has the ranks {len(down)} and {up.shape[1]}; fetch it again.")
        terms[layer] = Term(down, up, _scale(layer, len(down), alphas.get(layer), said))
    if not terms:
        raise ValueError(f"{path} is empty; it changes no layer.")
    return terms


def tensors_sha256(path: Path) -> str:
    """Of a file without its header, where notes may change: how AUTOMATIC1111 and Civitai know a LoRA."""
    with path.open("rb") as file:
        file.seek(8 + int.from_bytes(file.read(8), "little"))
        return hashlib.file_digest(file, "sha256").hexdigest()


def _scale(layer: str, rank: int, alpha: float | None, said: dict[str, Any]) -> float:
    """alpha / r; where a file says nothing of alpha it is r. peft says it in the metadata, with exceptions."""
    if alpha is None:
        part, _, name = layer.partition(".")
        alpha = said.get(f"{part}.lora_alpha", rank)
        for pattern, value in said.get(f"{part}.alpha_pattern", {}).items():
            if name == pattern or name.endswith(f".{pattern}"):
                alpha = value
        if said.get(f"{part}.use_rslora"):
            return alpha / math.sqrt(rank)
    return alpha / rank


def networks(model: Model) -> dict[str, nn.Module]:
    """Those that a LoRA may change, as diffusers names them: the U-Net, then the text encoders."""
    names = [TEXT_ENCODER, *(f"{TEXT_ENCODER}_{i}" for i in range(2, len(model.text_encoders) + 1))]
    return {UNET: model.unet, **dict(zip(names, model.text_encoders, strict=True))}


def places(model: Model) -> dict[str, Place]:
    """Every name by which a file may call a layer of a model."""
    found: dict[str, Place] = {}
    originals = original_names(model.unet.config)
    for network, module in networks(model).items():
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
