"""Whole loops against diffusers' schedulers, from the files that we would write."""

import inspect
import math

import diffusers
import pytest
import torch
from torch import Tensor

from diffusion.denoiser import Denoiser
from diffusion.noise import Noise
from diffusion.samplers import sampler
from diffusion.schedulers import NoiseConfig
from diffusion.schedules import leap, schedule
from tests.draws import SHAPE, draws

STABLE_DIFFUSION = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def network(x: Tensor, t: Tensor, text: None = None) -> Tensor:
    """A fixed function of latents and time, as a U-Net is one."""
    mix = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    return torch.tanh(torch.einsum("ij,bjhw->bihw", mix.to(x.dtype), x) + torch.as_tensor(t).flatten()[0] / 1000)


def sample_with_diffusers(config: NoiseConfig, steps: int, **arguments: float) -> Tensor:
    """What diffusers makes of `network`, from the file that we would write."""
    scheduler = getattr(diffusers, config.scheduler).from_config(config.to_dict())
    scheduler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(SHAPE, generator=generator) * (1 if config.flow else scheduler.init_noise_sigma)
    for i, t in enumerate(scheduler.timesteps):
        if config.scheduler == "KDPM2AncestralDiscreteScheduler" and i % 2 == 0 and i < len(scheduler.timesteps) - 1:
            arguments["generator"] = torch.Generator()  # it draws noise in each half of a step, and adds the second
        elif "generator" in inspect.signature(scheduler.step).parameters:
            arguments["generator"] = generator
        output = network(x if config.flow else scheduler.scale_model_input(x, t), t)
        x = scheduler.step(output, t, x, **arguments).prev_sample
    return x


def sample(config: NoiseConfig, steps: int, **asked: float) -> Tensor:
    """What we make of `network`, on diffusers' scale: x0 + sigma * eps, or that over sqrt(1 + sigma^2)."""
    noise, draw = Noise(config), draws(0)
    sigmas = schedule(noise, "automatic", steps)
    denoiser = Denoiser(network, noise)
    x = draw() * noise.start(sigmas[0].item())
    said = {"leap": leap(noise, steps), "earlier": noise.earlier, "time": noise.time}
    follow = sampler(config.sampler, config.options | said | asked)
    x = follow(lambda x, sigma: denoiser(x, sigma, None), x, sigmas, draw)
    return x if config.edm else x / math.hypot(1, sigmas[-1])


LOOPS = [
    ("EulerDiscreteScheduler", {}),
    ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
    ("EulerDiscreteScheduler", {"use_exponential_sigmas": True, "timestep_spacing": "trailing"}),
    ("EulerDiscreteScheduler", {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}),
    ("EulerAncestralDiscreteScheduler", {}),
    ("HeunDiscreteScheduler", {}),
    ("HeunDiscreteScheduler", {"use_karras_sigmas": True}),
    ("KDPM2DiscreteScheduler", {"num_train_timesteps": 100, "timestep_spacing": "leading", "steps_offset": 1}),
    ("KDPM2AncestralDiscreteScheduler", {"num_train_timesteps": 100}),
    ("DPMSolverMultistepScheduler", {}),
    ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    ("DPMSolverMultistepScheduler", {"solver_type": "heun"}),
    ("DPMSolverMultistepScheduler", {"solver_order": 1}),
    ("DPMSolverMultistepScheduler", {"solver_order": 3}),
    ("DPMSolverMultistepScheduler", {"solver_order": 3, "final_sigmas_type": "sigma_min"}),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", "solver_type": "heun"}),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", "solver_order": 1}),
    *(
        ("DPMSolverMultistepScheduler", {"final_sigmas_type": "sigma_min"} | said)
        for said in (
            {"lower_order_final": False},
            {"lower_order_final": False, "solver_order": 3},
            {"lower_order_final": False, "algorithm_type": "sde-dpmsolver++"},
            {"lower_order_final": True, "algorithm_type": "sde-dpmsolver++"},
            {"euler_at_final": True, "algorithm_type": "sde-dpmsolver++"},
        )
    ),
    ("DPMSolverMultistepScheduler", {"lower_order_final": False, "solver_order": 3}),
    ("DPMSolverMultistepScheduler", {"euler_at_final": True, "solver_order": 3}),
    ("DPMSolverMultistepScheduler", {"use_lu_lambdas": True}),
    *(
        ("DPMSolverMultistepScheduler", {"solver_order": 3, "algorithm_type": "sde-dpmsolver++"} | said)
        for said in ({}, {"final_sigmas_type": "sigma_min"}, {"lower_order_final": False, "solver_type": "heun"})
    ),
    *(
        ("DPMSolverMultistepScheduler", {"final_sigmas_type": "sigma_min", "solver_order": order} | said)
        for order in (1, 2, 3)
        for said in (
            {"algorithm_type": "dpmsolver"},
            {"algorithm_type": "dpmsolver", "solver_type": "heun", "lower_order_final": False},
            {"algorithm_type": "dpmsolver", "prediction_type": "v_prediction"},
            *([{"algorithm_type": "sde-dpmsolver"}] if order < 3 else []),
            *([{"algorithm_type": "sde-dpmsolver", "solver_type": "heun"}] if order < 3 else []),
            {"euler_at_final": True},
            {"euler_at_final": True, "lower_order_final": False},
        )
    ),
    ("DPMSolverSinglestepScheduler", {}),
    ("DPMSolverSinglestepScheduler", {"use_karras_sigmas": True}),
    ("DPMSolverSinglestepScheduler", {"solver_order": 1}),
    ("DPMSolverSinglestepScheduler", {"solver_order": 3}),
    *(
        ("DPMSolverSinglestepScheduler", {"solver_order": order, "solver_type": kind} | said)
        for order in (1, 2, 3)
        for kind in ("midpoint", "heun")
        for said in (
            {"lower_order_final": False},
            {"final_sigmas_type": "sigma_min"},
            {"final_sigmas_type": "sigma_min", "lower_order_final": False},
            {"final_sigmas_type": "sigma_min", "lower_order_final": False, "use_karras_sigmas": True},
            {"final_sigmas_type": "sigma_min", "algorithm_type": "dpmsolver"},
            {"algorithm_type": "sde-dpmsolver++"},
            {"algorithm_type": "sde-dpmsolver++", "final_sigmas_type": "sigma_min", "lower_order_final": False},
        )
    ),
    ("UniPCMultistepScheduler", {}),
    ("UniPCMultistepScheduler", {"timestep_spacing": "trailing"}),
    ("DEISMultistepScheduler", {}),
    ("DEISMultistepScheduler", {"use_karras_sigmas": True}),  # its last two sigmas are one
    ("UniPCMultistepScheduler", {"final_sigmas_type": "sigma_min"}),
    ("UniPCMultistepScheduler", {"solver_order": 1}),
    ("UniPCMultistepScheduler", {"solver_order": 3}),
    ("UniPCMultistepScheduler", {"solver_order": 3, "use_karras_sigmas": True, "prediction_type": "v_prediction"}),
    ("UniPCMultistepScheduler", {"solver_order": 3, "final_sigmas_type": "sigma_min", "lower_order_final": False}),
    *(  # on the way to 0, diffusers' bh1 is not a number
        ("UniPCMultistepScheduler", {"solver_type": "bh1", "solver_order": order, "final_sigmas_type": "sigma_min"})
        for order in (1, 2, 3)
    ),
    *(
        ("UniPCMultistepScheduler", {"predict_x0": False, "final_sigmas_type": "sigma_min"} | said)
        for said in (
            {"solver_order": 1},
            {},
            {"solver_type": "bh1", "prediction_type": "v_prediction"},
            {"solver_order": 3},
            {"solver_order": 3, "lower_order_final": False},
            {"use_karras_sigmas": True},
        )
    ),
    ("UniPCMultistepScheduler", {"use_karras_sigmas": True, "final_sigmas_type": "sigma_min"}),  # corrected at its end
    ("UniPCMultistepScheduler", {"disable_corrector": (0, 3)}),
    ("UniPCMultistepScheduler", {"final_sigmas_type": "sigma_min", "lower_order_final": False}),
    ("DEISMultistepScheduler", {"solver_order": 1}),
    ("DEISMultistepScheduler", {"lower_order_final": False}),
    ("DEISMultistepScheduler", {"solver_order": 3, "lower_order_final": False}),
    ("DEISMultistepScheduler", {"solver_order": 3}),
    *(
        ("SASolverScheduler", {"algorithm_type": f"{kind}_prediction"} | said)
        for kind in ("data", "noise")
        for said in (
            {},
            {"use_karras_sigmas": True},
            {"timestep_spacing": "trailing", "prediction_type": "v_prediction", "lower_order_final": False},
            {"predictor_order": 1, "corrector_order": 1},
            {"predictor_order": 1, "corrector_order": 3},
            {"predictor_order": 3, "corrector_order": 1},
            {"predictor_order": 4, "corrector_order": 4},
        )
    ),
    ("DDIMScheduler", {"timestep_spacing": "leading"}),
    ("DDIMScheduler", {"timestep_spacing": "leading", "steps_offset": 1, "set_alpha_to_one": False}),
    ("DDIMScheduler", {"timestep_spacing": "leading", "clip_sample": True, "clip_sample_range": 0.3}),
    ("DDIMScheduler", {"timestep_spacing": "linspace"}),  # it leaves its own grid there,
    ("DDIMScheduler", {"timestep_spacing": "trailing", "prediction_type": "v_prediction"}),  # and there at 6 steps
    ("DDPMScheduler", {"timestep_spacing": "leading"}),
    ("DDPMScheduler", {"timestep_spacing": "leading", "clip_sample": True, "clip_sample_range": 0.3}),
    ("PNDMScheduler", {"timestep_spacing": "leading", "steps_offset": 1, "set_alpha_to_one": False}),
    *(
        ("PNDMScheduler", {"timestep_spacing": spacing, "prediction_type": kind, "set_alpha_to_one": kind == "epsilon"})
        for spacing in ("leading", "linspace", "trailing")
        for kind in ("epsilon", "v_prediction")
    ),
    *(
        ("DDPMScheduler", {"variance_type": "fixed_large", "timestep_spacing": spacing, "steps_offset": offset})
        for spacing, offset in (("leading", 0), ("leading", 1), ("linspace", 0), ("trailing", 0))
    ),
    ("DDPMScheduler", {"variance_type": "fixed_small_log", "timestep_spacing": "leading"}),
    *(
        (name, {"thresholding": True, "sample_max_value": 1.5, "dynamic_thresholding_ratio": 0.9, **said})
        for name, said in (
            ("DDIMScheduler", {"timestep_spacing": "leading"}),
            ("DDPMScheduler", {"timestep_spacing": "leading"}),
            ("LCMScheduler", {}),
            ("DEISMultistepScheduler", {}),
            ("DPMSolverMultistepScheduler", {"solver_order": 1}),
            ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}),
            ("DPMSolverSinglestepScheduler", {"solver_order": 3}),
            ("UniPCMultistepScheduler", {}),
            ("UniPCMultistepScheduler", {"predict_x0": False, "final_sigmas_type": "sigma_min"}),
            ("SASolverScheduler", {"algorithm_type": "data_prediction"}),
            ("EDMDPMSolverMultistepScheduler", {"sigma_data": 0.5}),
        )
    ),
    ("LCMScheduler", {}),
    ("LCMScheduler", {"timestep_scaling": 0.001, "original_inference_steps": 40}),
    ("LCMScheduler", {"clip_sample": True, "clip_sample_range": 0.3}),
    ("TCDScheduler", {}),
    ("TCDScheduler", {"prediction_type": "v_prediction", "original_inference_steps": 40}),
    ("EDMEulerScheduler", {"sigma_data": 0.5}),
    ("EDMEulerScheduler", {"prediction_type": "v_prediction", "sigma_schedule": "exponential", "sigma_max": 120.0}),
    ("EDMEulerScheduler", {"sigma_data": 0.5, "final_sigmas_type": "sigma_min", "rho": 5.0}),
    ("EDMDPMSolverMultistepScheduler", {"sigma_data": 0.5}),
    ("EDMDPMSolverMultistepScheduler", {"sigma_data": 0.5, "solver_order": 1, "sigma_schedule": "exponential"}),
    ("EDMDPMSolverMultistepScheduler", {"sigma_data": 0.5, "solver_type": "heun", "prediction_type": "v_prediction"}),
    ("EDMDPMSolverMultistepScheduler", {"sigma_data": 0.5, "solver_order": 3}),
    ("EDMDPMSolverMultistepScheduler", {"sigma_data": 0.5, "final_sigmas_type": "sigma_min"}),
    ("EDMDPMSolverMultistepScheduler", {"sigma_data": 0.5, "algorithm_type": "sde-dpmsolver++"}),
    (
        "EDMDPMSolverMultistepScheduler",
        {"sigma_data": 0.5, "final_sigmas_type": "sigma_min", "lower_order_final": False},
    ),
    ("FlowMatchEulerDiscreteScheduler", {"prediction_type": "flow_prediction", "shift": 3.0}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "settings"), LOOPS)
def test_each_scheduler_of_diffusers_makes_the_same(name: str, settings: dict) -> None:
    config = NoiseConfig(name, **STABLE_DIFFUSION | settings)
    for steps in (2, 6, 20):
        ours, theirs = sample(config, steps), sample_with_diffusers(config, steps)
        assert (ours - theirs).norm() < 1e-4 * theirs.norm(), steps


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_pndm_begins_with_runge_and_kuttas_steps_if_asked(prediction_type: str, spacing: str) -> None:
    said = {"prediction_type": prediction_type, "timestep_spacing": spacing, "skip_prk_steps": False}
    config = NoiseConfig("PNDMScheduler", steps_offset=1, set_alpha_to_one=False, **STABLE_DIFFUSION | said)
    for steps in (4, 20, 30):  # diffusers has none of fewer than four; of 30 the middles are not whole times
        ours, theirs = sample(config, steps), sample_with_diffusers(config, steps)
        assert (ours - theirs).norm() < 1e-4 * theirs.norm(), steps


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("name", ["DDIMScheduler", "TCDScheduler"])
def test_ddim_and_tcd_add_as_much_noise_as_asked(name: str, eta: float) -> None:
    config = NoiseConfig(name, timestep_spacing="leading", **STABLE_DIFFUSION)
    ours, theirs = sample(config, 10, eta=eta), sample_with_diffusers(config, 10, eta=eta)
    assert (ours - theirs).norm() < 1e-4 * theirs.norm()
