"""Classifier-free guidance: a denoiser and what it is told => one denoiser.

    x0 = D(x, negative) + scale * sum_i weight_i * (D(x, text_i) - D(x, negative))

Ho & Salimans 2022, equation 6, with several texts as Liu et al. 2022, equation 11, compose them; on x0, for every
prediction is affine in x0. What holds when is found from sigma alone: the denoiser has no state, and any sampler
may ask it for any sigma in any order.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffusion.conditioning import Conditioning, stack
from diffusion.denoiser import Denoiser, scalars
from diffusion.noise import Noise

Denoise = Callable[[Tensor, float], Tensor]  # (x, sigma) => x0
ALL = (0.0, math.inf)  # of the noise levels


@dataclass(frozen=True)
class Script:
    """A prompt over the course of sampling."""

    lines: tuple[tuple[float, Conditioning], ...]  # each holds above its sigma; from the noisiest, the last above 0
    weight: float = 1.0  # among the texts of a composition

    def at(self, sigma: float) -> Conditioning:
        return next((line for above, line in self.lines if sigma > above), self.lines[-1][1])


def always(conditioning: Conditioning) -> Script:
    """A prompt that says the same from beginning to end."""
    return Script(((0.0, conditioning),))


def guide(
    denoiser: Denoiser,
    texts: Sequence[Script],
    negative: Script,
    scale: float,
    rescale: float = 0.0,
    interval: tuple[float, float] = ALL,
) -> Denoise:
    """A denoiser that goes from the negative text's x0 `scale` times the way to the texts'.

    texts, negative: conditionings with a row for each row of x.
    rescale: how far to bring the spread of the prediction back to the text's own (Lin et al. 2024, section 3.4).
    interval: the sigmas, above the first and up to the second, at which there is guidance; at the others the
        scale is 1 (Kynkäänniemi et al. 2024).

    Where all that counts is one text, at scale 1, the negative one is not evaluated.
    """
    tell = Told(denoiser)

    def denoise(x: Tensor, sigma: float) -> Tensor:
        low, high = interval
        here = scale if low < sigma <= high else 1.0
        scales = [here * text.weight for text in texts]
        says = [text.at(sigma) for text in texts]
        if scales == [1.0]:
            return tell(x, sigma, says)[0]
        without, first, *others = tell(x, sigma, [negative.at(sigma), *says])
        guided = torch.lerp(without, first, scales[0])
        for other, times in zip(others, scales[1:], strict=True):
            guided = guided + times * (other - without)
        if rescale and here != 1:
            towards = [text.weight * (x0 - without) for text, x0 in zip(texts, [first, *others], strict=True)]
            plain = without + torch.stack(towards).sum(0)  # at scale 1
            guided = rescaled(guided, plain, rescale, x, sigma, denoiser.noise)
        return guided

    return denoise


class Told:
    """A denoiser that is told several things of one x. What the network makes of a text is kept: it takes part in
    many evaluations."""

    def __init__(self, denoiser: Denoiser):
        self.denoiser = denoiser
        self.contexts: dict[tuple[int, ...], tuple[Any, list[Conditioning]]] = {}

    def __call__(self, x: Tensor, sigma: float, says: Sequence[Conditioning]) -> list[Tensor]:
        """x0 under each; texts of one length go through the network together."""
        x0s: list[Tensor] = [x] * len(says)
        lengths = [said.tokens.shape[1] for said in says]
        for length in dict.fromkeys(lengths):
            group = [i for i, other in enumerate(lengths) if other == length]
            context = self.context([says[i] for i in group])
            together = self.denoiser(x, sigma, context, len(group))
            for i, x0 in zip(group, together.chunk(len(group)), strict=True):
                x0s[i] = x0
        return x0s

    def context(self, says: list[Conditioning]) -> Any:
        key = tuple(map(id, says))
        if key not in self.contexts:  # the texts are kept, too: an id means nothing without what it is of
            self.contexts[key] = self.denoiser.context(stack(*says)), says
        return self.contexts[key][0]


def rescaled(guided: Tensor, text: Tensor, amount: float, x: Tensor, sigma: float, noise: Noise) -> Tensor:
    """Guided x0, whose prediction is brought `amount` of the way to the spread of the text's.

    Lin et al. 2024, equations 15 and 16.
    """
    _, c_skip, c_out, _ = scalars(noise, sigma)
    prediction, wanted = ((x0 - c_skip * x) / c_out for x0 in (guided, text))  # x0 = c_skip x + c_out F
    inner = list(range(1, x.dim()))
    factor = wanted.std(inner, keepdim=True) / prediction.std(inner, keepdim=True)
    return c_skip * x + c_out * torch.lerp(prediction, prediction * factor, amount)
