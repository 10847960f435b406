"""Language models' folders as transformers writes them <=> this stack: GPT-2, LLaMA 2 and 3, T5's encoder."""

import re
from dataclasses import replace
from pathlib import Path

import torch

from clip.folder import (
    CONFIG,
    WEIGHTS,
    State,
    Undrawn,
    fuse,
    inverse,
    load,
    read_json,
    read_weights,
    rename,
    split,
    write_folder,
)
from clip.language_formats import FORMATS, Format, Json
from clip.language_model import LanguageConfig, LanguageModel
from clip.transformer import GATED

FUSED = {  # ours: what theirs keep apart
    ".qkv.": (".q.", ".k.", ".v."),
    ".up.": (".gate.", ".value."),
}


def language_model_from_folder(folder: str | Path) -> LanguageModel:
    """Open config.json and model.safetensors, whole or in parts, of a GPT-2, a LLaMA or a T5, in float32.

    Of a T5 the encoder is read. Raises ValueError, in one sentence, for what cannot be opened.
    """
    folder = Path(folder)
    state = read_weights(folder / WEIGHTS)
    return language_model_from_weights(read_json(folder / CONFIG), state, folder, torch.float32)


def language_model_from_weights(
    described: Json, state: State, folder: Path, dtype: torch.dtype | None = None
) -> LanguageModel:
    """That of a folder read already; where no dtype is named, in that of the weights."""
    kind = described.get("model_type")
    if kind not in FORMATS:
        raise ValueError(f"{folder} is of model_type {kind!r}: {', '.join(FORMATS)} can be opened")
    form = FORMATS[kind]
    config = form.read(described)
    state = from_format(state, form)
    if config.head == "tied":
        state.pop("head.weight", None)  # some files hold the same table twice
    elif config.head == "untied" and "head.weight" not in state:
        config = replace(config, head="none")
    with Undrawn(len(state)), torch.device("meta"):
        model = LanguageModel(config)
    return load(model, state, folder, dtype).eval()


def save_language_model(model: LanguageModel, folder: str | Path) -> None:
    """Write config.json and model.safetensors, which transformers' class of the kind opens.

    Raises ValueError where no kind can say all that the configuration does.
    """
    config = model.config
    kind = kind_of(config)
    form = FORMATS[kind]
    described = {
        "architectures": [form.bare_class if config.head == "none" else form.head_class],
        "model_type": kind,
        **form.write(config),
        "pad_token_id": None,
    }
    write_folder(Path(folder), described, to_format(model.state_dict(), form, config))


def kind_of(config: LanguageConfig) -> str:
    """The first kind that reads the same configuration out of what it writes. Raises ValueError where none does."""
    for kind, form in FORMATS.items():
        try:
            again = form.read(form.write(config))
        except ValueError:
            continue
        if config in (again, replace(again, head="none")):  # a head that is not there is not written down
            return kind
    raise ValueError(f"none of {', '.join(FORMATS)} has such a model: {config}")


# names


def from_format(state: State, form: Format) -> State:
    """Weights in one of the formats => of `LanguageModel`."""
    read = {key.removeprefix(form.prefix): weight for key, weight in state.items() if not re.search(form.unread, key)}
    ours = rename(read, form.names, f"a {form.bare_class}")
    for part in form.transposed:
        ours = {key: weight.T if part in key and weight.ndim == 2 else weight for key, weight in ours.items()}
    for whole in form.apart:
        ours = fuse(ours, whole, FUSED[whole])
    return ours


def to_format(state: State, form: Format, config: LanguageConfig) -> State:
    """The inverse of `from_format`."""
    stack = config.stack
    sizes = {
        ".qkv.": [stack.heads * stack.head, *2 * [(stack.kv_heads or stack.heads) * stack.head]],
        ".up.": 2 * [stack.mlp_width] if stack.activation in GATED else None,
    }
    for whole in form.apart:
        if sizes[whole] is not None:
            state = split(state, whole, FUSED[whole], sizes[whole])
    for part in form.transposed:
        state = {key: weight.T if part in key and weight.ndim == 2 else weight for key, weight in state.items()}
    theirs = rename(state, inverse(form.names))
    prefix = "" if config.head == "none" else form.prefix
    return {key if key == "lm_head.weight" else prefix + key: weight for key, weight in theirs.items()}
