"""AUTOMATIC1111's API, asked by a client that was written for it."""

import base64
import io
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from clips import save_tiny_clip
from fastapi.testclient import TestClient
from PIL import Image
from servers import served, service_of
from webuiapi import WebUIApi, WebUIApiResult

from diffusion.parameters import read_parameters
from diffusion.request import Request
from diffusion.sample import main as sample
from diffusion.samplers import SAMPLER_NAMES
from diffusion.schedules import SCHEDULE_NAMES
from ui.a1111_payload import Img2Img, Missing, Payload, Txt2Img, check_settings
from ui.server import create_app
from ui.service import Service

SMALL = {"width": 16, "height": 16, "steps": 4}


@pytest.fixture(scope="module")
def server(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Service]]:
    with served(tiny_model, tmp_path_factory.mktemp("jobs")) as found:
        yield found


@pytest.fixture(scope="module")
def url(server: tuple[str, Service]) -> str:
    return f"{server[0]}/sdapi/v1"


@pytest.fixture(scope="module")
def client(url: str) -> WebUIApi:
    return WebUIApi(baseurl=url, sampler="Euler")


def by_command(model: Path, out: Path, *options: str) -> Image.Image:
    assert sample(["a red apple", "--model", str(model), "--out", str(out), *options]) == 0
    return Image.open(out).convert("RGB")


def in_base64(image: Image.Image, format: str = "PNG") -> str:
    file = io.BytesIO()
    image.save(file, format)
    return base64.b64encode(file.getvalue()).decode()


def test_txt2img(client: WebUIApi, tiny_model: Path, tmp_path: Path) -> None:
    said = {"negative_prompt": "a star", "seed": 5, "cfg_scale": 2.0, "scheduler": "Karras", "batch_size": 2}
    result = client.txt2img(prompt="a red apple", sampler_name="DPM++ 2M", **said, **SMALL)
    options = ["--size", "16", "--steps", "4", "--negative", "a star", "--guidance", "2"]
    options += ["--sampler", "dpmpp_2m", "--schedule", "karras"]
    for i, image in enumerate(result.images):
        assert image.convert("RGB") == by_command(tiny_model, tmp_path / "a.png", *options, "--seed", str(5 + i))
    assert result.info["all_seeds"] == [5, 6]
    assert (result.info["sampler_name"], result.info["steps"], result.info["width"]) == ("DPM++ 2M", 4, 16)
    assert result.info["extra_generation_params"] == {"Schedule type": "Karras"}
    for seed, text in zip([5, 6], result.info["infotexts"], strict=True):
        said_again = read_parameters(text)
        assert (said_again.prompt, said_again.negative, said_again.seed) == ("a red apple", "a star", seed)
    assert result.parameters["cfg_scale"] == 2.0


def test_sizes_and_seeds_of_its_own(url: str) -> None:
    answer = requests.post(f"{url}/txt2img", json={"prompt": "a", "steps": 2, "n_iter": 2, "cfg_scale": None}).json()
    info = json.loads(answer["info"])
    assert (info["width"], info["height"], info["cfg_scale"]) == (16, 16, 7.0)
    assert info["all_seeds"][1] == info["all_seeds"][0] + 1
    assert len(answer["images"]) == 2


def test_variations(client: WebUIApi, tiny_model: Path, tmp_path: Path) -> None:
    result = client.txt2img(prompt="a red apple", seed=3, subseed=8, subseed_strength=0.4, batch_size=2, **SMALL)
    options = ["--size", "16", "--steps", "4", "--guidance", "7", "--sampler", "euler", "--schedule", "automatic"]
    options += ["--seed", "3", "--variation-strength", "0.4", "--variation-seed", "9"]
    assert result.images[1].convert("RGB") == by_command(tiny_model, tmp_path / "a.png", *options)
    assert (result.info["all_seeds"], result.info["all_subseeds"]) == ([3, 3], [8, 9])


def test_hires(client: WebUIApi) -> None:
    result = client.txt2img(prompt="a red apple", seed=3, enable_hr=True, hr_scale=2, denoising_strength=0.6, **SMALL)
    assert result.image.size == (32, 32)
    assert result.info["denoising_strength"] == 0.6
    assert "Hires upscale: 2.0" in result.info["infotexts"][0]


@pytest.mark.parametrize(("invert", "full"), [(0, False), (1, False), (0, True)])
def test_img2img_with_a_mask(client: WebUIApi, tiny_model: Path, tmp_path: Path, invert: int, full: bool) -> None:
    image, mask = Image.new("RGB", (32, 32), "teal"), Image.new("L", (32, 32))
    mask.paste(255, (8, 8, 20, 20))
    result = client.img2img(
        images=[image], mask_image=mask, prompt="a red apple", seed=3, denoising_strength=0.9, mask_blur=1,
        inpainting_fill=1, inpaint_full_res=full, inpaint_full_res_padding=2, inpainting_mask_invert=invert,
        width=32 if not full else 16, height=32 if not full else 16, steps=5,
    )  # fmt: skip
    image.save(tmp_path / "image.png")
    mask.point(lambda value: 255 - value if invert else value).save(tmp_path / "mask.png")
    options = ["--image", str(tmp_path / "image.png"), "--mask", str(tmp_path / "mask.png"), "--strength", "0.9"]
    options += ["--mask-blur", "1", "--guidance", "7", "--sampler", "euler", "--schedule", "automatic", "--steps", "5"]
    options += ["--size", "16", "--padding", "2"] if full else ["--size", "32"]
    assert result.image.convert("RGB") == by_command(tiny_model, tmp_path / "a.png", *options, "--seed", "3")
    corner = result.image.convert("RGB").getpixel((0, 0))
    assert (corner == image.getpixel((0, 0))) is not bool(invert)
    assert result.parameters["init_images"] is None


def test_img2img_without_a_mask(client: WebUIApi, tiny_model: Path, tmp_path: Path) -> None:
    image = Image.new("RGB", (24, 16), "teal")
    result = client.img2img(images=[image], prompt="a red apple", seed=3, resize_mode=1, **SMALL)
    image.save(tmp_path / "image.png")
    options = ["--image", str(tmp_path / "image.png"), "--resize", "crop", "--size", "16", "--steps", "4"]
    options += ["--guidance", "7", "--sampler", "euler", "--schedule", "automatic", "--seed", "3"]
    assert result.image.convert("RGB") == by_command(tiny_model, tmp_path / "a.png", *options)


def in_background(call: Any) -> tuple[threading.Thread, list[WebUIApiResult]]:
    results: list[WebUIApiResult] = []
    thread = threading.Thread(target=lambda: results.append(call()))
    thread.start()
    return thread, results


def test_progress_skip_and_interrupt(client: WebUIApi) -> None:
    assert client.get_progress()["progress"] == 0
    thread, results = in_background(
        lambda: client.txt2img(prompt="a red apple", width=16, height=16, steps=800, n_iter=3)
    )
    seen: list[dict[str, Any]] = []
    while not seen or not seen[-1]["current_image"]:
        seen.append(client.get_progress())
        time.sleep(0.02)
    assert Image.open(io.BytesIO(base64.b64decode(seen[-1]["current_image"]))).size == (16, 16)
    state = seen[-1]["state"]
    assert (state["job"], state["job_count"], state["sampling_steps"]) == ("txt2img", 3, 800)
    assert 0 < seen[-1]["progress"] < 1
    assert seen[-1]["eta_relative"] > 0
    client.skip()
    while client.get_progress()["state"]["job_no"] != 1:
        time.sleep(0.02)
    assert client.get_progress()["state"]["skipped"]
    client.interrupt()
    thread.join()
    assert results[0].images == []
    assert client.get_progress()["state"]["interrupted"]


def test_png_info(client: WebUIApi) -> None:
    result = client.txt2img(prompt="a red apple, いいね", seed=3, **SMALL)
    said = client.png_info(result.image)
    assert said.info == result.info["infotexts"][0]
    assert said.parameters["Prompt"] == "a red apple, いいね"
    assert (said.parameters["Seed"], said.parameters["Size-1"]) == ("3", "16")
    assert client.png_info(Image.new("RGB", (8, 8))).info == ""


def test_options(client: WebUIApi, tiny_model: Path) -> None:
    title = client.get_options()["sd_model_checkpoint"]
    assert title == client.get_sd_models()[0]["title"]
    assert client.util_get_current_model() == title
    client.util_set_model(tiny_model.name)
    client.set_options({"CLIP_stop_at_last_layers": 2, "save_images_add_number": True})
    assert client.txt2img(prompt="a red apple", **SMALL).info["clip_skip"] == 2
    client.set_options({"CLIP_stop_at_last_layers": 1})
    assert client.txt2img(prompt="a red apple", **SMALL).info["clip_skip"] == 1


def test_lists(client: WebUIApi, url: str) -> None:
    assert {row["name"] for row in client.get_samplers()} == {*SAMPLER_NAMES.values()}
    assert {row["name"]: row["label"] for row in client.get_schedulers()} == SCHEDULE_NAMES
    assert [row["name"] for row in client.get_upscalers()] == ["None", "Lanczos", "Nearest"]
    assert "Latent (bicubic)" in {row["name"] for row in client.get_latent_upscale_modes()}
    assert client.get_embeddings() == {"loaded": {}, "skipped": {}}
    assert client.get_memory()["ram"]["total"] > 0
    assert client.get_scripts() == {"txt2img": [], "img2img": []}
    for name in ("sd-vae", "loras", "prompt-styles", "script-info", "hypernetworks", "face-restorers", "extensions"):
        assert requests.get(f"{url}/{name}").json() == []
    assert isinstance(client.get_cmd_flags(), dict)
    client.refresh_checkpoints()


IMAGE = in_base64(Image.new("RGB", (16, 16), "teal"))


@pytest.mark.parametrize(
    ("call", "said", "status", "message"),
    [
        ("txt2img", {"sampler_name": "none"}, 404, "Sampler not found"),
        ("txt2img", {"override_settings": {"sd_model_checkpoint": "other"}}, 404, "Model not found"),
        ("txt2img", {"override_settings": {"token_merging_ratio": 0.5}}, 422, "token_merging_ratio"),
        ("txt2img", {"restore_faces": True}, 422, "restore_faces"),
        ("txt2img", {"tiling": True}, 422, "tiling"),
        ("txt2img", {"styles": ["anime"]}, 422, "styles"),
        ("txt2img", {"hr_checkpoint_name": "other"}, 422, "hr_checkpoint_name"),
        ("txt2img", {"enable_hr": True, "width": 16, "hr_resize_x": 32, "hr_resize_y": 16}, 422, "the shape"),
        ("txt2img", {"script_name": "X/Y/Z plot"}, 422, "X/Y/Z plot"),
        ("txt2img", {"alwayson_scripts": {"ControlNet": {"args": [{"enabled": True}]}}}, 422, "ControlNet"),
        ("txt2img", {"steps": 0}, 422, "number of steps"),
        ("txt2img", {"width": 17}, 422, "multiple"),
        ("txt2img", {"width": 2048, "height": 2048, "steps": 1000}, 422, "times the work"),
        ("txt2img", {"batch_size": 8, "n_iter": 9}, 422, "at most 64"),
        ("txt2img", {"prompt": 3}, 422, "prompt"),
        ("img2img", {}, 404, "Init image not found"),
        ("img2img", {"init_images": [IMAGE, IMAGE]}, 422, "one a call"),
        ("img2img", {"init_images": ["http://127.0.0.1/a.png"]}, 422, "nothing is fetched"),
        ("img2img", {"init_images": ["no base64!"]}, 422, "not base64"),
        ("img2img", {"init_images": [IMAGE], "resize_mode": 3}, 422, "resize_mode"),
        ("img2img", {"init_images": [IMAGE], "latent_mask": IMAGE}, 422, "latent_mask"),
        ("img2img", {"init_images": [IMAGE], "denoising_strength": 0}, 422, "leaves none"),
        ("png-info", {"image": base64.b64encode(b"no picture").decode()}, 422, "not a picture"),
        ("interrogate", {"image": IMAGE}, 404, "no CLIP"),
        ("interrogate", {"image": IMAGE, "model": "deepdanbooru"}, 404, "Model not found"),
        ("options", {"sd_model_checkpoint": "other"}, 404, "Model not found"),
        ("options", {"eta_noise_seed_delta": 31337}, 422, "eta_noise_seed_delta"),
    ],
)
def test_mistakes(url: str, call: str, said: dict[str, Any], status: int, message: str) -> None:
    answer = requests.post(f"{url}/{call}", json={"prompt": "a red apple", **said} if "2" in call else said)
    assert answer.status_code == status
    assert message in answer.json()["detail"]


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"sampler_name": "Euler", "eta": 1.0, "s_tmax": 0}, {"sampler": "Euler", "s_tmax": 0}),  # Euler has no eta
        ({"sampler_name": "Euler a", "eta": 0.5}, {"sampler": "Euler a", "eta": 0.5}),
        ({"sampler_index": "LMS", "sampler_name": None}, {"sampler": "LMS"}),
        ({"override_settings": {"CLIP_stop_at_last_layers": 2}}, {"clip_skip": 2}),
        ({"override_settings": {"CLIP_stop_at_last_layers": 1}}, {"clip_skip": None}),
        ({"some_plugin": False, "another": None, "alwayson_scripts": {"ADetailer": {"args": [False]}}}, {}),
        ({"hr_sampler_name": "Euler", "hr_prompt": "a", "hr_scheduler": "Use same scheduler"}, {}),
        ({"seed_resize_from_h": -1, "firstphase_width": 0, "styles": [], "refiner_checkpoint": ""}, {}),
    ],
)
def test_payloads(said: dict[str, Any], expected: dict[str, Any]) -> None:
    plain = {"sampler": "Euler", "schedule": "automatic", "steps": 50, "guidance": 7.0, "seed": 1}
    (request,) = Txt2Img.model_validate({"prompt": "a", "seed": 1, **said}).requests({})
    assert request == Request("a", **plain | expected)


def test_painted_masks() -> None:
    """What is painted on a transparent mask changes, whatever its colour."""
    painted = Image.new("RGBA", (8, 8))
    painted.paste((0, 0, 0, 255), (0, 0, 4, 8))
    said = Img2Img.model_validate({"init_images": [IMAGE], "mask": f"data:image/png;base64,{in_base64(painted)}"})
    mask = Image.open(io.BytesIO(said.from_image()["mask"]))
    assert (mask.size, mask.mode) == ((16, 16), "L")  # of the image's size
    assert (mask.getpixel((1, 8)), mask.getpixel((14, 8))) == (255, 0)


def test_interrogate(tiny_model: Path, tmp_path: Path) -> None:
    clip = save_tiny_clip(tmp_path / "clip")
    app = create_app(service_of(tiny_model, tmp_path / "jobs"), clip=clip)
    with TestClient(app, base_url="http://localhost") as client:
        ask = lambda: client.post("/sdapi/v1/interrogate", json={"image": IMAGE, "model": "clip"})
        assert ask().status_code == 422  # it has no words to make a caption of
        words = {"things": ["square"], "styles": ["drawing"], "backgrounds": ["red"], "templates": ["{}"]}
        (clip / "concepts.json").write_text(json.dumps({kind: {"en": said} for kind, said in words.items()}))
        app = create_app(service_of(tiny_model, tmp_path / "jobs"), clip=clip)
    with TestClient(app, base_url="http://localhost") as client:
        assert ask().json() == {"caption": "square, drawing, red background"}


def test_missing_is_a_mistake() -> None:
    with pytest.raises(Missing):
        Payload(sampler_name="none").requests({})
    check_settings({"sd_vae": "Automatic", "samples_format": "png", "outdir_samples": "x"}, ["a"])
