"""Pictures made together: each as it is alone up to rounding, and the same bytes in any company of one size."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from diffusion.batching import gathered
from diffusion.checkpoint import load_model
from diffusion.metadata import record_of
from diffusion.pipeline import Pipeline, Progress
from diffusion.request import Request
from diffusion.verify import main as verify

# Neighbours of one shape, but for the last three: another number of steps, other turns, another size.
REQUESTS = [
    Request("a red apple", seed=1, steps=3),
    Request("赤いりんご", seed=2, steps=3, negative="a (blue:1.3) star"),
    Request("a (red:1.4) apple", seed=3, steps=3, variation_seed=1, variation_strength=0.4),
    Request("", seed=4, steps=3),
    Request("a red apple", seed=1, steps=4),
    Request("[red:blue:2] apple", seed=1, steps=4),
    Request("a red apple", seed=1, steps=4, width=24),
]


@pytest.fixture(scope="module")
def pipeline(tiny_model: Path) -> Pipeline:
    return Pipeline(load_model(tiny_model))


def groups(pipeline: Pipeline, requests: list[Request], size: int) -> list[int]:
    resolved = [pipeline.resolve(request) for request in requests]
    return [len(group) for group in gathered(resolved, size, pipeline.reader.outline)]


def test_neighbours_of_one_shape_are_gathered(pipeline: Pipeline) -> None:
    assert groups(pipeline, REQUESTS, 3) == [3, 1, 1, 1, 1]
    assert groups(pipeline, REQUESTS, 8) == [4, 1, 1, 1]
    assert groups(pipeline, REQUESTS, 1) == [1] * 7
    assert groups(pipeline, [*REQUESTS[:2], REQUESTS[4], REQUESTS[2]], 8) == [2, 1, 1]
    long = replace(REQUESTS[0], prompt="a red apple " * 40)  # of more chunks
    assert groups(pipeline, [REQUESTS[0], long, long], 8) == [1, 2]
    turns = [replace(REQUESTS[5], prompt=f"[red:blue:{step}] apple") for step in (1, 2, 2)]
    assert groups(pipeline, turns, 8) == [1, 2]
    assert groups(pipeline, [replace(REQUESTS[0], hires_scale=2.0)] * 2, 8) == [1, 1]


@pytest.mark.parametrize("sampler", ["euler_ancestral", "dpmpp_2m", "dpmpp_sde", "uni_pc", "heun", "lcm"])
@pytest.mark.parametrize("rescale", [None, 0.7])
def test_together_as_alone(pipeline: Pipeline, sampler: str, rescale: float | None) -> None:
    requests = [replace(request, sampler=sampler, guidance_rescale=rescale) for request in REQUESTS]
    for alone, made in zip(pipeline.generate(requests), pipeline.generate(requests, batch=3), strict=True):
        assert alone.request == made.request
        difference = np.asarray(alone.image, dtype=int) - np.asarray(made.image, dtype=int)
        assert abs(difference).max() <= 1


def test_no_byte_depends_on_the_company(pipeline: Pipeline) -> None:
    made = {picture.request: picture.png() for picture in pipeline.generate(REQUESTS, batch=3)}
    for company in (REQUESTS[::-1], REQUESTS[1:2], [REQUESTS[3], REQUESTS[0]], [REQUESTS[2]] * 5):
        for picture in pipeline.generate(company, batch=3):
            assert picture.png() == made[picture.request]


def test_each_is_told_of_its_own_progress(pipeline: Pipeline) -> None:
    seen: list[Progress] = []
    list(pipeline.generate(REQUESTS[:4], seen.append, batch=3))
    told = [(step.picture, step.evaluation, step.evaluations) for step in seen]
    assert told == [(i, n, 3) for n in (1, 2, 3) for i in (0, 1, 2)] + [(3, n, 3) for n in (1, 2, 3)]
    assert all(step.x0 is not None and len(step.x0) == 1 for step in seen)


def test_a_picture_says_how_many_went_together(
    pipeline: Pipeline, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (alone,), (made, *_) = pipeline.generate(REQUESTS[:1]), pipeline.generate(REQUESTS[:2], batch=3)
    assert "batch" not in record_of(alone.texts)
    assert record_of(made.texts)["batch"] == 3
    (tmp_path / "made.png").write_bytes(made.png())
    assert verify([str(tmp_path / "made.png"), "--model", str(tiny_model)]) == 0
    assert "identical" in capsys.readouterr().out
