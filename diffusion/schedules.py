"""Grids of sigmas to sample on: (noise process, number of steps) => sigmas, float64 [steps + 1], decreasing.

They end at 0, but for those that say otherwise.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from diffusion.noise import Noise, interpolate
from diffusion.scheduler_table import SCHEDULERS
from diffusion.schedulers import NoiseConfig
from diffusion.steps import Leap

# The web UI of AUTOMATIC1111's names of our grids. Both are understood.
SCHEDULE_NAMES = {
    "automatic": "Automatic",
    "normal": "Normal",
    "karras": "Karras",
    "uniform": "Uniform",
    "exponential": "Exponential",
    "polyexponential": "Polyexponential",
    "sgm_uniform": "SGM Uniform",
    "simple": "Simple",
    "ddim": "DDIM",
    "beta": "Beta",
    "kl_optimal": "KL Optimal",
    "align_your_steps": "Align Your Steps",
}
_ALIASES = {"sgmuniform": "sgm_uniform", "ddim_uniform": "ddim", "ays": "align_your_steps", "kl optimal": "kl_optimal"}


def schedule(
    noise: Noise, name: str | Sequence[float], steps: int, *, discard: bool = False, xl: bool = False
) -> Tensor:
    """The sigmas of a grid of SCHEDULES, or of a list, float64 [steps + 1].

    With `discard` it is one of a step more without its last sigma but one, as AUTOMATIC1111 has it for some
    samplers; neither a list nor the model's own grid is changed. `xl`: for a model of Stable Diffusion XL's kind.
    """
    if steps < 1:
        raise ValueError(f"{steps} steps: expected at least 1.")
    if not isinstance(name, str):
        return torch.tensor(name, dtype=torch.float64)
    if discard and name != "automatic":
        sigmas = schedule(noise, name, steps + 1, xl=xl)
        return torch.cat([sigmas[:-2], sigmas[-1:]])
    if name == "align_your_steps" and xl:
        return _align_your_steps(noise, steps, ALIGNED_XL)
    return SCHEDULES[name](noise, steps)


def our_schedule(name: str) -> str | tuple[float, ...]:
    """A grid's name in ours, whoever's it is; or numbers, if it is a list of them. Others come back as they are."""
    known = {spelling.lower(): ours for ours, theirs in SCHEDULE_NAMES.items() for spelling in (ours, theirs)}
    if (ours := (known | _ALIASES).get(name.strip().lower())) is not None:
        return ours
    try:
        return tuple(float(number) for number in name.split(","))
    except ValueError:
        return name


# Curves between two sigmas: (highest, lowest, steps) => float64 [steps].


def karras(highest: float, lowest: float, steps: int, rho: float = 7.0) -> Tensor:
    """Karras et al. 2022, equation 5."""
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    high, low = highest ** (1 / rho), lowest ** (1 / rho)
    return (high + ramp * (low - high)) ** rho


def exponential(highest: float, lowest: float, steps: int) -> Tensor:
    """Even in log sigma."""
    return torch.linspace(math.log(highest), math.log(lowest), steps, dtype=torch.float64).exp()


def beta(highest: float, lowest: float, steps: int) -> Tensor:
    """Sigmas at the quantiles of the beta distribution of 0.6 and 0.6: dense at both ends (Lee et al. 2024)."""
    return lowest + (highest - lowest) * _beta_quantile(torch.linspace(1, 0, steps, dtype=torch.float64), 0.6)


def _beta_quantile(q: Tensor, a: float) -> Tensor:
    """Where the distribution function of Beta(a, a) is q. It is its own mirror image: half of it is enough.

    The function is the series of the incomplete beta integral, x^a / B(a, a) * sum (1 - a)_k / k! * x^k / (a + k),
    whose terms fall by half or more up to x = 1/2; its inverse is found by bisection.
    """
    k = torch.arange(60, dtype=torch.float64)
    terms = torch.cat([k.new_ones(1), torch.cumprod((k[1:] - a) / k[1:], dim=0)]) / (a + k)
    scale = math.exp(math.lgamma(2 * a) - 2 * math.lgamma(a))
    target = torch.minimum(q, 1 - q)
    low, high = torch.zeros_like(q), torch.full_like(q, 0.5)
    for _ in range(60):
        x = (low + high) / 2
        below = scale * x**a * (x[:, None] ** k * terms).sum(-1) < target
        low, high = torch.where(below, x, low), torch.where(below, high, x)
    return torch.where(q <= 0.5, low, 1 - low)


# Grids over the whole of the noise process's table.


def _normal(noise: Noise, steps: int) -> Tensor:
    """Equal steps of the network's time, from the most noise to the least, then 0."""
    return _end(noise.sigma(torch.linspace(*_times(noise), steps, dtype=torch.float64)))


def _sgm_uniform(noise: Noise, steps: int) -> Tensor:
    """Equal steps of time, as many as steps: the last is from one above the least noise to 0."""
    return _end(noise.sigma(torch.linspace(*_times(noise), steps + 1, dtype=torch.float64)[:-1]))


def _times(noise: Noise) -> tuple[float, float]:
    if noise.config.edm:
        return noise.timestep(noise.sigmas[-1]).item(), noise.timestep(noise.sigmas[0]).item()
    first = 1.0 if noise.config.flow else 0.0  # the flow's time 0 is sigma 0 itself
    return noise.steps - 1 + first, first


def _simple(noise: Noise, steps: int) -> Tensor:
    """Sigmas of the table at even distances, from its last."""
    _check_room(noise, steps)
    back = (torch.arange(steps, dtype=torch.float64) * (noise.steps / steps)).long()
    return _end(noise.sigmas[noise.steps - 1 - back])


def _ddim(noise: Noise, steps: int) -> Tensor:
    """DDIM's own times, 1, 1 + T // steps, ... Where steps do not divide T, others go on to a step more or two."""
    _check_room(noise, steps)
    return _end(noise.sigmas[(1 + torch.arange(steps) * (noise.steps // steps)).clamp(max=noise.steps - 1)].flip(0))


def _kl_optimal(noise: Noise, steps: int) -> Tensor:
    """Sabour et al. 2024, appendix: even in the angle atan(sigma). It ends at the least sigma of the table."""
    highest, lowest = noise.sigmas[-1].atan(), noise.sigmas[0].atan()
    return torch.linspace(highest.item(), lowest.item(), steps + 1, dtype=torch.float64).tan()


# Sabour et al. 2024 (Align Your Steps): optimised for 10 steps.
ALIGNED = (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029)  # Stable Diffusion 1.5
ALIGNED_XL = (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029)


def _align_your_steps(noise: Noise, steps: int, aligned: Sequence[float] = ALIGNED) -> Tensor:
    """The table at other numbers of steps: log sigma on straight lines between its points."""
    knots = torch.tensor(aligned, dtype=torch.float64).log()
    at = torch.linspace(0, len(aligned) - 1, steps, dtype=torch.float64)
    return _end(interpolate(at, knots).exp())


def _over_table(curve: Callable[[float, float, int], Tensor]) -> Callable[[Noise, int], Tensor]:
    return lambda noise, steps: _end(curve(noise.sigmas[-1].item(), noise.sigmas[0].item(), steps))


def _automatic(noise: Noise, steps: int) -> Tensor:
    """The grid that the configuration's own scheduler samples on; it may end above 0."""
    config, scheduler = noise.config, SCHEDULERS[noise.config.scheduler]
    last = 0.0 if config.ends_at_zero else noise.sigmas[0].item()
    if config.flow:
        return _end(noise.sigma(_flow_times(noise.steps, config.shift, steps)), last)
    if config.distilled:
        return _end(noise.sigma(_distilled_times(config, steps)), last)
    if config.edm:
        curve = partial(karras, rho=config.rho) if config.sigma_schedule == "karras" else exponential
        sigmas = curve(config.sigma_max, config.sigma_min, steps)
        return _end(sigmas, 0.0 if config.ends_at_zero else sigmas[-1].item())
    sigmas = noise.sigma(_spaced_times(config, steps))
    for asked, curve in (
        (config.use_karras_sigmas, karras),
        (config.use_exponential_sigmas or config.use_lu_lambdas, exponential),
        (config.use_beta_sigmas, beta),
    ):
        if asked:  # over the grid's own range, or the table's where times are whole
            ends = noise.sigmas.flip(0) if scheduler.whole_times else sigmas
            sigmas = curve(ends[0].item(), ends[-1].item(), steps)
    return _end(sigmas, last)


def leap(noise: Noise, steps: int) -> Leap | None:
    """How diffusers' DDIM and PNDM measure their steps, as the samplers take it; None for all others.

    Each step goes T // steps times down, whatever comes next: where steps do not divide T, and under `linspace`
    always, the network is then told another time than that of the noise in x. (sigma, share) => the sigma at a share
    of so many times below, cut to whole ones; or above, if it is negative.
    """
    if not SCHEDULERS[noise.config.scheduler].leaps:
        return None
    last = 0.0 if noise.config.ends_at_zero else noise.sigmas[0].item()

    def leap(sigma: float, share: float) -> float:
        time = round(noise.timestep(sigma).item()) - int(share * (noise.steps // steps))
        return noise.sigma(time).item() if time >= 0 else last

    return leap


SCHEDULES: dict[str, Callable[[Noise, int], Tensor]] = {
    "automatic": _automatic,
    "normal": _normal,
    "karras": _over_table(karras),
    "uniform": _normal,  # one and the same, under both of its names
    "exponential": _over_table(exponential),
    "polyexponential": _over_table(exponential),  # the web UI's exponent is 1
    "sgm_uniform": _sgm_uniform,
    "simple": _simple,
    "ddim": _ddim,
    "beta": _over_table(beta),
    "kl_optimal": _kl_optimal,
    "align_your_steps": _align_your_steps,
}


def _spaced_times(config: NoiseConfig, steps: int) -> Tensor:
    """The times of Lin et al. 2024, table 2, decreasing, float64 [steps]."""
    scheduler = SCHEDULERS[config.scheduler]
    count, points = config.num_train_timesteps, steps + scheduler.skips_last
    if points > count:
        raise ValueError(f"{steps} steps are too many: {config.scheduler} has {count} times for them.")
    if config.timestep_spacing == "trailing":
        times = (count - torch.arange(steps, dtype=torch.float64) * (count / steps)).round() - 1
    elif config.timestep_spacing == "leading":
        times = (torch.arange(points).flip(0) * (count // points) + config.steps_offset).to(torch.float64)
    else:
        times = torch.arange(points, dtype=torch.float64).flip(0) * ((count - 1) / max(points - 1, 1))
        times = times.round() if scheduler.whole_times else times
    return times[:steps].clamp(max=count - 1)


def _distilled_times(config: NoiseConfig, steps: int) -> Tensor:
    """Some of the times that a consistency model was distilled at, from the last, float64 [steps]."""
    count, distilled = config.num_train_timesteps, config.original_inference_steps
    if not steps <= distilled <= count:
        raise ValueError(f"{steps} steps are too many: this model was distilled at {min(distilled, count)} times.")
    back = (torch.arange(steps, dtype=torch.float64) * (distilled / steps)).floor()
    return (distilled - back) * (count // distilled) - 1


def _flow_times(count: int, shift: float, steps: int) -> Tensor:
    """From T to 1, shifted; the last is shifted twice, as diffusers does it. Float64 [steps]."""

    def shifted(t: Tensor) -> Tensor:
        return shift * t / (1 + (shift - 1) * t)

    last = shifted(torch.tensor(1 / count, dtype=torch.float64)).item()
    return count * shifted(torch.linspace(1.0, last, steps, dtype=torch.float64))


def _check_room(noise: Noise, steps: int) -> None:
    if steps > noise.steps:
        raise ValueError(f"{steps} steps are too many: the model has {noise.steps} times for them.")


def _end(sigmas: Tensor, last: float = 0.0) -> Tensor:
    return torch.cat([sigmas, sigmas.new_tensor([last])])
