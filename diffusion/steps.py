"""What samplers are made of.

    denoise(x, sigma)   the expected x0 of x = x0 + sigma * eps, all of the batch at one sigma
    noise()             one draw of standard normal numbers of x's shape, independent of all others

A step to a lower sigma moves x along the line to the expected x0. A `lerp` does it without subtracting large
numbers; x + (lower - sigma) * slope, from a zero-SNR model's sigma of 4096, loses 4 of float32's 7 digits.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

import torch
from torch import Tensor

from diffusion.seeds import Draw

Denoise = Callable[[Tensor, float], Tensor]  # (x, sigma) => x0
Leap = Callable[[float, float], float]  # (sigma, share) => the sigma a share of a step below: see `schedules.leap`
Time = Callable[[float], float]  # sigma => the network's time
Limit = Callable[[Tensor], Tensor]  # x0 => x0 within limits

FEW = 15  # steps; below it multistep solvers end with lower orders, as in diffusers


def levels(sigmas: Tensor) -> list[float]:
    """The sigmas as numbers. Of equal neighbours one stays: a step of no length changes nothing but history."""
    return [sigma for sigma, _ in groupby(sigmas.tolist())]


def spans(sigmas: Tensor) -> list[tuple[float, float]]:
    """The steps from level to level, and a last one of no length if the sigmas end with it: in it, x is corrected."""
    *_, before, last = sigmas.tolist()
    return [*pairwise(levels(sigmas)), *([(before, last)] if before == last else [])]


def taken_for(x: Tensor, sigma: float, other: float) -> Tensor:
    """x, whose sigma is one, as a network would see it at the other: the same x / sqrt(1 + sigma^2)."""
    return x if sigma == other else math.hypot(1, other) / math.hypot(1, sigma) * x


@dataclass(frozen=True)
class Clip:
    """x0 cut to +-`range`."""

    range: float

    def __call__(self, x0: Tensor) -> Tensor:
        return x0.clamp(-self.range, self.range)


@dataclass(frozen=True)
class Threshold:
    """Dynamic thresholding (Saharia et al. 2022, section 2.3): each picture cut to +-s and divided by s.

    s is the quantile `ratio` of its magnitudes, but at least 1, and at most `most`.
    """

    ratio: float
    most: float

    def __call__(self, x0: Tensor) -> Tensor:
        s = x0.abs().reshape(len(x0), -1).quantile(self.ratio, dim=1).clamp(1, self.most)
        s = s.view(-1, *[1] * (x0.dim() - 1))
        return x0.clamp(-s, s) / s


def heun_step(denoise: Denoise, x: Tensor, sigma: float, lower: float) -> Tensor:
    """The slope (x - x0) / sigma changes over the Euler step by the change of x0 alone: x stays on its line."""
    x0 = denoise(x, sigma)
    x = torch.lerp(x0, x, lower / sigma)
    return x + (sigma / lower - 1) / 2 * (denoise(x, lower) - x0) if lower > 0 else x


def midpoint_step(denoise: Denoise, x: Tensor, sigma: float, lower: float) -> Tensor:
    """From sigma to lower > 0 along the slope at their geometric mean."""
    x0, middle = denoise(x, sigma), math.sqrt(sigma * lower)
    change = denoise(torch.lerp(x0, x, middle / sigma), middle) - x0
    return torch.lerp(x0, x, lower / sigma) + (sigma - lower) / middle * change


def ancestral(sigma: float, lower: float, eta: float) -> tuple[float, float]:
    """A step to `lower` as one further down, to weight * sigma, and noise of spread `up` that leads back.

    The noise is eta times that of the posterior q(x_lower | x, x0) (Song et al. 2021a, equation 16), at most all.
    """
    ratio = lower / sigma
    up = min(lower, eta * lower * math.sqrt(1 - ratio**2))
    return ratio * math.sqrt(max(0.0, eta**2 * ratio**2 + (1 - eta**2))), up


def churn(
    x: Tensor, sigma: float, steps: int, noise: Draw, s_churn: float, s_tmin: float, s_tmax: float, s_noise: float
) -> tuple[Tensor, float]:
    """x with noise added, and its new sigma (Karras et al. 2022, algorithm 2, lines 4 to 6)."""
    gamma = min(s_churn / steps, math.sqrt(2) - 1)
    if gamma == 0 or not s_tmin <= sigma <= s_tmax:
        return x, sigma
    higher = sigma * (1 + gamma)
    return x + s_noise * math.sqrt(higher**2 - sigma**2) * noise(), higher


def exponential_step(
    x: Tensor, towards: Tensor, sigma: float, lower: float, eta: float, of_noise: bool
) -> tuple[Tensor, float]:
    """x at sigma led to lower > 0 towards an x0, and the spread of the noise that the SDE adds on the way.

    The x0 is exact all along the way or, `of_noise`, the noise in x at its beginning is: where eta is more than 0, they
    differ. There the former forgets x exponentially, and the latter is a straight line.
    """
    ratio = lower / sigma
    if of_noise:
        kept, added = 1 - (1 + eta) * (1 - ratio), eta * (sigma**2 - lower**2)
    else:
        kept, added = ratio ** (1 + eta), -(lower**2) * math.expm1(2 * eta * math.log(ratio))
    return torch.lerp(towards, x, kept), math.sqrt(added)


def slope_share(h: float) -> float:
    """How far ahead the exact integral over a step of length h in -log sigma looks along x0's slope, of h.

    1/2 for a short step, for which it is as good to look ahead to the middle; 1 for an endless one.
    """
    return -1 / math.expm1(-h) - 1 / h


def means(h: float, count: int) -> list[float]:
    """Of 1, u, u^2, ... as u goes from 0 to 1 over a step of length h in -log sigma, weighed as the ODE does x0."""
    found = [1.0]
    for n in range(1, count):  # by parts
        found.append(-1 / math.expm1(-h) - n / h * found[-1])
    return found


def through(x0s: Sequence[Tensor], at: Sequence[float], means: Sequence[float]) -> Tensor:
    """What the polynomial that is x0s[i] at u = at[i] comes to, if u^n comes to means[n]."""
    powers = torch.tensor(at, dtype=torch.float64) ** torch.arange(len(at))[:, None]
    weights = torch.linalg.solve(powers, torch.tensor(means, dtype=torch.float64)).tolist()
    mean = x0s[0]
    for weight, x0 in zip(weights[1:], x0s[1:], strict=True):  # all weights are 1 together
        mean = mean + weight * (x0 - x0s[0])
    return mean
