"""What a picture says about how it was made, and reading it back.

Two texts in its file: `parameters`, in the form of AUTOMATIC1111's web UI, which galleries read; and `oboro`, JSON
with all that it takes to make the picture again. No dates are in them: the same picture is the same file.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from typing import Any, Protocol

import torch

from diffusion.parameters import read_parameters, split_parameters, write_parameters
from diffusion.request import Request, Resolved, from_json, to_json

VERSION = "0.1.0"
NETWORKS = ("unet/", "transformer/")  # where the file is that `Model hash` is of


class Named(Protocol):
    """A model, as far as a picture tells of it."""

    @property
    def name(self) -> str: ...

    @property
    def hashes(self) -> Mapping[str, str]: ...  # the SHA-256 of every weight file, by its path


def describe(
    request: Resolved,
    model: Named,
    device: torch.device,
    dtype: torch.dtype,
    libraries: Iterable[str] = (),
    more: Mapping[str, str] | None = None,
    prediction_type: str | None = None,
    batch: int = 1,
) -> dict[str, str]:
    """The texts of a picture, by name.

    `libraries` are those that had a part in it, besides torch; `more` are further fields of `parameters`;
    `prediction_type` is what the network was taken to predict, which can be told to a model when it is opened;
    `batch` is how many pictures went through it together.
    """
    said: dict[str, Any] = {
        "request": to_json(request),
        "model": {"name": model.name, "weights": model.hashes}
        | ({} if prediction_type is None else {"prediction_type": prediction_type}),
        "versions": {"oboro": VERSION, "torch": str(torch.__version__), **{name: version(name) for name in libraries}},
        "dtype": str(dtype).removeprefix("torch."),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    }
    if device.type == "cpu":  # its kernels, and the threads that share a sum, decide in which order that is taken
        said |= {"processor": torch.backends.cpu.get_cpu_capability(), "threads": torch.get_num_threads()}
    if batch > 1:
        said["batch"] = batch
    # `RNG: CPU` is what that program calls noise that is drawn on the CPU, as all of ours is.
    fields = {
        "Model hash": model_hash(model)[:10],
        "Model": model.name,
        "RNG": "CPU",
        **(more or {}),
        "Version": f"oboro {VERSION}",
    }
    return {"parameters": write_parameters(request, fields), "oboro": json.dumps(said, ensure_ascii=False)}


def with_checks(texts: Mapping[str, str], checks: Mapping[str, str]) -> dict[str, str]:
    """A picture's texts, which then say what it was checked by, besides; a picture that says nothing was not."""
    record = json.loads(texts["oboro"]) | ({"checks": dict(checks)} if checks else {})
    return {**texts, "oboro": json.dumps(record, ensure_ascii=False)}


def record_of(texts: dict[str, str]) -> dict[str, Any]:
    """What our own chunk records; of another program's picture, the name of its model alone.

    Raises ValueError where the chunk is broken.
    """
    if "oboro" not in texts:
        _, _, line = split_parameters(texts.get("parameters", ""))
        return {"model": {"name": line.get("Model", ""), "weights": {}}}
    try:
        record = json.loads(texts["oboro"])
    except (ValueError, RecursionError) as error:
        raise ValueError(f"The picture's oboro chunk is broken: {error}.") from None
    match record:
        case {"request": dict(), "model": {"name": str(), "weights": dict()}, "versions": dict()}:
            return record
    raise ValueError("The picture's oboro chunk is broken: it lacks the request, the model or the versions.")


def request_of(texts: dict[str, str], files: Iterable[bytes] = ()) -> Request:
    """The request that a picture was made from: all of it from our own chunk, else what `parameters` tells.

    `files` are those that the request began with, which a picture names by their hash alone. Raises ValueError
    where neither chunk is there, one is broken or a file is not given.
    """
    if "oboro" in texts:
        return from_json(record_of(texts)["request"], files)
    if "parameters" not in texts and "workflow" in texts:
        raise ValueError("The picture holds a graph of ComfyUI and no `parameters`; open it there.")
    if "parameters" not in texts:
        raise ValueError("The picture does not say how it was made: it has neither `oboro` nor `parameters`.")
    return read_parameters(texts["parameters"])


def digest(request: Resolved, model: Named) -> str:
    """Twelve hexadecimal digits of the whole request and the weights: a file name for the picture."""
    return hashlib.sha256(json.dumps([to_json(request), model.hashes]).encode()).hexdigest()[:12]


def model_hash(model: Named) -> str:
    """What other programs know a model by: the SHA-256 of its U-Net's file, or of the one that holds all."""
    network = next((name for name in model.hashes if name.startswith(NETWORKS)), next(iter(model.hashes)))
    return model.hashes[network]


def model_digest(model: Named) -> str:
    """Twelve hexadecimal digits of the weights."""
    return hashlib.sha256(json.dumps(model.hashes).encode()).hexdigest()[:12]
