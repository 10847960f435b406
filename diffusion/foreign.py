"""Text-to-image models of other architectures (Stable Diffusion 3, FLUX, PixArt, Sana, ...), run by diffusers.

`ForeignPipeline` is to such a model what `diffusion.pipeline.Pipeline` is to ours: the same requests in, the
same pictures out. Networks, scheduler and loop are diffusers' own. What they cannot do is refused by name.

A folder may come from anyone: its class is on diffusers' own list, its weights are safetensors, and nothing in
it is run or fetched.
"""

import inspect
import math
import re
import secrets
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from diffusion.files import PICKLES, Files, read_config, sha256
from diffusion.folder import PIPELINES
from diffusion.metadata import describe
from diffusion.pipeline import Picture, Progress, Report
from diffusion.request import DRAWN, RANDOM, Request, Resolved, check_numbers, check_texts, draw_prompts
from diffusion.weights import Safetensors

# What of a request such a model takes, if anything, by the name of the pipeline's argument.
ARGUMENTS = {
    "prompt": "prompt",
    "negative": "negative_prompt",
    "seed": "generator",
    "steps": "num_inference_steps",
    "guidance": "guidance_scale",
    "width": "width",
    "height": "height",
}
OURS_ALONE = ("prompt_syntax", "template", "negative_template")  # it is we who draw prompts from templates
KIND = re.compile(r"[A-Z]\w*Pipeline")  # nothing else is worth the time that it takes to ask diffusers
LIBRARIES = ("diffusers", "transformers")
NEEDED = {"prompt", "generator", "num_inference_steps", "output_type"}
FIXED = {
    "output_type": "np",
    "use_resolution_binning": False,  # the size asked for is the size made
    "clean_caption": False,  # it would depend on what else is installed
}


@dataclass(frozen=True)
class ForeignModel:
    """A model folder and the pipeline of diffusers that opens it. The weights stay on the disk."""

    folder: Path
    kind: str  # a class of diffusers

    @property
    def name(self) -> str:
        return self.folder.name

    @cached_property
    def hashes(self) -> dict[str, str]:
        """The SHA-256 of every weight file, by its path inside the folder."""
        return {path.relative_to(self.folder).as_posix(): sha256(path) for path in _weights(self.folder)}


class ForeignPipeline:
    """A model of another architecture on a device. All its networks run in `dtype`."""

    def __init__(
        self, model: ForeignModel, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> None:
        self.model = model
        self.device = torch.device(device)
        self.dtype = dtype
        self.pipeline = _load(model, dtype).to(self.device)
        self.takes = inspect.signature(self.pipeline.__call__).parameters
        if missing := sorted(NEEDED - self.takes.keys()):
            raise ValueError(f"{model.folder} is a {model.kind}, which takes no {missing[0]}: it cannot be used here.")
        self.arguments = {ours: theirs for ours, theirs in ARGUMENTS.items() if theirs in self.takes}
        if "true_cfg_scale" in self.takes:
            if self._default("guidance_scale") is None:  # Qwen: it guides by this scale, and by no other
                self.arguments["guidance"] = "true_cfg_scale"
            else:  # FLUX: guidance is an input of the network, and nothing leads away from the negative prompt
                self.arguments.pop("negative", None)

    @cached_property
    def defaults(self) -> dict[str, Any]:
        """What a request gets where it says nothing itself."""
        pipeline = self.pipeline
        network = pipeline.transformer if hasattr(pipeline, "transformer") else pipeline.unet
        size = (getattr(pipeline, "default_sample_size", 0) or getattr(network.config, "sample_size", 64)) * self.factor
        return {
            "steps": self._default("num_inference_steps"),
            "guidance": self._default(self.arguments.get("guidance", "")) or 1.0,
            "width": self._default("width") or size,
            "height": self._default("height") or size,
            **self.own,
        }

    @cached_property
    def own(self) -> dict[str, str]:
        """What is the model's own, and not to be chosen."""
        return {
            "sampler": type(self.pipeline.scheduler).__name__,
            "schedule": "automatic",
            "prompt_syntax": "plain",
        }

    @property
    def factor(self) -> int:
        """Pixels a side of a latent."""
        return getattr(self.pipeline, "vae_scale_factor", 8)

    def _default(self, argument: str) -> Any:
        return self.takes[argument].default if argument in self.takes else None

    def resolve(self, request: Request) -> Resolved:
        """Fills a request up with the model's defaults.

        Raises ValueError, in one sentence, for what the model cannot do.
        """
        if request.seed == RANDOM:
            request = replace(request, seed=secrets.randbelow(DRAWN))
        request = draw_prompts(request)
        values = self.defaults | {name: getattr(request, name) for name in OURS_ALONE}
        for field in fields(Request):
            name, value = field.name, getattr(request, field.name)
            if value is None or value == field.default or value == self.own.get(name):
                continue
            if name in self.own:
                raise ValueError(f"A {self.model.kind} has its own {name}, {self.own[name]}; leave {value!r} out.")
            if name not in self.arguments and name not in OURS_ALONE:
                raise ValueError(f"A {self.model.kind} makes pictures without {name}; leave it out.")
            values[name] = value
        resolved = Resolved(**values)
        check_texts(resolved)
        self._check_length("prompt", resolved.prompt)
        self._check_length("negative prompt", resolved.negative)
        # Most of these networks read latents in patches of two by two.
        return check_numbers(resolved, multiple=2 * self.factor)

    def _check_length(self, name: str, text: str) -> None:
        """Of a text, as the last tokenizer counts it: where there are more, it is the one that reads most."""
        parts = sorted(self.pipeline.components.items())
        *_, tokenizer = [part for label, part in parts if label.startswith("tokenizer") and part is not None]
        room = min(self._default("max_sequence_length") or math.inf, tokenizer.model_max_length)
        if (tokens := len(tokenizer(text).input_ids)) > room:
            raise ValueError(f"The {name} is {tokens} tokens long and this model reads {room}; shorten it.")

    def generate(
        self, requests: Iterable[Request], progress: Report | None = None, batch: int = 1
    ) -> Iterator[Picture]:
        """Makes one picture a request, in their order, as `Pipeline.generate` does, but each alone."""
        resolved = [self.resolve(request) for request in requests]
        return (self._picture(request, index, progress) for index, request in enumerate(resolved))

    def _picture(self, request: Resolved, index: int, progress: Report | None) -> Picture:
        values = {theirs: getattr(request, ours) for ours, theirs in self.arguments.items()}
        values |= {name: value for name, value in FIXED.items() if name in self.takes}
        values["generator"] = torch.Generator().manual_seed(request.seed)  # on the CPU, as for our own models
        if progress is not None:
            values |= self._watch(progress, index, request)
        pixels = self.pipeline(**values).images  # [1, H, W, 3] in [0, 1]
        if not torch.from_numpy(pixels).isfinite().all():
            raise ValueError(f"The picture's numbers overflowed; {self.dtype} is too narrow for this model.")
        (image,) = self.pipeline.numpy_to_pil(pixels)
        return Picture(image.convert("RGB"), request, self.describe(request))

    def _watch(self, progress: Report, index: int, request: Resolved) -> dict[str, Any]:
        """The argument by which a pipeline reports its steps: diffusers has had two."""

        def report(step: int, latents: Tensor) -> None:
            progress(Progress(index, step + 1, request.steps, self._preview(latents, request)))

        def at_step_end(_: Any, step: int, time: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            report(step, tensors["latents"])
            return tensors

        if "callback_on_step_end" in self.takes:
            return {"callback_on_step_end": at_step_end}
        return {"callback": lambda step, _, latents: report(step, latents)} if "callback" in self.takes else {}

    def _preview(self, latents: Tensor, request: Resolved) -> Tensor | None:
        """The latents as `image` takes them [1, C, h, w], where they are such; noise is still in them."""
        channels = getattr(getattr(getattr(self.pipeline, "vae", None), "config", None), "latent_channels", None)
        height, width = request.height // self.factor, request.width // self.factor
        if latents.ndim == 3 and latents.numel() == (channels or 0) * height * width:  # FLUX: tokens of 2x2 pixels
            patches = latents.view(1, height // 2, width // 2, -1, 2, 2)
            latents = patches.permute(0, 3, 1, 4, 2, 5).reshape(1, -1, height, width)
        return latents if latents.shape[1:] == (channels, height, width) else None

    @torch.inference_mode()
    def image(self, latents: Tensor) -> Image.Image:
        """Latents [1, C, h, w] => picture."""
        vae = self.pipeline.vae
        latents = latents / vae.config.scaling_factor + (getattr(vae.config, "shift_factor", None) or 0)
        pixels = vae.decode(latents.to(vae.dtype), return_dict=False)[0]  # [1, 3, H, W] in [-1, 1]
        return self.pipeline.image_processor.postprocess(pixels)[0]

    def evaluations(self, request: Resolved) -> int:
        return request.steps

    def describe(self, request: Resolved) -> dict[str, str]:
        return describe(request, self.model, self.device, self.dtype, LIBRARIES)


def foreign_kind(folder: Path) -> str | None:
    """The class of diffusers' that a model folder names, where it is none of those that are built here."""
    if not (folder / "model_index.json").is_file():
        return None
    kind = Files(folder).config("model_index.json").get("_class_name")
    return kind if isinstance(kind, str) and KIND.fullmatch(kind) and kind not in PIPELINES else None


def _load(model: ForeignModel, dtype: torch.dtype) -> Any:
    """The pipeline of diffusers for a model."""
    folder, kind = model.folder, model.kind
    _check_files(folder)
    try:
        import diffusers
        import transformers
        from diffusers.pipelines.auto_pipeline import AUTO_TEXT2IMAGE_PIPELINES_MAPPING
    except ImportError:
        raise ValueError(f"{folder} is a {kind}, which diffusers runs: pip install 'oboro[interop]'.") from None
    classes = {pipeline.__name__: pipeline for pipeline in AUTO_TEXT2IMAGE_PIPELINES_MAPPING.values()}
    if kind not in classes:
        raise ValueError(f"{folder} is a {kind}, which is not among diffusers' text-to-image pipelines.")
    for part, value in read_config(folder / "model_index.json").items():
        library = value[0] if isinstance(value, list) and value else None
        # Besides the two libraries, a pipeline's own folder inside diffusers: a safety checker lies there.
        if library not in (None, *LIBRARIES) and not hasattr(diffusers.pipelines, str(library)):
            raise ValueError(f"{folder} has as its {part} a class of {library}; expected {' or '.join(LIBRARIES)}.")
    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # `torch_dtype` is the name that all versions know
            pipeline = classes[kind].from_pretrained(
                folder, torch_dtype=dtype, use_safetensors=True, local_files_only=True
            )
    except (AttributeError, ImportError, LookupError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{folder} cannot be opened by diffusers: {' '.join(str(error).split())}") from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _check_files(folder: Path) -> None:
    """Raises ValueError for files that could run code, or are damaged."""
    for path in sorted(folder.rglob("*")):
        if path.suffix in PICKLES:
            raise ValueError(f"{path} can run code when it is loaded; delete it, or convert it to safetensors.")
        if path.name.endswith("config.json"):
            read_config(path)
    for path in _weights(folder):
        Safetensors(path)


def _weights(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))
