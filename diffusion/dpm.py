"""DPM-Solver and DPM-Solver++ (Lu et al. 2022a and 2022b): of the ODE and of the SDE, multistep and singlestep.

Over a step in the time -log sigma, x0 is taken to go on as it did in the last evaluations, and what it does to x is
integrated exactly: that is DPM-Solver++. With `of_noise` it is the noise in x that is taken to do so: DPM-Solver.
Two evaluations give a line, which with `midpoint` counts by its middle; three give its bend, too.
Multistep solvers end with lower orders where there are fewer than `few` steps, and with `euler_last` their last step
is of order 1 in any case. See `samplers` for their form.
"""

import math
from collections import deque
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

from diffusion.seeds import Draw
from diffusion.steps import FEW, Denoise, exponential_step, levels, slope_share, spans


def dpmpp_2m(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    noise: Draw,
    *,
    midpoint: bool = True,
    few: float = FEW,
    euler_last: bool = False,
    of_noise: bool = False,
) -> Tensor:
    """DPM-Solver++(2M) (Lu et al. 2022b, algorithm 2). Order 2, one evaluation a step.

    The last step is of order 1 if it ends at 0, which the time never reaches, or if there are few.
    """
    return _multistep(
        denoise, x, sigmas, noise, 2, midpoint=midpoint, few=few, euler_last=euler_last, of_noise=of_noise
    )


def dpmpp_3m(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    noise: Draw,
    *,
    midpoint: bool = True,
    few: float = FEW,
    euler_last: bool = False,
    of_noise: bool = False,
    sde: bool = False,
) -> Tensor:
    """DPM-Solver++(3M) (Lu et al. 2022b): (2M) with x0's curvature, too. One evaluation a step.

    The curvature has half of its weight in the exact integral, in the authors' program and all that follow it: so it
    is of order 2, with smaller errors than (2M). The second step is (2M)'s, and so is the last but one of few; the
    first is of order 1, and so is the last of few and one that ends at 0. For the `sde`, diffusers bends x0 to the
    other side, and so do files that ask for it; `dpmpp_3m_sde` does not.
    """
    return _multistep(
        denoise, x, sigmas, noise, 3, midpoint=midpoint, few=few, euler_last=euler_last, of_noise=of_noise,
        eta=float(sde), bend=-1 if sde else 1,
    )  # fmt: skip


def dpmpp_2m_sde(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    noise: Draw,
    *,
    eta: float = 1.0,
    s_noise: float = 1.0,
    first_order: bool = False,
    midpoint: bool = True,
    few: float = FEW,
    euler_last: bool = False,
    of_noise: bool = False,
) -> Tensor:
    """SDE-DPM-Solver++(2M) (Lu et al. 2022b). One evaluation a step. With eta 0 it is `dpmpp_2m`."""
    return _multistep(
        denoise, x, sigmas, noise, 1 if first_order else 2, midpoint=midpoint, few=few, euler_last=euler_last,
        of_noise=of_noise, eta=eta, s_noise=s_noise,
    )  # fmt: skip


def dpmpp_2m_sde_heun(
    denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Draw, *, eta: float = 1.0, s_noise: float = 1.0
) -> Tensor:
    """`dpmpp_2m_sde` without `midpoint`."""
    return dpmpp_2m_sde(denoise, x, sigmas, noise, eta=eta, s_noise=s_noise, midpoint=False)


def dpmpp_3m_sde(
    denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Draw, *, eta: float = 1.0, s_noise: float = 1.0
) -> Tensor:
    """DPM-Solver++(3M) for the SDE, k-diffusion's. With eta 0 it is `dpmpp_3m` but for its lower orders."""
    return _multistep(denoise, x, sigmas, noise, 3, midpoint=False, few=0, eta=eta, s_noise=s_noise)


def dpmpp_2s(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    noise: Draw,
    *,
    order: int = 2,
    midpoint: bool = True,
    few: float = math.inf,
    of_noise: bool = False,
    sde: bool = False,
) -> Tensor:
    """DPM-Solver++(2S) (Lu et al. 2022b, algorithm 1), its midpoints on the grid; or (3S), the same with `order` 3.

    Each run of `order` steps begins with Euler's and goes back to its beginning for all others. A last step to 0 is
    Euler's, and so is one that would end its run, if there are few.
    """
    pairs, steps = spans(sigmas), len(sigmas) - 1
    begin, begin_x, begin_x0, outputs, at = 0.0, x, x, list[Tensor](), list[float]()
    for i, (sigma, lower) in enumerate(pairs):
        x0, place = denoise(x, sigma), i % order
        if place == 0 or (i == len(pairs) - 1 and (lower == 0 or (place == order - 1 and steps < few))):
            begin, begin_x, begin_x0, outputs, at = sigma, x, x0, [], []
        outputs.append((x - x0) / sigma if of_noise else x0)
        at.append(math.log(begin / sigma))
        if lower == 0:
            return x0
        h = math.log(begin / lower)
        change = _within(outputs, h, at, -1 if of_noise else 1 + sde, midpoint, -1 if sde else 1)
        x = _step(begin_x, begin_x0, change, begin, lower, noise, float(sde), 1.0, of_noise)
    return x


def _multistep(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    noise: Draw,
    order: int,
    *,
    midpoint: bool,
    few: float,
    euler_last: bool = False,
    of_noise: bool = False,
    eta: float = 0.0,
    s_noise: float = 1.0,
    bend: int = 1,
) -> Tensor:
    steps = len(sigmas) - 1  # equal sigmas at the end count as steps to be few or not
    outputs, past = deque[Tensor](maxlen=order), deque[float](maxlen=order)
    for i, (sigma, lower) in enumerate(pairwise(levels(sigmas))):
        x0 = denoise(x, sigma)
        if lower == 0:
            return x0
        outputs.appendleft((x - x0) / sigma if of_noise else x0)
        left = 1 if euler_last and i == steps - 1 else steps - i if steps < few else order
        h = math.log(sigma / lower)
        change = _beyond([*outputs][:left], h, past, -1 if of_noise else 1 + eta, midpoint, bend)
        x = _step(x, x0, change, sigma, lower, noise, eta, s_noise, of_noise)
        past.appendleft(h)
    return x


# What an evaluation gives, x0 or the noise in x, has a mean over a step of length h, weighed as it acts on x: how far
# is it from what it is at the beginning? `stretch` is by what h is longer for x0 in an SDE, 1 + eta; it is -1 for the
# noise, which acts less and less where x0 acts more and more. `bend` is the sign of its curvature.


def _beyond(
    outputs: Sequence[Tensor], h: float, past: Sequence[float], stretch: float, midpoint: bool, bend: int
) -> Tensor | float:
    """With the outputs going on as they did over the steps before, of lengths `past`; the latest are first."""
    if len(outputs) == 1:
        return 0.0
    b, c = _shares(stretch * h, bend)
    slope = (outputs[0] - outputs[1]) / past[0]
    if len(outputs) == 2:
        return (1 / 2 if midpoint else b) * h * slope
    curvature = (slope - (outputs[1] - outputs[2]) / past[1]) / (past[0] + past[1])
    return b * h * (slope + past[0] * curvature) + c * h**2 * curvature


def _within(
    outputs: Sequence[Tensor], h: float, at: Sequence[float], stretch: float, midpoint: bool, bend: int
) -> Tensor | float:
    """With the outputs as they are where they were evaluated on the way, at distances `at` from the beginning."""
    if len(outputs) == 1:
        return 0.0
    b, c = _shares(stretch * h, bend)
    slope = (outputs[-1] - outputs[0]) / at[-1]
    if len(outputs) == 2 or midpoint:
        return (1 / 2 if midpoint and len(outputs) == 2 else b) * h * slope
    first = (outputs[1] - outputs[0]) / at[1]
    curvature = (slope - first) / (at[2] - at[1])
    return b * h * (first - at[1] * curvature) + 2 * c * h**2 * curvature


def _shares(h: float, bend: int) -> tuple[float, float]:
    """How much of its slope, in h, and of half of its curvature, in h^2, is in the mean."""
    b = slope_share(h)
    return b, bend * (b + 1 / h) / 2 - b / h


def _step(
    x: Tensor,
    x0: Tensor,
    change: Tensor | float,
    sigma: float,
    lower: float,
    noise: Draw,
    eta: float,
    s_noise: float,
    of_noise: bool,
) -> Tensor:
    """From x at sigma, where x0 is expected, to lower > 0; x0 or, if it is of the noise, that changes on the way."""
    towards = x0 - sigma * change if of_noise else x0 + change
    x, spread = exponential_step(x, towards, sigma, lower, eta, of_noise)
    return x + s_noise * spread * noise() if spread > 0 else x
