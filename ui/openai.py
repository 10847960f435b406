"""OpenAI's images API: /v1/images/generations, /v1/images/edits, /v1/models.

Beyond it, at the top level: seed, num_inference_steps, guidance_scale, negative_prompt, strength. Partial images are
the previews of the denoising. An Idempotency-Key makes the same call again give the same pictures.
"""

import io
import json
import re
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Response
from fastapi import Request as Http
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from PIL import Image, ImageChops
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from diffusion.flags import MAX_FILE
from diffusion.image import read_image
from diffusion.job import Job
from diffusion.request import RANDOM, Request
from diffusion.texts import QUALITY, encode_picture, read_texts
from ui import wire
from ui.limits import Overloaded, TooMuch
from ui.service import Service, Stopped
from ui.wire import MAX_PROMPT, abandon, ended, to_base64

MAX_COUNT = 10
MAX_PARTIAL = 3
FORMATS = {"png": "PNG", "jpeg": "JPEG", "webp": "WEBP"}
SIZE = re.compile(r"(\d{1,5})x(\d{1,5})")
NOT_BILLED = {
    "input_tokens": 0,
    "input_tokens_details": {"image_tokens": 0, "text_tokens": 0},
    "output_tokens": 0,
    "total_tokens": 0,
}
Key = Annotated[str | None, Header(alias="Idempotency-Key", max_length=255)]


class Asked(BaseModel):
    """What both calls take. Other fields are refused by name."""

    model_config = ConfigDict(extra="forbid")

    prompt: str = Field(max_length=MAX_PROMPT)
    model: str | None = Field(None, description="the name of the model that is served, or none")
    n: int | None = Field(None, ge=1, le=MAX_COUNT)
    size: str | None = Field(None, description="WxH in pixels, or auto: the model's own")
    output_format: Literal["png", "jpeg", "webp"] | None = None
    output_compression: int | None = Field(None, ge=0, le=100, description="the quality of JPEG and WebP")
    response_format: Literal["b64_json", "url"] | None = None
    stream: bool | None = None
    partial_images: int | None = Field(None, ge=0, le=MAX_PARTIAL)
    # beyond OpenAI's
    seed: int | None = Field(None, description="picture i has seed + i; by default one is drawn")
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    negative_prompt: str | None = Field(None, max_length=MAX_PROMPT)
    # what there is but one of here, or changes nothing
    background: Literal["auto", "opaque"] | None = None
    quality: str | None = None
    style: str | None = None
    moderation: str | None = None
    user: str | None = None
    safety_identifier: str | None = None

    @property
    def format(self) -> str:
        return self.output_format or "png"

    def requests(self, **more: Any) -> list[Request]:
        """One a picture. Raises ValueError for a size that is none."""
        said: dict[str, Any] = {
            "negative": self.negative_prompt or "",
            "steps": self.num_inference_steps,
            "guidance": self.guidance_scale,
            **more,
        }
        if self.size not in (None, "auto"):
            if not (match := SIZE.fullmatch(self.size or "")):
                raise Refused(f"The size is {self.size!r:.50}; expected WxH, as 64x64, or auto.", "size")
            said["width"], said["height"] = int(match[1]), int(match[2])
        seeds = [RANDOM if self.seed in (None, RANDOM) else self.seed + i for i in range(self.n or 1)]
        return [Request(self.prompt, seed=seed, **said) for seed in seeds]


class Edit(Asked):
    strength: float | None = Field(None, description="beyond OpenAI's: how far to go from the image, 0 to 1")
    input_fidelity: str | None = None


class Refused(ValueError):
    """A mistake, and OpenAI's words for it."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None, status: int = 400) -> None:
        super().__init__(message)
        self.param, self.code, self.status = param, code, status


def envelope(
    message: str,
    status: int = 400,
    param: str | None = None,
    code: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """An error as OpenAI tells it."""
    kind = {401: "authentication_error", 429: "rate_limit_error"}.get(status)
    kind = kind or ("invalid_request_error" if status < 500 else "server_error")
    error = {"message": message, "type": kind, "param": param, "code": code}
    valid = {key: said and said.encode(errors="replace").decode() for key, said in error.items()}
    return JSONResponse({"error": valid}, status, headers)


class Route(wire.Route):
    """Answers whatever goes wrong in OpenAI's envelope."""

    def refusal(self, error: Exception) -> Response | None:
        match error:
            case RequestValidationError() | ValidationError():
                first = error.errors()[0]
                param = ".".join(str(part) for part in first["loc"] if part != "body")
                code = "unknown_parameter" if first["type"] == "extra_forbidden" else None
                said = f"There is no parameter {param!r:.50} here" if code else f"{param or 'The body'}: {first['msg']}"
                return envelope(f"{said}.", param=param or None, code=code)
            case Overloaded():
                return envelope(str(error), 429, code="overloaded", headers={"Retry-After": str(error.retry_after)})
            case Refused():
                return envelope(str(error), error.status, error.param, error.code)
            case TooMuch():
                return envelope(str(error), code="too_much_work")
            case ValueError():
                return envelope(str(error))
            case HTTPException():
                return envelope(str(error.detail), error.status_code, headers=error.headers)
            case Stopped():
                return envelope(str(error), 503, headers={"Retry-After": "10"})
        return None


def router(service: Service) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["OpenAI's images API"], route_class=Route)
    name = service.pipeline.model.name
    about = {"id": name, "object": "model", "created": 0, "owned_by": "oboro"}

    @router.get("/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [about]}

    @router.get("/models/{id:path}")
    async def model(id: str) -> dict[str, Any]:
        check_model(id, name)
        return about

    @router.post("/images/generations")
    async def generations(asked: Asked, http: Http, key: Key = None) -> Response:
        check_model(asked.model, name)
        return await answer(service, http, asked, asked.requests(), key, "image_generation")

    fields = {"schema": {"allOf": [Edit.model_json_schema(), IMAGES]}}

    @router.post("/images/edits", openapi_extra={"requestBody": {"content": {"multipart/form-data": fields}}})
    async def edits(http: Http, key: Key = None) -> Response:
        """Of an image, what is transparent changes, in the mask or, without one, in the image; else all of it does."""
        said, files = await read_form(http)
        asked = Edit.model_validate(said)
        check_model(asked.model, name)
        image, mask = files.get("image"), files.get("mask")
        if image is None:
            raise Refused("An edit takes an image, as a file; none was sent.", "image", "missing_required_parameter")
        more = {"image": image, "mask": mask and transparent(mask), "strength": asked.strength}
        return await answer(service, http, asked, asked.requests(**more), key, "image_edit")

    return router


IMAGES = {
    "type": "object",
    "required": ["image"],
    "properties": {"image": {"type": "string", "format": "binary"}, "mask": {"type": "string", "format": "binary"}},
}


def check_model(asked: str | None, name: str) -> None:
    if asked not in (None, name):
        raise Refused(f"The model {asked!r:.80} does not exist here; it is {name!r}.", "model", "model_not_found", 404)


async def read_form(http: Http) -> tuple[dict[str, str], dict[str, bytes]]:
    """The texts and the files of a multipart body, by name. Raises Refused for more than one image, or mask."""
    if not http.headers.get("content-type", "").startswith("multipart/form-data"):
        raise Refused("An edit is sent as multipart/form-data.")
    said: dict[str, str] = {}
    files: dict[str, bytes] = {}
    async with http.form(max_files=32, max_fields=64, max_part_size=4 * MAX_PROMPT) as form:
        for field, value in form.multi_items():
            field = field.removesuffix("[]")
            if not isinstance(value, UploadFile):
                said[field] = value
                continue
            if field not in ("image", "mask"):
                raise Refused(f"There is no file {field!r:.50} here; expected image and mask.", field)
            if field in files:
                raise Refused(f"Several files are sent as {field}; this model edits one image at a time.", field)
            files[field] = await value.read(MAX_FILE + 1)
            if len(files[field]) > MAX_FILE:
                raise Refused(f"The {field} is larger than {MAX_FILE >> 20} MiB.", field)
    return said, files


def transparent(mask: bytes) -> bytes:
    """A mask whose transparent part changes => one whose white part does."""
    alpha = read_image(mask, "The mask").getchannel("A")
    if alpha.getextrema()[0] == 255:
        raise Refused("The mask has nothing transparent, so that nothing would change; erase what is to.", "mask")
    return encode_picture(ImageChops.invert(alpha), {})


async def answer(
    service: Service, http: Http, asked: Asked, requests: Sequence[Request], key: str | None, kind: str
) -> Response:
    jobs = await run_in_threadpool(service.submit, requests, key=key)
    if asked.stream:
        return StreamingResponse(stream(service, asked, jobs, key, kind), media_type="text/event-stream")
    data = []
    for job in await ended(service, http, jobs, key):
        check_done(job)
        if asked.response_format == "url":
            data.append({"url": f"{http.base_url}pictures/{job.id}.{asked.format}"})
        else:
            data.append({"b64_json": to_base64(await run_in_threadpool(file, service, job, asked))})
    return JSONResponse(
        {
            "created": int(time.time()),
            "data": [{**one, "revised_prompt": job.request.prompt} for one, job in zip(data, jobs, strict=True)],
            "background": "opaque",
            "output_format": asked.format,
            "size": size(jobs[0]),
            "usage": NOT_BILLED,
        }
    )


async def stream(service: Service, asked: Asked, jobs: Sequence[Job], key: str | None, kind: str) -> AsyncIterator[str]:
    """Server-sent events: as many previews of each picture as are asked for, evenly apart, and the picture."""
    count, sent = asked.partial_images or 0, dict.fromkeys((job.id for job in jobs), 0)
    left = {job.id for job in jobs}
    try:
        async for event in service.follow(left.copy(), previews=count > 0):
            job = event.job
            said = {"created_at": int(time.time()), "size": size(job), "background": "opaque", "quality": "auto"}
            said |= {"output_format": asked.format}
            if job.state == "done":
                left.discard(job.id)
                said |= {"b64_json": to_base64(await run_in_threadpool(file, service, job, asked)), "usage": NOT_BILLED}
                yield sse(f"{kind}.completed", said)
            elif job.error and job.state != "queued":
                left.discard(job.id)
                yield sse("error", json.loads(bytes(envelope(job.error).body)))
            elif event.preview and due(job, sent[job.id], count):
                preview = await run_in_threadpool(encode_picture, event.preview, {}, FORMATS[asked.format])
                said |= {"b64_json": to_base64(preview), "partial_image_index": sent[job.id]}
                sent[job.id] += 1
                yield sse(f"{kind}.partial_image", said)
    except Stopped as stopped:
        yield sse("error", json.loads(bytes(envelope(str(stopped), 503).body)))
    finally:
        if left:
            abandon(service, jobs, key)


def due(job: Job, sent: int, count: int) -> bool:
    """Whether the next of `count` previews, evenly apart, has its turn."""
    return sent < count and job.evaluation * (count + 1) >= job.evaluations * (sent + 1)


def sse(kind: str, said: Mapping[str, Any]) -> str:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **said})}\n\n"


def check_done(job: Job) -> None:
    if job.state == "cancelled":
        raise Refused("The picture was cancelled.", code="cancelled")
    if job.state == "failed":  # for a reason that is the request's own
        raise Refused(job.error or "The picture could not be made.", code="failed")
    if job.state != "done":
        raise HTTPException(500, job.error)


def file(service: Service, job: Job, asked: Asked) -> bytes:
    return converted(service.picture(job), asked.format, asked.output_compression)


def converted(png: bytes, format: str, quality: int | None = None) -> bytes:
    """A picture's file in a format of FORMATS, KeyError for another; as PNG, the very file that was written."""
    if (name := FORMATS[format]) == "PNG":
        return png
    return encode_picture(Image.open(io.BytesIO(png)), read_texts(png), name, QUALITY if quality is None else quality)


def size(job: Job) -> str:
    scale = job.request.hires_scale or 1
    return f"{int(job.request.width * scale)}x{int(job.request.height * scale)}"
