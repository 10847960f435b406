"""What a picture says about itself, and what readers make of it."""

import hashlib
import json
import re
import tomllib
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from diffusion.checkpoint import Model, load_model
from diffusion.metadata import VERSION, describe, digest, request_of
from diffusion.request import Request, resolve


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Model:
    return load_model(tiny_model)


def test_version_is_the_package_s() -> None:
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    assert project["version"] == VERSION


def test_chunks_hold_everything(model: Model) -> None:
    request = resolve(Request("a red apple", seed=3), model)
    texts = describe(request, model, torch.device("cpu"), torch.float32)
    said = json.loads(texts["oboro"])
    assert Request(**said["request"]) == Request(**asdict(request))
    assert said["model"]["name"] == "tiny"
    for name, expected in said["model"]["weights"].items():
        assert hashlib.sha256((model.path / name).read_bytes()).hexdigest() == expected
    assert said["versions"] == {"oboro": VERSION, "torch": torch.__version__}
    assert (said["dtype"], said["device"]) == ("float32", "cpu")
    unet = said["model"]["weights"]["unet/diffusion_pytorch_model.safetensors"]
    assert f"Model hash: {unet[:10]}, Model: tiny," in texts["parameters"]
    assert texts == describe(request, load_model(model.path), torch.device("cpu"), torch.float32)


def test_digest_is_of_request_and_weights(model: Model, pixel_model: Path) -> None:
    request = resolve(Request("a red apple"), model)
    assert re.fullmatch(r"[0-9a-f]{12}", digest(request, model))
    assert digest(request, model) == digest(resolve(request, model), model)
    others = [digest(replace(request, seed=1), model), digest(replace(request, prompt="an apple"), model)]
    assert len({digest(request, model), digest(request, load_model(pixel_model)), *others}) == 4


def test_request_from_the_form_alone(model: Model) -> None:
    # An old file of AUTOMATIC1111's, which folds the schedule into the sampler.
    old = "a cat\nSteps: 9, Sampler: DPM++ 2M Karras, CFG scale: 7, Seed: 1, Size: 16x16, Model hash: 0, Hashes: {}"
    request = resolve(request_of({"parameters": old}), model)
    assert (request.sampler, request.schedule, request.steps, request.width) == ("dpmpp_2m", "karras", 9, 16)


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ({}, "neither"),
        ({"prompt": "{}", "workflow": "{}"}, "a graph of ComfyUI"),
        ({"oboro": "{"}, "oboro chunk is broken"),
        ({"oboro": "{}"}, "oboro chunk is broken"),
        ({"oboro": '{"request": {"prompt": "x"}}'}, "oboro chunk is broken"),
        ({"oboro": '{"request": {}, "model": {"name": "x", "weights": {}}, "versions": {}}'}, "no prompt"),
        ({"oboro": '{"request": "x", "model": {"name": "x", "weights": {}}, "versions": {}}'}, "oboro chunk is broken"),
        ({"parameters": "x\nSteps: many, Sampler: Euler, Seed: 1"}, "parameters are broken"),
    ],
)
def test_broken_chunks(texts: dict[str, str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        request_of(texts)
