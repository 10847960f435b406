"""Whether diffusers makes the same pictures with every sampler: one row a sampler, tiny models of random weights.

Both are given the same folder or file, the same noise, first and later, and the scheduler that the sampler stands for.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import diffusers
import torch

from benchmarks.difference import Difference, difference
from diffusion.checkpoint import load_model
from diffusion.noise import Noise
from diffusion.pipeline import Pipeline
from diffusion.request import Request
from diffusion.samplers import SAMPLERS, options
from diffusion.schedulers import NoiseConfig
from diffusion.single_file import save_single_file

PROMPT, NEGATIVE, SEED, STEPS, GUIDANCE = "a red apple beside a blue star", "a green apple", 1, 8, 4.0
WIDTH, HEIGHT = 48, 32
LAYOUTS = ("folder", "single file")
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
    "sa_solver": ("SASolverScheduler", {"algorithm_type": "data_prediction"}),
    "lcm": ("LCMScheduler", {}),
    "tcd": ("TCDScheduler", {}),
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
    found: dict[str, Difference]  # by layout


def print_table(folders: Mapping[str, Path]) -> bool:
    """A table of models, by kind. Whether all pictures are the same."""
    print(f"Each {STEPS} steps, guidance {GUIDANCE:g}, float32. torch {version('torch')}, ", end="")
    print(f"diffusers {version('diffusers')}, transformers {version('transformers')}.")
    print("PSNR in dB, and the largest difference of 255, between theirs of the folder and ours of each layout.\n")
    print(f"| model | sampler | diffusers' scheduler | {' | '.join(LAYOUTS)} |\n|---|---|---|---|---|")
    same = True
    for kind, folder in folders.items():
        for row in compare(folder):
            figures = [f"{found.psnr:.1f} ({found.largest})" for found in row.found.values()] or ["-"] * len(LAYOUTS)
            print(f"| {kind} | {row.sampler} | {row.scheduler} | {' | '.join(figures)} |", flush=True)
            same &= all(found.within_rounding for found in row.found.values())
    return same


def compare(folder: Path, samplers: Iterable[str] = SAMPLERS) -> Iterator[Row]:
    """A row a sampler."""
    library = diffusers.DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    library.set_progress_bar_config(disable=True)
    file, own = folder.with_suffix(".safetensors"), library.scheduler.config
    save_single_file(file, load_model(folder))
    models = dict(zip(LAYOUTS, (load_model(folder), load_model(file, tokenizer=folder)), strict=True))
    for sampler in samplers:
        if sampler in NOT_THEIRS:
            yield Row(sampler, NOT_THEIRS[sampler], {})
            continue
        name, settings = THEIRS[sampler]
        try:
            library.scheduler = _scheduler(name).from_config(own, **settings)
        except ImportError:
            yield Row(sampler, f"{name}, which wants a library that is not here", {})
            continue
        noise = Noise(NoiseConfig.from_dict({**library.scheduler.config, "_class_name": name}))
        ours = {layout: Pipeline(replace(model, noise=noise)) for layout, model in models.items()}
        yield Row(sampler, name, _differences(ours, library, sampler))


def _differences(ours: Mapping[str, Pipeline], library: Any, sampler: str) -> dict[str, Difference]:
    """Between the library's picture and ours."""
    request = Request(PROMPT, NEGATIVE, SEED, STEPS, sampler, "automatic", GUIDANCE, WIDTH, HEIGHT)
    pictures = {layout: next(pipeline.generate([request])) for layout, pipeline in ours.items()}
    generator = torch.Generator().manual_seed(SEED)
    height, width = (side // library.vae_scale_factor for side in (HEIGHT, WIDTH))
    first = torch.randn(1, library.vae.config.latent_channels, height, width, generator=generator)
    (theirs,) = library(
        PROMPT,
        negative_prompt=NEGATIVE,
        latents=first,
        generator=generator,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        eta=options(sampler).get("eta", 0.0),  # their pipelines say 0 where nothing is said, also to TCD
        width=WIDTH,
        height=HEIGHT,
    ).images
    return {layout: difference(picture.image, theirs) for layout, picture in pictures.items()}


def _scheduler(name: str) -> Any:
    """A scheduler of diffusers that draws noise once a step, as all but one do."""
    if name != "KDPM2AncestralDiscreteScheduler":
        return getattr(diffusers, name)

    class Once(diffusers.KDPM2AncestralDiscreteScheduler):
        def step(self, *args: Any, generator: torch.Generator, **options: Any) -> Any:
            unused = self.state_in_first_order  # what is drawn there is thrown away
            return super().step(*args, generator=torch.Generator() if unused else generator, **options)

    return Once
