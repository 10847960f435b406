"""Seeds => noise. Drawn on the CPU, where a seed means the same numbers on every machine."""

from collections.abc import Callable

import torch
from torch import Tensor

Draw = Callable[[], Tensor]  # a draw of standard normal numbers, another one each time


def seeded(seed: int, shape: tuple[int, ...], device: torch.device) -> Draw:
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(shape, generator=generator).to(device)


def varied(draw: Draw, other: Draw, strength: float) -> Draw:
    """Begins `strength` of the way from one first draw to the other; what comes later is the first one's own."""
    first = [slerp(draw(), other(), strength)]
    return lambda: first.pop() if first else draw()


def slerp(a: Tensor, b: Tensor, t: float) -> Tensor:
    """`t` of the way from a to b along the arc between them (Shoemake 1985).

    Noise of unit variance lies on a sphere, which the straight way would leave for less variance.
    """
    cosine = (a * b).sum() / (a.norm() * b.norm())
    angle = cosine.clamp(-1, 1).double().arccos()
    if angle.sin() < 1e-4:  # one direction: the arc is a straight way
        return torch.lerp(a, b, t)
    return (((1 - t) * angle).sin() / angle.sin()).to(a) * a + ((t * angle).sin() / angle.sin()).to(a) * b
