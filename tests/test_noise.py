"""The noise process against diffusers' schedulers: sigmas, times, the first x, their own grids, configuration files."""

import json
import math

import diffusers
import pytest
import torch

from diffusion.noise import Noise, betas
from diffusion.samplers import SAMPLERS
from diffusion.scheduler_table import CURVES, SCHEDULERS
from diffusion.schedulers import NoiseConfig
from diffusion.schedules import SCHEDULES, schedule
from diffusion.steps import Clip, Threshold

STABLE_DIFFUSION = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SPACINGS = ["linspace", "leading", "trailing"]
PLAIN = ["EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler"]
MULTISTEP = ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler"]
WANTS_SCIPY = {"use_beta_sigmas"}  # in diffusers
ANCESTRAL = ["DDIMScheduler", "DDPMScheduler"]


def pair(scheduler: str, **config):
    """Our noise and diffusers' scheduler, from the file that we would write."""
    ours = NoiseConfig(scheduler=scheduler, **config)
    return Noise(ours), getattr(diffusers, scheduler).from_config(ours.to_dict())


CHOICES = [  # scheduler, zero-SNR, a curve: every combination that diffusers' scheduler has
    (scheduler, zero_snr, curve)
    for scheduler in PLAIN + MULTISTEP
    for zero_snr in sorted({False, "rescale_betas_zero_snr" in SCHEDULERS[scheduler].knows})
    for curve in ["", *sorted((CURVES | {"use_lu_lambdas"}) & SCHEDULERS[scheduler].knows - WANTS_SCIPY)]
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
@pytest.mark.parametrize(("scheduler", "zero_snr", "curve"), CHOICES)
def test_automatic_is_the_schedulers_own_grid(scheduler, zero_snr, curve, spacing, steps) -> None:
    asked = {"rescale_betas_zero_snr": zero_snr, "timestep_spacing": spacing} | ({curve: True} if curve else {})
    noise, theirs = pair(scheduler, steps_offset=1, **asked, **STABLE_DIFFUSION)
    theirs.set_timesteps(steps)
    sigmas, times = theirs.sigmas.double(), theirs.timesteps.double()
    if scheduler == "HeunDiscreteScheduler":  # it lists the ends of every step but the first and last twice
        sigmas, times = torch.cat([sigmas[:1], sigmas[1::2]]), torch.cat([times[:1], times[1::2]])
    grid = schedule(noise, "automatic", steps)
    torch.testing.assert_close(grid, sigmas, rtol=1e-6, atol=0)
    # Between whole times diffusers feeds t itself, and we its image under two interpolations.
    # Where whole times are cut and not rounded, a first sigma that rounds down is cut to one less there.
    torch.testing.assert_close(noise.timestep(grid[:-1]), times, rtol=0, atol=1 if "exp" in curve else 0.01)
    first = theirs.init_noise_sigma * (math.hypot(1, sigmas[0]) if SCHEDULERS[scheduler].whole_times else 1)
    assert noise.start(grid[0].item()) == pytest.approx(float(first), rel=1e-6)


@pytest.mark.parametrize("steps", [1, 5, 20, 50])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("scheduler", ANCESTRAL)
def test_automatic_follows_the_whole_times_of_ddim_and_ddpm(scheduler: str, spacing: str, steps: int) -> None:
    noise, theirs = pair(scheduler, timestep_spacing=spacing, **STABLE_DIFFUSION)
    theirs.set_timesteps(steps)
    grid = schedule(noise, "automatic", steps)
    torch.testing.assert_close(noise.timestep(grid[:-1]), theirs.timesteps.double(), rtol=0, atol=1e-9)
    assert grid[-1] == 0


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_follows_diffusers(shift: float) -> None:
    noise, theirs = pair("FlowMatchEulerDiscreteScheduler", prediction_type="flow_prediction", shift=shift)
    theirs.set_timesteps(20)
    grid = schedule(noise, "automatic", 20)
    torch.testing.assert_close(grid / (1 + grid), theirs.sigmas.double(), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(noise.timestep(grid[:-1]), theirs.timesteps.double(), rtol=1e-6, atol=0)
    assert torch.isfinite(noise.sigmas).all()
    assert (noise.sigmas.diff() > 0).all()


@pytest.mark.parametrize("sigma_schedule", ["karras", "exponential"])
@pytest.mark.parametrize("end", ["zero", "sigma_min"])
@pytest.mark.parametrize("scheduler", ["EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"])
def test_edm_follows_diffusers(scheduler: str, end: str, sigma_schedule: str) -> None:
    noise, theirs = pair(scheduler, sigma_max=120.0, sigma_schedule=sigma_schedule, final_sigmas_type=end)
    theirs.set_timesteps(20)
    grid = schedule(noise, "automatic", 20)
    torch.testing.assert_close(grid, theirs.sigmas.double(), rtol=2e-5, atol=0)
    torch.testing.assert_close(noise.timestep(grid[:-1]), theirs.timesteps.double(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(noise.sigma(noise.timestep(grid[:-1])), grid[:-1])
    assert noise.start(grid[0].item()) == pytest.approx(theirs.init_noise_sigma, rel=1e-6)
    assert (noise.sigmas.diff() > 0).all()
    for name in SCHEDULES.keys() - {"align_your_steps", "ddim"}:  # which begin elsewhere
        sigmas = schedule(noise, name, 7)
        assert sigmas[0] == pytest.approx(120)
        assert (sigmas.diff() <= 0).all()


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
    assert schedule(noise, "automatic", 10)[-1] == noise.sigmas[0]


def test_quantiles_reach_every_time_and_no_other() -> None:
    noise = Noise(NoiseConfig(num_train_timesteps=8))
    t = noise.quantile(torch.tensor([0.0, 0.124, 0.125, 0.9999999, 1.0]))
    assert t.tolist() == [0, 0, 1, 7, 7]
    flow = Noise(NoiseConfig("FlowMatchEulerDiscreteScheduler", "flow_prediction"))
    assert flow.quantile(torch.tensor([0.25])).tolist() == [250.0]
    assert flow.sigma(250.0).item() == pytest.approx(1 / 3)


HERE = [name for name in SCHEDULERS if "dummy" not in getattr(diffusers, name).__module__]  # two want scipy or torchsde


@pytest.mark.parametrize("scheduler", HERE)
def test_configurations_survive_the_way_through_diffusers(scheduler: str, tmp_path) -> None:
    kind = "flow_prediction" if scheduler.startswith("Flow") else "v_prediction"
    said = {"_class_name": scheduler, "prediction_type": kind, "num_train_timesteps": 50}
    config = NoiseConfig.from_dict(said)
    written = config.to_dict()
    theirs, unused = getattr(diffusers, scheduler).from_config(written, return_unused_kwargs=True)
    assert not set(unused) - {"_class_name"}
    assert set(written) - {"_class_name"} <= set(theirs.config)
    theirs.save_pretrained(tmp_path)
    assert NoiseConfig.from_dict(json.loads((tmp_path / "scheduler_config.json").read_text())) == config
    assert config.sampler in SAMPLERS


@pytest.mark.parametrize("scheduler", HERE)
def test_what_a_file_leaves_out_means_what_it_means_there(scheduler: str) -> None:
    theirs = getattr(diffusers, scheduler)(num_train_timesteps=50)
    ours = NoiseConfig.from_dict({"_class_name": scheduler, "num_train_timesteps": 50})
    for key, value in ours.to_dict().items():
        if key in theirs.config:
            assert theirs.config[key] == value, key


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"_class_name": "CosineDPMSolverMultistepScheduler"}, "CosineDPMSolverMultistepScheduler"),
        ({"_class_name": "EDMEulerScheduler", "prediction_type": "sample"}, "prediction_type"),
        ({"_class_name": "EDMEulerScheduler", "sigma_min": 100.0}, "expected numbers above 0, and a sigma_max above"),
        ({"_class_name": "EDMEulerScheduler", "sigma_schedule": "linear"}, "sigma_schedule"),
        ({"_class_name": "PNDMScheduler", "prediction_type": "sample"}, "prediction_type"),
        ({"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "deis"}, "algorithm_type"),
        ({"_class_name": "DPMSolverMultistepScheduler", "solver_order": 4}, "solver_order"),
        (
            {"_class_name": "DPMSolverMultistepScheduler", "solver_order": 3, "algorithm_type": "sde-dpmsolver"},
            "solver_order with algorithm_type 'sde-dpmsolver' is 3; expected 1 or 2",
        ),
        ({"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "dpmsolver"}, "final_sigmas_type 'zero'"),
        ({"_class_name": "DPMSolverMultistepScheduler", "use_lu_lambdas": True, "use_karras_sigmas": True}, "use_lu"),
        ({"_class_name": "DPMSolverSinglestepScheduler", "algorithm_type": "sde-dpmsolver"}, "algorithm_type"),
        ({"_class_name": "UniPCMultistepScheduler", "solver_order": 4}, "solver_order"),
        ({"_class_name": "UniPCMultistepScheduler", "predict_x0": False}, "predict_x0 False"),
        ({"_class_name": "SASolverScheduler", "predictor_order": 5}, "predictor_order"),
        ({"_class_name": "SASolverScheduler", "tau_func": "constant"}, "tau_func"),
        ({"_class_name": "DDPMScheduler", "variance_type": "learned_range"}, "variance_type"),
        ({"use_exponential_sigmas": True, "use_karras_sigmas": True}, "use_exponential_sigmas"),
        (
            {
                "_class_name": "DPMSolverSinglestepScheduler",
                "algorithm_type": "dpmsolver",
                "final_sigmas_type": "sigma_min",
                "thresholding": True,
            },
            "algorithm_type 'dpmsolver' and thresholding True",
        ),
        ({"_class_name": "DDIMScheduler", "dynamic_thresholding_ratio": 1.5}, "dynamic_thresholding_ratio"),
        ({"_class_name": "DDPMScheduler", "variance_type": "fixed_large_log"}, "variance_type"),
        ({"prediction_type": "flow_prediction"}, "prediction_type"),
        ({"beta_schedule": "sigmoid"}, "beta_schedule"),
        ({"timestep_spacing": "sideways"}, "timestep_spacing"),
        ({"some_new_choice": 0.5}, "some_new_choice"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(config: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        NoiseConfig.from_dict(config)


@pytest.mark.parametrize(
    ("said", "sampler", "options"),
    [
        ({"solver_order": 3, "solver_type": "heun"}, "dpmpp_3m", {"midpoint": False}),
        ({"algorithm_type": "sde-dpmsolver++"}, "dpmpp_2m_sde", {"midpoint": True}),
        ({"lower_order_final": False}, "dpmpp_2m", {"midpoint": True, "few": 0}),
        ({"euler_at_final": True}, "dpmpp_2m", {"midpoint": True, "euler_last": True}),
        ({"algorithm_type": "sde-dpmsolver++", "solver_order": 3}, "dpmpp_3m", {"midpoint": True, "sde": True}),
        ({"_class_name": "DEISMultistepScheduler", "solver_order": 3}, "deis", {"order": 3}),
        ({"_class_name": "DDIMScheduler", "clip_sample_range": 2.0}, "ddim", {"clip": Clip(2.0)}),
        ({"_class_name": "DDIMScheduler", "clip_sample": False}, "ddim", {}),
        ({"_class_name": "DDIMScheduler", "thresholding": True}, "ddim", {"clip": Threshold(0.995, 1.0)}),
        ({"thresholding": True}, "dpmpp_2m", {"midpoint": True, "limit": Threshold(0.995, 1.0)}),
    ],
)
def test_samplers_are_told_what_the_file_says(said: dict, sampler: str, options: dict) -> None:
    config = NoiseConfig.from_dict({"_class_name": "DPMSolverMultistepScheduler"} | said)
    assert (config.sampler, config.options) == (sampler, options)


def test_what_another_scheduler_would_read_is_passed_over() -> None:
    """As in diffusers, where files of one scheduler are opened as another's and keep their keys."""
    said = {"_class_name": "EulerAncestralDiscreteScheduler", "use_karras_sigmas": True, "set_alpha_to_one": False}
    assert NoiseConfig.from_dict(said) == NoiseConfig("EulerAncestralDiscreteScheduler")
