"""Classifier-free guidance: a denoiser and two texts => one denoiser."""

from collections.abc import Callable

import torch
from torch import Tensor

from diffusion.conditioning import Conditioning, stack
from diffusion.denoiser import Denoiser

Denoise = Callable[[Tensor, float], Tensor]  # (x, sigma) => x0


def guide(denoiser: Denoiser, text: Conditioning, negative: Conditioning, scale: float) -> Denoise:
    """A denoiser that goes from the negative text's x0 `scale` times the way to the text's.

    text, negative: a row of each for every row of x. At scale 1 the negative is not evaluated.
    Ho & Salimans 2022, equation 6, on x0; every prediction is affine in x0, so on them it would be the same.
    """
    if scale == 1:
        context = denoiser.context(text)
        return lambda x, sigma: denoiser(x, sigma, context)

    context = denoiser.context(stack(negative, text))  # of 2B rows

    def denoise(x: Tensor, sigma: float) -> Tensor:
        without, with_text = denoiser(torch.cat([x, x]), sigma, context).chunk(2)
        return torch.lerp(without, with_text, scale)

    return denoise
