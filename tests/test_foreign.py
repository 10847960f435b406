"""Models of other architectures: the same command, and the picture that diffusers itself makes."""

import json
import shutil
import socket
from dataclasses import replace
from pathlib import Path

import foreign_models
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from diffusion.adapters import Lora
from diffusion.foreign import ForeignPipeline
from diffusion.metadata import request_of
from diffusion.open import open_pipeline
from diffusion.pipeline import Progress
from diffusion.request import Request, to_json
from diffusion.sample import main
from diffusion.texts import read_texts

KINDS = ("sd3", "pixart", "flux")
NEGATIVE = {"sd3": "a blue star", "pixart": "a blue star", "flux": ""}
EXTRA = {"pixart": {"use_resolution_binning": False, "clean_caption": False}}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("foreign")
    return {kind: getattr(foreign_models, f"save_{kind}")(root / kind) for kind in KINDS}


@pytest.fixture(scope="module")
def pipelines(folders: dict[str, Path]) -> dict[str, ForeignPipeline]:
    opened = {kind: open_pipeline(folder) for kind, folder in folders.items()}
    assert all(isinstance(pipeline, ForeignPipeline) for pipeline in opened.values())
    return opened  # type: ignore[return-value]


@pytest.mark.parametrize("kind", KINDS)
def test_command_makes_the_picture_that_diffusers_makes(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    def connect(*_: object) -> None:
        raise AssertionError("nothing may be fetched")

    monkeypatch.setattr(socket.socket, "connect", connect)
    options = ["--negative", NEGATIVE[kind], "--steps", "3", "--guidance", "4", "--size", "24x16", "--seed", "7"]
    out = tmp_path / "apple.png"
    assert main(["a red apple", "--model", str(folders[kind]), "--out", str(out), *options]) == 0

    library = DiffusionPipeline.from_pretrained(folders[kind])
    noise = torch.randn(1, 4, 8, 12, generator=torch.Generator().manual_seed(7))
    if kind == "flux":
        noise = library._pack_latents(noise, 1, 4, 8, 12)
    negative = {"negative_prompt": NEGATIVE[kind]} if NEGATIVE[kind] else {}
    theirs = library(
        "a red apple", num_inference_steps=3, guidance_scale=4, width=24, height=16, latents=noise, **negative,
        **EXTRA.get(kind, {}),
    ).images[0]  # fmt: skip
    assert Image.open(out).tobytes() == theirs.tobytes()
    assert len(set(theirs.tobytes())) > 50


@pytest.mark.parametrize("kind", KINDS)
def test_same_request_same_bytes(pipelines: dict[str, ForeignPipeline], kind: str) -> None:
    size = {"width": 16, "height": 24}
    first = Request("an apple", seed=1, steps=2, **size)
    requests = [first, replace(first, prompt="a star"), replace(first, seed=2), replace(first, steps=3)]
    together = [picture.png() for picture in pipelines[kind].generate(requests)]
    assert len(set(together)) == 4
    assert together[::-1] == [picture.png() for picture in pipelines[kind].generate(reversed(requests))]


@pytest.mark.parametrize("kind", KINDS)
def test_steps_are_reported_and_shown(pipelines: dict[str, ForeignPipeline], kind: str) -> None:
    pipeline, seen = pipelines[kind], list[Progress]()
    (picture,) = pipeline.generate([Request("a red apple", steps=3, width=24, height=16)], seen.append)
    assert [(step.evaluation, step.evaluations) for step in seen] == [(1, 3), (2, 3), (3, 3)]
    previews = [pipeline.image(step.x0) for step in seen if step.x0 is not None]
    assert previews[-1].tobytes() == picture.image.tobytes()  # after the last step no noise is left
    assert previews[0].tobytes() != picture.image.tobytes()


def test_picture_says_how_it_was_made(folders: dict[str, Path], pipelines: dict[str, ForeignPipeline]) -> None:
    (picture,) = pipelines["sd3"].generate([Request("a red apple", "a star", seed=-1, steps=2)])
    texts = read_texts(picture.png())
    assert to_json(request_of(texts)) == to_json(picture.request)
    assert "Sampler: FlowMatchEulerDiscreteScheduler" in texts["parameters"]
    said = json.loads(texts["oboro"])
    assert said["versions"].keys() == {"oboro", "torch", "diffusers", "transformers"}
    assert "transformer/diffusion_pytorch_model.safetensors" in said["model"]["weights"]
    (again,) = open_pipeline(folders["sd3"]).generate([request_of(texts)])
    assert again.png() == picture.png()


def test_defaults_are_the_pipelines_own(pipelines: dict[str, ForeignPipeline]) -> None:
    resolved = pipelines["sd3"].resolve(Request("a star"))
    assert (resolved.steps, resolved.guidance, resolved.width, resolved.height) == (28, 7.0, 16, 16)
    assert pipelines["pixart"].resolve(Request("a star")).sampler == "DPMSolverMultistepScheduler"
    assert pipelines["flux"].resolve(Request("a star")).width == 256


@pytest.mark.parametrize(
    ("kind", "request_", "said"),
    [
        ("sd3", Request("a", sampler="heun"), "A StableDiffusion3Pipeline has its own sampler, FlowMatchEuler"),
        ("sd3", Request("a", schedule="karras"), "has its own schedule, automatic; leave 'karras' out"),
        ("sd3", Request("a", prompt_syntax="a1111"), "has its own prompt_syntax, plain"),
        ("sd3", Request("a", loras=(Lora("ink"),)), "A StableDiffusion3Pipeline makes pictures without loras"),
        ("flux", Request("a", negative="a star"), "A FluxPipeline makes pictures without negative"),
        ("sd3", Request("a", variation_strength=0.5), "without variation_strength"),
        ("sd3", Request("a", width=18), "not a multiple of 4"),
        ("sd3", Request("a", steps=0), "from 1 to 1000"),
        ("pixart", Request("apple " * 30), "31 tokens long and this model reads 24"),
    ],
)
def test_what_cannot_be_done_is_said(
    pipelines: dict[str, ForeignPipeline], kind: str, request_: Request, said: str
) -> None:
    with pytest.raises(ValueError, match=r"\.$") as mistake:
        pipelines[kind].generate([request_])
    assert said in str(mistake.value)


def test_folders_that_are_not_trusted(folders: dict[str, Path], tmp_path: Path) -> None:
    index = json.loads((folders["pixart"] / "model_index.json").read_text())
    for file, content, said in (
        ("text_encoder/pytorch_model.bin", b"", "can run code when it is loaded"),
        ("vae/diffusion_pytorch_model.safetensors", b"\x80\x04\x95" + bytes(100), "is a pickle"),
        ("text_encoder/config.json", b'{"auto_map": {"AutoModel": "mine.Model"}}', "asks by auto_map for code"),
        ("model_index.json", json.dumps(index | {"_class_name": "OsPipeline"}).encode(), "is not among diffusers'"),
        ("model_index.json", json.dumps(index | {"_class_name": ["a", "B"]}).encode(), "only those of"),
        ("model_index.json", json.dumps(index | {"vae": ["os", "system"]}).encode(), "as its vae a class of os"),
        ("model_index.json", json.dumps(index | {"vae": ["diffusers", "Nothing"]}).encode(), "cannot be opened"),
        ("transformer/config.json", b"{}", "cannot be opened"),
    ):
        folder = Path(shutil.copytree(folders["pixart"], tmp_path / "model"))
        (folder / file).write_bytes(content)
        with pytest.raises(ValueError, match=r".") as mistake:
            open_pipeline(folder)
        assert said in str(mistake.value)
        assert "\n" not in str(mistake.value)
        shutil.rmtree(folder)


def test_templates_are_drawn_and_the_rest_is_plain(pipelines: dict[str, ForeignPipeline]) -> None:
    pixart = pipelines["pixart"]
    drawn = pixart.resolve(Request("a {red|blue} (star)", seed=3))
    assert drawn.prompt in ("a red (star)", "a blue (star)")
    assert drawn.template == "a {red|blue} (star)"
    assert pixart.resolve(drawn) == drawn
    plain = pixart.resolve(Request("a {red|blue} star", prompt_syntax="plain"))
    assert (plain.prompt, plain.prompt_syntax) == ("a {red|blue} star", "plain")
    with pytest.raises(ValueError, match="has its own prompt_syntax, plain; leave 'a1111' out"):
        pixart.resolve(Request("a star", prompt_syntax="a1111"))
