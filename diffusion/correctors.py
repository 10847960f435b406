"""Multistep solvers of which each step is made anew once the next evaluation tells where it led. See `samplers`.

They predict with the polynomial through the last evaluations, of x0 or, with `of_noise`, of the noise in x, in the
time -log sigma; what is evaluated where that arrives, and is needed for the next step anyway, joins it to correct the
step just made. The last steps have lower orders where there are fewer than `few`; one that ends at 0 is of order 1.
"""

import math
from collections.abc import Callable, Collection, Sequence

from torch import Tensor

from diffusion.seeds import Draw
from diffusion.steps import Denoise, exponential_step, means, spans, through


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

    def line(h: float) -> float:
        return h / -math.expm1(-h) / 2 if bh1 else 1 / 2

    pairs, steps = spans(sigmas), len(sigmas) - 1  # equal sigmas at the end count as steps to be few or not
    outputs, at, start, use = list[Tensor](), list[float](), x, 0
    for i, (sigma, lower) in enumerate(pairs):
        x0 = denoise(x, sigma)
        if lower == 0:
            return x0
        outputs, at = [(x - x0) / sigma if of_noise else x0, *outputs][: order + 1], [sigma, *at][: order + 1]
        if i > 0 and i - 1 not in uncorrected:
            x = _led(outputs[: use + 1], at[: use + 1], start, at[1], sigma, line, of_noise)
        if lower == sigma:
            return x
        start, use = x, min(order, i + 1, steps - i if steps < few else order)
        x = _led(outputs[:use], at[:use], x, sigma, lower, line, of_noise)
    return x


def _led(
    outputs: Sequence[Tensor],
    at: Sequence[float],
    x: Tensor,
    sigma: float,
    lower: float,
    line: Callable[[float], float],
    of_noise: bool,
) -> Tensor:
    """x after a step from sigma to lower along the polynomial through the outputs at the sigmas `at`.

    `line` tells how far ahead to look along one of two, in a step of a length.
    """
    h = math.log(sigma / lower)
    stretched = -h if of_noise else h  # see `dpm`
    shares = [1.0, line(stretched)] if len(at) == 2 else means(stretched, len(at))
    mean = through(outputs, [math.log(sigma / other) / h for other in at], shares)
    return exponential_step(x, x - sigma * mean if of_noise else mean, sigma, lower, 0.0, of_noise)[0]
