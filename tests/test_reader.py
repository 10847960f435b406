"""From a prompt to what the network is told: weights, chunks, and which text at which step."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import models
import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from benchmarks.parity import difference
from diffusion.checkpoint import load_model
from diffusion.conditioning import Conditioning
from diffusion.pipeline import Pipeline
from diffusion.reader import from_empty, keeping_mean
from diffusion.request import Request
from diffusion.unet import Context

LENGTH = 16  # tokens a chunk of the tiny model, start and end among them


@pytest.fixture(scope="module")
def pipeline(tiny_model: Path) -> Pipeline:
    model = load_model(tiny_model)
    torch.nn.init.constant_(model.text_encoders[0].norm.bias, -0.1)  # about the mean of Stable Diffusion's
    return Pipeline(model)


def told(pipeline: Pipeline, prompt: str, **asked: Any) -> list[tuple[float, Conditioning]]:
    """What the network is told at the noisiest step: each text of a composition, with its weight."""
    request = pipeline.resolve(Request(prompt, **asked))
    sigmas = pipeline.sigmas(request)
    with torch.inference_mode():
        scripts = pipeline.reader.prompt(request, sigmas)
    return [(script.weight, script.at(sigmas[0].item())) for script in scripts]


def tokens(pipeline: Pipeline, prompt: str, **asked: Any) -> Tensor:
    ((_, conditioning),) = told(pipeline, prompt, **asked)
    return conditioning.tokens


def test_plain_texts_are_told_as_the_encoder_says_them(pipeline: Pipeline) -> None:
    ids = pipeline.model.tokenizers[0](["a red apple"])
    with torch.inference_mode():
        expected = pipeline.text_encoders[0](ids).tokens
    for syntax in (None, "a1111", "comfy", "plain"):
        assert torch.equal(tokens(pipeline, "a red apple", prompt_syntax=syntax), expected)
    assert torch.equal(tokens(pipeline, "((a) red:1) apple", prompt_syntax="comfy")[:, :1], expected[:, :1])


def test_a1111_weights_keep_the_mean(pipeline: Pipeline) -> None:
    plain, weighed = tokens(pipeline, "a red apple"), tokens(pipeline, "a (red:1.7) apple")
    assert weighed.mean().item() == pytest.approx(plain.mean().item(), rel=1e-3)
    scale = weighed[0, 0] / plain[0, 0]  # all tokens but the second word share one factor
    assert torch.allclose(weighed[0, 1] / plain[0, 1], scale, rtol=1e-3)
    assert torch.allclose(weighed[0, 2] / plain[0, 2], 1.7 * scale, rtol=1e-3)
    assert torch.allclose(weighed[0, 3:] / plain[0, 3:], scale, rtol=1e-3)


def test_comfy_weights_go_from_the_empty_prompt(pipeline: Pipeline) -> None:
    plain, empty = tokens(pipeline, "a red apple"), tokens(pipeline, "")
    weighed = tokens(pipeline, "a (red:1.7) apple", prompt_syntax="comfy")
    expected = plain.clone()
    expected[0, 2] = empty[0, 2] + 1.7 * (plain[0, 2] - empty[0, 2])
    torch.testing.assert_close(weighed, expected)
    assert torch.equal(weighed[0, 1], plain[0, 1])


def test_formulas_on_numbers() -> None:
    chunk = torch.tensor([[[1.0, 3.0], [2.0, 6.0]]])  # mean 3
    weighed = keeping_mean(chunk, torch.tensor([[1.0, 2.0]]))  # [1, 3], [4, 12]: mean 5
    torch.testing.assert_close(weighed, torch.tensor([[[0.6, 1.8], [2.4, 7.2]]]))
    centred = torch.tensor([[[1.0, -1.0], [2.0, -2.0 + 1e-6]]])  # a mean of 3e-7 says nothing
    doubled = centred * torch.tensor([[1.0], [2.0]])
    torch.testing.assert_close(keeping_mean(centred, torch.tensor([[1.0, 2.0]])), doubled)
    both = torch.tensor([[[1.0, 3.0], [2.0, 6.0]], [[0.0, 1.0], [1.0, 1.0]]])  # the second is empty
    moved = from_empty(both, torch.tensor([[1.0, 2.0], [1.0, 1.0]]))
    torch.testing.assert_close(moved, torch.tensor([[[1.0, 3.0], [3.0, 11.0]]]))


def test_chunks_are_encoded_alone_and_joined(pipeline: Pipeline) -> None:
    long = tokens(pipeline, "a red apple BREAK a (blue:1.5) star")
    assert long.shape == (1, 2 * LENGTH, 32)
    first, second = tokens(pipeline, "a red apple"), tokens(pipeline, "a (blue:1.5) star")
    torch.testing.assert_close(long, torch.cat([first, second], dim=1))
    assert tokens(pipeline, "apple " * 50, prompt_syntax="a1111").shape[1] == 4 * LENGTH
    ((_, conditioning),) = told(pipeline, "a red apple BREAK a blue star")
    ((_, beginning),) = told(pipeline, "a red apple")
    assert conditioning.pooled is not None
    assert beginning.pooled is not None
    torch.testing.assert_close(conditioning.pooled, beginning.pooled)


def test_turns_are_equally_long(pipeline: Pipeline) -> None:
    """The shorter text of a switch is filled up with an empty chunk; of a composition, with its last token."""
    turn = tokens(pipeline, "[a star:a BREAK b:2]")
    torch.testing.assert_close(turn, torch.cat([tokens(pipeline, "a star"), tokens(pipeline, "")], dim=1))
    (weight, first), (_, second) = told(pipeline, "a star :0.5 AND a BREAK b")
    assert weight == 0.5
    alone = tokens(pipeline, "a star")
    torch.testing.assert_close(first.tokens, torch.cat([alone, alone[:, -1:].expand(-1, LENGTH, -1)], dim=1))
    assert second.tokens.shape == first.tokens.shape


def test_clip_skip_leaves_layers_out(pipeline: Pipeline) -> None:
    ids = pipeline.model.tokenizers[0](["a star"])
    with torch.inference_mode():
        expected = pipeline.text_encoders[0](ids, skip=1).tokens
    assert torch.equal(tokens(pipeline, "a star", clip_skip=2), expected)
    assert pipeline.resolve(Request("a star", clip_skip=1)) == pipeline.resolve(Request("a star"))


TURNS = [
    # AUTOMATIC1111 counts prompts' steps from 1 and sampling's from 0: `a` has one step more than it is given.
    ("euler", "[a red apple:a blue star:2]", "AAAB"),
    ("euler", "[a red apple:a blue star:0.25]", "AABB"),
    ("euler", "[a red apple:a blue star:0]", "BBBB"),
    ("euler", "[a red apple:a blue star:4]", "AAAA"),
    ("euler", "[a red apple|a blue star]", "AABA"),
    ("dpmpp_2m", "[a red apple:a blue star:1]", "AABB"),
    ("heun", "[a red apple:a blue star:1]", "AAABBBB"),  # the corrector is already at the next step's sigma
    ("euler_ancestral", "a [red apple:blue star:2]", "AAAB"),
]


@pytest.mark.parametrize(("sampler", "prompt", "turns"), TURNS)
def test_the_network_is_told_each_text_in_its_turn(
    pipeline: Pipeline, sampler: str, prompt: str, turns: str
) -> None:
    unet, seen = pipeline.denoiser.network, list[Tensor]()

    def record(_: Any, args: tuple[Tensor, Tensor, Context]) -> None:
        seen.append(args[2].keys_values[0][0].clone())

    hook = unet.register_forward_pre_hook(record)
    base = Request("a red apple", steps=4, sampler=sampler, guidance=1)
    for text in ("a red apple", "a blue star", prompt):
        list(pipeline.generate([replace(base, prompt=text)]))
    hook.remove()
    apple, star, mixed = (seen[len(turns) * i :][: len(turns)] for i in range(3))
    assert [torch.equal(told, apple[0]) for told in mixed] == [turn == "A" for turn in turns]
    assert [torch.equal(told, star[0]) for told in mixed] == [turn == "B" for turn in turns]


def test_requests_say_how_they_are_read(pipeline: Pipeline) -> None:
    """And no more than that: a prompt without syntax is the request that it always was."""
    for prompt, asked, recorded in (
        ("a star", None, None),
        ("a star", "a1111", None),
        ("a (star)", None, "a1111"),
        ("a AND b", None, "a1111"),
        ("a star", "plain", "plain"),
        ("a (star)", "comfy", "comfy"),
    ):
        resolved = pipeline.resolve(Request(prompt, prompt_syntax=asked))
        assert resolved.prompt_syntax == recorded
        assert pipeline.resolve(resolved) == resolved


def test_templates_are_drawn_by_the_seed_and_kept(pipeline: Pipeline) -> None:
    asked = Request("a {red|blue|green} {apple|star}", r"\{ugly\}", steps=1)
    drawn = {pipeline.resolve(replace(asked, seed=seed)).prompt for seed in range(40)}
    assert len(drawn) == 6
    resolved = pipeline.resolve(asked)
    assert (resolved.template, resolved.negative_template) == (asked.prompt, asked.negative)
    assert resolved.negative == "{ugly}"
    assert pipeline.resolve(resolved) == resolved
    first, second = pipeline.generate([asked, resolved])
    assert first.png() == second.png()
    plain = pipeline.resolve(replace(asked, prompt_syntax="plain"))
    assert (plain.prompt, plain.template) == (asked.prompt, None)


def test_rescaled_guidance_makes_the_picture_of_diffusers(tiny_model: Path) -> None:
    pipeline = Pipeline(load_model(tiny_model))
    asked = Request("a red apple", "a blue star", seed=7, steps=6, guidance=5.0)
    picture, plain = pipeline.generate([replace(asked, guidance_rescale=0.7), asked])
    library = StableDiffusionPipeline.from_pretrained(tiny_model, torch_dtype=torch.float32)
    library.set_progress_bar_config(disable=True)
    image = library(
        "a red apple",
        negative_prompt="a blue star",
        latents=pipeline.noise(picture.request)(),
        num_inference_steps=6,
        guidance_scale=5.0,
        height=16,
        width=16,
        guidance_rescale=0.7,
    ).images[0]
    assert difference(picture.image, image).within_rounding
    assert not difference(picture.image, plain.image).within_rounding


@pytest.fixture(scope="module")
def xl(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """A model with two text encoders."""
    return Pipeline(load_model(models.save_model("xl", tmp_path_factory.mktemp("models") / "xl")))


def test_both_encoders_read_the_same_chunks(xl: Pipeline) -> None:
    long = tokens(xl, "a red apple BREAK a blue star")
    first, second = tokens(xl, "a red apple"), tokens(xl, "a blue star")
    torch.testing.assert_close(long, torch.cat([first, second], dim=1))
    ((_, whole),), ((_, beginning),) = told(xl, "a red apple BREAK a blue star"), told(xl, "a red apple")
    assert whole.pooled is not None
    assert beginning.pooled is not None
    torch.testing.assert_close(whole.pooled, beginning.pooled)
    assert torch.equal(tokens(xl, "a star", clip_skip=2), tokens(xl, "a star"))  # as XL is read anyway


def test_each_encoder_keeps_its_own_mean(xl: Pipeline) -> None:
    widths = [encoder.config.width for encoder in xl.text_encoders]
    plain, weighed = tokens(xl, "a red apple"), tokens(xl, "a (red:1.5) apple")
    for before, after in zip(plain.split(widths, -1), weighed.split(widths, -1), strict=True):
        assert after.mean().item() == pytest.approx(before.mean().item(), rel=1e-3)
        assert not torch.allclose(before, after)


@pytest.mark.parametrize(
    ("prompt", "negative"),
    [
        ("a (red:1.3) apple", ""),
        ("a red apple AND a blue star :0.6", "a [green|blue] star"),
        ("[a red apple:a BREAK star:0.5]", "a BREAK b BREAK c"),
    ],
)
def test_pictures_of_two_encoders_are_made(xl: Pipeline, prompt: str, negative: str) -> None:
    asked = Request(prompt, negative, steps=3, width=16, height=16)
    first, again = (next(xl.generate([asked])) for _ in range(2))
    (other,) = xl.generate([replace(asked, prompt_syntax="plain", negative="")])
    assert first.image.tobytes() == again.image.tobytes() != other.image.tobytes()
