"""How many threads of the CPU a picture is worth."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

# The least of a feature map that keeps a thread busy. For 8x8 latents and 96 channels, 6,144 numbers, two threads
# took 15.5 ms where one took 16.6, and twice its CPU time; beside other work on the same machine they took 2 s.
NUMBERS = 2**16


@contextmanager
def threads(numbers: int) -> Iterator[None]:
    """Inside, PyTorch uses the threads that a feature map of so many numbers keeps busy, and no more than before.

    Their number is a function of the picture alone, so that no sum is taken in another order in other company.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, min(before, numbers // NUMBERS)))
    try:
        yield
    finally:
        torch.set_num_threads(before)
