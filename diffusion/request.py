"""What is asked for, and the one place where it is checked.

    resolve(request, model) => the same request with nothing left open
    to_json(request)        => what is written of it, and `from_json` reads
"""

import hashlib
import math
import secrets
from collections.abc import Iterable
from dataclasses import KW_ONLY, asdict, dataclass, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from diffusion.adapters import Lora, loras_from_json, split_loras
from diffusion.canvas import image_settings
from diffusion.checks import MAX_SEED, MAX_STEPS, check_name, check_needed, check_number, check_side
from diffusion.chunks import chunks
from diffusion.grammar import SYNTAXES, has_syntax, read
from diffusion.model import Model
from diffusion.samplers import DISCARDS_PENULTIMATE, OPTIONS, SAMPLERS, effective, our_sampler
from diffusion.schedules import SCHEDULES, our_schedule, schedule
from diffusion.tiling import tile_of
from diffusion.upscale import hires_settings, passes
from diffusion.wildcards import fill

MAX_GUIDANCE = 100
DEFAULT_SYNTAX = "a1111"
MAX_OPTION = 10**9
RANDOM = -1  # the seed that asks for one to be drawn
FILES = ("image", "mask")  # the fields that hold a file's bytes
DRAWN = 2**32  # seeds are drawn below this, as other programs do: short enough to be typed again


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
    schedule: str | tuple[float, ...] | None = None  # a name in schedules.SCHEDULES, or sigmas that end at 0
    guidance: float | None = None  # 1 is the plain model
    # how large it is
    width: int | None = None  # pixels
    height: int | None = None
    _: KW_ONLY
    # how its prompts are read
    prompt_syntax: str | None = None  # a name in grammar.SYNTAXES; None is a1111
    template: str | None = None  # what `prompt` was drawn from; see wildcards.py
    negative_template: str | None = None
    expanded_from: str | None = None  # a shorter prompt, which a language model went on from
    embeddings: tuple[tuple[str, str], ...] = ()  # those that they name, and the SHA-256 of their files
    clip_skip: int | None = None  # the text encoders' last layer that is read, counted from the end: 1 is the last
    # how it is guided
    guidance_rescale: float | None = None  # 0 to 1; see guidance.py
    guidance_interval: tuple[float, float] | None = None  # of sigmas
    # options of the samplers that know them; None is the sampler's own value
    eta: float | None = None  # how much noise is added on the way, of what the SDE adds
    s_churn: float | None = None  # noise added before each step, in sum (Karras et al. 2022, algorithm 2)
    s_tmin: float | None = None  # the sigmas between which that is done
    s_tmax: float | None = None  # 0 is no bound
    s_noise: float | None = None  # what the noise that is added is multiplied by
    # what it begins with, besides noise; see canvas.py
    image: bytes | None = None  # a PNG, JPEG or WebP file, whole
    # How far it is noised: 1, all the way. The last strength * steps are taken. By default 0.75, and 1 where only what
    # is empty changes.
    strength: float | None = None
    resize: str | None = None  # one of image.RESIZE: how it is brought to width x height
    outpaint: tuple[int, int, int, int] | None = None  # pixels to be added: left, top, right, bottom
    # which part of the image changes
    mask: bytes | None = None  # a file of the image's size: white changes; else what is transparent does
    mask_blur: float | None = None  # standard deviation of the blend's width, in pixels
    fill: str | None = None  # one of canvas.FILLS: what is under the mask before
    padding: int | None = None  # only the masked part is shown to the model, and so many pixels around it
    # a variation of it
    variation_seed: int | None = None  # of a second noise, as `seed`
    variation_strength: float | None = None  # how far from the first noise to the second: 0 to 1
    # what is added to the model's layers
    loras: tuple[Lora, ...] = ()
    # a second pass over it, at a higher resolution
    hires_scale: float | None = None  # by which width and height grow
    hires_steps: int | None = None
    hires_strength: float | None = None  # as `strength`
    hires_upscaler: str | None = None  # one of upscale.UPSCALERS
    # in what pieces it is decoded; see tiling.py
    tile: int | None = None  # pixels a side; None decodes it whole


@dataclass(frozen=True, kw_only=True)
class Resolved(Request):
    """A request that was checked against a model and leaves nothing open: the same one, the same bytes."""

    steps: int
    sampler: str
    schedule: str | tuple[float, ...]
    guidance: float
    width: int
    height: int


def resolve(request: Request, model: Model) -> Resolved:
    """Fills a request up with the model's defaults.

    Raises ValueError, in one sentence, for what the model cannot do.
    """
    factor, values = model.autoencoder.factor, asdict(model.defaults)
    side = values["width"] = values["height"] = values.pop("size")
    values |= {name: value for name, value in asdict(request).items() if value is not None}
    values |= _our_names(values["sampler"], values["schedule"])
    check_name("sampler", values["sampler"], SAMPLERS)
    values |= _options(values["sampler"], request)
    if isinstance(values["schedule"], tuple):
        values["steps"] = _check_sigmas(values["schedule"], request.steps)
    values |= image_settings(request, side, factor) | _variation(request) | hires_settings(request, values["steps"])
    if values["seed"] == RANDOM:
        values["seed"] = secrets.randbelow(DRAWN)
    resolved = Resolved(**values)

    check_texts(resolved)
    resolved = draw_prompts(resolved)
    if resolved.prompt_syntax in (None, DEFAULT_SYNTAX):
        prompt, tagged = split_loras(resolved.prompt)
        resolved = replace(resolved, prompt=prompt, loras=(*resolved.loras, *tagged))
    if not isinstance(resolved.schedule, tuple):
        check_name("schedule", resolved.schedule, SCHEDULES)
    resolved = _check_guidance(check_numbers(resolved, factor), model)
    resolved = _check_prompts(resolved, model)
    for one in passes(resolved, factor):
        check_numbers(one, factor)
        sigmas(one, model)  # raises where the grid has not so many steps to give, or leaves none to take
    return replace(resolved, tile=tile_of(resolved.tile, (one.width, one.height), factor))


R = TypeVar("R", bound=Request)


def draw_prompts(request: R, folder: Path | None = None) -> R:
    """The request with what its prompts leave to chance drawn by its seed; `folder` is of files of wildcards."""
    said: dict[str, str] = {}
    for field, template in (("prompt", "template"), ("negative", "negative_template")):
        text = getattr(request, field)
        if isinstance(text, str) and request.prompt_syntax != "plain" and getattr(request, template) is None:
            drawn = fill(text, f"{field} {request.seed}", folder)
            said |= {field: drawn, template: text} if drawn != text else {}
    return replace(request, **said)  # type: ignore[arg-type]


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
    check_number("The seed", request.seed, 0, MAX_SEED, whole=True)
    check_number("The number of steps", request.steps, 1, MAX_STEPS, whole=True)
    check_number("The guidance", request.guidance, 0, MAX_GUIDANCE, whole=False)
    check_side("width", request.width, multiple)
    check_side("height", request.height, multiple)
    # 3 and 3.0 are one request, and are written in one way.
    return replace(request, guidance=float(request.guidance))


def sigmas(request: Resolved, model: Model) -> Tensor:
    """The grid that a request is sampled on, float64 [steps + 1]; of it, from an image, the last strength * steps.

    They are as many as diffusers takes, rounded down; AUTOMATIC1111 takes one more.
    """
    discard, xl = request.sampler in DISCARDS_PENULTIMATE, model.unet.config.addition_embed_type is not None
    grid = schedule(model.noise, request.schedule, request.steps, discard=discard, xl=xl)
    if request.strength is None:
        return grid
    steps = len(grid) - 1
    if not (last := int(steps * request.strength)):
        least = math.ceil(100 / steps) / 100
        raise ValueError(f"The strength {request.strength} of {steps} steps leaves none; expected at least {least}.")
    return grid[-1 - last :]


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
            if not isinstance(value, str) or value not in named:
                raise ValueError(f"The request's {name} is the file {value!r}, which is not here; give it, too.")
            value = named[value]
        values[name] = tuple(value) if isinstance(value, list) else value
    if "embeddings" in values:
        values["embeddings"] = embeddings_from_json(values["embeddings"])
    if "loras" in values:
        values["loras"] = loras_from_json(values["loras"])
    if "prompt" not in values:
        raise ValueError("A request has no prompt; say what the picture shows.")
    return Request(**values)


def embeddings_from_json(said: Any) -> tuple[tuple[str, str], ...]:
    match said:
        case [*items] if all(isinstance(item, list | tuple) and [*map(type, item)] == [str, str] for item in items):
            return tuple((name, digest) for name, digest in items)
    raise ValueError(f'The embeddings are {said!r}; expected a list as [["name", "its SHA-256"]].')


def file_name(data: bytes) -> str:
    """ "sha256:…": what stands for a file in a request's JSON."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _our_names(sampler: Any, schedule: Any) -> dict[str, Any]:
    """Sampler and schedule in our names. A schedule that is folded into the sampler's name is the one that counts."""
    if isinstance(schedule, str):
        schedule = our_schedule(schedule)
    if isinstance(sampler, str):
        sampler, folded = our_sampler(sampler)
        schedule = folded or schedule
    return {"sampler": sampler, "schedule": schedule}


def _check_sigmas(sigmas: tuple[Any, ...], steps: int | None) -> int:
    """The number of steps of a list of sigmas."""
    numbers = all(type(sigma) in (int, float) and math.isfinite(sigma) for sigma in sigmas)
    fall = numbers and all(high > low for high, low in pairwise(sigmas)) and sigmas[-1] == 0
    if not fall or not 2 <= len(sigmas) <= MAX_STEPS + 1:
        raise ValueError(f"The schedule is {sigmas!r}; expected at most {MAX_STEPS + 1} falling numbers, the last 0.")
    if steps not in (None, len(sigmas) - 1):
        raise ValueError(f"The schedule has {len(sigmas) - 1} steps and {steps!r} are asked for; leave the steps out.")
    return len(sigmas) - 1


def _options(sampler: str, request: Request) -> dict[str, float | None]:
    """The sampler's options, None where what is asked for changes nothing."""
    said = {option: getattr(request, option) for option in OPTIONS}
    if said["s_tmax"] in (0, math.inf):  # as AUTOMATIC1111's programs say that there is no bound
        said["s_tmax"] = None
    for option, value in said.items():
        if value is not None:
            check_number(f"The option {option}", value, 0, MAX_OPTION, whole=False)
    return dict.fromkeys(OPTIONS) | effective(sampler, said)


def _variation(request: Request) -> dict[str, Any]:
    """Its seed, drawn where none is named, and its strength; neither where it changes nothing."""
    seed, strength = request.variation_seed, request.variation_strength
    if strength is None:
        check_needed(request, ["variation_seed"], "a variation strength")
        return {}
    check_number("The variation strength", strength, 0, 1, whole=False)
    if strength == 0:
        return {"variation_seed": None, "variation_strength": None}
    seed = secrets.randbelow(DRAWN) if seed in (None, RANDOM) else seed
    check_number("The variation seed", seed, 0, MAX_SEED, whole=True)
    return {"variation_seed": seed, "variation_strength": strength}


def _check_prompts(request: Resolved, model: Model) -> Resolved:
    """The same request, whose prompts can be read; how, is unsaid where there is but one way."""
    syntax = DEFAULT_SYNTAX if request.prompt_syntax is None else request.prompt_syntax
    check_name("prompt syntax", syntax, SYNTAXES)
    for prompt, negative in ((request.prompt, False), (request.negative, True)):
        spans = [span for term in read(prompt, request.steps, syntax, negative) for span in term.spans]
        for text in {span.text for span in spans}:
            for tokenizer in model.tokenizers:
                chunks(text, syntax, tokenizer)
    if syntax == DEFAULT_SYNTAX and not has_syntax(request.prompt) and not has_syntax(request.negative):
        request = replace(request, prompt_syntax=None)
    else:
        request = replace(request, prompt_syntax=syntax)
    if request.clip_skip is not None:
        layers = min(encoder.config.layers for encoder in model.text_encoders)
        check_number("The clip skip", request.clip_skip, 1, layers, whole=True)
        if request.clip_skip == model.reading.skip + 1:
            request = replace(request, clip_skip=None)
    return request


def _check_guidance(request: Resolved, model: Model) -> Resolved:
    """The same request, with the extras of guidance checked, and unsaid where they change nothing."""
    if request.guidance_rescale is not None:
        check_number("The guidance rescale", request.guidance_rescale, 0, 1, whole=False)
    if request.guidance_interval is not None:
        interval = tuple(request.guidance_interval) if isinstance(request.guidance_interval, list | tuple) else ()
        numbers = all(isinstance(sigma, int | float) and sigma >= 0 for sigma in interval)
        if len(interval) != 2 or not numbers or not interval[0] < interval[1]:
            raise ValueError(
                f"The guidance interval is {request.guidance_interval!r}; expected two sigmas, the lower one first."
            )
        request = replace(request, guidance_interval=(float(interval[0]), float(interval[1])))
    request = replace(request, guidance_rescale=request.guidance_rescale or None)
    if model.distilled and (request.guidance_rescale or request.guidance_interval):
        raise ValueError("This model imitates guidance at every step; leave guidance rescale and interval out.")
    return request
