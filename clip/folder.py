"""Model folders as Hugging Face's libraries write them: config.json and model.safetensors, read and written.

Every library holds the same numbers under other names, so each format is one table of names.
"""

import json
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

State = dict[str, Tensor]
Module = TypeVar("Module", bound=nn.Module)


def load(module: Module, state: State, folder: Path) -> Module:
    """Give a module made on the "meta" device its weights; nothing is initialised only to be thrown away."""
    try:
        module.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise ValueError(f"the weights in {folder} do not fit its configuration: {error}") from error
    return module.float()


def read_weights(path: Path) -> State:
    if not path.is_file():
        raise ValueError(f"{path} is missing: weights are read from safetensors alone, so convert others")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}): fetch or save it again") from error


def write_folder(folder: Path, config: dict[str, Any], state: State) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", config)
    # transformers refuses files that do not name their "format".
    state = {key: weight.contiguous() for key, weight in state.items()}
    aside = folder / ".model.safetensors.part"  # a crash leaves the old file or the new one
    aside.write_bytes(save(state, metadata={"format": "pt"}))
    aside.replace(folder / "model.safetensors")


def read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as JSON ({error}): fetch or save it again") from error


def write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


# names


def rename(state: State, names: dict[str, str]) -> State:
    heads = {old: new for old, new in names.items() if not old.startswith(".")}
    parts = {old: new for old, new in names.items() if old.startswith(".")}
    renamed = {}
    for key, weight in state.items():
        head = next((old for old in heads if key.startswith(old)), None)
        if head is None:
            raise ValueError(f"weight {key!r} is not of a CLIP: only those of plain ViT kind can be opened")
        tail = key.removeprefix(head)
        # In "0.norm1.weight" a part stands between dots, so none can match half of another's name.
        for old, new in parts.items():
            tail = tail.replace(old, new)
        renamed[heads[head] + tail] = weight
    return renamed


def inverse(names: dict[str, str]) -> dict[str, str]:
    return {ours: theirs for theirs, ours in names.items()}


def part(prefix: str, state: State) -> State:
    return {key.removeprefix(prefix): weight for key, weight in state.items() if key.startswith(prefix)}
