"""What a PNG says about how it was made, and reading it back.

Two text chunks: `parameters`, in the form of AUTOMATIC1111's web UI, which galleries read; and `oboro`, JSON
with all that it takes to make the picture again. No dates are in them: the same picture is the same file.
"""

import hashlib
import io
import json
import re
from collections.abc import Iterable
from typing import Any

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from diffusion.checkpoint import Model
from diffusion.request import SAMPLER_NAMES, SCHEDULE_NAMES, Request, Resolved, from_json, to_json

VERSION = "0.1.0"
UNET = "unet/diffusion_pytorch_model.safetensors"  # the file that `Model hash` is of

# A field of the last line: a name, and a value, quoted as JSON where it has a comma, a colon or a newline.
FIELD = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
NEGATIVE = "Negative prompt:"
# What readers take for the beginning of a part, where a line of the prompt begins with it.
MARKS = re.compile(r"^(\s*)(Negative prompt:|Steps:)", re.MULTILINE)


def describe(request: Resolved, model: Model, device: torch.device, dtype: torch.dtype) -> dict[str, str]:
    """The text chunks of a picture, by name."""
    said = {
        "request": to_json(request),
        "model": {"name": model.name, "weights": model.hashes},
        "versions": {"oboro": VERSION, "torch": str(torch.__version__)},
        "dtype": str(dtype).removeprefix("torch."),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    }
    line = parameters(request, model.name, model.hashes[UNET])
    return {"parameters": line, "oboro": json.dumps(said)}


def parameters(request: Resolved, model_name: str, model_hash: str) -> str:
    """The request in AUTOMATIC1111's form: the prompt, the negative one if there is any, a line of fields.

    A line of the prompt that begins with a mark of the form would be read as that part: there it is written
    in lower case. It is the same prompt: the tokenizer lower-cases everything.
    """
    line = {
        "Steps": request.steps,
        "Sampler": SAMPLER_NAMES[request.sampler],
        "Schedule type": SCHEDULE_NAMES[request.schedule],
        "CFG scale": float(request.guidance),
        "Seed": request.seed,
        "Size": f"{request.width}x{request.height}",
        "Model hash": model_hash[:10],
        "Model": model_name,
        "Variation seed": request.variation_seed,
        "Variation seed strength": request.variation_strength,
        "Version": f"oboro {VERSION}",
    }
    line = {name: value for name, value in line.items() if value is not None}
    parts = [_unmarked(request.prompt)]
    if request.negative:
        parts.append(f"{NEGATIVE} {_unmarked(request.negative)}")
    return "\n".join([*parts, ", ".join(f"{name}: {_quoted(str(value))}" for name, value in line.items())])


def parse_parameters(text: str) -> tuple[str, str, dict[str, str]]:
    """AUTOMATIC1111's form => prompt, negative prompt, fields; whatever is missing is empty."""
    *lines, last = text.strip().split("\n")
    fields = FIELD.findall(last)
    if len(fields) < 3:  # not the line of fields, but of the prompt
        lines, fields = [*lines, last], []
    marks = [i for i, line in enumerate(lines) if line.strip().startswith(NEGATIVE)]
    begin = marks[-1] if marks else len(lines)
    prompt, negative = "\n".join(lines[:begin]).strip(), "\n".join(lines[begin:]).strip()
    return prompt, negative.removeprefix(NEGATIVE).strip(), {name: _unquoted(value) for name, value in fields}


def encode_png(image: Image.Image, texts: dict[str, str]) -> bytes:
    """The picture as a PNG file with these text chunks; texts beyond Latin-1 are stored as UTF-8."""
    info, file = PngInfo(), io.BytesIO()
    for name, text in texts.items():
        info.add_text(name, text)
    image.save(file, "PNG", pnginfo=info)
    return file.getvalue()


def read_png(data: bytes) -> dict[str, str]:
    """The text chunks of a PNG file, by name. Raises ValueError for a file that is none."""
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            image.load()  # text chunks may come after the pixels
            return {str(name): str(text) for name, text in image.info.items() if isinstance(text, str)}
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"This is not a PNG that can be read: {error}.") from None


def request_of(texts: dict[str, str], files: Iterable[bytes] = ()) -> Request:
    """The request that a picture was made from: all of it from our own chunk, else what `parameters` tells.

    `files` are those that the request began with, which a picture names by their hash alone. Raises ValueError
    where neither chunk is there, one is broken or a file is not given.
    """
    if "oboro" in texts:
        try:
            record = json.loads(texts["oboro"])["request"]
        except (ValueError, LookupError, TypeError) as error:
            raise ValueError(f"The picture's oboro chunk is broken: {error}.") from None
        return from_json(record, files)
    if "parameters" not in texts:
        raise ValueError("The picture does not say how it was made: it has neither `oboro` nor `parameters`.")
    prompt, negative, line = parse_parameters(texts["parameters"])
    width, _, height = line.get("Size", "").partition("x")
    values = {"steps": line.get("Steps"), "seed": line.get("Seed"), "width": width, "height": height}
    try:
        said: dict[str, Any] = {name: int(value) for name, value in values.items() if value}
        if "CFG scale" in line:
            said["guidance"] = float(line["CFG scale"])
    except ValueError as error:
        raise ValueError(f"The picture's parameters are broken: {error}.") from None
    return Request(prompt, negative, sampler=line.get("Sampler"), schedule=line.get("Schedule type"), **said)


def digest(request: Resolved, model: Model) -> str:
    """Twelve hexadecimal digits of the whole request and the weights: a file name for the picture."""
    return hashlib.sha256(json.dumps([to_json(request), model.hashes]).encode()).hexdigest()[:12]


def _unmarked(text: str) -> str:
    return MARKS.sub(lambda match: match[1] + match[2].lower(), text)


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if set(value) & set(',:\n"') else value


def _unquoted(value: str) -> str:
    try:
        return str(json.loads(value)) if value.startswith('"') else value.strip()
    except ValueError:
        return value
