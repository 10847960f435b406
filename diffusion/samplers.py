"""Samplers: from noise to data, given a denoiser.

Each is a function (denoise, x, sigmas, noise) => x0 without state:
    denoise(x, sigma)   the expected x0 of x = x0 + sigma * eps, all of the batch at one sigma
    x                   noise at sigmas[0], [B, ...] (see `Noise.start`)
    sigmas              decreasing, to 0 as a rule; if to more, what returns is x at the last of them
    noise()             one draw of standard normal numbers of x's shape

A step to a lower sigma moves x along the line to the expected x0. A `lerp` does it without subtracting large
numbers; x + (lower - sigma) * slope, from a zero-SNR model's sigma of 4096, loses 4 of float32's 7 digits.
"""

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from diffusion.seeds import Draw

Denoise = Callable[[Tensor, float], Tensor]  # (x, sigma) => x0
Sampler = Callable[[Denoise, Tensor, Tensor, Draw], Tensor]


def euler(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Draw) -> Tensor:
    """Euler's method (Karras et al. 2022, algorithm 1 without its second-order correction). Order 1.

    It is also DDIM (Song et al. 2021, equation 12 with eta = 0), as that paper's equation 14 shows.
    """
    for sigma, lower in pairwise(sigmas.tolist()):
        x = torch.lerp(denoise(x, sigma), x, lower / sigma)
    return x


def euler_ancestral(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Draw) -> Tensor:
    """A draw from the posterior q(x_lower | x, x0) at each step: ancestral sampling.

    It is DDPM (Ho et al. 2020, algorithm 2 with the variance of equation 7), and DDIM with eta = 1. In sigma
    it is an Euler step to lower^2 / sigma, then noise back up to lower: k-diffusion's ancestral sampler.
    """
    for sigma, lower in pairwise(sigmas.tolist()):
        x = torch.lerp(denoise(x, sigma), x, (lower / sigma) ** 2)
        if lower > 0:
            x = x + lower * math.sqrt(1 - (lower / sigma) ** 2) * noise()
    return x


def heun(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Draw) -> Tensor:
    """Heun's method (Karras et al. 2022, algorithm 1). Order 2, two evaluations a step but the last.

    The slope (x - x0) / sigma changes over the Euler step by the change of x0 alone, as x stays on its line.
    """
    for sigma, lower in pairwise(sigmas.tolist()):
        x0 = denoise(x, sigma)
        x = torch.lerp(x0, x, lower / sigma)
        if lower > 0:
            x = x + (sigma / lower - 1) / 2 * (denoise(x, lower) - x0)
    return x


def dpmpp_2m(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Draw) -> Tensor:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2). Order 2, one evaluation a step.

    In the time lambda = -log sigma, x0 goes on along its last slope to the middle of the step. The last step
    is of order 1 if it ends at 0, which lambda never reaches, or if there are fewer than 15.
    """
    steps, h, previous = len(sigmas) - 1, 0.0, x
    for i, (sigma, lower) in enumerate(pairwise(sigmas.tolist())):
        x0 = towards = denoise(x, sigma)
        if i > 0 and not (i == steps - 1 and (lower == 0 or steps < 15)):
            slope = (x0 - previous) / h
            towards = x0 + math.log(sigma / lower) / 2 * slope
        x = torch.lerp(towards, x, lower / sigma)
        previous, h = x0, math.log(sigma / lower) if lower > 0 else math.inf
    return x


def uni_pc(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Draw) -> Tensor:
    """UniPC-2 with B(h) = e^h - 1 (Zhao et al. 2023, algorithms 1 and 2). Order 2, one evaluation a step.

    It predicts as DPM-Solver++(2M) steps. The evaluation where it arrives, which the next step needs anyway,
    corrects the step just made, by x0's slope and curvature along it. The last step is of order 1.
    """
    levels = sigmas.tolist()
    x0, start, higher, h, slope = denoise(x, levels[0]), x, levels[0], 0.0, torch.zeros_like(x)
    x = torch.lerp(x0, x, levels[1] / levels[0])
    for i in range(1, len(levels) - 1):
        sigma, lower = levels[i], levels[i + 1]
        # Correct the step from `higher` to sigma, which began at `start`.
        arrived = denoise(x, sigma)
        h, past_h = math.log(higher / sigma), h
        change = arrived - x0
        if i == 1:
            towards = x0 + change / 2
        else:  # the weights of x0's slope and of its curvature in the step's exact integral
            b = -1 / math.expm1(-h) - 1 / h
            curvature = (change / h - slope) / (h + past_h)
            towards = x0 + b * change - (2 * b - 1) * h * curvature
        x = torch.lerp(towards, start, sigma / higher)
        # Predict the step from sigma to lower.
        x0, start, higher, slope = arrived, x, sigma, change / h
        ahead = math.log(sigma / lower) / 2 * slope if i < len(levels) - 2 else 0.0
        x = torch.lerp(x0 + ahead, x, lower / sigma)
    return x


SAMPLERS: dict[str, Sampler] = {
    "euler": euler,
    "euler_ancestral": euler_ancestral,
    "heun": heun,
    "dpmpp_2m": dpmpp_2m,
    "ddim": euler,  # one and the same in sigma; see the docstrings
    "ddpm": euler_ancestral,
    "uni_pc": uni_pc,
}
