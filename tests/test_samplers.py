"""Samplers against k-diffusion's functions over the whole loop, and on the exact denoiser of a Gaussian mixture."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from diffusion.noise import Noise
from diffusion.samplers import DISCARDS_PENULTIMATE, SAMPLER_NAMES, SAMPLERS, effective, options, our_sampler, sampler
from diffusion.schedulers import NoiseConfig
from diffusion.schedules import SCHEDULE_NAMES, SCHEDULES, karras, schedule
from tests.draws import draws

STABLE_DIFFUSION = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
DETERMINISTIC = ("euler", "heun", "dpm_2", "lms", "plms", "ddim", "dpmpp_2s", "dpmpp_2m", "dpmpp_3m", "deis", "uni_pc")


def no_noise() -> Tensor:
    raise AssertionError("a deterministic sampler drew noise")


def smooth(x: Tensor, sigma: float) -> Tensor:
    """A fixed denoiser that is the expectation of nothing: mixes the channels and bends them."""
    mix = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    mixed = torch.einsum("ij,bjhw->bihw", mix.to(x.dtype), x / math.hypot(1, sigma))
    return torch.tanh(mixed + math.log(0.1 + sigma) / 5)


# What k-diffusion 0.1.1.post1's functions of these names make of `smooth` on this grid, from 10 * draws(0)() and with
# draws(1) for noise, in float64. Its `dpmpp_sde` was given the increments of one Brownian path in sigma, those to the
# middle of each step and over the rest of it drawn in turn. Restart is AUTOMATIC1111's function, on `karras(10, 0.03)`.
GRID = (10, 7, 5, 3, 2, 1.4, 1, 0.7, 0.5, 0.35, 0.25, 0.15, 0.1, 0.06, 0.03, 0)
HALF, CHURN = {"eta": 0.5, "s_noise": 1.05}, {"s_churn": 5.0, "s_noise": 1.05}
K_DIFFUSION = [
    ("euler", {}, [0.1972704, 0.0705582, 0.0672681]),
    ("heun", {}, [0.0626282, 0.0600404, 0.0569622]),
    ("dpm_2", {}, [0.0658271, 0.0594697, 0.0567563]),
    ("lms", {}, [0.0899746, -0.0134935, -0.0138836]),
    ("dpmpp_2m", {}, [0.0235576, 0.0397042, 0.0364281]),
    ("euler", CHURN, [-0.4754010, -0.4346499, 0.5088396]),
    ("heun", CHURN, [-0.2922520, -0.1728188, -0.2709765]),
    ("dpm_2", CHURN, [-0.3299563, -0.2475602, -0.0323257]),
    ("euler_ancestral", {}, [-0.6040043, -0.5246558, 0.2098514]),
    ("euler_ancestral", HALF, [-0.0006995, -0.4147006, -0.1903443]),
    ("dpm_2_ancestral", {}, [-0.2591720, -0.2174113, -0.1784252]),
    ("dpm_2_ancestral", HALF, [-0.0778166, -0.3483999, 0.0568084]),
    ("dpmpp_2s_ancestral", {}, [-0.3608111, -0.3557611, -0.2161078]),
    ("dpmpp_2s_ancestral", HALF, [-0.1069348, -0.3618875, 0.0142491]),
    ("dpmpp_sde", {}, [-0.3235661, -0.3957138, -0.4191407]),
    ("dpmpp_sde", HALF, [0.0301342, -0.3731197, -0.0168482]),
    ("dpmpp_2m_sde", {}, [-0.4468448, 0.8670340, -0.7149688]),
    ("dpmpp_2m_sde", HALF, [0.3948128, -0.4788544, -0.8462156]),
    ("dpmpp_3m_sde", {}, [0.7127079, 0.8401546, -0.9999994]),
    ("dpmpp_3m_sde", HALF, [0.9977979, 0.7133255, -0.9996464]),
    ("dpmpp_2m_sde_heun", {}, [-0.3600577, 0.9588118, -0.4812694]),
]


@pytest.mark.parametrize(("name", "asked", "golden"), K_DIFFUSION)
def test_k_diffusion_makes_the_same(name: str, asked: dict, golden: list[float]) -> None:
    out = SAMPLERS[name](smooth, 10 * draws(0)().double(), torch.tensor(GRID, dtype=torch.float64), draws(1), **asked)
    assert out[0, 0, 0].tolist() == pytest.approx(golden, abs=2e-6)


@pytest.mark.parametrize(
    ("steps", "evaluations", "golden"),
    [
        (12, 23, [0.0740678, 0.0701879, 0.0618088]),
        (24, 47, [-0.3348482, 0.0370291, 0.0643630]),
        (40, 79, [-0.4552510, -0.3536763, -0.1574936]),
    ],
)
def test_restart_goes_back_as_the_web_ui_does(steps: int, evaluations: int, golden: list[float]) -> None:
    count = 0

    def denoise(x: Tensor, sigma: float) -> Tensor:
        nonlocal count
        count += 1
        return smooth(x, sigma)

    grid = torch.cat([karras(10.0, 0.03, steps), torch.zeros(1)])
    out = SAMPLERS["restart"](denoise, 10 * draws(0)().double(), grid, draws(1))
    assert out[0, 0, 0].tolist() == pytest.approx(golden, abs=1e-5)
    assert count == evaluations


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_that_stops_above_zero_can_be_gone_on_with(name: str) -> None:
    sigmas = torch.tensor([10.0, 5.0, 2.0, 1.0, 0.0])
    x = 10 * draws(0)()
    out = SAMPLERS[name](smooth, x, sigmas[:2], draws(1))
    # One step down is Euler's for every sampler of one evaluation a step; the stochastic ones add noise.
    if name in ("euler", "ddim", "lms", "plms", "dpmpp_2s", "dpmpp_2m", "dpmpp_3m", "deis", "uni_pc"):
        slope = (x - smooth(x, 10.0)) / 10
        torch.testing.assert_close(out, x - 5 * slope)
    assert torch.isfinite(SAMPLERS[name](smooth, out, sigmas[1:], draws(2))).all()


@pytest.mark.parametrize("name", SAMPLERS)
def test_equal_neighbours_are_one(name: str) -> None:
    x, once = 10 * draws(0)(), torch.logspace(1, -1, 18).tolist()  # of so many that the last steps have their order
    twice = [sigma for i, sigma in enumerate(once) for _ in range(2 if i in (1, 17) else 1)]
    once, twice = torch.tensor([*once, 0.0]), torch.tensor([*twice, 0.0])
    assert torch.equal(SAMPLERS[name](smooth, x, twice, draws(1)), SAMPLERS[name](smooth, x, once, draws(1)))


@pytest.mark.parametrize("name", [*DETERMINISTIC, "dpmpp_2m_sde"])
def test_sampling_from_zero_snr_keeps_float32(name: str) -> None:
    sigmas = schedule(Noise(NoiseConfig(rescale_betas_zero_snr=True, **STABLE_DIFFUSION)), "normal", 10)
    x = 4096 * draws(0)()
    single = SAMPLERS[name](smooth, x, sigmas, draws(1))
    double = SAMPLERS[name](smooth, x.double(), sigmas, draws(1))
    assert (single - double).norm() < 2e-5 * double.norm()


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


@pytest.mark.parametrize(
    ("stochastic", "asked", "other"),
    [
        ("tcd", {"eta": 0.0}, "euler"),
        ("tcd", {"eta": 1.0}, "lcm"),
        ("euler_ancestral", {"eta": 0.0}, "euler"),
        ("ddim", {"eta": 1.0}, "ddpm"),
        ("dpm_2_ancestral", {"eta": 0.0}, "dpm_2"),
        ("dpmpp_2m_sde", {"eta": 0.0}, "dpmpp_2m"),
    ],
)
def test_eta_leads_from_one_sampler_to_another(stochastic: str, asked: dict, other: str) -> None:
    x, sigmas = 10 * draws(0)().double(), torch.tensor(GRID, dtype=torch.float64)
    a, b = SAMPLERS[stochastic](smooth, x, sigmas, draws(1), **asked), SAMPLERS[other](smooth, x, sigmas, draws(1))
    torch.testing.assert_close(a, b)


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


def solve(name: str, grid: Tensor, **asked: int) -> Tensor:
    """Where 17 starts arrive at sigma 0.1."""
    start = torch.linspace(-2, 2, 17, dtype=torch.float64) * grid[0]
    return SAMPLERS[name](exact, start, grid, no_noise, **asked)


def even(start: float, steps: int) -> Tensor:
    return torch.linspace(start, 0.1, steps + 1, dtype=torch.float64)


def exponential(start: float, steps: int) -> Tensor:
    return torch.logspace(math.log10(start), -1, steps + 1, dtype=torch.float64)


@pytest.mark.parametrize(
    ("name", "asked", "grid", "start", "order"),
    [
        ("euler", {}, exponential, 10, 1),
        ("ddim", {}, exponential, 10, 1),
        ("heun", {}, exponential, 10, 2),
        ("dpm_2", {}, exponential, 10, 2),
        ("lms", {}, exponential, 100, 4),  # from there, the first steps, of lower orders, leave no error that shows
        ("plms", {}, even, 10, 4),
        ("dpmpp_2s", {}, exponential, 10, 2),
        ("dpmpp_2m", {}, exponential, 10, 2),
        ("dpmpp_2m", {"midpoint": False}, exponential, 10, 2),
        ("dpmpp_3m", {}, exponential, 100, 2),
        ("deis", {}, exponential, 100, 2),
        ("deis", {"order": 3}, exponential, 100, 3),
        ("uni_pc", {}, exponential, 10, 2),
        ("uni_pc", {"order": 1}, exponential, 10, 2),  # its corrector's
        ("uni_pc", {"bh1": True}, exponential, 10, 2),
        ("uni_pc", {"order": 3, "few": 0}, exponential, 100, 3),
    ],
)
def test_order_of_convergence(name: str, asked: dict, grid, start: float, order: int, truth: dict) -> None:
    errors = [(solve(name, grid(start, steps), **asked) - truth[start]).abs().mean().item() for steps in (50, 100, 200)]
    slopes = [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]
    assert errors[-1] < 0.01
    assert order - 0.25 < slopes[-1] < order + 0.5, slopes  # UniPC's corrector takes it beyond 2


@pytest.fixture(scope="module")
def truth() -> dict[float, Tensor]:
    """The ODE's solution by start: Heun's on two grids, extrapolated (Richardson 1911), is of order 4."""
    coarse, fine = ({start: solve("heun", exponential(start, n)) for start in (10, 100)} for n in (500, 1000))
    return {start: fine[start] + (fine[start] - coarse[start]) / 3 for start in fine}


# The others' steps are consistency models'.
@pytest.mark.parametrize("name", [name for name in SAMPLERS if name not in ("lcm", "tcd")])
def test_samples_have_the_mixtures_distribution(name: str) -> None:
    count, steps = 10_000, 200 if name in ("euler", "euler_ancestral", "ddim", "ddpm") else 80
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


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_grid_leads_to_the_data(name: str) -> None:
    """Samples of a mixture of two end near its components, even those of solvers that overshoot on uneven steps."""
    noise = Noise(NoiseConfig(**STABLE_DIFFUSION))
    generator = torch.Generator().manual_seed(0)
    for grid in SCHEDULES:
        sigmas = schedule(noise, grid, 40, discard=name in DISCARDS_PENULTIMATE)
        start = sigmas[0] * torch.randn(200, generator=generator, dtype=torch.float64)
        draw = lambda: torch.randn(200, generator=generator, dtype=torch.float64)
        x = SAMPLERS[name](exact, start, sigmas, draw)
        distance = ((x[:, None] - MEANS).abs() / SPREADS).min(dim=1).values
        assert distance.mean() < 2.5, grid  # of a component's spread; 0.8 if all were right
        assert distance.max() < 15, grid


def test_other_programs_names_are_understood() -> None:
    assert SAMPLER_NAMES.keys() == SAMPLERS.keys()
    for ours, theirs in SAMPLER_NAMES.items():
        for spelling in (ours, theirs, theirs.upper(), f"k_{ours}", f"sample_{ours}"):
            assert our_sampler(spelling) == (ours, None)
        assert our_sampler(f"{theirs} Karras") == (ours, "karras")
        assert our_sampler(f"{theirs} SGM Uniform") == (ours, "sgm_uniform")
    assert SCHEDULE_NAMES.keys() == SCHEDULES.keys()


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("k_euler_a", ("euler_ancestral", None)),
        ("k_dpm_2_a", ("dpm_2_ancestral", None)),
        ("k_dpmpp_2s_a", ("dpmpp_2s_ancestral", None)),
        ("k_dpmpp_2m_ka", ("dpmpp_2m", "karras")),
        ("DPM++ 2M SDE Heun Exponential", ("dpmpp_2m_sde_heun", "exponential")),
        ("dpmpp_2m_sde_gpu", ("dpmpp_2m_sde", None)),
        ("unipc", ("uni_pc", None)),
        ("DPM++ 2M Carras", ("DPM++ 2M Carras", None)),
        ("Karras", ("Karras", None)),
    ],
)
def test_aliases(theirs: str, ours: tuple[str, str | None]) -> None:
    assert our_sampler(theirs) == ours


def test_what_a_name_says_no_configuration_changes() -> None:
    said = NoiseConfig("DPMSolverMultistepScheduler", solver_type="midpoint").options
    x, sigmas = 10 * draws(0)(), torch.tensor(GRID)
    ours = sampler("dpmpp_2m_sde_heun", said)(smooth, x, sigmas, draws(1))
    assert torch.equal(ours, SAMPLERS["dpmpp_2m_sde_heun"](smooth, x, sigmas, draws(1)))
    assert not torch.equal(ours, sampler("dpmpp_2m_sde", said)(smooth, x, sigmas, draws(1)))


def test_options_are_those_of_the_functions() -> None:
    assert options("ddim") == {"eta": 0}
    assert options("euler") == {"s_churn": 0, "s_tmin": 0, "s_tmax": math.inf, "s_noise": 1}
    assert options("dpmpp_sde") == {"eta": 1, "s_noise": 1}
    assert options("dpmpp_2m") == {}


ASKED = dict.fromkeys(("eta", "s_churn", "s_tmin", "s_tmax", "s_noise"))


@pytest.mark.parametrize(
    ("name", "asked", "left"),
    [
        ("euler", {"eta": 0, "s_churn": 0, "s_tmin": 3, "s_tmax": 9, "s_noise": 1.1}, {}),  # without churn, nothing
        ("euler", {"s_churn": 5, "s_tmin": 3, "s_noise": 1}, {"s_churn": 5.0, "s_tmin": 3.0}),
        ("ddim", {"eta": 0.5, "s_churn": 0, "s_noise": 1}, {"eta": 0.5}),
        ("euler_ancestral", {"eta": 1.0, "s_noise": 1.1}, {"s_noise": 1.1}),
        ("uni_pc", {"eta": 0.0, "s_tmax": 3}, {}),
    ],
)
def test_options_that_change_nothing_are_passed_over(name: str, asked: dict, left: dict) -> None:
    assert effective(name, ASKED | asked) == left


@pytest.mark.parametrize(("name", "option"), [("uni_pc", "eta"), ("ddpm", "s_churn"), ("dpmpp_2m", "s_noise")])
def test_options_that_a_sampler_has_not_are_refused(name: str, option: str) -> None:
    with pytest.raises(ValueError, match=f"{name} has no option {option}; leave it out, or choose one of "):
        effective(name, ASKED | {option: 0.5})
