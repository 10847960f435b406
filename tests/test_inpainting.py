"""From an image: as diffusers does it, and what lies outside the mask stays as it was."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import diffusers
import pytest
import torch
from networks import randomize
from PIL import Image
from test_image import file
from test_pipeline import pixels, psnr
from torch import Tensor

from diffusion.checkpoint import load_model
from diffusion.folder import save_folder
from diffusion.image import to_image, to_pixels
from diffusion.model import Model
from diffusion.noise import Noise
from diffusion.pipeline import Pipeline, Progress
from diffusion.request import Request
from diffusion.unet import UNet

PROMPT = "a green apple beside a red star"
SCHEDULERS = {
    "euler": "EulerDiscreteScheduler",
    "ddim": "DDIMScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
    "heun": "HeunDiscreteScheduler",
}
STEPS, SEED, GUIDANCE = 8, 7, 3.0


def photo(width: int = 32, height: int = 32) -> Image.Image:
    """Smooth colours with some noise, of a fixed seed."""
    generator = torch.Generator().manual_seed(3)
    coarse = torch.rand(1, 3, 4, 4, generator=generator) * 2 - 1
    smooth = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic")[0]
    return to_image(smooth + 0.1 * torch.randn(3, height, width, generator=generator))


PHOTO = photo()
MASK = Image.new("L", (32, 32))
MASK.paste(255, (8, 4, 24, 20))
IMAGE, HOLE = to_pixels(PHOTO)[None], (to_pixels(MASK)[None] > 0).float()


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Model:
    return load_model(tiny_model)


@pytest.fixture(scope="module")
def inpainter(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """The same, from a folder, with a U-Net that is shown a mask and the masked image."""
    unet, folder = UNet(replace(model.unet.config, in_channels=9)), tmp_path_factory.mktemp("inpainter")
    randomize(unet, seed=1)
    others = model.autoencoder, model.noise, model.defaults
    save_folder(folder, model.tokenizers, model.text_encoders, unet, *others)
    return load_model(folder)


def with_scheduler(model: Model, name: str) -> Pipeline:
    """The model, sampled on the grid that diffusers' scheduler has."""
    return Pipeline(replace(model, noise=Noise(replace(model.noise.config, scheduler=name))))


@cache
def opened(kind: str, path: Path) -> diffusers.DiffusionPipeline:
    library = getattr(diffusers, kind).from_pretrained(path, torch_dtype=torch.float32)
    library.set_progress_bar_config(disable=True)
    return library


def diffusers_own(kind: str, scheduler: str, model: Model) -> diffusers.DiffusionPipeline:
    """diffusers' pipeline of a kind, with a scheduler, of a model's networks."""
    library, options = opened(kind, model.path), {"clip_sample": False} if scheduler == "DDIMScheduler" else {}
    library.scheduler = getattr(diffusers, scheduler).from_config(library.scheduler.config, **options)
    return library


@torch.inference_mode()
def encoded(model: Model, image: Tensor) -> Tensor:
    """diffusers draws from the posterior where it is given an image, and we take its mean: it is given that."""
    return model.autoencoder.encode(image)


def asked(sampler: str, **fields: object) -> Request:
    usual = {"image": file(PHOTO), "seed": SEED, "steps": STEPS, "sampler": sampler, "width": 32, "height": 32}
    return Request(PROMPT, **{**usual, **fields})  # type: ignore[arg-type]


@pytest.mark.parametrize(("sampler", "strength"), [("euler", 1.0), ("ddim", 0.3), ("dpmpp_2m", 0.75), ("heun", 0.5)])
def test_image_to_image_is_diffusers(model: Model, sampler: str, strength: float) -> None:
    (ours,) = with_scheduler(model, SCHEDULERS[sampler]).generate([asked(sampler, strength=strength)])
    theirs = diffusers_own("StableDiffusionImg2ImgPipeline", SCHEDULERS[sampler], model)(
        PROMPT,
        image=encoded(model, IMAGE),
        strength=strength,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        generator=torch.Generator().manual_seed(SEED),
    ).images[0]
    assert pixels(ours.image).std() > 10
    assert psnr(ours.image, theirs) >= 50


@pytest.mark.parametrize("sampler", SCHEDULERS)
@pytest.mark.parametrize(("network", "strength"), [("model", 0.8), ("model", 1.0), ("inpainter", 1.0)])
def test_inpainting_is_diffusers(
    request: pytest.FixtureRequest, sampler: str, network: str, strength: float
) -> None:
    """At strength 1 an ordinary U-Net is told what is known from the first evaluation on, diffusers' later."""
    model: Model = request.getfixturevalue(network)
    asked_for = asked(sampler, strength=strength, mask=file(MASK), mask_blur=0)
    (ours,) = with_scheduler(model, SCHEDULERS[sampler]).generate([asked_for])
    theirs = diffusers_own("StableDiffusionInpaintPipeline", SCHEDULERS[sampler], model)(
        PROMPT,
        image=encoded(model, IMAGE),
        mask_image=MASK,
        masked_image_latents=encoded(model, IMAGE * (1 - HOLE)),
        strength=strength,
        height=32,
        width=32,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        generator=torch.Generator().manual_seed(SEED),
    ).images[0]
    assert psnr(ours.image, Image.composite(theirs, PHOTO, MASK)) >= 50


FROM_IMAGE = {
    "image": asked("euler"),
    "all the way": asked("euler", strength=1),
    "mask": asked("dpmpp_2m", mask=file(MASK)),
    "ancestral": asked("euler_ancestral", mask=file(MASK), fill="noise", seed=1),
    "nothing": asked("euler", mask=file(MASK), fill="nothing"),
    "fill": asked("euler", mask=file(MASK), fill="fill", strength=0.9),
    "outpainting": asked("heun", outpaint=(8, 0, 4, 2), width=None, height=None),
    "padding": asked("euler", mask=file(MASK), padding=2, width=16, height=16),
    "larger": asked("euler", width=24, height=40, resize="pad"),
    "two passes": Request(PROMPT, seed=3, hires_scale=1.5, hires_upscaler="Latent (nearest)"),
    "two passes of pixels": Request(PROMPT, seed=3, hires_scale=2, hires_steps=3, hires_upscaler="Lanczos"),
    "variation": Request(PROMPT, seed=3, variation_seed=4, variation_strength=0.3),
}


@pytest.mark.parametrize("network", ["model", "inpainter"])
def test_same_request_same_bytes(request: pytest.FixtureRequest, network: str) -> None:
    """In any company, counted rightly, and with previews of every evaluation."""
    pipeline, seen = Pipeline(request.getfixturevalue(network)), []
    requests = [replace(request, steps=4) for request in FROM_IMAGE.values()]
    pictures = list(pipeline.generate(requests, seen.append))
    files = [picture.png() for picture in pictures]
    assert len(set(files)) == len(files)
    assert [picture.png() for picture in pipeline.generate(reversed(requests))] == files[::-1]
    assert [picture.png() for picture in pipeline.generate(picture.request for picture in pictures)] == files
    for i, picture in enumerate(pictures):
        own: list[Progress] = [step for step in seen if step.picture == i]
        assert [step.evaluation for step in own] == list(range(1, pipeline.evaluations(picture.request) + 1))
        assert own[-1].x0 is not None
        assert pipeline.image(own[-1].x0).size[0] >= 16
    sizes = {name: picture.image.size for name, picture in zip(FROM_IMAGE, pictures, strict=True)}
    assert sizes["outpainting"] == (44, 34)
    assert sizes["padding"] == (32, 32)
    assert sizes["larger"] == (24, 40)
    assert sizes["two passes"] == (24, 24)
    assert sizes["two passes of pixels"] == (32, 32)


@pytest.mark.parametrize("network", ["model", "inpainter"])
@pytest.mark.parametrize("name", ["mask", "ancestral", "nothing", "padding"])
def test_what_is_outside_the_mask_comes_back(request: pytest.FixtureRequest, network: str, name: str) -> None:
    asked_for = replace(FROM_IMAGE[name], mask_blur=0.5)
    (picture,) = Pipeline(request.getfixturevalue(network)).generate([asked_for])
    differs = (pixels(picture.image) != pixels(PHOTO)).any(-1)
    assert differs[4:20, 8:24].float().mean() > 0.9
    assert not differs[:1].any()
    assert not differs[24:].any()
    assert not differs[:, 28:].any()


def test_shipped_model_paints_an_apple_green() -> None:
    """A little at little strength, all of it at full strength, half of it under a mask."""
    pipeline, half = Pipeline(load_model()), Image.new("L", (64, 64))
    half.paste(255, (0, 0, 32, 64))
    (red,) = pipeline.generate([Request("a red apple")])
    green = Request("a green apple", image=file(red.image))
    masked = replace(green, mask=file(half), mask_blur=0, strength=1)
    requests = [replace(green, strength=0.2), replace(green, strength=1), masked]
    little, whole, left = (picture.image for picture in pipeline.generate(requests))
    greenness = lambda image: float((pixels(image)[..., 1] - pixels(image)[..., 0]).mean())
    assert psnr(little, red.image) > 20
    assert greenness(whole) > greenness(little) + 40
    right = (32, 0, 64, 64)
    assert left.crop(right).tobytes() == red.image.crop(right).tobytes()
    assert greenness(left.crop((0, 0, 32, 64))) > greenness(red.image.crop((0, 0, 32, 64))) + 40


def test_pixel_model(pixel_model: Path) -> None:
    pipeline = Pipeline(load_model(pixel_model))
    (picture,) = pipeline.generate([asked("euler", mask=file(MASK), mask_blur=0)])
    assert (pixels(picture.image) != pixels(PHOTO)).any(-1).sum() <= 16 * 16


@pytest.mark.parametrize(
    ("mistake", "said"),
    [
        (asked("euler", strength=0.1), "The strength 0.1 of 8 steps leaves none; expected at least 0.13."),
        (asked("euler", image=file(PHOTO)[:80]), "The image cannot be used: it is no readable PNG, JPEG or WebP image"),
        (asked("euler", mask=file(MASK.resize((9, 9)))), "The mask has 9x9 pixels and the image 32x32"),
        (asked("euler", hires_scale=2.0), "A second pass cannot follow an image"),
        (Request("a", hires_steps=4), "The hires steps does nothing without a hires scale"),
        (Request("a", hires_scale=0.5), "The hires scale is 0.5; expected a number from 1 to 8."),
        (Request("a", hires_scale=2, hires_strength=2), "The hires strength is 2"),
        (Request("a", hires_scale=2, hires_steps=0), "The number of hires steps is 0"),
        (Request("a", hires_scale=2, hires_upscaler="ESRGAN"), "There is no upscaler 'ESRGAN'; choose one of latent"),
        (Request("a", hires_scale=2, hires_upscaler=["latent"]), "There is no upscaler ['latent']"),  # type: ignore[arg-type]
        (asked("euler", resize=["crop"]), "There is no resize mode ['crop']"),
        (Request("a", hires_scale=8, width=512), "The width is 4096; expected a whole number from 2 to 2048."),
    ],
)
def test_mistakes_are_one_sentence(model: Model, mistake: Request, said: str) -> None:
    with pytest.raises(ValueError, match=r"\.$") as raised:
        Pipeline(model).generate([mistake])
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)
