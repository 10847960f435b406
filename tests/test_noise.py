"""The noise process against diffusers' schedulers: sigmas, times, the first x, configuration files."""

import json
import math

import diffusers
import pytest
import torch

from diffusion.noise import SCHEDULERS, SCHEDULES, Noise, NoiseConfig, betas
from diffusion.samplers import SAMPLERS

STABLE_DIFFUSION = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SPACINGS = ["linspace", "leading", "trailing"]
PLAIN = ["EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler"]
MULTISTEP = ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler"]
ANCESTRAL = ["DDIMScheduler", "DDPMScheduler"]


def pair(scheduler: str, **config):
    """Our noise and diffusers' scheduler, from the file that we would write."""
    ours = NoiseConfig(scheduler=scheduler, **config)
    return Noise(ours), getattr(diffusers, scheduler).from_config(ours.to_dict())


CHOICES = [  # scheduler, zero-SNR, Karras sigmas: every combination that diffusers' scheduler has
    (scheduler, zero_snr, karras)
    for scheduler in PLAIN + MULTISTEP
    for zero_snr in sorted({False, "rescale_betas_zero_snr" in SCHEDULERS[scheduler].knows})
    for karras in sorted({False, "use_karras_sigmas" in SCHEDULERS[scheduler].knows})
]


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("zero_snr", [False, True])
def test_betas_are_diffusers(schedule: str, zero_snr: bool) -> None:
    config = STABLE_DIFFUSION | {"beta_schedule": schedule, "rescale_betas_zero_snr": zero_snr}
    noise, theirs = pair("EulerDiscreteScheduler", **config)
    torch.testing.assert_close(betas(noise.config), theirs.betas, rtol=1e-6, atol=1e-7)
    assert noise.sigmas.dtype == torch.float64
    assert torch.isfinite(noise.sigmas).all()
    assert (noise.sigmas.diff() > 0).all()
    if zero_snr:
        assert noise.sigmas[-1].item() == pytest.approx(4096, abs=1e-3)


def test_trained_betas_replace_the_schedule() -> None:
    numbers = torch.linspace(0.01, 0.2, 10).tolist()
    noise, theirs = pair("DDPMScheduler", trained_betas=tuple(numbers), num_train_timesteps=10)
    assert betas(noise.config).tolist() == theirs.betas.tolist()
    with pytest.raises(ValueError, match="trained_betas has length 10"):
        NoiseConfig(trained_betas=tuple(numbers))


@pytest.mark.parametrize("steps", [1, 7, 25])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize(("scheduler", "zero_snr", "karras"), CHOICES)
def test_automatic_is_the_schedulers_own_grid(scheduler, zero_snr, karras, spacing, steps) -> None:
    asked = {"rescale_betas_zero_snr": zero_snr, "use_karras_sigmas": karras, "timestep_spacing": spacing}
    noise, theirs = pair(scheduler, steps_offset=1, **asked, **STABLE_DIFFUSION)
    theirs.set_timesteps(steps)
    sigmas, times = theirs.sigmas.double(), theirs.timesteps.double()
    if scheduler == "HeunDiscreteScheduler":  # it lists the ends of every step but the first and last twice
        sigmas, times = torch.cat([sigmas[:1], sigmas[1::2]]), torch.cat([times[:1], times[1::2]])
    grid = noise.schedule("automatic", steps)
    torch.testing.assert_close(grid, sigmas, rtol=1e-6, atol=0)
    # Between whole times diffusers feeds t itself, and we its image under two interpolations.
    torch.testing.assert_close(noise.timestep(grid[:-1]), times, rtol=0, atol=0.01)
    first = theirs.init_noise_sigma * (math.hypot(1, sigmas[0]) if SCHEDULERS[scheduler].whole_times else 1)
    assert noise.start(grid[0].item()) == pytest.approx(float(first), rel=1e-6)


@pytest.mark.parametrize("steps", [1, 5, 20, 50])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("scheduler", ANCESTRAL)
def test_automatic_follows_the_whole_times_of_ddim_and_ddpm(scheduler: str, spacing: str, steps: int) -> None:
    noise, theirs = pair(scheduler, timestep_spacing=spacing, **STABLE_DIFFUSION)
    theirs.set_timesteps(steps)
    grid = noise.schedule("automatic", steps)
    torch.testing.assert_close(noise.timestep(grid[:-1]), theirs.timesteps.double(), rtol=0, atol=1e-9)
    assert grid[-1] == 0


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_follows_diffusers(shift: float) -> None:
    noise, theirs = pair("FlowMatchEulerDiscreteScheduler", prediction_type="flow_prediction", shift=shift)
    theirs.set_timesteps(20)
    grid = noise.schedule("automatic", 20)
    torch.testing.assert_close(grid / (1 + grid), theirs.sigmas.double(), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(noise.timestep(grid[:-1]), theirs.timesteps.double(), rtol=1e-6, atol=0)
    assert torch.isfinite(noise.sigmas).all()
    assert (noise.sigmas.diff() > 0).all()


@pytest.mark.parametrize("zero_snr", [False, True])
def test_times_and_sigmas_are_inverse_at_whole_times(zero_snr: bool) -> None:
    noise = Noise(NoiseConfig(rescale_betas_zero_snr=zero_snr, **STABLE_DIFFUSION))
    t = torch.arange(1000, dtype=torch.float64)
    assert torch.equal(noise.sigma(t), noise.sigmas)
    torch.testing.assert_close(noise.timestep(noise.sigmas), t, rtol=0, atol=1e-9)
    assert noise.sigma(10.5) == pytest.approx(noise.sigmas[10:12].mean().item())
    assert noise.timestep(1e9) == 999  # clamped to the table
    assert noise.timestep(1e-9) == 0
    middle = noise.sigmas[500:502].prod().sqrt()
    assert noise.timestep(middle) == pytest.approx(500.5)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("name", SCHEDULES)
def test_every_grid_decreases_to_its_end(scheduler: str, name: str) -> None:
    kind = "flow_prediction" if scheduler.startswith("Flow") else "epsilon"
    noise = Noise(NoiseConfig(scheduler=scheduler, prediction_type=kind))
    for steps in (1, 3, 30):
        grid = noise.schedule(name, steps)
        assert grid.dtype == torch.float64
        assert grid.shape == (steps + 1,)
        assert (grid.diff() < 0).all()
        assert grid[-1] == 0


def test_golden_grids() -> None:
    noise = Noise(NoiseConfig(**STABLE_DIFFUSION))
    normal, karras = noise.schedule("normal", 4).tolist(), noise.schedule("karras", 4).tolist()
    assert normal == pytest.approx([14.61465, 2.918308, 0.9323584, 0.02916753, 0], rel=1e-5)
    assert karras == pytest.approx([14.61465, 3.168611, 0.4469209, 0.02916753, 0], rel=1e-5)


@pytest.mark.parametrize(
    ("scheduler", "key", "value"),
    [
        ("DDIMScheduler", "set_alpha_to_one", False),
        ("DPMSolverMultistepScheduler", "final_sigmas_type", "sigma_min"),
        ("EulerDiscreteScheduler", "final_sigmas_type", "sigma_min"),
    ],
)
def test_a_grid_may_end_at_the_least_sigma(scheduler: str, key: str, value: object) -> None:
    noise = Noise(NoiseConfig(scheduler=scheduler, **{key: value}))
    assert noise.schedule("automatic", 10)[-1] == noise.sigmas[0]


def test_quantiles_reach_every_time_and_no_other() -> None:
    noise = Noise(NoiseConfig(num_train_timesteps=8))
    t = noise.quantile(torch.tensor([0.0, 0.124, 0.125, 0.9999999, 1.0]))
    assert t.tolist() == [0, 0, 1, 7, 7]
    flow = Noise(NoiseConfig("FlowMatchEulerDiscreteScheduler", "flow_prediction"))
    assert flow.quantile(torch.tensor([0.25])).tolist() == [250.0]
    assert flow.sigma(250.0).item() == pytest.approx(1 / 3)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_configurations_survive_the_way_through_diffusers(scheduler: str, tmp_path) -> None:
    kind = "flow_prediction" if scheduler.startswith("Flow") else "v_prediction"
    config = NoiseConfig(scheduler=scheduler, prediction_type=kind)
    written = config.to_dict()
    theirs, unused = getattr(diffusers, scheduler).from_config(written, return_unused_kwargs=True)
    assert not set(unused) - {"_class_name"}
    assert set(written) - {"_class_name"} <= set(theirs.config)
    theirs.save_pretrained(tmp_path)
    assert NoiseConfig.from_dict(json.loads((tmp_path / "scheduler_config.json").read_text())) == config
    assert config.sampler in SAMPLERS


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_what_a_file_leaves_out_means_what_it_means_there(scheduler: str) -> None:
    theirs = getattr(diffusers, scheduler)()
    spoken = {"clip_sample": False} if "clip_sample" in theirs.config else {}
    ours = NoiseConfig.from_dict({"_class_name": scheduler, **spoken})
    for key, value in ours.to_dict().items():
        if key in theirs.config and key not in SCHEDULERS[scheduler].states:
            assert theirs.config[key] == value, key


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"_class_name": "KDPM2DiscreteScheduler"}, "KDPM2DiscreteScheduler"),
        ({"_class_name": "DDIMScheduler"}, "clip_sample"),  # diffusers' default there
        ({"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "deis"}, "algorithm_type"),
        ({"_class_name": "DPMSolverMultistepScheduler", "solver_order": 3}, "solver_order"),
        ({"use_exponential_sigmas": True}, "use_exponential_sigmas"),
        ({"thresholding": True}, "thresholding"),
        ({"prediction_type": "flow_prediction"}, "prediction_type"),
        ({"beta_schedule": "sigmoid"}, "beta_schedule"),
        ({"timestep_spacing": "sideways"}, "timestep_spacing"),
        ({"some_new_choice": 0.5}, "some_new_choice"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(config: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        NoiseConfig.from_dict(config)


def test_impossible_numbers_of_steps_are_refused() -> None:
    noise = Noise(NoiseConfig(scheduler="DDIMScheduler"))
    for steps in (0, 1001):
        with pytest.raises(ValueError, match=f"{steps} steps"):
            noise.schedule("automatic", steps)
