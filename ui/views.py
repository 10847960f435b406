"""What is shown of jobs: the stage with its pictures, the gallery, words to click, what a prompt is like."""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from PIL import Image

from diffusion.job import ENDED, Job
from diffusion.request import Request, Resolved
from diffusion.samplers import SAMPLER_NAMES
from diffusion.schedules import SCHEDULE_NAMES
from ui.markup import Markup, join, tag
from ui.settings import differences
from ui.words import mistake, say

PIXELATED = 128  # pixels a side up to which a picture is enlarged, and shown as the pixels that it is
PREVIEW = 512  # pixels a side of a preview, at most
# Bits a byte up to which a prompt is called familiar, and unusual. Captions of things that the model knows have 0.5 to
# 2; of other things, in its languages, 4 to 8.
FAMILIAR, UNUSUAL = 2.0, 4.5
LEVELS = (("known_well", 3), ("known_partly", 2), ("known_little", 1))


def stage(jobs: Sequence[Job], previews: Mapping[str, Image.Image], language: str) -> Markup:
    """The pictures of a group, as far as they are, and what is to be said of them."""
    if not jobs:
        return tag("div", tag("div", class_="moon"), tag("p", say(language, "stage_empty")), class_="empty")
    compared = are_compared(jobs)
    notes = _notes(jobs, language) if compared else [Markup()] * len(jobs)
    columns = 1 if len(jobs) == 1 else 2 if len(jobs) <= 4 or compared else 3
    figures = [_figure(job, previews.get(job.id), note, language) for job, note in zip(jobs, notes, strict=True)]
    return join(
        [
            tag("div", *figures, class_="pictures", style=f"--columns:{columns}"),
            _progress(jobs, language),
            _facts(jobs[0].request, language),
        ]
    )


def are_compared(jobs: Sequence[Job]) -> bool:
    """Whether they were made to be compared: A, B, A, B, ..., each A of its B's words and seed."""
    return len(jobs) % 2 == 0 and all(
        (a.request.prompt, a.request.seed) == (b.request.prompt, b.request.seed)
        for a, b in zip(jobs[::2], jobs[1::2], strict=True)
    )


def gallery(jobs: Iterable[Job], language: str) -> Markup:
    thumbnails = [
        tag(
            "button",
            _image(job.request, address(job), language),
            type="button",
            data_pick=job.id,
            title=_words(job.request, language),
            aria_label=say(language, "show", prompt=_words(job.request, language)),
        )
        for job in jobs
        if job.state == "done"
    ]
    if not thumbnails:
        return tag("p", say(language, "gallery_empty"), class_="hint")
    return tag("div", *thumbnails, class_="thumbnails")


def chips(texts: Iterable[str], title: str = "") -> Markup:
    buttons = [tag("button", text, type="button", data_pick=text) for text in texts]
    return tag("div", tag("span", title, class_="title"), *buttons, class_="chips") if buttons else Markup()


def familiarity(bits: float, language: str) -> Markup:
    """How expected a prompt is, for a person: moons and a sentence; the number when it is pointed at."""
    word, level = LEVELS[(bits > FAMILIAR) + (bits > UNUSUAL)]
    moons = [tag("i", class_="full" if i < level else None) for i in range(3)]
    title = say(language, "bits", bits=f"{bits:.1f}")
    return tag("p", tag("span", *moons, class_="moons"), say(language, word), class_="hint", title=title)


def notice(text: str, kind: str = "hint") -> Markup:
    """A sentence; one about a mistake is read out at once."""
    return tag("p", text, class_=kind, role="alert" if kind == "mistake" else "status") if text else Markup()


def download(job: Job, language: str) -> Markup:
    return tag("a", say(language, "download"), href=address(job), download=job.name, class_="download")


def address(job: Job) -> str:
    return f"pictures/{job.id}.png"


def _figure(job: Job, preview: Image.Image | None, note: Markup, language: str) -> Markup:
    size = f"--w:{job.request.width};--h:{job.request.height}"
    if job.state == "done":
        shown = _image(job.request, address(job), language, pick=job.id)
    elif preview is not None:
        shown = _image(job.request, _inline(preview), language)
    else:
        shown = Markup()
    failed = job.state in ("failed", "parked")
    said = tag("p", mistake(language, job.error or say(language, "failed"))) if failed else Markup()
    frame = tag("div", shown, said, class_="frame", style=size)
    caption = tag("figcaption", note) if note else Markup()
    return tag("figure", frame, caption, class_=f"{job.state} tiny" if _is_tiny(job.request) else job.state)


def _is_tiny(request: Resolved) -> bool:
    return max(request.width, request.height) <= PIXELATED


def _image(request: Request, source: str, language: str, pick: str | None = None) -> Markup:
    alt = say(language, "picture_alt", prompt=_words(request, language))
    return tag("img", src=source, alt=alt, width=request.width, height=request.height, data_pick=pick)


def _progress(jobs: Sequence[Job], language: str) -> Markup:
    """A bar over all pictures of a group, and what it says."""
    over = all(job.state in ENDED for job in jobs)
    part = sum(1.0 if job.state in ENDED else job.evaluation / max(job.evaluations, 1) for job in jobs) / len(jobs)
    bar = tag(
        "div",
        tag("div", style=f"width:{100 * part:.1f}%"),
        class_="bar over" if over else "bar",
        role="progressbar",
        aria_valuenow=round(100 * part),
        aria_valuemin=0,
        aria_valuemax=100,
        aria_label=_status(jobs, language),
    )
    return join([bar, tag("p", _status(jobs, language), class_="status", role="status")])


def _status(jobs: Sequence[Job], language: str) -> str:
    done = [job for job in jobs if job.state == "done"]
    if running := next((job for job in jobs if job.state == "running"), None):
        said = say(language, "step", at=running.evaluation, of=running.evaluations or running.request.steps)
        ended = sum(job.state in ENDED for job in jobs)
        return said if len(jobs) == 1 else f"{said} · {say(language, 'pictures_of', at=ended + 1, of=len(jobs))}"
    if any(job.state == "queued" for job in jobs):
        return say(language, "waiting")
    if any(job.state == "cancelled" for job in jobs):
        return say(language, "stopped")
    if not done:
        return say(language, "failed")
    took = max(job.finished or 0 for job in done) - min(job.started or 0 for job in done)
    seconds = f"{max(took, 0):.1f}"
    return say(language, "done_one" if len(jobs) == 1 else "done_many", seconds=seconds, count=len(done))


def _facts(request: Resolved, language: str) -> Markup:
    *facts, seed = [
        SAMPLER_NAMES.get(request.sampler, request.sampler),
        *(_shown(name, getattr(request, name), language) for name in ("steps", "guidance")),
        say(language, "seed_of", value=request.seed),
    ]
    size = say(language, "enlarged" if _is_tiny(request) else "pixels", width=request.width, height=request.height)
    return tag(
        "div",
        tag("p", _words(request, language), class_="words"),
        tag("p", *(tag("span", f"{fact} ·\u00a0") for fact in facts), tag("span", seed)),  # lines break between them
        tag("p", size),
        class_="facts",
    )


def _notes(jobs: Sequence[Job], language: str) -> list[Markup]:
    """Of pictures that are compared: which each is, and what only it has."""
    notes = []
    for a, b in zip(jobs[::2], jobs[1::2], strict=True):
        for letter, values in zip("AB", differences(a.request, b.request), strict=True):
            said = " · ".join(_shown(name, value, language) for name, value in values.items())
            notes.append(join([tag("b", letter), tag("span", said)]))
    return notes


def _shown(name: str, value: Any, language: str) -> str:
    """A field of a choice, in words."""
    if name == "sampler":
        return SAMPLER_NAMES.get(value, value)
    if name == "schedule":
        return SCHEDULE_NAMES.get(value, str(value))
    return say(language, f"{name}_of", value=f"{value:g}")


def _words(request: Request, language: str) -> str:
    return request.prompt or say(language, "untitled")


def _inline(image: Image.Image) -> str:
    """A preview as an address that holds it."""
    image = image.copy()
    image.thumbnail((PREVIEW, PREVIEW))
    file = io.BytesIO()
    if max(image.size) <= PIXELATED:
        image.save(file, "PNG")
        kind = "png"
    else:
        image.save(file, "JPEG", quality=80)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
