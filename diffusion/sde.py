"""Samplers that add noise as they go: solvers of the reverse SDE, ancestral sampling, restarts.

`eta` is how much of the SDE's noise is added: at 0 each is a solver of the ODE. `s_noise` multiplies the noise.
Noise is drawn in the order of the steps. See `samplers` for their form.
Lu et al. 2022b is DPM-Solver++; its solvers are in `dpm`.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from diffusion.schedules import karras
from diffusion.seeds import Draw
from diffusion.steps import Denoise, Leap, Limit, Time, ancestral, heun_step, levels, midpoint_step, taken_for


def euler_ancestral(
    denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Draw, *, eta: float = 1.0, s_noise: float = 1.0
) -> Tensor:
    """A draw from the posterior q(x_lower | x, x0) at each step: k-diffusion's ancestral sampler, of Euler's steps."""
    for sigma, lower in pairwise(levels(sigmas)):
        weight, up = ancestral(sigma, lower, eta)
        x = torch.lerp(denoise(x, sigma), x, weight)
        if up > 0:
            x = x + s_noise * up * noise()
    return x


def ddim(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    noise: Draw,
    *,
    eta: float = 0.0,
    clip: Limit | None = None,
    leap: Leap | None = None,
) -> Tensor:
    """DDIM (Song et al. 2021a, equation 12), Euler's method on sigma, as that paper's equation 14 shows. Order 1.

    `clip` limits x0, if given; the noise in x is still taken to be what it was before. With `leap`, each step leads
    down by 1 of it, and x is then taken for one at the next sigma.
    """
    for sigma, lower in pairwise(levels(sigmas)):
        arrival = leap(sigma, 1) if leap else lower
        weight, up = ancestral(sigma, arrival, eta)
        x0 = denoise(x, sigma)
        x = torch.lerp(x0, x, weight)
        if clip is not None:
            x = x + (clip(x0) - x0)
        if up > 0:
            x = x + up * noise()
        x = taken_for(x, arrival, lower)
    return x


def ddpm(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    noise: Draw,
    *,
    clip: Limit | None = None,
    large: bool = False,
    time: Time = lambda sigma: sigma,
) -> Tensor:
    """DDPM (Ho et al. 2020, algorithm 2 with the variance of equation 7); `clip` limits x0, if given.

    With `large`, the variance is beta (section 3.2): the last step adds noise, too, unless it begins at time 0.
    """
    denoise = _clipped(denoise, clip)
    if not large:
        return euler_ancestral(denoise, x, sigmas, noise)
    for sigma, lower in pairwise(levels(sigmas)):
        x = torch.lerp(denoise(x, sigma), x, (lower / sigma) ** 2)
        if time(sigma) > 0:
            x = x + math.hypot(1, lower) / math.hypot(1, sigma) * math.sqrt(sigma**2 - lower**2) * noise()
    return x


def lcm(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    noise: Draw,
    *,
    s_noise: float = 1.0,
    clip: Limit | None = None,
    scaling: float = math.inf,
    time: Time = lambda sigma: 1.0,
) -> Tensor:
    """Multistep consistency sampling (Song et al. 2023, algorithm 1), as latent consistency models do it.

    The closer `scaling` times the time is to 0, the more of x stays (Luo et al. 2023, equation 9): as good as nothing
    where it is diffusers' 10.
    """
    denoise = _clipped(denoise, clip)
    for sigma, lower in pairwise(levels(sigmas)):
        kept = 1 / (1 + 4 * (scaling * time(sigma)) ** 2)  # for a spread of 1/2 of x0
        x = math.sqrt(1 - kept) * denoise(x, sigma) + kept / math.hypot(1, sigma) * x
        if lower > 0:
            x = x + s_noise * lower * noise()
    return x


def tcd(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    noise: Draw,
    *,
    eta: float = 0.3,
    earlier: Callable[[float, float], float] = lambda sigma, share: share * sigma,
) -> Tensor:
    """Strategic stochastic sampling of trajectory consistency models (Zheng et al. 2024).

    Each step goes beyond the next sigma, to 1 - eta of its time, and noise leads back: eta, the paper's gamma, is from
    0, which is Euler's method, to 1, which is `lcm`. `earlier(sigma, share)` is the sigma at a share of sigma's time.
    """
    for sigma, lower in pairwise(levels(sigmas)):
        beyond = min(lower, earlier(lower, max(0.0, 1 - eta))) if lower > 0 else 0.0
        x = torch.lerp(denoise(x, sigma), x, beyond / sigma)
        if beyond < lower:
            x = x + math.sqrt(lower**2 - beyond**2) * noise()
    return x


def _clipped(denoise: Denoise, clip: Limit | None) -> Denoise:
    return denoise if clip is None else lambda x, sigma: clip(denoise(x, sigma))


def dpm_2_ancestral(
    denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Draw, *, eta: float = 1.0, s_noise: float = 1.0
) -> Tensor:
    """k-diffusion's ancestral sampler, of DPM-Solver-2's steps (see `dpm_2`). Two evaluations a step."""
    for sigma, lower in pairwise(levels(sigmas)):
        weight, up = ancestral(sigma, lower, eta)
        x = midpoint_step(denoise, x, sigma, weight * sigma) if weight > 0 else denoise(x, sigma)
        if up > 0:
            x = x + s_noise * up * noise()
    return x


def dpmpp_2s_ancestral(
    denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Draw, *, eta: float = 1.0, s_noise: float = 1.0
) -> Tensor:
    """k-diffusion's ancestral sampler, of DPM-Solver++(2S)'s steps (see `ode`). Two evaluations a step."""
    for sigma, lower in pairwise(levels(sigmas)):
        weight, up = ancestral(sigma, lower, eta)
        x0 = denoise(x, sigma)
        if weight > 0:  # x0 as it is at the middle of the step
            middle = math.sqrt(weight)
            x0 = denoise(torch.lerp(x0, x, middle), middle * sigma)
        x = torch.lerp(x0, x, weight)
        if up > 0:
            x = x + s_noise * up * noise()
    return x


def dpmpp_sde(
    denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Draw, *, eta: float = 1.0, s_noise: float = 1.0
) -> Tensor:
    """DPM-Solver++(2S) for the SDE (Lu et al. 2022b, with r = 1/2), k-diffusion's. Two evaluations a step.

    The noise to the middle of a step and to its end is that of one Brownian path in sigma, whose two intervals
    overlap. Draws are independent, as are increments over intervals that do not: the second interval's increment
    is the sum of the first's and of one over what remains.
    """
    for sigma, lower in pairwise(levels(sigmas)):
        x0 = denoise(x, sigma)
        if lower == 0:
            x = x0
            continue
        middle = math.sqrt(sigma * lower)
        first = noise() if eta > 0 else torch.zeros_like(x)
        weight, up = ancestral(sigma, middle, eta)
        x0 = denoise(torch.lerp(x0, x, weight) + s_noise * up * first, middle)
        weight, up = ancestral(sigma, lower, eta)
        x = torch.lerp(x0, x, weight)
        if up > 0:
            done = (sigma - middle) / (sigma - lower)  # the share of the path's variance
            x = x + s_noise * up * (math.sqrt(done) * first + math.sqrt(1 - done) * noise())
    return x


def restart(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Draw, *, s_noise: float = 1.0) -> Tensor:
    """Restart sampling (Xu et al. 2023, algorithm 1) of Heun's steps, where the web UI of AUTOMATIC1111 restarts.

    From 20 steps on, a part of them is spent on going back from sigma 0.1 to 2 and down again, once or twice, on
    grids of equation 5 of Karras et al. 2022.
    """
    arrived = sigmas[0].item()
    for sigma, lower in _with_restarts(levels(sigmas)):
        if sigma > arrived:
            x = x + s_noise * math.sqrt(sigma**2 - arrived**2) * noise()
        x = heun_step(denoise, x, sigma, lower)
        arrived = lower
    return x


def _with_restarts(grid: Sequence[float], low: float = 0.1, high: float = 2.0) -> Iterator[tuple[float, float]]:
    """The steps of restart sampling, about as many as the grid has."""
    steps = len(grid) - 1
    if steps < 20:
        yield from pairwise(grid)
        return
    again, times = (9, 1) if steps < 36 else (steps // 4, 2)
    main = [*karras(grid[0], grid[-2], steps - again * times).tolist(), grid[-1]]
    bottom, top = (min(main, key=lambda sigma: abs(sigma - near)) for near in (low, high))
    for sigma, lower in pairwise(main):
        yield sigma, lower
        if lower == bottom < top:
            for _ in range(times):
                yield from pairwise(karras(top, bottom, again + 1).tolist())
