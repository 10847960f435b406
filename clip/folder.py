"""Model folders as Hugging Face's libraries write them: config.json and model.safetensors, read and written.

Every library holds the same numbers under other names, so each format is one table of names.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from clip.durable import write_atomically
from clip.transformer import Activation

CONFIG, WEIGHTS = "config.json", "model.safetensors"
State = dict[str, Tensor]
# Names of activations in Hugging Face's configurations: ours. Going back, the first of a kind is written.
ACTIVATION_NAMES: dict[str, Activation] = {
    "quick_gelu": "quick_gelu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}
Module = TypeVar("Module", bound=nn.Module)
CALLS = 20  # of PyTorch, for every tensor of a file, at most, to build its network; about six are made


class Undrawn(TorchFunctionMode):
    """Networks built inside keep their weights as they are allocated: those of a file will replace them.

    It goes with the meta device, which allocates nothing, but which would import PyTorch's compiler, several
    seconds' work, to draw normal numbers that do not exist. A configuration can ask for a billion layers: raises
    ValueError when PyTorch was called more often than a network of `tensors` tensors could need.
    """

    def __init__(self, tensors: int) -> None:
        super().__init__()
        self.calls = CALLS * (tensors + CALLS)

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.calls -= 1
        if self.calls < 0:
            raise ValueError("its config.json asks for more layers than there are weights for")
        if getattr(function, "__module__", None) == nn.init.__name__:
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return function(*args, **kwargs)


def load(module: Module, state: State, folder: Path, dtype: torch.dtype | None = torch.float32) -> Module:
    """Give a module made on the "meta" device its weights; nothing is initialised only to be thrown away.

    They become `dtype`, or stay as they are where it is None.
    """
    try:
        module.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise ValueError(f"the weights in {folder} do not fit its configuration: {error}") from error
    return module if dtype is None else module.to(dtype)


def read_weights(path: Path) -> State:
    """The weights of model.safetensors, or of the parts that a model.safetensors.index.json beside it names."""
    index = path.with_name(f"{path.name}.index.json")
    if path.is_file() or not index.is_file():
        return _read_file(path)
    names = set(read_json(index).get("weight_map", {}).values())
    weights: State = {}
    for name in sorted(names):
        if not isinstance(name, str) or name != Path(name).name:
            raise ValueError(f"{index} names {name!r}, which is no file beside it: fetch or save it again")
        weights |= _read_file(path.with_name(name))
    return weights


def _read_file(path: Path) -> State:
    if not path.is_file():
        raise ValueError(f"{path} is missing: weights are read from safetensors alone, so convert others")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}): fetch or save it again") from error


def write_folder(
    folder: Path, config: dict[str, Any], state: State, names: tuple[str, str] = (CONFIG, WEIGHTS)
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / names[0], config)
    # transformers refuses files that do not name their "format".
    state = {key: weight.contiguous() for key, weight in state.items()}
    write_atomically(folder / names[1], save(state, metadata={"format": "pt"}))


def read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as JSON ({error}): fetch or save it again") from error


def write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


# names


def activation(name: str) -> Activation:
    if name not in ACTIVATION_NAMES:
        raise ValueError(f"activation {name!r} is unknown: {', '.join(ACTIVATION_NAMES)} are known")
    return ACTIVATION_NAMES[name]


def activation_name(activation: Activation) -> str:
    for name, ours in ACTIVATION_NAMES.items():
        if ours == activation:
            return name
    raise ValueError(f"activation {activation!r} has no name there: {', '.join(ACTIVATION_NAMES.values())} have")


def rename(state: State, names: dict[str, str], what: str = "a CLIP of plain ViT kind") -> State:
    """Keys by the longest name that begins them, and the parts in the rest of them, which begin with a dot."""
    heads = sorted((name for name in names if not name.startswith(".")), key=len, reverse=True)
    parts = {old: new for old, new in names.items() if old.startswith(".")}
    renamed = {}
    for key, weight in state.items():
        head = next((old for old in heads if key.startswith(old)), None)
        if head is None:
            raise ValueError(f"weight {key!r} is not of {what}: other models cannot be opened")
        tail = key.removeprefix(head)
        # In "0.norm1.weight" a part stands between dots, so none can match half of another's name.
        for old, new in parts.items():
            tail = tail.replace(old, new)
        renamed[names[head] + tail] = weight
    return renamed


def inverse(names: dict[str, str]) -> dict[str, str]:
    return {ours: theirs for theirs, ours in names.items()}


def part(prefix: str, state: State) -> State:
    return {key.removeprefix(prefix): weight for key, weight in state.items() if key.startswith(prefix)}


def fuse(state: State, whole: str, parts: Sequence[str]) -> State:
    """Matrices and biases whose keys contain `parts`, one each, stacked as one whose key has `whole` in place."""
    fused = dict(state)
    for key in [key for key in state if parts[0] in key]:
        try:
            pieces = [fused.pop(key.replace(parts[0], part)) for part in parts]
        except KeyError as missing:
            raise ValueError(f"weight {missing} is not there, and {key!r} is: fetch or save the model again") from None
        fused[key.replace(parts[0], whole)] = torch.cat(pieces)
    return fused


def split(state: State, whole: str, parts: Sequence[str], sizes: Sequence[int] | None = None) -> State:
    """The inverse of `fuse`; the parts have `sizes` rows, or as many each."""
    apart: State = {}
    for key, weight in state.items():
        if whole in key:
            pieces = weight.split(sizes) if sizes else weight.chunk(len(parts))
            apart |= {key.replace(whole, part): piece for part, piece in zip(parts, pieces, strict=True)}
        else:
            apart[key] = weight
    return apart
