"""What a picture says about itself, and what readers make of it."""

import hashlib
import json
import re
import tomllib
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from diffusion.checkpoint import Model, load_model
from diffusion.metadata import (
    VERSION,
    describe,
    digest,
    encode_png,
    parameters,
    parse_parameters,
    read_png,
    request_of,
)
from diffusion.request import Request, Resolved, resolve

PLAIN = Resolved(
    "a cat", seed=42, steps=20, sampler="euler_ancestral", schedule="karras", guidance=7.0, width=512, height=512
)
TRAPS = [
    "a cat",
    "",
    "a cat, Negative prompt: a dog",
    "Negative prompt: a dog",
    "a cat\nNegative prompt: a dog\nSteps: 3, Sampler: Euler, Seed: 1",
    "  Steps: 3, Sampler: Euler, CFG scale: 7.0, Seed: 1",
    'a "cat", it said: "Meow"\\',
    "two\nlines\n\nand a third",
    "霞む山と赤い月、桜",
    "café ☃ \U0001f34e",
    "Steps: 3",
    "word " * 2000,
]


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Model:
    return load_model(tiny_model)


def automatic1111(text: str) -> tuple[str, str, dict[str, str]]:
    """How that program reads the form: by lines, a mark at a line's beginning, fields in the last line."""
    field = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
    prompt: list[str] = []
    negative: list[str] = []
    *lines, last = text.strip().split("\n")
    if len(field.findall(last)) < 3:
        lines, last = [*lines, last], ""
    into = prompt
    for line in lines:
        stripped = line.strip()
        if stripped.startswith("Negative prompt:"):
            into, stripped = negative, stripped[16:].strip()
        into.append(stripped)
    return "\n".join(prompt), "\n".join(negative), dict(field.findall(last))


def words(text: str) -> list[str]:
    """What is left of a text once the tokenizer has lower-cased it and made one space of many."""
    return text.lower().split()


def test_version_is_the_package_s() -> None:
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    assert project["version"] == VERSION


def test_form() -> None:
    line = (
        "Steps: 20, Sampler: Euler a, Schedule type: Karras, CFG scale: 7.0, Seed: 42, Size: 512x512, "
        f"Model hash: 0123456789, Model: name, Version: oboro {VERSION}"
    )
    assert parameters(PLAIN, "name", "0123456789abcdef") == f"a cat\n{line}"
    with_negative = parameters(replace(PLAIN, negative="a dog"), "name", "0123456789abcdef")
    assert with_negative == f"a cat\nNegative prompt: a dog\n{line}"


@pytest.mark.parametrize("prompt", TRAPS)
@pytest.mark.parametrize("negative", TRAPS)
def test_traps(prompt: str, negative: str) -> None:
    text = parameters(replace(PLAIN, prompt=prompt, negative=negative), "name", "0123456789abcdef")
    for read in (automatic1111, parse_parameters):
        found_prompt, found_negative, fields = read(text)
        assert words(found_prompt) == words(prompt)
        assert words(found_negative) == words(negative)
        assert (fields["Steps"], fields["Seed"], fields["Size"]) == ("20", "42", "512x512")
    texts = {"parameters": text, "oboro": json.dumps({"request": asdict(replace(PLAIN, prompt=prompt))})}
    read_back = read_png(encode_png(Image.new("RGB", (2, 2)), texts))
    assert read_back == texts
    assert request_of(read_back).prompt == prompt  # to the letter


@pytest.mark.parametrize("name", ["a, b", "a: b", "a\nb", 'a "b"', '"', "a, Seed: 7, x", "月"])
def test_names_of_models_are_quoted(name: str) -> None:
    _, _, fields = parse_parameters(parameters(PLAIN, name, "0" * 64))
    assert fields["Model"] == name
    assert fields["Seed"] == "42"
    assert automatic1111(parameters(PLAIN, name, "0" * 64))[2]["Version"] == f"oboro {VERSION}"


def test_chunks_hold_everything(model: Model) -> None:
    request = resolve(Request("a red apple", seed=3), model)
    texts = describe(request, model, torch.device("cpu"), torch.float32)
    said = json.loads(texts["oboro"])
    assert Request(**said["request"]) == Request(**asdict(request))
    assert said["model"]["name"] == "tiny"
    for name, expected in said["model"]["weights"].items():
        assert hashlib.sha256((model.folder / name).read_bytes()).hexdigest() == expected
    assert said["versions"] == {"oboro": VERSION, "torch": torch.__version__}
    assert (said["dtype"], said["device"]) == ("float32", "cpu")
    unet = said["model"]["weights"]["unet/diffusion_pytorch_model.safetensors"]
    assert f"Model hash: {unet[:10]}, Model: tiny," in texts["parameters"]
    assert texts == describe(request, load_model(model.folder), torch.device("cpu"), torch.float32)


def test_digest_is_of_request_and_weights(model: Model, pixel_model: Path) -> None:
    request = resolve(Request("a red apple"), model)
    assert re.fullmatch(r"[0-9a-f]{12}", digest(request, model))
    assert digest(request, model) == digest(resolve(request, model), model)
    others = [digest(replace(request, seed=1), model), digest(replace(request, prompt="an apple"), model)]
    assert len({digest(request, model), digest(request, load_model(pixel_model)), *others}) == 4


def test_request_from_the_form_alone(model: Model) -> None:
    text = parameters(replace(PLAIN, negative="a dog", width=16, height=32), "a, b", "0" * 64)
    request = request_of({"parameters": text})
    assert request == Request("a cat", "a dog", 42, 20, "Euler a", "Karras", 7.0, 16, 32)
    assert resolve(request, model).sampler == "euler_ancestral"
    # An old file of AUTOMATIC1111's, which folds the schedule into the sampler; and a prompt alone.
    old = "a cat\nSteps: 9, Sampler: DPM++ 2M Karras, CFG scale: 7, Seed: 1, Size: 16x16, Model hash: 0, Hashes: {}"
    folded = resolve(request_of({"parameters": old}), model)
    assert (folded.sampler, folded.schedule, folded.steps) == ("dpmpp_2m", "karras", 9)
    assert request_of({"parameters": "a cat, a dog"}) == Request("a cat, a dog")


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ({}, "neither"),
        ({"oboro": "{"}, "oboro chunk is broken"),
        ({"oboro": "{}"}, "oboro chunk is broken"),
        ({"oboro": '{"request": {"prompts": "x"}}'}, "no field 'prompts'"),
        ({"oboro": '{"request": {}}'}, "no prompt"),
        ({"oboro": '{"request": "a cat"}'}, "expected an object"),
        ({"parameters": "x\nSteps: many, Sampler: Euler, Seed: 1"}, "parameters are broken"),
        ({"parameters": "x\nSteps: 1, Seed: 1, Size: big"}, "parameters are broken"),
    ],
)
def test_broken_chunks(texts: dict[str, str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        request_of(texts)


@pytest.mark.parametrize("data", [b"", b"GIF89a", b"\x89PNG\r\n\x1a\n", encode_png(Image.new("RGB", (9, 9)), {})[:45]])
def test_files_that_are_no_png(data: bytes) -> None:
    with pytest.raises(ValueError, match="not a PNG that can be read"):
        read_png(data)


def test_same_picture_same_file() -> None:
    image = Image.new("RGB", (4, 4), "red")
    assert encode_png(image, {"oboro": "霞"}) == encode_png(image.copy(), {"oboro": "霞"})
