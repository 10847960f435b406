"""Multistep solvers of which each step is made anew once the next evaluation tells where it led. See `samplers`.

They predict with the polynomial through the last evaluations, of x0 or, with `of_noise`, of the noise in x, in the
time -log sigma; what is evaluated where that arrives, and is needed for the next step anyway, joins it to correct the
step just made. The last steps have lower orders where there are fewer than `few`; one that ends at 0 is of order 1.
"""

import math
from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor

from diffusion.seeds import Draw
from diffusion.steps import Denoise, Time, exponential_step, means, slope_share, spans, through


def uni_pc(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    noise: Draw,
    *,
    order: int = 2,
    few: float = math.inf,
    bh1: bool = False,
    uncorrected: Collection[int] = (),
    of_noise: bool = False,
) -> Tensor:
    """UniPC (Zhao et al. 2023, algorithms 1 and 2), with B(h) = e^h - 1 or, with `bh1`, h. One evaluation a step.

    Of a line it is not the exact mean over the step that it takes, but the middle, which B(h) moves. The steps whose
    numbers are in `uncorrected` stay as they are.
    """
    line = _moved_middle if bh1 else _middle
    return _corrected(
        denoise, x, sigmas, noise, order, order + 1, few=few, line=line, of_noise=of_noise, uncorrected=uncorrected
    )


def sa_solver(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    noise: Draw,
    *,
    predictor: int = 2,
    corrector: int = 2,
    few: float = math.inf,
    of_noise: bool = False,
    time: Time = lambda sigma: 500.0,
) -> Tensor:
    """SA-Solver (Xue et al. 2023, algorithm 1): of the SDE between two times, else of the ODE. One evaluation a step.

    The two times are diffusers' own choice. `predictor` and `corrector` are how many evaluations the polynomials go
    through, from 1. Of a line through x0s it takes no exact mean, as UniPC with `bh1` does not. A corrected step is
    given the noise that it was given before.
    """
    line = slope_share if of_noise else _moved_middle
    eta = lambda sigma: float(200 <= time(sigma) <= 800)
    return _corrected(denoise, x, sigmas, noise, predictor, corrector, few=few, line=line, of_noise=of_noise, eta=eta)


def _middle(h: float) -> float:
    return 1 / 2


def _moved_middle(h: float) -> float:
    return h / -math.expm1(-h) / 2


def _corrected(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    noise: Draw,
    predictor: int,
    corrector: int,
    *,
    few: float,
    line: Callable[[float], float],
    of_noise: bool,
    uncorrected: Collection[int] = (),
    eta: Callable[[float], float] | None = None,
) -> Tensor:
    """Steps along the polynomial through `predictor` evaluations, made anew along that through `corrector` of them.

    `line` tells how far ahead to look along a polynomial of two, in a step of a length; `eta` how much of the SDE's
    noise to add.
    """
    steps, most = len(sigmas) - 1, max(predictor, corrector, 2)  # equal sigmas at the end count as steps, few or not
    outputs, at, start, correct, share, drawn = list[Tensor](), list[float](), x, 0, 0.0, torch.zeros(())
    for i, (sigma, lower) in enumerate(spans(sigmas)):
        x0 = denoise(x, sigma)
        if lower == 0:
            return x0
        outputs, at = [(x - x0) / sigma if of_noise else x0, *outputs][:most], [sigma, *at][:most]
        if i > 0 and i - 1 not in uncorrected:
            x = _led(outputs[:correct], at[:correct], start, at[1], sigma, line, of_noise, share, drawn)
        if lower == sigma:
            return x
        left = steps - i if steps < few else most
        start, correct = x, min(corrector, left + 1)
        if eta:
            share, drawn = eta(sigma), noise()
        x = _led(outputs[:predictor][:left], at[:predictor][:left], x, sigma, lower, line, of_noise, share, drawn)
    return x


def _led(
    outputs: Sequence[Tensor],
    at: Sequence[float],
    x: Tensor,
    sigma: float,
    lower: float,
    line: Callable[[float], float],
    of_noise: bool,
    eta: float,
    drawn: Tensor,
) -> Tensor:
    """x after a step from sigma to lower along the polynomial through the outputs at the sigmas `at`."""
    h = math.log(sigma / lower)
    stretched = -h if of_noise else (1 + eta) * h  # see `dpm`
    shares = [1.0, line(stretched)] if len(at) == 2 else means(stretched, len(at))
    mean = through(outputs, [math.log(sigma / other) / h for other in at], shares)
    x, spread = exponential_step(x, x - sigma * mean if of_noise else mean, sigma, lower, eta, of_noise)
    return x + spread * drawn if spread > 0 else x
