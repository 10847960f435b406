"""Denoiser, loss and guidance against their definitions, and whole pictures against diffusers' own loop."""

import math

import diffusers
import pytest
import torch
from torch import Tensor, nn

from diffusion.conditioning import Conditioning, stack
from diffusion.denoiser import PREDICTION_TYPES, Denoiser, Loss, logit_normal
from diffusion.guidance import always, guide
from diffusion.noise import Noise
from diffusion.samplers import SAMPLERS
from diffusion.schedulers import NoiseConfig
from diffusion.schedules import schedule

DISCRETE = ["epsilon", "v_prediction", "sample"]
SPREAD = 0.5  # of x0, in EDM


def process(prediction_type: str, **config) -> Noise:
    if prediction_type == "edm_prediction":
        return Noise(NoiseConfig("EDMEulerScheduler", "epsilon", sigma_data=SPREAD))
    scheduler = "FlowMatchEulerDiscreteScheduler" if prediction_type == "flow_prediction" else "DDPMScheduler"
    return Noise(NoiseConfig(scheduler, prediction_type, beta_schedule="squaredcos_cap_v2", **config))


def sample(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Tiny(nn.Module):
    """A network with every input in its output, and a `context` that counts how often it is computed."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.mix, self.attend = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(6, 4)
        self.contexts = 0
        self.rows: list[int] = []

    def context(self, text: Conditioning) -> list[Tensor]:
        self.contexts += 1
        return [self.attend(text.tokens).mean(1)]  # [B, 4]

    def forward(self, x: Tensor, t: Tensor, text: list[Tensor]) -> Tensor:
        self.rows.append(len(x))
        time = torch.sin(t.to(x.dtype) / 50)[:, None, None, None]
        return torch.tanh(self.mix(x) + text[0][:, :, None, None] + time)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("zero_snr", [False, True])
def test_a_perfect_network_denoises_exactly_and_has_no_loss(prediction_type: str, zero_snr: bool) -> None:
    flow = prediction_type == "flow_prediction"
    noise = process(prediction_type, rescale_betas_zero_snr=zero_snr and not flow)
    x0, eps = sample(1, 4, 2, 2), sample(1, 4, 2, 2, seed=1)
    for time in noise.quantile(torch.tensor([0.001, 0.3, 0.999])).tolist():
        sigma = noise.sigma(time).item()
        answer = {
            "epsilon": eps,
            "v_prediction": (eps - sigma * x0) / math.hypot(1, sigma),
            "sample": x0,
            "flow_prediction": eps - x0,
            "edm_prediction": (sigma * x0 / SPREAD - SPREAD * eps) / math.hypot(SPREAD, sigma),
        }[prediction_type]

        def perfect(x: Tensor, t: Tensor, text: None, answer: Tensor = answer, time: float = time) -> Tensor:
            assert t.item() == pytest.approx(time)
            return answer

        # As far as float32 goes: in x, x0 lies sigma times below the noise.
        close = {"rtol": 0, "atol": 1e-5 + 1e-6 * sigma}
        denoised = Denoiser(perfect, noise)(x0 + sigma * eps, sigma, None)
        torch.testing.assert_close(denoised, x0, **close)
        loss = Loss(noise)(perfect, x0, eps, torch.tensor([time]), None)
        assert loss.item() < 1e-7


@pytest.mark.parametrize("prediction_type", DISCRETE)
def test_training_is_diffusers(prediction_type: str) -> None:
    noise = process(prediction_type)
    theirs = diffusers.DDPMScheduler.from_config(noise.config.to_dict())
    x0, eps = sample(5, 4, 2, 2), sample(5, 4, 2, 2, seed=1)
    t = torch.tensor([0, 10, 500, 900, 999])
    seen = {}

    def network(x: Tensor, t: Tensor, text: str) -> Tensor:
        seen.update(x=x, t=t, text=text)
        return torch.full_like(x, 0.5)

    loss = Loss(noise)(network, x0, eps, t, "text")
    target = {"epsilon": eps, "v_prediction": theirs.get_velocity(x0, eps, t), "sample": x0}[prediction_type]
    torch.testing.assert_close(seen["x"], theirs.add_noise(x0, eps, t), rtol=1e-5, atol=1e-5)
    assert torch.equal(seen["t"], t)
    assert seen["text"] == "text"
    torch.testing.assert_close(loss, (0.5 - target).square().mean((1, 2, 3)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_min_snr_weights(prediction_type: str) -> None:
    noise = process(prediction_type)
    t = noise.quantile(torch.tensor([0.005, 0.3, 0.7, 0.99]))
    batch = (lambda x, t, text: torch.zeros_like(x), sample(4, 4, 2, 2), sample(4, 4, 2, 2, seed=1), t, None)
    weight = Loss(noise, min_snr_gamma=5.0)(*batch) / Loss(noise)(*batch)
    snr = noise.sigma(t) ** -2
    clipped = snr.clamp(max=5)
    expected = {
        "epsilon": clipped / snr,
        "v_prediction": clipped / (snr + 1),
        "sample": clipped,
        "flow_prediction": clipped * (t / 1000) ** 2,  # an error of t in x0 for each of its own
        "edm_prediction": clipped / (snr + SPREAD**-2),
    }[prediction_type]
    torch.testing.assert_close(weight, expected.float(), rtol=1e-4, atol=0)


def test_each_samples_loss_is_its_own() -> None:
    loss = Loss(process("v_prediction"), min_snr_gamma=5.0)
    x0, eps, t = sample(3, 4, 2, 2), sample(3, 4, 2, 2, seed=1), torch.tensor([3, 400, 998])

    def network(x: Tensor, t: Tensor, text: None) -> Tensor:
        return x.tanh() * t.view(-1, 1, 1, 1) / 1000

    together = loss(network, x0, eps, t, None)
    alone = [loss(network, x0[i : i + 1], eps[i : i + 1], t[i : i + 1], None) for i in range(3)]
    torch.testing.assert_close(together, torch.cat(alone))


def test_logit_normal_quantiles() -> None:
    q = logit_normal(torch.tensor([-50.0, -1.0, 0.0, 1.0, 50.0]), mean=1.0, std=2.0)
    assert q.tolist() == pytest.approx([0, 1 / (1 + math.e), 1 / (1 + 1 / math.e), 1 / (1 + math.exp(-3)), 1])
    assert process("epsilon").quantile(q).tolist() == [0, 268, 731, 952, 999]


def test_a_network_in_half_precision_leaves_x_in_its_own() -> None:
    seen = []

    def network(x: Tensor, t: Tensor, text: None) -> Tensor:
        seen.append((x.dtype, t.dtype))
        return x

    x = sample(2, 4, 2, 2)
    denoised = Denoiser(network, process("epsilon"), dtype=torch.bfloat16)(x, 1.0, None)
    assert seen == [(torch.bfloat16, torch.float32)]
    assert denoised.dtype == torch.float32


def test_guidance_goes_past_the_text() -> None:
    network = Tiny()
    denoiser = Denoiser(network, process("v_prediction"))
    text, negative = Conditioning(sample(3, 5, 6)), Conditioning(sample(3, 5, 6, seed=1))
    x = sample(3, 4, 8, 8, seed=2)
    with_text = denoiser(x, 2.0, denoiser.context(text))
    without = denoiser(x, 2.0, denoiser.context(negative))
    for scale in (0.0, 1.0, 7.5):
        network.contexts, network.rows = 0, []
        denoise = guide(denoiser, [always(text)], always(negative), scale)
        for _ in range(3):
            guided = without + scale * (with_text - without)
            torch.testing.assert_close(denoise(x, 2.0), guided, rtol=1e-4, atol=1e-5)
        assert network.contexts == 1
        assert network.rows == [3 if scale == 1 else 6] * 3


@pytest.mark.parametrize(  # all but epsilon at zero SNR: pure noise does not tell what was under it
    ("prediction_type", "zero_snr"),
    [("epsilon", False), ("v_prediction", False), ("v_prediction", True), ("sample", False), ("sample", True)],
)
@pytest.mark.parametrize(
    ("scheduler", "config"),
    [
        ("EulerDiscreteScheduler", {}),
        ("EulerDiscreteScheduler", {"timestep_spacing": "leading", "steps_offset": 1}),
        ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
        ("DPMSolverMultistepScheduler", {}),
        ("DPMSolverMultistepScheduler", {"timestep_spacing": "trailing"}),
        ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
        ("UniPCMultistepScheduler", {"timestep_spacing": "trailing"}),
        ("UniPCMultistepScheduler", {"use_karras_sigmas": True}),
        ("DDIMScheduler", {"timestep_spacing": "leading", "steps_offset": 1, "set_alpha_to_one": False}),
        ("DDIMScheduler", {"timestep_spacing": "trailing"}),
    ],
)
@torch.no_grad()
def test_pictures_equal_diffusers(scheduler: str, config: dict, prediction_type: str, zero_snr: bool) -> None:
    """The whole of sampling, from a configuration and the same noise; the difference lies 60 dB below."""
    config = config | {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    noise = Noise(NoiseConfig(scheduler, prediction_type, rescale_betas_zero_snr=zero_snr, **config))
    network, steps, scale = Tiny(), 20, 3.0
    text, negative = Conditioning(sample(2, 5, 6)), Conditioning(sample(2, 5, 6, seed=1))
    start = sample(2, 4, 8, 8, seed=2)

    # As StableDiffusionPipeline does it.
    theirs = getattr(diffusers, scheduler).from_config(noise.config.to_dict())
    theirs.set_timesteps(steps)
    context = network.context(stack(negative, text))
    latents = start * theirs.init_noise_sigma
    for t in theirs.timesteps:
        x = theirs.scale_model_input(torch.cat([latents, latents]), t)
        without, with_text = network(x, t.expand(4), context).chunk(2)
        latents = theirs.step(without + scale * (with_text - without), t, latents).prev_sample

    # As we do.
    sigmas = schedule(noise, "automatic", steps)
    denoise = guide(Denoiser(network, noise), [always(text)], always(negative), scale)
    x = start * noise.start(sigmas[0].item())
    ours = SAMPLERS[noise.config.sampler](denoise, x, sigmas, lambda: start)

    decibels = 10 * torch.log10(latents.square().mean() / (ours - latents).square().mean()).item()
    assert decibels > 60
