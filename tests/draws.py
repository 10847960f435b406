"""Noise for samplers."""

from collections.abc import Callable

import torch
from torch import Tensor

SHAPE = (2, 4, 3, 3)


def draws(seed: int) -> Callable[[], Tensor]:
    """noise() for a sampler; a generator of the same seed gives a library the same numbers."""
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(SHAPE, generator=generator)
