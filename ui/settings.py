"""What the demo's form holds <=> requests.

    requests_of(form)     the pictures that the form asks for
    form_of(request)      the form that asks for this picture again
    restored(file)        the request of a picture's file

What a person got wrong is a ValueError of one sentence.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

from PIL import Image

from diffusion.canvas import natural_size
from diffusion.checks import MAX_SEED, MAX_SIDE
from diffusion.image import fit, flatten, read_image
from diffusion.metadata import record_of, request_of
from diffusion.open import AnyPipeline
from diffusion.request import Request, Resolved, from_json, to_json
from diffusion.samplers import SAMPLER_NAMES, SAMPLERS
from diffusion.schedules import SCHEDULE_NAMES
from diffusion.texts import encode_picture, read_texts

MAX_COUNT = 9
SHAPES = ((1, 1), (4, 3), (3, 4), (3, 2), (2, 3))
CANVAS = 512  # pixels that a picture is shown to the brush at, about: 64 would be hard to paint on
BRUSH = "#d8b84a"
SIZE = re.compile(r"\s*(\d{1,5})\s*[x×]\s*(\d{1,5})\s*", re.IGNORECASE)
# Of a request, what the form has a control for; of an image; and what holds for one prompt alone, or follows from it.
SHOWN = ("prompt", "negative", "seed", "steps", "sampler", "schedule", "guidance", "width", "height")
OF_IMAGE = ("image", "mask", "strength", "mask_blur", "resize", "fill", "padding", "outpaint")
OF_PROMPT = ("template", "negative_template", "expanded_from", "embeddings")


@dataclass(frozen=True)
class Choice:
    """What two pictures that are compared differ in."""

    sampler: str
    schedule: str
    steps: int
    guidance: float


@dataclass(frozen=True)
class Form:
    """What the controls hold, as a person left them."""

    prompt: str
    negative: str
    choice: Choice
    size: str  # "64x64"
    seed: str  # of the first picture; numbers of JavaScript would lose the last digits of long ones
    count: int = 1
    image: bytes | None = None  # what the pictures begin with
    mask: bytes | None = None
    strength: float = 0.75
    mask_blur: float = 1.0
    more: Mapping[str, Any] = field(default_factory=dict)  # JSON of what there is no control for


def requests_of(form: Form, other: Choice | None = None) -> list[Request]:
    """One request a seed; or, where it is compared with another choice, two: A, B, A, B, ..."""
    more = from_json({"prompt": "", **form.more})
    width, height = size_of(form.size)
    asked = replace(more, prompt=form.prompt, negative=form.negative, width=width, height=height)
    if form.image is not None:
        asked = replace(asked, image=form.image, strength=form.strength, resize="crop")
        if form.mask is not None:
            asked = replace(asked, mask=form.mask, mask_blur=form.mask_blur)
    choices = [form.choice] if other is None else [form.choice, other]
    first = seed_of(form.seed)
    return [chosen(replace(asked, seed=first + i), choice) for i in range(int(form.count)) for choice in choices]


def chosen(request: Request, choice: Choice) -> Request:
    """The request with a choice in it. A list of sigmas, which numbers its steps itself, is text in the form."""
    sigmas = "," in choice.schedule
    return replace(
        request,
        sampler=choice.sampler,
        schedule=tuple(float(sigma) for sigma in choice.schedule.split(",")) if sigmas else choice.schedule,
        steps=None if sigmas else int(choice.steps),
        guidance=float(choice.guidance),
    )


def form_of(request: Resolved) -> Form:
    """The form that asks for a request again."""
    said = {name: value for name, value in to_json(request).items() if name not in SHOWN + OF_IMAGE + OF_PROMPT}
    listed = isinstance(request.schedule, tuple)
    width, height = request.width, request.height
    return Form(
        prompt=request.prompt,
        negative=request.negative,
        choice=Choice(
            sampler=request.sampler,
            schedule=",".join(map(str, request.schedule)) if listed else str(request.schedule),
            steps=request.steps,
            guidance=request.guidance,
        ),
        size=f"{width}x{height}",
        seed=str(request.seed),
        image=request.image,
        mask=request.mask,
        strength=Form.strength if request.strength is None else request.strength,
        mask_blur=min(width, height) / 128 if request.mask_blur is None else request.mask_blur,
        more=said,
    )


def defaults_of(pipeline: AnyPipeline) -> Form:
    """The form as a model would have it."""
    return form_of(pipeline.resolve(Request("")))


class Restored(NamedTuple):
    request: Request
    without_image: bool  # it began with one, which its file names by its hash alone


def restored(file: bytes) -> Restored:
    """The request that a picture's file tells, as far as the file alone can say it.

    Raises ValueError for a file that is no picture, or does not say how it was made.
    """
    texts = read_texts(file)
    if "oboro" not in texts:
        return Restored(request_of(texts), False)
    said = record_of(texts)["request"]
    alone = {name: value for name, value in said.items() if name not in OF_IMAGE}
    return Restored(from_json(alone), alone != said)


def samplers(pipeline: AnyPipeline) -> dict[str, str]:
    """Names to show => names; models of other architectures have but their own."""
    own = defaults_of(pipeline).choice.sampler
    return {SAMPLER_NAMES[name]: name for name in SAMPLERS} if own in SAMPLERS else {own: own}


def schedules(pipeline: AnyPipeline) -> dict[str, str]:
    known = {shown: name for name, shown in SCHEDULE_NAMES.items()}
    return known if defaults_of(pipeline).choice.sampler in SAMPLERS else {"Automatic": "automatic"}


def sizes(pipeline: AnyPipeline) -> list[str]:
    """The model's own size and other shapes of about as many pixels, those that it takes."""
    own = size_of(defaults_of(pipeline).size)
    factor = getattr(getattr(pipeline.model, "autoencoder", None), "factor", 16)
    found = [own, *(natural_size(shape, own[0] * own[1], factor) for shape in SHAPES)]
    return [f"{width}x{height}" for width, height in dict.fromkeys(found)]


def size_of(text: str) -> tuple[int, int]:
    if not (match := SIZE.fullmatch(str(text))):
        raise ValueError(f"The size is {text!r:.50}; expected pixels as 64x96.")
    return int(match[1]), int(match[2])


def seed_of(text: str) -> int:
    if not str(text).strip().isdecimal() or int(text) > MAX_SEED - MAX_COUNT:
        raise ValueError(f"The seed is {text!r:.50}; expected a whole number from 0 to {MAX_SEED - MAX_COUNT}.")
    return int(text)


def begin_with(file: bytes, size: str) -> bytes:
    """A file to begin with, cut to the form's size: a PNG. Raises ValueError for one that is no picture."""
    width, height = size_of(size)
    if not 0 < width <= MAX_SIDE or not 0 < height <= MAX_SIDE:
        raise ValueError(f"The size is {size!r:.50}; expected at most {MAX_SIDE} pixels a side.")
    return encode_picture(fit(flatten(read_image(file, "The picture")), (width, height), "crop"), {})


def canvas_of(image: bytes, mask: bytes | None) -> dict[str, Any]:
    """An image and what is painted over it, enlarged, as gr.ImageEditor takes them."""
    background = read_image(image, "The picture").convert("RGB")
    times = max(CANVAS // max(background.size), 1)
    enlarge = lambda picture: picture.resize((picture.width * times, picture.height * times), Image.Resampling.NEAREST)
    layers = []
    if mask is not None:
        layer = Image.new("RGBA", background.size, BRUSH)
        layer.putalpha(flatten(read_image(mask, "The mask")).convert("L"))
        layers = [enlarge(layer)]
    return {"background": enlarge(background), "layers": layers, "composite": None}


def mask_of(strokes: list[Image.Image], image: bytes) -> bytes | None:
    """What was painted over an image => its mask, a PNG of the image's size; None where nothing was."""
    size = read_image(image, "The picture").size
    mask = Image.new("L", size)
    for layer in strokes:
        painted = layer.convert("RGBA").getchannel("A").resize(size, Image.Resampling.BOX)
        mask.paste(255, mask=painted.point(lambda alpha: 255 * (alpha >= 128)))
    return None if mask.getbbox() is None else encode_picture(mask, {})


def differences(a: Request, b: Request) -> tuple[dict[str, Any], dict[str, Any]]:
    """The fields in which two requests differ, with the values of each."""
    names = [item.name for item in fields(Request) if getattr(a, item.name) != getattr(b, item.name)]
    return {name: getattr(a, name) for name in names}, {name: getattr(b, name) for name in names}
