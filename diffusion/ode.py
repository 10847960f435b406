"""Samplers that solve the probability-flow ODE, dx / dsigma = (x - x0) / sigma (Karras et al. 2022, equation 1).

Without churn they draw no noise: the picture is a function of its first x. See `samplers` for their form.
Lu et al. 2022a is DPM-Solver.
"""

import math
from collections import deque
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from diffusion.seeds import Draw
from diffusion.steps import FEW, Denoise, Leap, churn, heun_step, levels, midpoint_step, taken_for


def euler(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    noise: Draw,
    *,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
) -> Tensor:
    """Euler's method (Karras et al. 2022, algorithm 2 without its second-order correction). Order 1."""
    for sigma, lower in pairwise(levels(sigmas)):
        x, sigma = churn(x, sigma, len(sigmas) - 1, noise, s_churn, s_tmin, s_tmax, s_noise)
        x = torch.lerp(denoise(x, sigma), x, lower / sigma)
    return x


def heun(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    noise: Draw,
    *,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
) -> Tensor:
    """Heun's method (Karras et al. 2022, algorithm 2). Order 2, two evaluations a step but the last."""
    for sigma, lower in pairwise(levels(sigmas)):
        x, sigma = churn(x, sigma, len(sigmas) - 1, noise, s_churn, s_tmin, s_tmax, s_noise)
        x = heun_step(denoise, x, sigma, lower)
    return x


def dpm_2(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    noise: Draw,
    *,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
) -> Tensor:
    """DPM-Solver-2 as k-diffusion has it (Lu et al. 2022a, algorithm 1). Order 2, two evaluations a step."""
    for sigma, lower in pairwise(levels(sigmas)):
        x, sigma = churn(x, sigma, len(sigmas) - 1, noise, s_churn, s_tmin, s_tmax, s_noise)
        x = midpoint_step(denoise, x, sigma, lower) if lower > 0 else denoise(x, sigma)
    return x


def lms(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Draw) -> Tensor:
    """k-diffusion's linear multistep: Adams-Bashforth on the uneven steps of sigma. Order 4, one evaluation a step."""
    grid, slopes = levels(sigmas), deque[Tensor](maxlen=4)
    for i, (sigma, lower) in enumerate(pairwise(grid)):
        x0 = denoise(x, sigma)
        slopes.appendleft((x - x0) / sigma)
        x = torch.lerp(x0, x, lower / sigma)  # all along the newest slope; then, the others' part in their mean
        for share, slope in zip(_lagrange(grid[i::-1][:4], lower), slopes, strict=True):
            x = x + share * (slope - slopes[0])
    return x


def _lagrange(nodes: Sequence[float], end: float) -> list[float]:
    """The integral from the first node to `end` of each polynomial that is 1 at one node and 0 at the others."""
    middle, half = (nodes[0] + end) / 2, (end - nodes[0]) / 2
    points = [middle - half / math.sqrt(3), middle + half / math.sqrt(3)]  # Gauss's two: exact for cubics
    return [
        half * sum(math.prod((point - b) / (a - b) for b in nodes if b != a) for point in points)
        for a in nodes
    ]


ADAMS_BASHFORTH = ((), (-1 / 2,), (-16 / 12, 5 / 12), (-59 / 24, 37 / 24, -9 / 24))  # after the newest slope's


def plms(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    noise: Draw,
    *,
    velocity: bool = False,
    runge_kutta: bool = False,
    leap: Leap | None = None,
) -> Tensor:
    """PLMS (PNDM, Liu et al. 2022): Adams-Bashforth as if the steps were even, as those of time are.

    It starts with Heun's method and so makes one evaluation more than steps; or, with `runge_kutta`, with three steps
    of four evaluations. With `velocity` it is v that is taken on, not its noise: diffusers does so for networks that
    predict v. With `leap`, a step leads down by 1 of it, and x is then taken for one at the next sigma. Heun's and
    Runge and Kutta's do end there; but Heun's whole step begins 1 above it, whatever x's sigma.
    """
    past, steps = deque[Tensor](maxlen=3), len(sigmas) - 1  # equal sigmas at the end count as steps
    for i, (sigma, lower) in enumerate(pairwise(levels(sigmas))):
        x0 = denoise(x, sigma)
        new, end = _slope(x, x0, sigma, velocity), leap(sigma, 1) if leap else lower
        if runge_kutta and i < min(3, steps - 1):
            change, end = _runge_kutta(denoise, x, x0, sigma, lower, velocity, leap), lower
        elif i == 0 and steps > 1:
            there = taken_for(torch.lerp(x0, x, end / sigma), end, lower)
            change, end = (_slope(there, denoise(there, lower), lower, velocity) - new) / 2, lower
            if leap and (begin := leap(lower, -1)) != sigma:
                x = taken_for(x, sigma, begin)
                x0, sigma = _denoised(x, new, begin, velocity), begin
        else:
            weights = ADAMS_BASHFORTH[len(past)]
            change = sum((weight * (old - new) for weight, old in zip(weights, past, strict=True)), x.new_zeros(()))
        past.appendleft(new)
        x = torch.lerp(x0, x, end / sigma) + (end - sigma) / (math.hypot(1, sigma) if velocity else 1) * change
        x = taken_for(x, end, lower)
    return x


def _runge_kutta(
    denoise: Denoise, x: Tensor, x0: Tensor, sigma: float, lower: float, velocity: bool, leap: Leap | None
) -> Tensor:
    """How far the slope over the step is, in Runge and Kutta's classical mean, from that at its beginning.

    The first x in the middle is one of half a leap down, and is taken for one of half a leap up: times are whole.
    """
    first = middle = math.sqrt(sigma * lower)
    if leap:
        first, middle = leap(sigma, 1 / 2), leap(lower, -1 / 2)
    new = _slope(x, x0, sigma, velocity)
    norm, change, total = math.hypot(1, sigma) if velocity else 1, torch.zeros_like(x), torch.zeros_like(x)
    for end, at, share in ((first, middle, 1 / 3), (middle, middle, 1 / 3), (lower, lower, 1 / 6)):
        there = torch.lerp(x0, x, end / sigma) + (end - sigma) / norm * change
        there = taken_for(there, end, at)
        change = _slope(there, denoise(there, at), at, velocity) - new
        total = total + share * change
    return total


def _slope(x: Tensor, x0: Tensor, sigma: float, velocity: bool) -> Tensor:
    """The noise in x, dx / dsigma; or v, which is (noise - sigma * x0) / sqrt(1 + sigma^2)."""
    slope = (x - x0) / sigma
    return (slope - sigma * x0) / math.hypot(1, sigma) if velocity else slope


def _denoised(x: Tensor, slope: Tensor, sigma: float, velocity: bool) -> Tensor:
    """The x0 of which `_slope` makes this slope."""
    return (x / math.hypot(1, sigma) - sigma * slope) / math.hypot(1, sigma) if velocity else x - sigma * slope


def deis(
    denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Draw, *, order: int = 2, few: float = FEW
) -> Tensor:
    """DEIS in log rho (Zhang & Chen 2023): the noise as a polynomial in log sigma. Order 1 to 3.

    The last steps have lower orders where there are fewer than `few`.
    """
    grid, steps = levels(sigmas), len(sigmas) - 1  # equal sigmas at the end count as steps to be few or not
    slopes = deque[Tensor](maxlen=order)
    for i, (sigma, lower) in enumerate(pairwise(grid)):
        x0 = denoise(x, sigma)
        slopes.appendleft((x - x0) / sigma)
        use = min(len(slopes), steps - i) if steps < few else len(slopes)
        # Integrals over the step of u and u^2, where u = log of sigma over where the step begins.
        log = math.log(lower / sigma) if lower > 0 else 0.0  # multiplied by `lower` below
        first = -sigma - lower * (log - 1)
        second = 2 * sigma - lower * (log**2 - 2 * log + 2)
        x = torch.lerp(x0, x, lower / sigma)
        if use > 1:
            u1 = math.log(grid[i - 1] / sigma)
            rise = (slopes[1] - slopes[0]) / u1
            x = x - first * rise
        if use > 2:
            u2 = math.log(grid[i - 2] / sigma)
            bend = ((slopes[2] - slopes[1]) / (u2 - u1) - rise) / u2
            x = x - (second - u1 * first) * bend
    return x
