"""What is asked for, and the one place where it is checked.

    resolve(request, model) => the same request with nothing left open
    to_json(request)        => what is written of it, and `from_json` reads
"""

import hashlib
import math
import secrets
from collections.abc import Iterable
from dataclasses import KW_ONLY, asdict, dataclass, fields, replace
from typing import Any

from diffusion.adapters import Lora, loras_from_json, split_loras
from diffusion.checkpoint import Model
from diffusion.noise import SCHEDULES
from diffusion.samplers import SAMPLERS

MAX_STEPS = 1000
MAX_GUIDANCE = 100
MAX_SIDE = 2048  # pixels
MAX_SEED = 2**63 - 1
RANDOM = -1  # the seed that asks for one to be drawn
FILES = ("image", "mask")  # the fields that hold a file's bytes
DRAWN = 2**32  # seeds are drawn below this, as other programs do: short enough to be typed again

# Our names, which are ComfyUI's, and those of AUTOMATIC1111's web UI. Both are understood.
SAMPLER_NAMES = {
    "euler": "Euler",
    "euler_ancestral": "Euler a",
    "heun": "Heun",
    "dpmpp_2m": "DPM++ 2M",
    "ddim": "DDIM",
    "ddpm": "DDPM",
    "uni_pc": "UniPC",
}
SCHEDULE_NAMES = {"automatic": "Automatic", "normal": "Normal", "karras": "Karras"}


@dataclass(frozen=True)
class Request:
    """One picture to be made. What is None is the model's own default, or not asked for.

    The fields up to the keyword-only ones stand in every picture's record; see `to_json` for the others.
    """

    # what it shows
    prompt: str  # an empty one leaves the picture to the model
    negative: str = ""  # what the picture is led away from
    # how it is sampled
    seed: int = 0  # 0 is a seed; -1 draws one, which is recorded
    steps: int | None = None
    sampler: str | None = None  # a name in samplers.SAMPLERS
    schedule: str | None = None  # a name in noise.SCHEDULES
    guidance: float | None = None  # 1 is the plain model
    # how large it is
    width: int | None = None  # pixels
    height: int | None = None
    _: KW_ONLY
    # a variation of it
    variation_seed: int | None = None  # of a second noise, as `seed`
    variation_strength: float | None = None  # how far from the first noise to the second: 0 to 1
    # what is added to the model's layers
    loras: tuple[Lora, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Resolved(Request):
    """A request that was checked against a model and leaves nothing open: the same one, the same bytes."""

    steps: int
    sampler: str
    schedule: str
    guidance: float
    width: int
    height: int


def resolve(request: Request, model: Model) -> Resolved:
    """Fills a request up with the model's defaults.

    Raises ValueError, in one sentence, for what the model cannot do.
    """
    values = asdict(model.defaults)
    values["width"] = values["height"] = values.pop("size")
    values |= {name: value for name, value in asdict(request).items() if value is not None}
    values |= _our_names(values["sampler"], values["schedule"])
    if values["seed"] == RANDOM:
        values["seed"] = secrets.randbelow(DRAWN)
    values |= _variation(request)
    resolved = Resolved(**values)

    check_texts(resolved)
    prompt, tagged = split_loras(resolved.prompt)
    resolved = replace(resolved, prompt=prompt, loras=(*resolved.loras, *tagged))
    _check_length("prompt", resolved.prompt, model)
    _check_length("negative prompt", resolved.negative, model)
    _check_name("sampler", resolved.sampler, SAMPLERS)
    _check_name("schedule", resolved.schedule, SCHEDULES)
    multiple = model.autoencoder.factor * 2 ** (len(model.unet.config.block_out_channels) - 1)
    resolved = check_numbers(resolved, multiple)
    model.noise.schedule(resolved.schedule, resolved.steps)  # raises where it has not so many steps to give
    if resolved.variation_seed is not None:
        _check_number("The variation seed", resolved.variation_seed, 0, MAX_SEED, whole=True)
        _check_number("The variation strength", resolved.variation_strength, 0, 1, whole=False)
    return resolved


def check_texts(request: Resolved) -> None:
    for name, text in (("prompt", request.prompt), ("negative prompt", request.negative)):
        if not isinstance(text, str):
            raise ValueError(f"The {name} is {text!r}; expected a text.")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValueError(f"The {name} {text!r} is not valid Unicode; type it again.") from None


def check_numbers(request: Resolved, multiple: int) -> Resolved:
    """The same request, its numbers checked: the sides are multiples of so many pixels."""
    _check_number("The seed", request.seed, 0, MAX_SEED, whole=True)
    _check_number("The number of steps", request.steps, 1, MAX_STEPS, whole=True)
    _check_number("The guidance", request.guidance, 0, MAX_GUIDANCE, whole=False)
    for name, side in (("width", request.width), ("height", request.height)):
        _check_number(f"The {name}", side, multiple, MAX_SIDE, whole=True)
        if side % multiple:
            below = side - side % multiple
            raise ValueError(
                f"The {name} {side} is not a multiple of {multiple}, as it must be for this model; "
                f"try {below} or {below + multiple}."
            )
    # 3 and 3.0 are one request, and are written in one way.
    return replace(request, guidance=float(request.guidance))


def to_json(request: Request) -> dict[str, Any]:
    """The request as JSON has it. A file that it holds is named by its hash; see `file_name`.

    What is None is left out, and so is a keyword-only field at its default: a picture's record, and with it
    the picture's bytes and name, stays as it was when requests learn to ask for more.
    """
    said: dict[str, Any] = {}
    for field in fields(Request):
        value = getattr(request, field.name)
        if value is not None and not (field.kw_only and value == field.default):
            said[field.name] = file_name(value) if isinstance(value, bytes) else value
    return said


def from_json(said: Any, files: Iterable[bytes] = ()) -> Request:
    """The request that `to_json` wrote, given the files that it names.

    Raises ValueError for a field that there is not and a file that is not given; `resolve` checks the rest.
    """
    if not isinstance(said, dict):
        raise ValueError(f"A request is {said!r}; expected an object of JSON.")
    known, named = {field.name for field in fields(Request)}, {file_name(file): file for file in files}
    values: dict[str, Any] = {}
    for name, value in said.items():
        if name not in known:
            raise ValueError(f"A request has no field {name!r}; it takes {', '.join(sorted(known))}.")
        if name in FILES and value is not None:
            if value not in named:
                raise ValueError(f"The request's {name} is the file {value!r}, which is not here; give it, too.")
            value = named[value]
        values[name] = tuple(value) if isinstance(value, list) else value
    if "loras" in values:
        values["loras"] = loras_from_json(values["loras"])
    if "prompt" not in values:
        raise ValueError("A request has no prompt; say what the picture shows.")
    return Request(**values)


def file_name(data: bytes) -> str:
    """ "sha256:…": what stands for a file in a request's JSON."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _our_names(sampler: Any, schedule: Any) -> dict[str, Any]:
    """Sampler and schedule in our names. AUTOMATIC1111's older files fold the second into the first."""
    for ours, theirs in SCHEDULE_NAMES.items():
        if schedule == theirs:
            schedule = ours
        if isinstance(sampler, str) and sampler.endswith(f" {theirs}"):
            sampler, schedule = sampler.removesuffix(f" {theirs}"), ours
    samplers = {theirs: ours for ours, theirs in SAMPLER_NAMES.items()}
    return {"sampler": samplers.get(sampler, sampler), "schedule": schedule}


def _variation(request: Request) -> dict[str, Any]:
    """Its seed, drawn where none is named, and its strength; neither where it changes nothing."""
    seed, strength = request.variation_seed, request.variation_strength
    if strength == 0:
        seed = strength = None
    elif strength is None and seed is not None:
        raise ValueError(f"The variation seed {seed!r} does nothing without a variation strength from 0 to 1.")
    elif strength is not None and seed in (None, RANDOM):
        seed = secrets.randbelow(DRAWN)
    return {"variation_seed": seed, "variation_strength": strength}


def _check_length(name: str, text: str, model: Model) -> None:
    tokenizer = model.tokenizers[0]
    tokens, room = len(tokenizer.encode(text)), tokenizer.length - 2  # less start and end
    if tokens > room:
        raise ValueError(f"The {name} is {tokens} tokens long and this model reads {room}; shorten it.")


def _check_number(name: str, value: Any, low: int, high: int, whole: bool) -> None:
    kind = "a whole number" if whole else "a number"
    right = type(value) is int or (not whole and isinstance(value, float) and math.isfinite(value))
    if not right or not low <= value <= high:
        raise ValueError(f"{name} is {value!r}; expected {kind} from {low} to {high}.")


def _check_name(name: str, value: Any, known: Iterable[str]) -> None:
    if value not in known:
        raise ValueError(f"There is no {name} {value!r}; choose one of {', '.join(known)}.")
