"""The one door to pictures: a model's name => what makes pictures with it, whatever its architecture."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor

from diffusion.checkpoint import DEFAULT_MODEL, find_model, load_model
from diffusion.foreign import ForeignModel, ForeignPipeline, foreign_kind
from diffusion.metadata import Named
from diffusion.pipeline import Picture, Pipeline, Report
from diffusion.request import Request, Resolved


class AnyPipeline(Protocol):
    """What the command line, batch jobs, the demo and the HTTP APIs see of a pipeline."""

    device: torch.device
    dtype: torch.dtype

    @property
    def model(self) -> Named: ...

    def resolve(self, request: Request) -> Resolved:
        """Fills a request up with the model's defaults. Raises ValueError for what the model cannot do."""

    def generate(
        self, requests: Iterable[Request], progress: Report | None = None, batch: int = 1
    ) -> Iterator[Picture]:
        """Makes one picture a request, in their order. A mistake in any is a ValueError before the first.

        `batch` neighbours of one shape go through the model together, where it can. `progress` is called after every
        step; what it raises ends the work there.
        """

    def evaluations(self, request: Resolved) -> int:
        """How often `progress` will be called."""

    def image(self, latents: Tensor) -> Image.Image:
        """Latents [1, C, h, w], as `progress` is given them => picture."""


def open_pipeline(
    model: str | Path = DEFAULT_MODEL,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    loras: Path | None = None,
    embeddings: Path | None = None,
    *,
    vae: Path | None = None,
    prediction_type: str | None = None,
    tokenizer: Path | None = None,
    allow_download: bool = False,
    offload: bool = False,
) -> AnyPipeline:
    """Opens the model that is named by its path, or by its name where it is shipped or on the Hugging Face Hub.

    With `offload` each network is on the device in its own phase alone, where its memory is short of all of them.
    `loras` and `embeddings` are the folders that requests and prompts take theirs from; the rest is for `load_model`.
    Raises ValueError, in one sentence, for a model that is not whole, not sound, or of an unknown kind.
    """
    if offload and torch.device(device).type == "cpu":
        raise ValueError("--offload spares another device's memory, and --device is cpu; leave one of them out.")
    path = find_model(model, allow_download)
    if kind := foreign_kind(path):
        flags = {"vae": vae, "prediction-type": prediction_type, "tokenizer": tokenizer, "offload": offload}
        for flag, value in flags.items():
            if value:
                raise ValueError(f"{path} is a {kind}, which takes no --{flag}.")
        return ForeignPipeline(ForeignModel(path, kind), device, dtype)
    loaded = load_model(path, dtype, vae=vae, prediction_type=prediction_type, tokenizer=tokenizer)
    return Pipeline(loaded, device, dtype, loras, embeddings, offload)
