"""Classifier-free guidance: a denoiser and two texts => one denoiser."""

from collections.abc import Callable

import torch
from torch import Tensor

from diffusion.denoiser import Denoiser

Denoise = Callable[[Tensor, float], Tensor]  # (x, sigma) => x0


def guide(denoiser: Denoiser, text: Tensor, negative: Tensor, scale: float) -> Denoise:
    """A denoiser that goes from the negative text's x0 `scale` times the way to the text's.

    text, negative: [B, L, D], a row of each for every row of x. At scale 1 the negative is not evaluated.
    Ho & Salimans 2022, equation 6, on x0; every prediction is affine in x0, so on them it would be the same.
    """
    if scale == 1:
        context = denoiser.context(text)
        return lambda x, sigma: denoiser(x, sigma, context)

    context = denoiser.context(torch.cat([negative, text]))  # of [2B, L, D]

    def denoise(x: Tensor, sigma: float) -> Tensor:
        without, with_text = denoiser(torch.cat([x, x]), sigma, context).chunk(2)
        return torch.lerp(without, with_text, scale)

    return denoise
