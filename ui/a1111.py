"""AUTOMATIC1111's API: /sdapi/v1/txt2img, img2img, progress, interrupt and what it lists."""

import json
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Response
from fastapi import Request as Http
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from clip.pictures import over_white
from clip.ranker import Ranker
from diffusion.embeddings import Embeddings
from diffusion.image import read_image
from diffusion.job import ENDED, Job
from diffusion.metadata import VERSION, model_hash
from diffusion.request import Request
from diffusion.samplers import SAMPLER_NAMES
from diffusion.schedules import SCHEDULE_NAMES
from diffusion.texts import encode_picture, read_texts
from ui import a1111_lists as lists
from ui import wire
from ui.a1111_payload import CLIP_SKIP, Img2Img, Missing, Payload, Txt2Img, check_settings
from ui.limits import Overloaded
from ui.service import Service, Stopped
from ui.wire import ended, from_base64, to_base64


class ImageAsked(BaseModel):
    image: str = ""
    model: str = "clip"


class Route(wire.Route):
    """Answers whatever goes wrong as that program does."""

    def refusal(self, error: Exception) -> Response | None:
        match error:
            case RequestValidationError():
                first = error.errors()[0]
                name = ".".join(str(part) for part in first["loc"] if part != "body")
                return failure(422, f"{name}: {first['msg']}" if name else first["msg"].removeprefix("Value error, "))
            case Overloaded():
                return failure(429, str(error), {"Retry-After": str(error.retry_after)})
            case Missing():
                return failure(404, str(error))
            case ValueError():
                return failure(422, str(error))
            case HTTPException():
                return failure(error.status_code, str(error.detail))
            case Stopped():
                return failure(503, str(error), {"Retry-After": "10"})
        return None


def failure(status: int, said: str, headers: dict[str, str] | None = None) -> JSONResponse:
    said = said.encode(errors="replace").decode()
    return JSONResponse({"error": "HTTPException", "detail": said, "body": "", "errors": ""}, status, headers)


class Calls:
    """The calls that are under way, the oldest first: what `progress`, `interrupt` and `skip` are about."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.under_way: dict[str, tuple[str, list[str]]] = {}  # by group: what was called, and its jobs
        self.interrupted = self.skipped = False

    def jobs(self) -> list[Job]:
        """Of the oldest call."""
        ids = next(iter(self.under_way.values()), ("", []))[1]
        return [self.service.store.get(id) for id in ids]

    def interrupt(self) -> None:
        """Ends the call; it answers with what is done."""
        self.interrupted = bool(self.service.cancel(job.id for job in self.jobs()))

    def skip(self) -> None:
        """Ends the picture in the making."""
        self.skipped = bool(self.service.cancel(job.id for job in self.jobs() if job.state == "running"))

    def progress(self, with_image: bool) -> dict[str, Any]:
        jobs = self.jobs()
        name = next(iter(self.under_way.values()), ("", []))[0]
        running = next((job for job in jobs if job.state == "running"), None)
        event = self.service.glance(running.id) if running else None
        done, step, steps = sum(job.state in ENDED for job in jobs), 0, 0
        if event:
            step, steps = event.job.evaluation, event.job.evaluations
        left = sum(self.service.cost(job.request) for job in jobs if job.state not in ENDED)
        if running and steps:
            left -= self.service.cost(running.request) * step // steps
        image = None
        if event and event.preview and with_image:
            image = to_base64(encode_picture(event.preview, {}))
        return {
            "progress": (done + (step / steps if steps else 0)) / len(jobs) if jobs else 0.0,
            "eta_relative": self.service.pace.time(left),
            "state": {
                "skipped": self.skipped,
                "interrupted": self.interrupted,
                "stopping_generation": False,
                "job": name,
                "job_count": len(jobs),
                "job_timestamp": timestamp(jobs[0]) if jobs else "0",
                "job_no": done,
                "sampling_step": step,
                "sampling_steps": steps,
            },
            "current_image": image,
            "textinfo": None,
        }


def router(
    service: Service, clip: Path | None = None, loras: Path | None = None, embeddings: Embeddings | None = None
) -> APIRouter:
    """`clip` is the folder of one that names what pictures show; the others are what is listed."""
    router = APIRouter(prefix="/sdapi/v1", tags=["AUTOMATIC1111's API"], route_class=Route)
    model, calls = service.pipeline.model, Calls(service)
    settings = lists.options_of(model)
    names = (lists.model_title(model), model.name, f"{model.name}.safetensors", model_hash(model)[:10])
    interrogator = Interrogator(clip)

    async def answer(kind: str, http: Http, payload: Payload, requests: Callable[[], list[Request]]) -> JSONResponse:
        def submit() -> list[Job]:
            check_settings(payload.override_settings, names)
            return service.submit(requests())

        jobs = await run_in_threadpool(submit)
        group = jobs[0].group
        calls.interrupted = calls.skipped = False
        calls.under_way[group] = kind, [job.id for job in jobs]
        try:
            jobs = await ended(service, http, jobs, None)
        finally:
            del calls.under_way[group]
        return await run_in_threadpool(answer_of, service, payload, jobs)

    @router.post("/txt2img")
    async def txt2img(http: Http, payload: Txt2Img) -> Response:
        side = service.pipeline.resolve(Request("")).width
        return await answer("txt2img", http, payload, lambda: payload.requests(settings, **payload.hires(side)))

    @router.post("/img2img")
    async def img2img(http: Http, payload: Img2Img) -> Response:
        return await answer("img2img", http, payload, lambda: payload.requests(settings, **payload.from_image()))

    @router.get("/progress")
    def progress(skip_current_image: bool = False) -> Any:
        return calls.progress(not skip_current_image)

    @router.post("/interrupt")
    def interrupt() -> Any:
        calls.interrupt()
        return {}

    @router.post("/skip")
    def skip() -> Any:
        calls.skip()
        return {}

    @router.get("/options")
    def options() -> Any:
        return settings

    @router.post("/options")
    def set_options(said: dict[str, Any]) -> Any:
        """Of those that change pictures, the clip skip alone can be set."""
        check_settings(said, names)
        if CLIP_SKIP in said:
            settings[CLIP_SKIP] = int(said[CLIP_SKIP])
        return {}

    @router.post("/png-info")
    def png_info(said: ImageAsked) -> Any:
        return lists.png_info(from_base64(said.image, "The image"))

    @router.post("/interrogate")
    def interrogate(said: ImageAsked) -> Any:
        return {"caption": interrogator.caption(said)}

    listed: dict[str, Callable[[], Any]] = {
        "samplers": lists.samplers,
        "schedulers": lists.schedulers,
        "upscalers": lists.upscalers,
        "latent-upscale-modes": lists.latent_upscale_modes,
        "sd-models": lambda: lists.sd_models(model),
        "loras": lambda: lists.loras(loras),
        "embeddings": lambda: lists.embeddings(embeddings),
        "memory": lambda: lists.memory(service.pipeline.device),
        "cmd-flags": lambda: {"api": True, "nowebui": False},
        "scripts": lambda: {"txt2img": [], "img2img": []},
        **dict.fromkeys(lists.EMPTY, lambda: []),
    }
    for name, rows in listed.items():
        router.add_api_route(f"/{name}", rows, methods=["GET"], name=name, response_model=None)
    for name in ("refresh-checkpoints", "refresh-vae", "refresh-loras"):
        router.add_api_route(f"/{name}", lambda: {}, methods=["POST"], name=name, response_model=None)
    return router


class Interrogator:
    """Says what a picture shows, where there is a CLIP; opened when first asked."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.ranker: Ranker | None = None
        self.lock = threading.Lock()

    def caption(self, said: ImageAsked) -> str:
        if said.model != "clip":
            raise Missing(f"Model not found: {said.model!r:.80}; there is clip.")
        image = over_white(read_image(from_base64(said.image, "The image"), "The image"))
        with self.lock:
            if self.ranker is None:
                if self.folder is None or not self.folder.is_dir():
                    raise Missing("There is no CLIP here to ask; start the server with --clip.")
                self.ranker = Ranker(self.folder)
            return self.ranker.caption(image)


def answer_of(service: Service, payload: Payload, jobs: Sequence[Job]) -> JSONResponse:
    """Pictures, the payload, and what is said about them."""
    for job in jobs:
        if job.state == "failed":  # for a reason that is the request's own
            raise ValueError(job.error)
        if job.state == "parked":
            raise HTTPException(500, job.error)
    files = [service.picture(job) for job in jobs if job.state == "done"]
    said = payload.model_dump(exclude_none=True)
    if isinstance(payload, Img2Img) and not payload.include_init_images:
        said |= {"init_images": None, "mask": None}
    images = [to_base64(file) for file in files] if payload.send_images else []
    info = json.dumps(info_of(service, payload, jobs, [read_texts(file)["parameters"] for file in files]))
    return JSONResponse({"images": images, "parameters": said, "info": info})


def info_of(service: Service, payload: Payload, jobs: Sequence[Job], texts: Sequence[str]) -> dict[str, Any]:
    """What is said about the pictures; `texts` are the parameters of those that were made."""
    first, model = jobs[0].request, service.pipeline.model
    requests = [job.request for job in jobs]
    subseeds = [request.variation_seed or 0 for request in requests]
    schedule = first.schedule if isinstance(first.schedule, str) else ", ".join(map(str, first.schedule))
    return {
        "prompt": first.prompt,
        "all_prompts": [request.prompt for request in requests],
        "negative_prompt": first.negative,
        "all_negative_prompts": [request.negative for request in requests],
        "seed": first.seed,
        "all_seeds": [request.seed for request in requests],
        "subseed": subseeds[0],
        "all_subseeds": subseeds,
        "subseed_strength": first.variation_strength or 0,
        "width": first.width,
        "height": first.height,
        "sampler_name": SAMPLER_NAMES.get(first.sampler, first.sampler),
        "cfg_scale": first.guidance,
        "steps": first.steps,
        "batch_size": payload.batch_size,
        "restore_faces": False,
        "face_restoration_model": None,
        "sd_model_name": model.name,
        "sd_model_hash": model_hash(model)[:10],
        "sd_vae_name": None,
        "sd_vae_hash": None,
        "seed_resize_from_w": -1,
        "seed_resize_from_h": -1,
        "denoising_strength": first.hires_strength if first.strength is None else first.strength,
        "extra_generation_params": {"Schedule type": SCHEDULE_NAMES.get(schedule, schedule)},
        "index_of_first_image": 0,
        "infotexts": [*texts],
        "styles": [],
        "job_timestamp": timestamp(jobs[0]),
        "clip_skip": first.clip_skip or 1,
        "is_using_inpainting_conditioning": False,
        "version": f"oboro {VERSION}",
    }


def timestamp(job: Job) -> str:
    return time.strftime("%Y%m%d%H%M%S", time.localtime(job.created))
