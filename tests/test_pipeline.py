"""From a request to a picture: the same bytes however it is asked for, and the same picture as diffusers makes."""

import random
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from torch import Tensor

from diffusion.checkpoint import load_model
from diffusion.metadata import request_of
from diffusion.pipeline import Pipeline, Progress
from diffusion.request import Request, Resolved, resolve
from diffusion.samplers import SAMPLER_NAMES, SAMPLERS
from diffusion.schedules import SCHEDULE_NAMES
from diffusion.threads import threads


@pytest.fixture(scope="module")
def pipeline(tiny_model: Path) -> Pipeline:
    return Pipeline(load_model(tiny_model))


def pixels(image: Image.Image) -> Tensor:
    """[H, W, 3], 0 to 255."""
    return torch.tensor(list(image.tobytes()), dtype=torch.float64).view(image.height, image.width, 3)


def psnr(a: Image.Image, b: Image.Image) -> float:
    return float(10 * (255**2 / (pixels(a) - pixels(b)).square().mean().clamp(min=1e-9)).log10())


def test_request_is_filled_up(pipeline: Pipeline) -> None:
    resolved = resolve(Request("a red apple"), pipeline.model)
    assert resolved == Resolved(
        "a red apple", seed=0, steps=4, sampler="euler", schedule="automatic", guidance=3.0, width=16, height=16
    )
    assert resolve(resolved, pipeline.model) == resolved


def test_picture_has_the_size_asked_for_and_stays_as_it_was(pipeline: Pipeline) -> None:
    (picture,) = pipeline.generate([Request("a red apple", seed=5, width=24, height=16)])
    assert picture.image.size == (24, 16)
    golden = torch.tensor([[[140, 33, 163], [110, 60, 120]], [[108, 16, 141], [78, 0, 86]]])  # a corner of it
    assert (pixels(picture.image)[:2, :2] - golden).abs().max() <= 2


def test_same_request_same_bytes(pipeline: Pipeline, tiny_model: Path) -> None:
    requests = [
        Request("a red apple", seed=3, sampler="euler_ancestral"),
        Request("a blue star", seed=3),
        Request("a red apple", seed=4, negative="a blue star"),
        Request("a red apple", seed=3, width=32),
        Request("a red apple", seed=3, sampler="dpmpp_2m", steps=7),
        Request("a red apple", seed=3, guidance=1),
        Request("赤いりんご", seed=2**63 - 1),
        Request("a red apple", seed=3, sampler="ddpm", schedule="karras"),
    ]
    together = [picture.png() for picture in pipeline.generate(requests)]
    assert len(set(together)) == len(requests)
    backwards = [picture.png() for picture in pipeline.generate(reversed(requests))]
    assert together == backwards[::-1]
    fresh = Pipeline(load_model(tiny_model))
    for request, png in zip(requests, together, strict=True):
        (picture,) = fresh.generate([request])
        assert picture.png() == png
        (again,) = fresh.generate([picture.request])
        assert again.png() == png


def test_guidance_written_as_a_whole_number_is_the_same_request(pipeline: Pipeline) -> None:
    whole, real = pipeline.generate([Request("a star", guidance=3), Request("a star", guidance=3.0)])
    assert whole.png() == real.png()


def test_random_seed_is_drawn_and_recorded(pipeline: Pipeline) -> None:
    first, second = pipeline.generate([Request("a star", seed=-1)] * 2)
    assert first.request.seed != second.request.seed
    assert 0 <= first.request.seed < 2**32
    assert resolve(Request("a star", variation_strength=0.5), pipeline.model).variation_seed is not None


def test_noise_comes_from_the_seed_as_in_diffusers(pipeline: Pipeline) -> None:
    noise = pipeline.noise(resolve(Request("a star", seed=9), pipeline.model))
    generator = torch.Generator().manual_seed(9)
    for _ in range(2):  # the first latents, then what the sampler asks for
        assert torch.equal(noise(), torch.randn(1, 4, 8, 8, generator=generator))


def test_variations_lie_between_two_noises(pipeline: Pipeline) -> None:
    def first(seed: int, **variation: float) -> Tensor:
        return pipeline.noise(resolve(Request("a star", seed=seed, **variation), pipeline.model))()  # type: ignore

    one, other = first(1), first(2)
    assert torch.equal(first(1, variation_seed=2, variation_strength=0), one)
    assert torch.allclose(first(1, variation_seed=2, variation_strength=1), other, atol=1e-6)
    assert torch.allclose(first(1, variation_seed=1, variation_strength=0.5), one, atol=1e-6)
    middle = first(1, variation_seed=2, variation_strength=0.5)
    assert 0.9 < middle.std() < 1.1  # halfway along the straight way it is 0.71
    assert 0.9 < (middle - one).norm() / (middle - other).norm() < 1.1


def test_later_noise_of_a_variation_is_the_seed_s_own(pipeline: Pipeline) -> None:
    varied = pipeline.noise(resolve(Request("a", seed=1, variation_seed=2, variation_strength=0.5), pipeline.model))
    plain = pipeline.noise(resolve(Request("a", seed=1), pipeline.model))
    assert not torch.equal(varied(), plain())
    assert torch.equal(varied(), plain())


@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_diffusers_makes_the_same_picture(pipeline: Pipeline, tiny_model: Path, guidance: float) -> None:
    prompt, negative = "a green apple beside a red star", "a blue star"
    (ours,) = pipeline.generate([Request(prompt, negative, seed=7, steps=6, guidance=guidance)])
    library = StableDiffusionPipeline.from_pretrained(tiny_model, torch_dtype=torch.float32)
    library.set_progress_bar_config(disable=True)
    theirs = library(
        prompt,
        negative_prompt=negative,
        latents=torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(7)),
        num_inference_steps=6,
        guidance_scale=guidance,
        height=16,
        width=16,
    ).images[0]
    assert pixels(ours.image).std() > 10
    assert psnr(ours.image, theirs) >= 50


def test_prompt_negative_and_guidance_change_the_picture(pipeline: Pipeline) -> None:
    base = Request("a red apple", seed=1, guidance=5)
    changed = [
        replace(base, prompt="a blue star"),
        replace(base, negative="a blue star"),
        replace(base, guidance=2),
        replace(base, seed=2),
        replace(base, steps=5),
        replace(base, schedule="karras"),
    ]
    first, *others = [picture.image.tobytes() for picture in pipeline.generate([base, *changed])]
    assert first not in others


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_progress_counts_every_evaluation(pipeline: Pipeline, sampler: str) -> None:
    seen: list[Progress] = []
    requests = [Request("a star", sampler=sampler, steps=3), Request("an apple", sampler=sampler, steps=2)]
    pictures = list(pipeline.generate(requests, seen.append))
    for i, picture in enumerate(pictures):
        own = [step for step in seen if step.picture == i]
        count = pipeline.evaluations(picture.request)
        assert [(step.evaluation, step.evaluations) for step in own] == [(n, count) for n in range(1, count + 1)]
        assert own[-1].x0.shape == (1, 4, 8, 8)
        assert pipeline.image(own[0].x0).size == picture.image.size
    assert [picture.png() for picture in pictures] == [picture.png() for picture in pipeline.generate(requests)]


def test_what_progress_raises_stops_the_work(pipeline: Pipeline) -> None:
    class Cancelled(Exception):
        pass

    seen = []

    def cancel(step: Progress) -> None:
        seen.append(step)
        if step.picture == 1:
            raise Cancelled

    pictures = pipeline.generate([Request("a star")] * 3, cancel)
    assert next(pictures).image.size == (16, 16)
    with pytest.raises(Cancelled):
        next(pictures)
    assert len(seen) == 5  # four of the first picture, one of the second


def test_empty_prompt_is_encoded_once(tiny_model: Path) -> None:
    pipeline, calls = Pipeline(load_model(tiny_model)), []
    pipeline.text_encoders[0].register_forward_hook(lambda *_: calls.append(1))
    list(pipeline.generate([Request("a star"), Request("an apple"), Request("a star", "an apple")]))
    assert len(calls) == 3 + 1 + 1  # prompts, the empty one, the negative one


def test_model_of_pixels(pixel_model: Path) -> None:
    pipeline = Pipeline(load_model(pixel_model))
    (picture,) = pipeline.generate([Request("a star", width=20)])
    assert picture.image.size == (20, 16)
    assert pixels(picture.image).std() > 1


def test_narrow_dtype_runs(tiny_model: Path, pipeline: Pipeline) -> None:
    (narrow,) = Pipeline(load_model(tiny_model), dtype=torch.bfloat16).generate([Request("a star", seed=1)])
    (wide,) = pipeline.generate([Request("a star", seed=1)])
    assert 20 < psnr(narrow.image, wide.image) < 90


def test_empty_prompt_leaves_the_picture_to_the_model(pipeline: Pipeline) -> None:
    weak, strong = pipeline.generate([Request("", guidance=guidance) for guidance in (1.0, 9.0)])
    assert psnr(weak.image, strong.image) > 50  # there is nothing to be guided to


def test_overflow_is_no_picture(tiny_model: Path) -> None:
    model = load_model(tiny_model)
    model.unet.conv_out.register_forward_hook(lambda _, __, out: out * float("nan"))
    with pytest.raises(ValueError, match="overflowed"):
        list(Pipeline(model).generate([Request("a star")]))


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (Request("q z " * 20, prompt_syntax="plain"), "has 40 tokens and this model reads 14 at once"),
        (Request("a", negative="q " * 15, prompt_syntax="plain"), "has 15 tokens"),
        (Request("a", prompt_syntax="a111"), "There is no prompt syntax 'a111'; choose one of a1111, comfy, plain"),
        (Request("(a:1001)"), "The weight of 'a' is 1001; expected at most 1000"),
        (Request("a", negative="[b:c:0.5] (d:1e9)", prompt_syntax="comfy"), "The weight of 'd'"),
        (Request("a {e$$b|c}"), "asks by {e$$b|c} for several pictures"),
        (Request("a", clip_skip=3), "The clip skip is 3; expected a whole number from 1 to 2"),
        (Request("a", guidance_rescale=1.5), "The guidance rescale is 1.5; expected a number from 0 to 1"),
        (Request("a", guidance_interval=(5, 1)), "The guidance interval is (5, 1); expected two sigmas"),
        (Request("a", guidance_interval=(1,)), "expected two sigmas"),  # type: ignore[arg-type]
        (Request("a \udcff"), "not valid Unicode"),
        (Request(5), "expected a text"),  # type: ignore[arg-type]
        (Request("a", seed=-2), "The seed is -2"),
        (Request("a", seed=2**63), "from 0 to 9223372036854775807"),
        (Request("a", seed=True), "The seed is True"),
        (Request("a", seed=1.0), "whole number"),  # type: ignore[arg-type]
        (Request("a", steps=0), "steps is 0; expected a whole number from 1 to 1000"),
        (Request("a", steps=1001), "1001"),
        (Request("a", guidance=-0.1), "from 0 to 100"),
        (Request("a", guidance=100.5), "from 0 to 100"),
        (Request("a", guidance=float("nan")), "nan"),
        (Request("a", guidance=float("inf")), "inf"),
        (Request("a", guidance="7"), "'7'"),  # type: ignore[arg-type]
        (Request("a", sampler="eular"), "'eular'; choose one of euler, euler_ancestral"),
        (Request("a", schedule="carras"), "'carras'; choose one of automatic"),
        (Request("a", schedule="5,7,0"), "falling numbers, the last 0"),
        (Request("a", schedule=(5.0, 1.0)), "falling numbers, the last 0"),
        (Request("a", schedule=(5.0, 0.0), steps=4), "The schedule has 1 steps and 4 are asked for"),
        (Request("a", sampler="uni_pc", eta=1.0), "The sampler uni_pc has no option eta; leave it out, or choose one"),
        (Request("a", s_churn=-1), "The option s_churn is -1"),
        (Request("a", variation_seed=1), "The variation seed does nothing without a variation strength"),
        (Request("a", variation_seed=-2, variation_strength=0.5), "The variation seed is -2"),
        (Request("a", variation_strength=1.5), "The variation strength is 1.5; expected a number from 0 to 1"),
        (Request("a", variation_strength="much"), "'much'"),  # type: ignore[arg-type]
        (Request("a", width=17), "The width 17 is not a multiple of 2, as it must be for this model; try 16 or 18"),
        (Request("a", height=0), "from 2 to 2048"),
        (Request("a", height=-16), "-16"),
        (Request("a", width=4096), "4096"),
    ],
)
def test_mistakes_are_one_sentence(pipeline: Pipeline, request_: Request, said: str) -> None:
    with pytest.raises(ValueError, match=r".") as mistake:
        pipeline.generate([Request("a star"), request_])  # raised at once, before the first picture is asked for
    assert said in str(mistake.value)
    assert "\n" not in str(mistake.value)


def test_longest_prompt_that_fits_is_not_cut(pipeline: Pipeline) -> None:
    longest = resolve(Request("q " * 14), pipeline.model)
    (tokenizer,) = pipeline.model.tokenizers
    assert tokenizer([longest.prompt])[0, -1] == tokenizer.end
    assert tokenizer([longest.prompt])[0, -2] != tokenizer.end


def test_names_of_others_are_understood(pipeline: Pipeline) -> None:
    assert SAMPLER_NAMES.keys() == SAMPLERS.keys()
    for ours, theirs in SAMPLER_NAMES.items():
        assert resolve(Request("a", sampler=theirs), pipeline.model).sampler == ours
    for ours, theirs in SCHEDULE_NAMES.items():
        assert resolve(Request("a", schedule=theirs), pipeline.model).schedule == ours
    folded = resolve(Request("a", sampler="DPM++ 2M Karras"), pipeline.model)
    assert (folded.sampler, folded.schedule) == ("dpmpp_2m", "karras")


def test_options_and_sigmas_are_a_requests_own(pipeline: Pipeline) -> None:
    plain, noisy, listed = (
        Request("a", sampler="ddim", steps=3),
        Request("a", sampler="ddim", steps=3, eta=1),
        Request("a", sampler="ddim", schedule="14.6,3.1,0.5,0"),
    )
    resolved = resolve(listed, pipeline.model)
    assert (resolved.schedule, resolved.steps) == ((14.6, 3.1, 0.5, 0.0), 3)
    assert resolve(replace(plain, eta=0, s_churn=0.0, s_tmax=0), pipeline.model) == resolve(plain, pipeline.model)
    pictures = list(pipeline.generate([plain, noisy, listed]))
    assert len({picture.image.tobytes() for picture in pictures}) == 3
    for picture in pictures:
        assert request_of({"oboro": picture.texts["oboro"]}) == Request(**asdict(picture.request))
        read = resolve(request_of({"parameters": picture.texts["parameters"]}), pipeline.model)
        assert read == picture.request


def test_small_pictures_take_one_thread(pipeline: Pipeline) -> None:
    before, inside = torch.get_num_threads(), set()
    list(pipeline.generate([Request("a star")], lambda _: inside.add(torch.get_num_threads())))
    assert inside == {1}
    assert torch.get_num_threads() == before
    torch.set_num_threads(3)
    with threads(2 * 2**16):
        assert torch.get_num_threads() == 2
    with threads(2**30):
        assert torch.get_num_threads() == 3
    torch.set_num_threads(before)


def test_global_random_state_has_no_part(pipeline: Pipeline) -> None:
    random.seed(1)
    torch.manual_seed(1)
    (first,) = pipeline.generate([Request("a star", sampler="ddpm")])
    state = torch.get_rng_state()
    torch.manual_seed(2)
    (second,) = pipeline.generate([Request("a star", sampler="ddpm")])
    assert first.png() == second.png()
    torch.manual_seed(1)
    assert torch.equal(state, torch.get_rng_state())


def test_offloaded_networks_make_the_same_picture(pipeline: Pipeline, tiny_model: Path) -> None:
    """Each on the device, here the CPU, in its own phase alone; with a preview of every step."""
    request, offloaded = Request("a star", seed=1, steps=2), Pipeline(load_model(tiny_model), offload=True)
    previews = []
    (picture,) = offloaded.generate([request], lambda progress: previews.append(offloaded.image(progress.x0)))
    (expected,) = pipeline.generate([request])
    assert picture.png() == expected.png()
    assert len(previews) == pipeline.evaluations(expected.request)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_offloaded_networks_leave_the_gpu(tiny_model: Path) -> None:
    model = load_model(tiny_model)
    where = set()
    networks = [*model.text_encoders, model.unet, model.autoencoder]

    def devices() -> tuple[str, ...]:
        return tuple(next(network.parameters()).device.type for network in networks)

    offloaded = Pipeline(model, "cuda", offload=True)
    list(offloaded.generate([Request("a star", steps=2)], lambda _: where.add(devices())))
    assert where == {("cpu", "cuda", "cpu")}
    assert devices() == ("cpu", "cpu", "cpu")
