"""What AUTOMATIC1111's API lists: what there is of each kind, in its words."""

import os
from pathlib import Path
from typing import Any

import torch

from diffusion.embeddings import Embeddings
from diffusion.metadata import Named, model_hash
from diffusion.parameters import split_parameters
from diffusion.samplers import SAMPLER_NAMES, options
from diffusion.schedules import SCHEDULE_NAMES
from diffusion.texts import read_texts
from diffusion.upscale import LATENTS, PIXELS, UPSCALERS
from ui.a1111_payload import CLIP_SKIP, MODEL

Row = dict[str, Any]
# Kinds of which there are none.
EMPTY = (
    "sd-vae", "prompt-styles", "script-info", "hypernetworks", "face-restorers", "realesrgan-models", "extensions",
)  # fmt: skip


def samplers() -> list[Row]:
    described = {name: {option: str(value) for option, value in options(name).items()} for name in SAMPLER_NAMES}
    return [
        {"name": theirs, "aliases": [ours, f"k_{ours}"], "options": described[ours]}
        for ours, theirs in SAMPLER_NAMES.items()
    ]


def schedulers() -> list[Row]:
    more = {"aliases": None, "default_rho": -1, "need_inner_model": False}
    return [{"name": ours, "label": theirs, **more} for ours, theirs in SCHEDULE_NAMES.items()]


def upscalers() -> list[Row]:
    more = {"model_name": None, "model_path": None, "model_url": None, "scale": 4}
    return [{"name": name, **more} for name in ["None", *(UPSCALERS[ours] for ours in PIXELS)]]


def latent_upscale_modes() -> list[Row]:
    return [{"name": UPSCALERS[ours]} for ours in LATENTS]


def model_title(model: Named) -> str:
    return f"{model.name} [{model_hash(model)[:10]}]"


def sd_models(model: Named) -> list[Row]:
    """The one that is served. Where it lies is nobody's business."""
    sha = model_hash(model)
    return [
        {
            "title": model_title(model),
            "model_name": model.name,
            "hash": sha[:10],
            "sha256": sha,
            "filename": f"{model.name}.safetensors",
            "config": None,
        }
    ]


def options_of(model: Named) -> Row:
    return {
        MODEL: model_title(model),
        "sd_checkpoint_hash": model_hash(model),
        "sd_vae": "Automatic",
        "samples_format": "png",
        "randn_source": "CPU",
        "eta_noise_seed_delta": 0,
        CLIP_SKIP: 1,
    }


def loras(folder: Path | None) -> list[Row]:
    files = sorted(folder.rglob("*.safetensors")) if folder else []
    names = [file.relative_to(folder).with_suffix("").as_posix() for file in files] if folder else []
    return [{"name": name, "alias": name, "path": f"{name}.safetensors", "metadata": {}} for name in names]


def embeddings(known: Embeddings | None) -> Row:
    """Those that fit the model, and those that do not."""
    found: dict[str, Row] = {"loaded": {}, "skipped": {}}
    for name in known.paths if known else ():
        row = {"step": None, "sd_checkpoint": None, "sd_checkpoint_name": None, "shape": 0, "vectors": 0}
        try:
            vectors = known.vectors(name) if known else []
        except ValueError:
            found["skipped"][name] = row
        else:
            width = vectors[0].embedding.vectors[0].shape[1]  # type: ignore[union-attr]
            found["loaded"][name] = row | {"shape": width, "vectors": len(vectors)}
    return found


def memory(device: torch.device) -> Row:
    """In bytes."""
    page = os.sysconf("SC_PAGE_SIZE")
    free, total = (page * os.sysconf(name) for name in ("SC_AVPHYS_PAGES", "SC_PHYS_PAGES"))
    said: Row = {"ram": {"free": free, "used": total - free, "total": total}, "cuda": {"error": "There is none."}}
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        said["cuda"] = {"system": {"free": free, "used": total - free, "total": total}}
    return said


def png_info(data: bytes) -> Row:
    """What a picture says about itself: `parameters` as text and by its fields, and whatever else."""
    texts = read_texts(data)
    info = texts.pop("parameters", "")
    prompt, negative, fields = split_parameters(info)
    if info:
        width, x, height = fields.get("Size", "").partition("x")
        fields |= {"Prompt": prompt, "Negative prompt": negative} | ({"Size-1": width, "Size-2": height} if x else {})
    return {"info": info, "items": texts | ({"parameters": info} if info else {}), "parameters": fields}
