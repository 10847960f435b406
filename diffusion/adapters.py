"""LoRAs beside a model's layers. A request names them, and no weight of the model is ever changed.

    split_loras("a cat <lora:style:0.8>")    "a cat ", and the LoRAs that a prompt names
    Adapters(model, folder).pin(loras)       the same LoRAs with nothing left open
    Adapters(model, folder).adapt(loras)     the model with their terms beside its layers; all else is shared
"""

import copy
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion.lora import UNET, Place, Term, networks, places, read_lora
from diffusion.model import Model
from diffusion.onednn import linear

MAX_WEIGHT = 100
SHOWN = 20  # names in a sentence
TAG = re.compile(r"<lora:([^:<>]+)((?::[^:<>]*)*)>")


class Lora(NamedTuple):
    """A LoRA that a request asks for. In a prompt of AUTOMATIC1111's it is `<lora:name:weight>`."""

    name: str  # of its file, in the folder of LoRAs, with or without .safetensors
    weight: float = 1.0
    text_weight: float | None = None  # in the text encoders, where it is another one
    sha256: str | None = None  # of the file; a resolved request says it

    @property
    def tag(self) -> str:
        """As it stands in a prompt of AUTOMATIC1111's; two weights are the text encoder's and the U-Net's."""
        text = self.weight if self.text_weight is None else self.text_weight
        weights = f"{self.weight:g}" if text == self.weight else f"{text:g}:{self.weight:g}"
        return f"<lora:{self.name}:{weights}>"


class Part(NamedTuple):
    """A term for some rows of a layer."""

    start: int
    down: Tensor  # [r, I], or [r, I, h, w] of a convolution
    up: Tensor  # [rows, r], with the term's scale and weight in it


def parse_lora(text: str) -> Lora:
    """ "ink:0.8" => the LoRA "ink" by 0.8; a name alone has the weight 1."""
    name, colon, weight = text.rpartition(":")
    return Lora(name, float(weight)) if colon else Lora(text)


def loras_from_json(said: Any) -> tuple[Lora, ...]:
    """Each as a list of a `Lora`'s fields, of which only the name must be there."""
    items: Any = said if isinstance(said, list | tuple) else [None]
    if not all(isinstance(item, list | tuple) and 1 <= len(item) <= 4 and isinstance(item[0], str) for item in items):
        raise ValueError(f'The loras are {said!r}; expected a list as [["name", 0.8]].')
    return tuple(Lora(*item) for item in items)


def split_loras(prompt: str) -> tuple[str, tuple[Lora, ...]]:
    """A prompt in AUTOMATIC1111's syntax => the same without the tags of LoRAs, and these."""

    def lora(name: str, numbers: str) -> Lora:
        try:
            text, *unet = [float(number) for number in numbers.split(":")[1:]] or [1.0]
        except ValueError:
            raise ValueError(f"<lora:{name}{numbers}> has a weight that is no number; try <lora:{name}:0.8>.") from None
        return Lora(name.strip(), unet[0], text) if unet else Lora(name.strip(), text)

    return TAG.sub("", prompt), tuple(lora(*match) for match in TAG.findall(prompt))


class Adapters:
    """The LoRAs of a folder, for a model."""

    def __init__(self, model: Model, folder: Path | None = None) -> None:
        self.model = model
        self.folder = folder
        self.networks = networks(model)

    @cached_property
    def places(self) -> dict[str, Place]:
        return places(self.model)

    def pin(self, loras: Sequence[Lora]) -> tuple[Lora, ...]:
        """The same LoRAs with nothing left open.

        Raises ValueError for one that is not there, is not the one that was meant, or does not fit the model.
        """
        return tuple(self._pin(*lora) for lora in loras)

    def _pin(self, name: str, weight: float = 1.0, text_weight: float | None = None, pin: str | None = None) -> Lora:
        text_weight = weight if text_weight is None else text_weight
        for number in (weight, text_weight):
            if type(number) not in (int, float) or not abs(number) <= MAX_WEIGHT:
                raise ValueError(f"The LoRA {name} has the weight {number!r}; expected -{MAX_WEIGHT} to {MAX_WEIGHT}.")
        lora = Lora(name, float(weight), float(text_weight), pin or read_lora(self._find(name)).sha256)
        self.terms(lora)
        return lora

    def terms(self, lora: Lora) -> list[tuple[Place, Term]]:
        """Those of a pinned LoRA, and where they belong."""
        path = self._find(lora.name)
        file = read_lora(path)
        if file.sha256 != lora.sha256:
            raise ValueError(f"{path} is not the LoRA that was meant: its SHA-256 is {file.sha256}, not {lora.sha256}.")
        return [(self._place(name, term, path), term) for name, term in file.terms.items()]

    def _place(self, name: str, term: Term, path: Path) -> Place:
        if name not in self.places:
            raise ValueError(f"{path} is of another kind of model: this one has no {name}.")
        place = self.places[name]
        theirs, ours = [len(term.up), term.down[0].numel()], [place.rows, place.columns]
        if theirs != ours:
            raise ValueError(f"{path} is of another kind of model: {name} has the sides {theirs}, not {ours}.")
        return place

    def _find(self, name: Any) -> Path:
        if self.folder is None:
            raise ValueError(f"The LoRA {name!r} is asked for and no folder of LoRAs is given; give it by --loras.")
        file = Path(f"{str(name).removesuffix('.safetensors')}.safetensors")
        if file.is_absolute() or ".." in file.parts or not (self.folder / file).is_file():
            known = sorted(path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*.safetensors"))
            there = ", ".join(name.removesuffix(".safetensors") for name in known[:SHOWN]) or "no .safetensors"
            raise ValueError(f"There is no LoRA {name!r} in {self.folder}, which has {there}.")
        return self.folder / file

    def adapt(self, loras: Sequence[Lora]) -> Model:
        """The model with the terms of pinned LoRAs beside its layers; all else is shared."""
        parts = self.parts(loras)
        unet, *text_encoders = (_adapted(network, parts[name]) for name, network in self.networks.items())
        return replace(self.model, unet=unet, text_encoders=tuple(text_encoders))

    def describe(self, loras: Sequence[Lora]) -> dict[str, str]:
        """What a picture's `parameters` say of them: names without what would end a name, and short hashes."""
        hashes = [read_lora(self._find(lora.name)).tensors_sha256 for lora in loras]
        said = [f"{re.sub('[:,]', '', lora.name)}: {sha[:12]}" for lora, sha in zip(loras, hashes, strict=True)]
        return {"Lora hashes": ", ".join(said)} if said else {}

    def parts(self, loras: Sequence[Lora]) -> Mapping[str, Mapping[str, list[Part]]]:
        """What pinned LoRAs add, by network and layer."""
        found: dict[str, dict[str, list[Part]]] = defaultdict(lambda: defaultdict(list))
        for lora in loras:
            for (network, layer, start, *_), term in self.terms(lora):
                weight = lora.weight if network == UNET else lora.text_weight
                if weight:
                    found[network][layer].append(Part(start, term.down, weight * term.scale * term.up))
        return found


def delta(parts: Sequence[Part], weight: Tensor) -> Tensor:
    """What parts add to a layer's weight, in its shape."""
    down, up = _sum(parts, weight)
    return (up @ down.flatten(1)).view_as(weight)


def _sum(parts: Sequence[Part], weight: Tensor) -> tuple[Tensor, Tensor]:
    """The parts as one product: down [R, I, ...] and up [O, R], R being the sum of their ranks."""
    down = torch.cat([part.down.flatten(1) for part in parts]).view(-1, *weight.shape[1:])
    rows = len(weight)
    up = torch.cat([F.pad(part.up, (0, 0, part.start, rows - part.start - len(part.up))) for part in parts], dim=1)
    return down.to(weight), up.to(weight)


def _adapted(module: Any, parts: Mapping[str, Sequence[Part]], name: str = "") -> Any:
    """The module's twin: around the same parameters, with what is added beside the layers that `parts` names."""
    if not any(layer.startswith(name) for layer in parts):
        return module
    twin = copy.copy(module)
    if name in parts:
        twin.__class__ = LinearBeside if isinstance(module, nn.Linear) else ConvBeside
        twin._parameters = {"base": module.weight, "bias": module.bias}
        twin._buffers = dict(zip(("down", "up"), _sum(parts[name], module.weight), strict=True))
    else:
        children = {child: f"{name}.{child}".lstrip(".") for child in module._modules}
        twin._modules = {child: _adapted(module._modules[child], parts, path) for child, path in children.items()}
    return twin


class LinearBeside(nn.Linear):
    """A linear layer and a low-rank term."""

    base: Tensor  # [O, I]
    down: Tensor  # [R, I]
    up: Tensor  # [O, R]

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The sum, for code that makes do without `forward`."""
        return self.base + self.up @ self.down

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.base, self.bias) + linear(linear(x, self.down), self.up)


class ConvBeside(nn.Conv2d):
    """A convolution and a low-rank term: another one, of few channels, and a mix of these."""

    base: Tensor  # [O, I, h, w]
    down: Tensor  # [R, I, h, w]
    up: Tensor  # [O, R]

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The sum, for code that makes do without `forward`."""
        return self.base + (self.up @ self.down.flatten(1)).view_as(self.base)

    def forward(self, x: Tensor) -> Tensor:
        h = self._conv_forward(x, self.down, None)  # [B, R, h, w]
        return self._conv_forward(x, self.base, self.bias) + F.conv2d(h, self.up[:, :, None, None])
