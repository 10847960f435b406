"""From an image: what sampling begins with besides noise, and what it is told of what is to stay.

`mask` is 1 where latents change. Any network can fill a hole: it is told at every evaluation what is known
around it (Lugmayr et al. 2022, equation 8, on x0). One that was trained to (Rombach et al. 2022, section 4.5)
is shown the mask and the known latents beside x.
"""

from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from diffusion.canvas import Canvas
from diffusion.denoiser import Denoiser
from diffusion.noise import Noise
from diffusion.steps import Denoise


@dataclass(frozen=True)
class Start:
    """What a sampling begins with. By default nothing: noise alone."""

    canvas: Canvas | None = None
    latents: Tensor | None = None  # [1, C, h, w], under the noise
    known: Tensor | None = None  # [1, C, h, w], what they are to become where the mask is 0
    mask: Tensor | None = None  # [1, 1, h, w]
    beside: Tensor | None = None  # [1, 1 + C, h, w], what an inpainting network is shown

    @classmethod
    def of(cls, canvas: Canvas | None, strength: float | None, autoencoder: Any, inpaints: bool, noise: Tensor) -> Self:
        """From an image, encoded as the mean of its posterior: so the seed's noise is all that is random.

        At strength 1 nothing is left of what is under the mask. `noise` is what `fill` may put there.
        """
        if canvas is None:
            return cls()
        view, hole = canvas.view().to(noise), canvas.hole().to(noise)
        known, mask = autoencoder.encode(view), F.max_pool2d(hole, autoencoder.factor)
        latents = known
        if canvas.mask is not None and (canvas.fill == "nothing" or strength == 1):
            latents = known * (1 - mask)
        elif canvas.fill == "noise":
            latents = torch.lerp(known, noise, mask)
        if inpaints:
            beside = torch.cat([mask, autoencoder.encode(view * (1 - hole))], dim=1)
            return cls(canvas, None if strength in (1, None) else latents, beside=beside)
        return cls(canvas, latents) if canvas.mask is None else cls(canvas, latents, known, mask)

    def noised(self, eps: Tensor, sigma: float, noise: Noise) -> Tensor:
        """The first x, at sigma."""
        return eps * noise.start(sigma) if self.latents is None else self.latents + eps * sigma

    def show(self, denoiser: Denoiser) -> Denoiser:
        """The denoiser, whose network is shown what is beside x."""
        return denoiser if self.beside is None else replace(denoiser, network=Beside(denoiser.network, self.beside))

    def hold(self, denoise: Denoise) -> Denoise:
        """The denoiser, which is told what is known."""
        if self.known is None or self.mask is None:
            return denoise
        return hold(denoise, self.known, self.mask)

    def finish(self, made: Image.Image) -> Image.Image:
        """The picture: what was made, in its place on the canvas."""
        return made if self.canvas is None else self.canvas.finish(made)


def hold(denoise: Denoise, known: Tensor, mask: Tensor) -> Denoise:
    """The same denoiser, which expects the known latents [1, C, h, w] where the mask [1, 1, h, w] is 0.

    x stays there on the line from its first noise to the known latents, which it reaches as sigma reaches 0.
    """
    return lambda x, sigma: torch.lerp(known, denoise(x, sigma), mask)


@dataclass(frozen=True)
class Beside:
    """A network that is shown more channels than x has: `beside` [1, c, h, w], the same at every evaluation."""

    network: Any
    beside: Tensor

    def __call__(self, x: Tensor, t: Tensor, text: Any) -> Tensor:
        beside = self.beside.to(x.dtype).expand(len(x), -1, -1, -1)
        return self.network(torch.cat([x, beside], dim=1), t, text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.network, name)
