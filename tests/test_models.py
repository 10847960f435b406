"""Stable Diffusion 1.x, 2.x and XL: the networks and the pictures of diffusers and transformers."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import diffusers
import models
import pytest
import torch
from diffusers import DiffusionPipeline, LatentConsistencyModelPipeline, LCMScheduler, UNet2DConditionModel
from networks import randomize, relative_error
from PIL import Image
from safetensors.torch import load_file, save_file
from test_image import file

from benchmarks.difference import difference
from diffusion.checkpoint import load_model, save_model
from diffusion.conditioning import Conditioning, encode, join
from diffusion.image import to_pixels
from diffusion.model import Model
from diffusion.pipeline import Pipeline
from diffusion.request import Request
from diffusion.single_file import save_single_file

PROMPT, NEGATIVE = "a red apple beside a blue star", "a green apple"


def theirs_of(folder: Path) -> DiffusionPipeline:
    library = DiffusionPipeline.from_pretrained(folder)
    library.set_progress_bar_config(disable=True)
    return library


def picture(library: DiffusionPipeline, pipeline: Pipeline, request: Request) -> tuple[Image.Image, Image.Image]:
    """Ours and theirs, from the same noise."""
    (ours,) = pipeline.generate([request])
    negative = {"negative_prompt": request.negative} if request.negative else {}
    generator = torch.Generator().manual_seed(request.seed)
    theirs = library(
        request.prompt,
        **negative,
        latents=torch.randn(pipeline.shape(ours.request), generator=generator),
        generator=generator,
        num_inference_steps=request.steps,
        guidance_scale=request.guidance,
        width=request.width,
        height=request.height,
    ).images[0]
    return ours.image, theirs


@pytest.mark.parametrize("kind", models.KINDS)
@torch.no_grad()
def test_networks_and_pictures_are_those_of_diffusers(sd_folder: Callable[[str], Path], kind: str) -> None:
    library, pipeline = theirs_of(sd_folder(kind)), Pipeline(load_model(sd_folder(kind)))
    model = pipeline.model
    ids = [tokenizer([PROMPT]) for tokenizer in model.tokenizers]
    parts, pooled = encode(model.text_encoders, ids, model.reading)
    expected, _, *rest = library.encode_prompt(
        PROMPT, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    assert relative_error(join(parts, model.reading), expected) < 1e-5
    if kind == "xl":
        assert relative_error(pooled, rest[0]) < 1e-5

    x, t = torch.randn(1, 4, 8, 12, generator=torch.Generator().manual_seed(0)), torch.tensor([601.0])
    text = Conditioning(join(parts, model.reading), pooled).sized(24, 16)
    added = {"text_embeds": text.pooled, "time_ids": text.sizes}
    expected = library.unet(x, t, text.tokens, added_cond_kwargs=added).sample
    assert relative_error(model.unet(x, t, text), expected) < 1e-5
    images = torch.rand(1, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert relative_error(model.autoencoder.moments(images)[0], library.vae.encode(images).latent_dist.mean) < 1e-5
    scaled = x / library.vae.config.scaling_factor
    assert relative_error(model.autoencoder.decode(x), library.vae.decode(scaled).sample) < 1e-5

    for negative in ("", NEGATIVE):
        request = Request(PROMPT, negative, seed=1, steps=3, guidance=4, width=24, height=16, sampler="euler")
        found = difference(*picture(library, pipeline, request))
        assert found.within_rounding, (negative, found)


@pytest.mark.parametrize("kind", models.KINDS)
def test_saved_folder_is_the_same_model_to_us_and_to_diffusers(
    sd_folder: Callable[[str], Path], tmp_path: Path, kind: str
) -> None:
    model = load_model(sd_folder(kind))
    save_model(tmp_path / "again", *parts(model))
    again = load_model(tmp_path / "again")
    assert (again.reading, again.noise.config, again.defaults) == (model.reading, model.noise.config, model.defaults)
    request = Request(PROMPT, seed=1, steps=2, width=24, height=16, sampler="euler", guidance=3)
    (before,), (after,) = Pipeline(model).generate([request]), Pipeline(again).generate([request])
    assert before.image.tobytes() == after.image.tobytes()
    library = theirs_of(tmp_path / "again")
    assert type(library) is type(theirs_of(sd_folder(kind)))
    assert difference(*picture(library, Pipeline(again), request)).within_rounding


@pytest.mark.parametrize("kind", ["sd1", "xl"])
def test_distilled_networks_are_told_the_guidance(sd_folder: Callable[[str], Path], tmp_path: Path, kind: str) -> None:
    library = theirs_of(sd_folder(kind))
    library.unet = UNet2DConditionModel.from_config(library.unet.config, time_cond_proj_dim=32)
    randomize(library.unet)
    library.scheduler = LCMScheduler.from_config(library.scheduler.config, original_inference_steps=20)
    if kind == "sd1":
        library = LatentConsistencyModelPipeline(**library.components, requires_safety_checker=False)
        library.set_progress_bar_config(disable=True)
    library.save_pretrained(tmp_path / "theirs")
    model = load_model(tmp_path / "theirs")
    if kind == "sd1":  # diffusers' values of that pipeline
        assert (model.defaults.steps, model.defaults.guidance, model.defaults.sampler) == (4, 8.5, "lcm")
    save_model(tmp_path / "ours", *parts(model))
    assert load_model(tmp_path / "ours").defaults == model.defaults
    save_single_file(tmp_path / "named.safetensors", model)
    save_file(load_file(tmp_path / "named.safetensors"), tmp_path / "bare.safetensors")  # without our metadata
    bare = load_model(tmp_path / "bare.safetensors", tokenizer=tmp_path / "ours")
    assert bare.unet.config.time_cond_proj_dim == 32
    assert (bare.defaults.steps, bare.defaults.sampler, bare.noise.config.sampler) == (4, "lcm", "lcm")

    pipeline, ours = Pipeline(model), []
    for guidance in (1.0, 8.5):
        request = Request(PROMPT, seed=1, steps=6, width=24, height=16, guidance=guidance, sampler="lcm")
        for other in (library, theirs_of(tmp_path / "ours")):
            found = difference(*picture(other, pipeline, request))
            assert found.within_rounding, (guidance, found)
        ours += pipeline.generate([request, replace(request, negative=NEGATIVE)])
    assert ours[0].image.tobytes() == ours[1].image.tobytes() != ours[2].image.tobytes()
    with pytest.raises(ValueError, match="imitates guidance at every step"):
        pipeline.resolve(replace(request, guidance_rescale=0.5))


@pytest.mark.parametrize("scheduler", ["EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"])
def test_xl_with_edm_s_noise_and_latents_of_channels_apart(
    sd_folder: Callable[[str], Path], tmp_path: Path, scheduler: str
) -> None:
    """As Playground v2.5 is."""
    library = theirs_of(sd_folder("xl"))
    library.scheduler = getattr(diffusers, scheduler)()
    library.vae.register_to_config(
        latents_mean=[-1.6574, 1.886, -1.383, 2.5155], latents_std=[8.4927, 5.9022, 6.5498, 5.2299], scaling_factor=0.5
    )
    library.save_pretrained(tmp_path / "theirs")
    model = load_model(tmp_path / "theirs")
    save_model(tmp_path / "ours", *parts(model))
    save_single_file(tmp_path / "named.safetensors", model)
    save_file(load_file(tmp_path / "named.safetensors"), tmp_path / "bare.safetensors")  # with marks, not our metadata
    bare = load_model(tmp_path / "bare.safetensors", tokenizer=tmp_path / "ours")
    again = load_model(tmp_path / "ours")
    assert again.noise.config == model.noise.config
    assert bare.noise.config == replace(model.noise.config, scheduler="EDMDPMSolverMultistepScheduler")
    for field in ("scaling_factor", "latents_mean", "latents_std"):
        found = [getattr(each.autoencoder.config, field) for each in (model, again, bare)]
        assert found[0] == found[1] == pytest.approx(found[2])

    request = Request(PROMPT, NEGATIVE, seed=1, steps=8, guidance=3, width=24, height=16)
    pipeline = Pipeline(model)
    for other in (library, theirs_of(tmp_path / "ours")):
        found = difference(*picture(other, pipeline, request))
        assert found.within_rounding, found
    request = replace(request, sampler=model.noise.config.sampler)
    pictures = [
        next(each.generate([request])).image.tobytes()
        for each in (pipeline, Pipeline(again), Pipeline(replace(bare, noise=model.noise)))
    ]
    assert pictures[0] == pictures[1] == pictures[2]


@pytest.mark.parametrize("zeros", [False, True])
def test_xl_s_refiner_goes_over_pictures(sd_folder: Callable[[str], Path], tmp_path: Path, zeros: bool) -> None:
    base = theirs_of(sd_folder("xl"))
    sizes = {"cross_attention_dim": 128, "projection_class_embeddings_input_dim": 96 + 5 * 8}
    blocks = {
        "block_out_channels": (64, 64, 128, 128),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": (1, 1, 2, 2),
        "transformer_layers_per_block": (1, 2, 2, 2),
    }
    components = base.components | {"text_encoder": None, "tokenizer": None}
    components["unet"] = UNet2DConditionModel.from_config(base.unet.config, **sizes, **blocks)
    randomize(components["unet"])
    library = diffusers.StableDiffusionXLImg2ImgPipeline(
        **components, requires_aesthetics_score=True, force_zeros_for_empty_prompt=zeros, add_watermarker=False
    )
    library.save_pretrained(tmp_path / "theirs")
    model = load_model(tmp_path / "theirs")
    save_model(tmp_path / "ours", *parts(model))
    again = load_model(tmp_path / "ours")
    assert again.reading == model.reading
    save_single_file(tmp_path / "named.safetensors", model)
    save_file(load_file(tmp_path / "named.safetensors"), tmp_path / "bare.safetensors")  # without our metadata
    bare = load_model(tmp_path / "bare.safetensors", tokenizer=tmp_path / "ours" / "tokenizer_2")
    for name, weight in model.unet.state_dict().items():
        assert torch.equal(bare.unet.state_dict()[name], weight)

    pipeline, photo = Pipeline(model), Image.linear_gradient("L").resize((48, 32)).convert("RGB")
    known = model.autoencoder.encode(to_pixels(photo)[None])
    for negative in ("", NEGATIVE):
        request = Request(
            PROMPT, negative, seed=1, steps=6, guidance=4, width=48, height=32, image=file(photo), strength=0.5
        )
        (ours,) = pipeline.generate([request])
        for other in (library, theirs_of(tmp_path / "ours")):
            other.set_progress_bar_config(disable=True)
            picture = other(
                PROMPT, image=known.detach(), strength=0.5, num_inference_steps=6, guidance_scale=4,
                negative_prompt=negative or None, generator=torch.Generator().manual_seed(1),
            ).images[0]  # fmt: skip
            found = difference(ours.image, picture)
            assert found.within_rounding, (negative, found)
    assert next(Pipeline(again).generate([request])).image.tobytes() == ours.image.tobytes()


def parts(model: Model) -> tuple:
    return (
        *(model.tokenizers, model.text_encoders, model.unet, model.autoencoder),
        *(model.noise, model.defaults, model.reading),
    )


def test_the_empty_negative_prompt_of_xl_is_zero_where_the_folder_says_so(sd_folder: Callable[[str], Path]) -> None:
    model = load_model(sd_folder("xl"))
    assert model.reading.empty_is_zero
    assert not Pipeline(model).reader.nothing().tokens.any()
    assert Pipeline(replace(model, reading=replace(model.reading, empty_is_zero=False))).reader.nothing().tokens.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_unet_is_read_in_the_dtype_that_it_runs_in(sd_folder: Callable[[str], Path], dtype: torch.dtype) -> None:
    model, full = load_model(sd_folder("sd1"), dtype), load_model(sd_folder("sd1"))
    assert {p.dtype for p in model.unet.parameters()} == {dtype}
    assert {p.dtype for net in (*model.text_encoders, model.autoencoder) for p in net.parameters()} == {torch.float32}
    for narrow, wide in zip(model.unet.parameters(), full.unet.parameters(), strict=True):
        assert torch.equal(narrow, wide.to(dtype))


@pytest.mark.parametrize("how", ["shards", "variant", "variant of shards"])
def test_weights_in_shards_and_in_variants(sd_folder: Callable[[str], Path], tmp_path: Path, how: str) -> None:
    library = theirs_of(sd_folder("xl")).to(torch.float16)
    options = {"variant": "fp16"} if "variant" in how else {}
    library.save_pretrained(tmp_path / "model", max_shard_size="200KB" if "shards" in how else "10GB", **options)
    assert not list(tmp_path.rglob("*model.safetensors"))
    model, expected = load_model(tmp_path / "model"), load_model(sd_folder("xl"))
    for ours, theirs in zip(model.unet.parameters(), expected.unet.parameters(), strict=True):
        assert torch.equal(ours, theirs.half().float())
    assert len(model.hashes) == len(list(tmp_path.rglob("*.safetensors")))


def test_shards_lie_beside_their_index(sd_folder: Callable[[str], Path], tmp_path: Path) -> None:
    theirs_of(sd_folder("sd1")).save_pretrained(tmp_path / "model", max_shard_size="200KB")
    index = tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    whole = index.read_text()
    for written, said in (
        (whole.replace("-00001-of", "-00077-of"), "does not lie beside it"),
        (whole.replace("diffusion_pytorch_model-00001", "../vae/diffusion_pytorch_model-00001"), "does not lie beside"),
        ('{"weight_map": {}}', "has no weight_map"),
        ('{"weight_map": {"a": 1}}', "has no weight_map"),
    ):
        index.write_text(written)
        with pytest.raises(ValueError, match=said):
            load_model(tmp_path / "model")


def test_another_autoencoder(sd_folder: Callable[[str], Path], tmp_path: Path) -> None:
    model, other = load_model(sd_folder("sd1")), load_model(sd_folder("xl")).autoencoder
    for path in (sd_folder("xl"), sd_folder("xl") / "vae"):
        swapped = load_model(sd_folder("sd1"), vae=path)
        assert swapped.vae == path
        assert swapped.autoencoder.config == other.config
        changed = {name for name, sum in swapped.hashes.items() if model.hashes[name] != sum}
        assert changed == {"vae/diffusion_pytorch_model.safetensors"}


@pytest.mark.parametrize(
    ("part", "values", "said"),
    [
        ("model_index.json", {"text_encoder_2": [None, None]}, "64 numbers a token, where the U-Net reads 192"),
        ("model_index.json", {"tokenizer_2": [None, None]}, "names no tokenizer_2"),
        ("model_index.json", {"text_encoder": [None, None]}, "names no text_encoder"),
        ("model_index.json", {"requires_aesthetics_score": True}, "of pooled text, where the U-Net reads 104"),
        ("unet/config.json", {"addition_time_embed_dim": 4}, "96 numbers of pooled text, where the U-Net reads 120"),
    ],
)
def test_parts_of_xl_fit_or_are_refused(
    sd_folder: Callable[[str], Path], tmp_path: Path, part: str, values: dict, said: str
) -> None:
    copy = shutil.copytree(sd_folder("xl"), tmp_path / "model")
    models.edit(copy / part, **values)
    with pytest.raises(ValueError, match=said):
        load_model(copy)
