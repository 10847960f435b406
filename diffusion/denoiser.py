"""A trained network as a denoiser, (x, sigma, text) => x0, and the loss that trains it.

Networks differ in what they predict. Each is one line of a table, as equation 7 of Karras et al. 2022 has it;
sampling and training read the same three coefficients:

    x0 = c_skip * x + c_out * F(c_in * x, t, text)        where x = x0 + sigma * eps
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffusion.noise import Noise
from diffusion.schedulers import NoiseConfig

Network = Callable[[Tensor, Tensor, Any], Tensor]  # (x [B, C, h, w], t [B], text) => [B, C, h, w]

# What F is (`NoiseConfig.predicts`), and (sigma, the spread d of x0) => (c_in, c_skip, c_out). But in EDM, d is 1.
PREDICTION_TYPES: dict[str, Callable[[Tensor, float], tuple[Tensor, Tensor, Tensor]]] = {
    # eps (Ho et al. 2020)
    "epsilon": lambda s, d: (1 / (1 + s**2).sqrt(), torch.ones_like(s), -s),
    # (d * eps - sigma * x0 / d) / sqrt(d^2 + sigma^2) (Salimans & Ho 2022, appendix D)
    "v_prediction": lambda s, d: (1 / (d**2 + s**2).sqrt(), d**2 / (d**2 + s**2), -d * s / (d**2 + s**2).sqrt()),
    # v with its sign changed (Karras et al. 2022, table 1)
    "edm_prediction": lambda s, d: (1 / (d**2 + s**2).sqrt(), d**2 / (d**2 + s**2), d * s / (d**2 + s**2).sqrt()),
    # x0
    "sample": lambda s, d: (1 / (1 + s**2).sqrt(), torch.zeros_like(s), torch.ones_like(s)),
    # eps - x0 (Liu et al. 2022)
    "flow_prediction": lambda s, d: (1 / (1 + s), 1 / (1 + s), -s / (1 + s)),
}


def coefficients(config: NoiseConfig, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """c_in, c_skip and c_out at each sigma, float64, of sigma's shape."""
    return PREDICTION_TYPES[config.predicts](sigma.to(torch.float64), config.sigma_data)


@functools.lru_cache(maxsize=1000)
def scalars(noise: Noise, sigma: float) -> tuple[float, float, float, float]:
    """c_in, c_skip, c_out and the time at one sigma: 0.1 ms of small tensors, which other pictures need, too."""
    at = torch.tensor(sigma, dtype=torch.float64)
    c_in, c_skip, c_out = (c.item() for c in coefficients(noise.config, at))
    return c_in, c_skip, c_out, noise.timestep(at).item()


@dataclass(frozen=True)
class Denoiser:
    """D(x, sigma, text) => x0. The network runs in `dtype`; all around it stays in x's own precision."""

    network: Any  # a Network that may also have `context(text)`
    noise: Noise
    dtype: torch.dtype = torch.float32

    def __call__(self, x: Tensor, sigma: Tensor | float, text: Any, copies: int = 1) -> Tensor:
        """The expected x0 of x [B, C, h, w], all at one sigma; `text` is what the network takes.

        With `copies` x goes in so many times, one after the other, each under another text. Copies of one row are
        a view, whose stride tells the network that they are equal.
        """
        c_in, c_skip, c_out, time = scalars(self.noise, float(sigma))
        noisy, x = (h.expand(copies, *h.shape).flatten(0, 1) for h in ((c_in * x).to(self.dtype), x))
        t = torch.full(x.shape[:1], time, dtype=torch.float32)  # [B], on the CPU: to look at it waits for no device
        return c_skip * x + c_out * self.network(noisy, t, text).to(x.dtype)

    def context(self, text: Any) -> Any:
        """What the network computes once of the text for all steps; if nothing, the text."""
        return self.network.context(text) if hasattr(self.network, "context") else text


@dataclass(frozen=True)
class Loss:
    """The mean squared error of the network's prediction, per sample.

    With `min_snr_gamma` each sample's error is weighted as if the network predicted x0 and the loss were
    min(SNR, gamma) times that (Hang et al. 2023, section 3.4): c_out^2 carries one error to the other.
    """

    noise: Noise
    min_snr_gamma: float | None = None

    def __call__(self, network: Network, x0: Tensor, eps: Tensor, t: Tensor, text: Any) -> Tensor:
        """The loss [B] for clean latents x0 and noise eps [B, C, h, w], at times t [B] (`Noise.quantile`)."""
        sigma = self.noise.sigma(t)  # [B]
        c_in, c_skip, c_out = (per_sample(c, x0) for c in coefficients(self.noise.config, sigma))
        x = x0 + per_sample(sigma, x0) * eps
        target = (x0 - c_skip * x) / c_out  # Karras et al. 2022, equation 8
        prediction = network(c_in * x, t.to(x0.device), text)
        error = (prediction.float() - target).square().flatten(1).mean(1)  # [B]
        if self.min_snr_gamma is None:
            return error
        snr = sigma**-2
        return error * (snr.clamp(max=self.min_snr_gamma).to(error) * c_out.flatten() ** 2)


def logit_normal(normal: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """Numbers in (0, 1) for `Noise.quantile` from standard normal ones (Esser et al. 2024, section 3.1)."""
    return torch.sigmoid(mean + std * normal)


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    return values.to(like).view(-1, *[1] * (like.dim() - 1))  # [B] => [B, 1, 1, 1]
