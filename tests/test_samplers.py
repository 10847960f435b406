"""Samplers against diffusers' schedulers, step for step, and on the exact denoiser of a Gaussian mixture."""

import math
from itertools import pairwise

import diffusers
import pytest
import torch
from torch import Tensor

from diffusion.noise import SCHEDULERS, SCHEDULES, Noise, NoiseConfig
from diffusion.samplers import SAMPLERS

STABLE_DIFFUSION = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SHAPE = (2, 4, 3, 3)


def draws(seed: int):
    """noise() for a sampler; diffusers draws the same numbers from a generator of the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(SHAPE, generator=generator)


def smooth(x: Tensor, sigma: float) -> Tensor:
    """A fixed denoiser that is the expectation of nothing: mixes the channels and bends them."""
    mix = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    mixed = torch.einsum("ij,bjhw->bihw", mix.to(x.dtype), x / math.hypot(1, sigma))
    return torch.tanh(mixed + math.log(0.1 + sigma) / 5)


def diffusers_loop(scheduler, x: Tensor, sigmas: list[float], scaled: bool) -> Tensor:
    """x sampled by diffusers. Where `scaled`, its own x is ours over sqrt(1 + sigma^2)."""
    generator = torch.Generator().manual_seed(1)
    stochastic = isinstance(scheduler, diffusers.EulerAncestralDiscreteScheduler | diffusers.DDPMScheduler)
    x = x / math.hypot(1, sigmas[0]) if scaled else x
    for t, sigma in zip(scheduler.timesteps, sigmas, strict=True):
        scheduler.scale_model_input(x, t)
        ours = x * math.hypot(1, sigma) if scaled else x
        x0 = smooth(ours, sigma)
        answer = x0 if scheduler.config.prediction_type == "sample" else (ours - x0) / sigma
        x = scheduler.step(answer, t, x, **({"generator": generator} if stochastic else {})).prev_sample
    return x


@pytest.mark.parametrize("steps", [1, 2, 3, 14, 20])
@pytest.mark.parametrize("grid", SCHEDULES)
@pytest.mark.parametrize(
    "name",
    [
        "EulerDiscreteScheduler",
        "EulerAncestralDiscreteScheduler",
        "HeunDiscreteScheduler",
        "DPMSolverMultistepScheduler",
        "UniPCMultistepScheduler",
    ],
)
def test_each_sampler_takes_its_schedulers_steps(name: str, grid: str, steps: int) -> None:
    kind = "epsilon" if name == "EulerAncestralDiscreteScheduler" else "sample"
    config = NoiseConfig(scheduler=name, prediction_type=kind, **STABLE_DIFFUSION)
    sigmas = Noise(config).schedule(grid, steps)
    scheduler = getattr(diffusers, name).from_config(config.to_dict())
    scheduler.set_timesteps(steps)
    x = sigmas[0].item() * draws(0)()
    if name == "HeunDiscreteScheduler":  # lists inner levels twice, and works in x's precision
        scheduler.sigmas = torch.cat([sigmas[:1], sigmas[1:-1].repeat_interleave(2), sigmas[-1:]])
        x = x.double()
    else:
        scheduler.sigmas = sigmas.float()
    levels = scheduler.sigmas[:-1].tolist()
    theirs = diffusers_loop(scheduler, x, levels, SCHEDULERS[name].whole_times)
    ours = SAMPLERS[config.sampler](smooth, x, sigmas, draws(1))
    assert (ours - theirs).norm() < 3e-5 * theirs.norm()


@pytest.mark.parametrize("steps", [1, 4, 20])
@pytest.mark.parametrize(
    ("name", "spacing"),
    [("DDIMScheduler", "leading"), ("DDPMScheduler", "leading"), ("DDPMScheduler", "linspace")],
)
def test_ddim_and_ddpm_take_their_schedulers_steps(name: str, spacing: str, steps: int) -> None:
    kind = {"prediction_type": "sample", "timestep_spacing": spacing}
    config = NoiseConfig(scheduler=name, **kind, **STABLE_DIFFUSION)
    sigmas = Noise(config).schedule("automatic", steps)
    scheduler = getattr(diffusers, name).from_config(config.to_dict())
    scheduler.set_timesteps(steps)
    x = sigmas[0].item() * draws(0)()
    theirs = diffusers_loop(scheduler, x, sigmas[:-1].tolist(), scaled=True)
    ours = SAMPLERS[config.sampler](smooth, x, sigmas, draws(1))
    assert (ours - theirs).norm() < 3e-5 * theirs.norm()


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_that_stops_above_zero_can_be_gone_on_with(name: str) -> None:
    sigmas = torch.tensor([10.0, 5.0, 2.0, 1.0, 0.0])
    x = 10 * draws(0)()
    out = SAMPLERS[name](smooth, x, sigmas[:2], draws(1))
    # One step down is Euler's for every sampler but Heun's; the ancestral ones add noise.
    if name in ("euler", "ddim", "dpmpp_2m", "uni_pc"):
        slope = (x - smooth(x, 10.0)) / 10
        torch.testing.assert_close(out, x - 5 * slope)
    assert torch.isfinite(SAMPLERS[name](smooth, out, sigmas[1:], draws(2))).all()


def test_sampling_from_zero_snr_keeps_float32() -> None:
    sigmas = Noise(NoiseConfig(rescale_betas_zero_snr=True, **STABLE_DIFFUSION)).schedule("normal", 10)
    for name in ("euler", "dpmpp_2m", "uni_pc"):
        x = 4096 * draws(0)()
        single = SAMPLERS[name](smooth, x, sigmas, draws(1))
        double = SAMPLERS[name](smooth, x.double(), sigmas, draws(1))
        assert (single - double).norm() < 1e-5 * double.norm()


@pytest.mark.parametrize(
    ("name", "golden"),
    [
        ("euler", [0.720185, 0.324746, 0.301333]),
        ("euler_ancestral", [-0.223088, -0.925643, -0.372998]),
        ("heun", [0.582882, 0.391573, 0.180035]),
        ("dpmpp_2m", [0.686598, 0.343851, 0.247039]),
        ("ddim", [0.720185, 0.324746, 0.301333]),
        ("ddpm", [-0.223088, -0.925643, -0.372998]),
        ("uni_pc", [0.671924, 0.338889, 0.230577]),
    ],
)
def test_golden_pictures(name: str, golden: list[float]) -> None:
    sigmas = torch.tensor([10.0, 5.0, 2.0, 1.0, 0.5, 0.0])
    out = SAMPLERS[name](smooth, 10 * draws(0)(), sigmas, draws(1))
    torch.testing.assert_close(out[0, 0, 0], torch.tensor(golden), rtol=1e-4, atol=1e-5)


# A Gaussian mixture on the line, whose denoiser is known: https://arxiv.org/abs/2206.00364, appendix B.3.
WEIGHTS = torch.tensor([0.3, 0.7], dtype=torch.float64)
MEANS = torch.tensor([-1.0, 0.8], dtype=torch.float64)
SPREADS = torch.tensor([0.3, 0.2], dtype=torch.float64)


def exact(x: Tensor, sigma: float) -> Tensor:
    """E[x0 | x]: each component's own posterior mean, weighted by how likely x is its."""
    variance = SPREADS**2 + sigma**2
    away = x[..., None] - MEANS
    likely = torch.softmax(WEIGHTS.log() - variance.log() / 2 - away**2 / (2 * variance), dim=-1)
    return (likely * (MEANS + SPREADS**2 / variance * away)).sum(-1)


def solve(sampler: str, steps: int) -> Tensor:
    """Where 17 starts at sigma 10 arrive at sigma 0.1."""

    def no_noise() -> Tensor:
        raise AssertionError("a deterministic sampler drew noise")

    start = torch.linspace(-20, 20, 17, dtype=torch.float64)
    return SAMPLERS[sampler](exact, start, torch.logspace(1, -1, steps + 1, dtype=torch.float64), no_noise)


@pytest.fixture(scope="module")
def truth() -> Tensor:
    return solve("heun", 3000)


@pytest.mark.parametrize(
    ("name", "order"), [("euler", 1), ("ddim", 1), ("heun", 2), ("dpmpp_2m", 2), ("uni_pc", 2)]
)
def test_order_of_convergence(name: str, order: int, truth: Tensor) -> None:
    errors = [(solve(name, steps) - truth).abs().mean().item() for steps in (50, 100, 200)]
    slopes = [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]
    assert errors[-1] < 0.01
    assert order - 0.2 < slopes[-1] < order + 0.5, slopes  # UniPC's corrector takes it beyond 2


@pytest.mark.parametrize("name", SAMPLERS)
def test_samples_have_the_mixtures_distribution(name: str) -> None:
    count, steps = 10_000, 200
    generator = torch.Generator().manual_seed(0)

    def normal() -> Tensor:
        return torch.randn(count, generator=generator, dtype=torch.float64)

    component = (torch.rand(count, generator=generator) < WEIGHTS[1]).long()
    x0 = MEANS[component] + SPREADS[component] * normal()
    sigmas = torch.cat([torch.logspace(1, -2, steps, dtype=torch.float64), torch.zeros(1)])
    samples = SAMPLERS[name](exact, x0 + sigmas[0] * normal(), sigmas, normal)
    mean = (WEIGHTS * MEANS).sum().item()
    variance = (WEIGHTS * (SPREADS**2 + MEANS**2)).sum().item() - mean**2
    error = math.sqrt(variance / count)
    assert samples.mean().item() == pytest.approx(mean, abs=4 * error)
    assert samples.var().item() == pytest.approx(variance, rel=0.04)
    assert (samples < 0).double().mean().item() == pytest.approx(0.3, abs=0.02)
    assert samples[samples > 0].std().item() == pytest.approx(0.2, rel=0.03)
