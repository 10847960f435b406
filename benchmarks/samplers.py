"""Whether diffusers makes the same pictures with every sampler: one row a sampler, tiny models of random weights.

Both are given the same folder or file, the same noise, first and later, and the scheduler that the sampler stands for.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import diffusers
import torch
from PIL import Image

from benchmarks.difference import Difference, difference
from diffusion.checkpoint import load_model
from diffusion.noise import Noise
from diffusion.pipeline import Pipeline
from diffusion.request import Request
from diffusion.samplers import SAMPLERS
from diffusion.schedulers import NoiseConfig

PROMPT, NEGATIVE, SEED, STEPS, GUIDANCE = "a red apple beside a blue star", "a green apple", 1, 8, 4.0
WIDTH, HEIGHT = 48, 32
MULTISTEP = "DPMSolverMultistepScheduler"
# What has diffusers step as a sampler does, and what its file has to say for it.
THEIRS: dict[str, tuple[str, dict[str, Any]]] = {
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "dpm_2": ("KDPM2DiscreteScheduler", {}),
    "dpm_2_ancestral": ("KDPM2AncestralDiscreteScheduler", {}),
    "lms": ("LMSDiscreteScheduler", {}),
    "plms": ("PNDMScheduler", {"skip_prk_steps": True, "timestep_spacing": "leading"}),
    "ddim": ("DDIMScheduler", {"clip_sample": False}),
    "ddpm": ("DDPMScheduler", {"clip_sample": False}),
    "dpmpp_2s": ("DPMSolverSinglestepScheduler", {}),
    "dpmpp_2m": (MULTISTEP, {}),
    "dpmpp_3m": (MULTISTEP, {"solver_order": 3}),
    "dpmpp_2m_sde": (MULTISTEP, {"algorithm_type": "sde-dpmsolver++"}),
    "dpmpp_2m_sde_heun": (MULTISTEP, {"algorithm_type": "sde-dpmsolver++", "solver_type": "heun"}),
    "deis": ("DEISMultistepScheduler", {}),
    "uni_pc": ("UniPCMultistepScheduler", {}),
    "lcm": ("LCMScheduler", {}),
}


# What diffusers cannot make from the same noise; tests hold these to k-diffusion's numbers instead.
NOT_THEIRS = {
    "dpmpp_2s_ancestral": "none",
    "dpmpp_3m_sde": "one of another formula",
    "dpmpp_sde": "DPMSolverSDEScheduler, whose noise is its own",
    "restart": "none",
}


@dataclass(frozen=True)
class Row:
    sampler: str
    scheduler: str  # theirs, or why there is none
    found: Difference | None


def print_table(models: Iterable[tuple[str, str, Path, Path]]) -> bool:
    """A table of models, each given as its kind, its layout, the folder and what we open. Whether all are the same."""
    print(f"Each {STEPS} steps, guidance {GUIDANCE:g}, float32. torch {version('torch')}, ", end="")
    print(f"diffusers {version('diffusers')}, transformers {version('transformers')}.\n")
    print("| model | layout | sampler | diffusers' scheduler | PSNR, dB | largest of 255 | values within 1 |")
    print("|---|---|---|---|---|---|---|")
    same = True
    for kind, layout, folder, path in models:
        for row in compare(folder, path):
            figures = "- | - | -" if row.found is None else row.found.figures
            print(f"| {kind} | {layout} | {row.sampler} | {row.scheduler} | {figures} |", flush=True)
            same &= row.found is None or row.found.within_rounding
    return same


def compare(folder: Path, path: Path, samplers: Iterable[str] = SAMPLERS) -> Iterator[Row]:
    """A row a sampler: theirs of the folder, and ours of `path`: the folder, or a single file that says the same."""
    library = diffusers.DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    library.set_progress_bar_config(disable=True)
    model, own = load_model(path), library.scheduler.config
    for sampler in samplers:
        if sampler in NOT_THEIRS:
            yield Row(sampler, NOT_THEIRS[sampler], None)
            continue
        name, settings = THEIRS[sampler]
        try:
            library.scheduler = _scheduler(name).from_config(own, **settings)
        except ImportError:
            yield Row(sampler, f"{name}, which wants a library that is not here", None)
            continue
        said = {**library.scheduler.config, "_class_name": name}
        ours = Pipeline(replace(model, noise=Noise(NoiseConfig.from_dict(said))))
        yield Row(sampler, name, difference(*_pictures(ours, library, sampler)))


def _pictures(ours: Pipeline, library: Any, sampler: str) -> tuple[Image.Image, Image.Image]:
    """Ours and theirs."""
    (picture,) = ours.generate([Request(PROMPT, NEGATIVE, SEED, STEPS, sampler, "automatic", GUIDANCE, WIDTH, HEIGHT)])
    generator = torch.Generator().manual_seed(SEED)
    first = torch.randn(ours.shape(picture.request), generator=generator)
    (image,) = library(
        PROMPT,
        negative_prompt=NEGATIVE,
        latents=first,
        generator=generator,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        width=WIDTH,
        height=HEIGHT,
    ).images
    return picture.image, image


def _scheduler(name: str) -> Any:
    """A scheduler of diffusers that draws noise once a step, as all but one do."""
    if name != "KDPM2AncestralDiscreteScheduler":
        return getattr(diffusers, name)

    class Once(diffusers.KDPM2AncestralDiscreteScheduler):
        def step(self, *args: Any, generator: torch.Generator, **options: Any) -> Any:
            unused = self.state_in_first_order  # what is drawn there is thrown away
            return super().step(*args, generator=torch.Generator() if unused else generator, **options)

    return Once
