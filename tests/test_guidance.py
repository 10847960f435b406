"""Guidance against its formula: compositions, what holds when, rescaling, intervals; and what it costs."""

from collections.abc import Sequence

import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg
from torch import Tensor

from diffusion.conditioning import Conditioning
from diffusion.denoiser import PREDICTION_TYPES, Denoiser, coefficients
from diffusion.guidance import Script, always, guide
from diffusion.noise import Noise
from diffusion.schedulers import NoiseConfig

X = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
SIGMA = 2.0


class Echo:
    """A network that predicts x times what it is told. It records how much it is told, and how often."""

    def __init__(self) -> None:
        self.seen: list[list[float]] = []
        self.contexts = 0

    def context(self, text: Conditioning) -> Tensor:
        self.contexts += 1
        return text.tokens.mean((1, 2))  # [B]

    def __call__(self, x: Tensor, t: Tensor, told: Tensor) -> Tensor:
        self.seen.append([round(value, 3) for value in told.tolist()])
        return torch.tanh(x * told[:, None, None, None] + x.roll(1, -1))


def says(value: float, length: int = 3) -> Conditioning:
    return Conditioning(torch.full((1, length, 2), value))


def denoiser(prediction_type: str = "v_prediction") -> tuple[Denoiser, Echo]:
    network = Echo()
    schedulers = {"flow_prediction": "FlowMatchEulerDiscreteScheduler", "edm_prediction": "EDMEulerScheduler"}
    said = {"edm_prediction": "epsilon"}.get(prediction_type, prediction_type)
    return Denoiser(network, Noise(NoiseConfig(schedulers.get(prediction_type, "DDPMScheduler"), said))), network


def alone(value: float) -> Tensor:
    """x0 where one thing is told."""
    single, network = denoiser()
    return single(X, SIGMA, network.context(says(value)))


@pytest.mark.parametrize("weights", [[1.0], [0.5], [1.0, 0.5], [1.0, 1.0, -0.3], [0.0, 2.0]])
@pytest.mark.parametrize("scale", [0.0, 1.0, 7.5])
def test_compositions_follow_the_formula(weights: Sequence[float], scale: float) -> None:
    single, network = denoiser()
    texts = [Script(((0.0, says(i + 1.0)),), weight) for i, weight in enumerate(weights)]
    expected = alone(-1.0)
    for i, weight in enumerate(weights):
        expected = expected + scale * weight * (alone(i + 1.0) - alone(-1.0))
    denoise = guide(single, texts, always(says(-1.0)), scale)
    torch.testing.assert_close(denoise(X, SIGMA), expected, rtol=1e-4, atol=1e-4)
    everything = [-1.0, *[i + 1.0 for i in range(len(weights))]]
    assert network.seen == ([[1.0]] if (scale, weights) == (1.0, [1.0]) else [everything])


def test_texts_of_one_length_share_an_evaluation() -> None:
    single, network = denoiser()
    denoise = guide(single, [always(says(1.0, 6)), always(says(2.0, 6))], always(says(3.0)), 5.0)
    torch.testing.assert_close(
        denoise(X, SIGMA), alone(3.0) + 5 * (alone(1.0) + alone(2.0) - 2 * alone(3.0)), rtol=1e-4, atol=1e-4
    )
    assert network.seen == [[3.0], [1.0, 2.0]]


def test_what_holds_is_found_from_sigma_in_any_order() -> None:
    single, network = denoiser()
    text = Script(((5.0, says(1.0)), (2.0, says(2.0)), (0.0, says(3.0))))
    denoise = guide(single, [text], always(says(0.0)), 1.0)
    for sigma in (9.0, 5.0, 2.0, 0.1, 5.1, 2.1):
        denoise(X, sigma)
    assert network.seen == [[1.0], [2.0], [3.0], [3.0], [1.0], [2.0]]
    assert network.contexts == 3  # once a text, however often it comes back


def test_negative_texts_change_too() -> None:
    single, network = denoiser()
    negative = Script(((2.0, says(-1.0)), (0.0, says(-2.0))))
    denoise = guide(single, [always(says(1.0))], negative, 3.0)
    for sigma in (3.0, 1.0, 3.0):
        denoise(X, sigma)
    assert network.seen == [[-1.0, 1.0], [-2.0, 1.0], [-1.0, 1.0]]
    assert network.contexts == 2


def test_outside_the_interval_the_text_is_all() -> None:
    single, network = denoiser()
    denoise = guide(single, [always(says(1.0))], always(says(2.0)), 4.0, interval=(1.0, 5.0))
    for sigma in (5.1, 5.0, 1.1, 1.0):
        denoise(X, sigma)
    assert network.seen == [[1.0], [2.0, 1.0], [2.0, 1.0], [1.0]]


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("amount", [0.3, 1.0])
def test_rescaling_is_that_of_diffusers(prediction_type: str, amount: float) -> None:
    """diffusers scales the network's prediction, we have x0: each is affine in the other."""
    single, _ = denoiser(prediction_type)
    c_in, c_skip, c_out = (c.item() for c in coefficients(single.noise.config, torch.tensor(SIGMA)))
    text, without = (Echo()(c_in * X, torch.zeros(1), torch.tensor([value])) for value in (1.0, -1.0))
    guided = rescale_noise_cfg(without + 6.0 * (text - without), text, amount)
    denoise = guide(single, [always(says(1.0))], always(says(-1.0)), 6.0, rescale=amount)
    torch.testing.assert_close(denoise(X, SIGMA), c_skip * X + c_out * guided, rtol=1e-4, atol=1e-4)
