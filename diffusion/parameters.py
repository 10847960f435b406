"""A request as text, in the form of AUTOMATIC1111's web UI, which galleries and other programs read; and back.

    PROMPT
    Negative prompt: NEGATIVE
    Steps: 20, Sampler: Euler a, CFG scale: 7.0, Seed: 42, Size: 512x512, ...

The form has no escapes, and its readers differ. What a text must avoid to be read alike by all of them:

- `Negative prompt:` anywhere in a prompt (some split the whole text at it), and a line that begins with `Steps:`
  or `Template:` (some take the first such line for the fields, or throw it away). Those are written in lower
  case. It is the same prompt to every CLIP, whose tokenizer lower-cases everything.
- an empty prompt left out: the line break before the next part stays, for some look for `\\nSteps:`.
- a brace at the very beginning, which some take for JSON's: a line break stands before it.
- a comma or a colon in a value: most split at them, quotes or not. In JSON's quotes both are escapes.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from diffusion.request import Request, Resolved
from diffusion.samplers import SAMPLER_NAMES
from diffusion.schedules import SCHEDULE_NAMES
from diffusion.upscale import UPSCALERS

NEGATIVE = "Negative prompt:"
MARKS = re.compile(r"Negative prompt:|^\s*(?:Steps|Template|Negative Template):", re.MULTILINE)
# A field of the last line: a name, and a value, which is JSON's string where it holds what would end it.
FIELD = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
FEWEST = 3  # fields; a line of fewer belongs to the prompt
LONGEST = 80  # characters of a wrong value that are shown


@dataclass(frozen=True)
class Key:
    """A key of the line, and the field of a request that it stands for. A field that is None is left out."""

    name: str
    field: str
    read: Callable[[str], Any] | None  # raises ValueError; None: says nothing without a file, and the form has none
    write: Callable[[Any], str] = str


KEYS = (
    Key("Steps", "steps", int),
    Key("Sampler", "sampler", str, lambda name: SAMPLER_NAMES.get(name, name)),
    Key("Schedule type", "schedule", str, lambda grid: SCHEDULE_NAMES.get(grid) or ",".join(map(str, grid))),
    Key("CFG scale", "guidance", float),
    Key("Seed", "seed", int),
    Key("Eta", "eta", float),
    Key("Sigma churn", "s_churn", float),
    Key("Sigma tmin", "s_tmin", float),
    Key("Sigma tmax", "s_tmax", float),
    Key("Sigma noise", "s_noise", float),
    Key("Clip skip", "clip_skip", int),
    Key("CFG Rescale", "guidance_rescale", float),
    Key("Variation seed", "variation_seed", int),
    Key("Variation seed strength", "variation_strength", float),
    Key("Denoising strength", "strength", None),
    Key("Mask blur", "mask_blur", None),
    Key("Masked area padding", "padding", None),
    Key("Denoising strength", "hires_strength", float),  # the name has two meanings; a picture has one of them
    Key("Hires upscale", "hires_scale", float),
    Key("Hires steps", "hires_steps", int),
    Key("Hires upscaler", "hires_upscaler", str, lambda name: UPSCALERS.get(name, name)),
)
SIZE = re.compile(r"(\d{1,9})x(\d{1,9})")


def write_parameters(request: Resolved, more: Mapping[str, str]) -> str:
    """The request in the form; `more` are fields for the end of its line, by key."""
    said = {key.name: key.write(getattr(request, key.field)) for key in KEYS if getattr(request, key.field) is not None}
    said |= {"Size": f"{request.width}x{request.height}", **more}
    parts = [_unmarked(request.prompt + "".join(lora.tag for lora in request.loras))]
    if request.negative:
        parts.append(f"{NEGATIVE} {_unmarked(request.negative)}")
    return "\n".join([*parts, ", ".join(f"{key}: {_quoted(value)}" for key, value in said.items())])


def split_parameters(text: str) -> tuple[str, str, dict[str, str]]:
    """The form => prompt, negative prompt, fields; whatever is missing is empty.

    Any text at all is taken: where no line is one of fields, all of it is prompt.
    """
    lines = [line.strip() for line in text.strip().split("\n")]
    at = next((i for i in _candidates(lines) if len(FIELD.findall(lines[i])) >= FEWEST), len(lines))
    fields = FIELD.findall("".join(lines[at : at + 1]))
    prompt: list[str] = []
    negative: list[str] = []
    into = prompt
    for line in lines[:at]:
        if line.startswith(NEGATIVE):
            into, line = negative, line.removeprefix(NEGATIVE).strip()
        into.append(line)
    return "\n".join(prompt), "\n".join(negative), {key: _unquoted(value) for key, value in fields}


def read_parameters(text: str) -> Request:
    """The form, of whatever program => what it asks for, as far as a request can say it.

    Keys that are not known here are passed over. Raises ValueError, in one sentence, for a value that is none.
    """
    prompt, negative, line = split_parameters(text)
    said: dict[str, Any] = {}
    for key in KEYS:
        belongs = "Hires upscale" in line or not key.field.startswith("hires_")
        if key.name in line and key.read is not None and belongs:
            said[key.field] = _value(key.name, line[key.name], key.read)
    if "Size" in line:
        said["width"], said["height"] = _value("Size", line["Size"], _size)
    return Request(prompt, negative, **said)


def _candidates(lines: list[str]) -> list[int]:
    """Where the line of fields may be: at the end, or before lines that plugins add, where it begins as usual."""
    last = len(lines) - 1
    return [last, *(i for i in range(last - 1, -1, -1) if lines[i].startswith("Steps:"))]


def _value(key: str, text: str, read: Callable[[str], Any]) -> Any:
    try:
        return read(text)
    except ValueError:
        shown = text if len(text) <= LONGEST else text[:LONGEST] + "…"
        raise ValueError(f"The picture's parameters are broken: {key} is {shown!r}.") from None


def _size(text: str) -> tuple[int, int]:
    if not (match := SIZE.fullmatch(text)):
        raise ValueError(text)
    return int(match[1]), int(match[2])


def _unmarked(text: str) -> str:
    text = MARKS.sub(lambda match: match[0].lower(), text)
    return f"\n{text}" if text.startswith("{") else text


def _quoted(value: str) -> str:
    if value == value.strip() and not set(value) & set(',:\n"'):
        return value
    return json.dumps(value, ensure_ascii=False).replace(",", r"\u002c").replace(":", r"\u003a")


def _unquoted(value: str) -> str:
    try:
        return str(json.loads(value)) if value.startswith('"') else value.strip()
    except ValueError:
        return value
