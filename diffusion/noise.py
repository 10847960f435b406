"""The noise process: sigma is the only time coordinate.

A noised sample is x = x0 + sigma * eps ("variance exploding"). What a network was trained on is an adapter:
discrete betas as DDPM's (Ho et al. 2020), with sigma = sqrt((1 - abar) / abar), rectified flow (Liu et al. 2022), with
sigma = t / (1 - t), or EDM (Karras et al. 2022), with sigma = exp(4 t).
"""

import math

import torch
from torch import Tensor

from diffusion.scheduler_table import SCHEDULERS
from diffusion.schedulers import NoiseConfig

ZERO_SNR_ABAR = 2.0**-24  # what is left of the signal after a zero-SNR last step, as in diffusers: sigma 4096
FLOW_END = 1 - 2.0**-24  # the flow's t = 1 would have an infinite sigma; float32 cannot tell this t from it


class Noise:
    """One noise process.

    `sigmas` is its table, float64 [T], increasing. A time t is what the network is fed: a number from 0 to T,
    whole in training if the process is discrete, T times the flow's own t if it is a flow; EDM's t is a quarter of log
    sigma, and its table has T of them at even distances.
    """

    def __init__(self, config: NoiseConfig) -> None:
        self.config = config
        self.steps = config.num_train_timesteps
        if config.flow:
            t = torch.arange(1, self.steps + 1, dtype=torch.float64)
            self.sigmas = self.sigma(t)
        elif config.edm:
            lowest, highest = math.log(config.sigma_min), math.log(config.sigma_max)
            self.sigmas = torch.linspace(lowest, highest, self.steps, dtype=torch.float64).exp()
        else:
            abar = torch.cumprod(1 - betas(config), dim=0)
            if config.rescale_betas_zero_snr:  # a floor that falls by as much a step keeps sigmas increasing
                abar = torch.maximum(abar, ZERO_SNR_ABAR * torch.arange(self.steps, 0, -1))
            self.sigmas = ((1 - abar) / abar).sqrt().to(torch.float64)
        self.log_sigmas = self.sigmas.log()

    def sigma(self, t: Tensor | float) -> Tensor:
        """The sigma of each time, float64; between whole times on the straight line that diffusers draws."""
        t = torch.as_tensor(t, dtype=torch.float64)
        if self.config.flow:
            t = (t / self.steps).clamp(max=FLOW_END)
            return t / (1 - t)
        if self.config.edm:
            return (4 * t).exp()
        return interpolate(t, self.sigmas.to(t.device))

    def timestep(self, sigma: Tensor | float) -> Tensor:
        """The time of each sigma, float64, clamped to the table.

        Between whole times it is linear in log sigma, so not quite the inverse of `sigma`, linear in sigma.
        Both are diffusers' rules; they agree at whole times.
        """
        sigma = torch.as_tensor(sigma, dtype=torch.float64)
        if self.config.flow:
            return self.steps * sigma / (1 + sigma)
        if self.config.edm:
            return sigma.log() / 4  # c_noise of Karras et al. 2022, table 1
        knots = self.log_sigmas.to(sigma.device)
        log = sigma.log().clamp(knots[0], knots[-1])
        low = (torch.searchsorted(knots, log, right=True) - 1).clamp(max=self.steps - 2)
        t = low + (log - knots[low]) / (knots[low + 1] - knots[low])
        if SCHEDULERS[self.config.scheduler].whole_times:  # and their curves' times are made whole, too
            if self.config.use_karras_sigmas or self.config.use_lu_lambdas:
                return t.round()
            if self.config.use_exponential_sigmas or self.config.use_beta_sigmas:
                return t.floor()
        return t

    def earlier(self, sigma: float, share: float) -> float:
        """The sigma at a share of sigma's time, cut to a whole one; EDM's time has no beginning to count from."""
        if self.config.edm:
            return share * sigma
        time = torch.tensor(self.time(sigma))  # float32, in which the product is diffusers', too
        return self.sigma((share * time).floor()).item()

    def time(self, sigma: float) -> float:
        """The time of a sigma as a number of the table's own, between which float64 might fall short of it."""
        return self.timestep(sigma).float().item()

    def quantile(self, q: Tensor) -> Tensor:
        """Training times [B] for numbers q [B] in [0, 1): uniform if q is, and whole ones if discrete."""
        if self.config.edm:
            first, last = self.timestep(self.sigmas[[0, -1]]).tolist()
            return first + q * (last - first)
        return q * self.steps if self.config.flow else (q * self.steps).long().clamp(max=self.steps - 1)

    def start(self, sigma: float) -> float:
        """What unit noise is multiplied by to be the first x, at `sigma`: the spread of x if x0's is 1.

        Some schedulers of diffusers take sigma alone: 0.2 % less at Stable Diffusion's first sigma, 14.6.
        """
        if self.config.flow:
            return 1 + sigma  # so that the network, which sees x / (1 + sigma), is given the noise itself
        whole_times = SCHEDULERS[self.config.scheduler].whole_times
        spread = whole_times or self.config.edm or self.config.timestep_spacing == "leading"
        return math.hypot(1, sigma) if spread else sigma


def betas(config: NoiseConfig) -> Tensor:
    """The variances added at each step (Ho et al. 2020, section 2) [T], float32 as in training's tables."""
    steps = config.num_train_timesteps
    if config.trained_betas is not None:
        beta = torch.tensor(config.trained_betas)
    elif config.beta_schedule == "linear":
        beta = torch.linspace(config.beta_start, config.beta_end, steps)
    elif config.beta_schedule == "scaled_linear":  # linear in sqrt(beta): Rombach et al. 2022
        beta = torch.linspace(config.beta_start**0.5, config.beta_end**0.5, steps) ** 2
    else:  # cosine: Nichol & Dhariwal 2021, equation 17, with beta at most 0.999
        t = torch.arange(steps + 1, dtype=torch.float64) / steps
        abar = torch.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
        beta = (1 - abar[1:] / abar[:-1]).clamp(max=0.999).to(torch.float32)
    return zero_terminal_snr(beta) if config.rescale_betas_zero_snr else beta


def zero_terminal_snr(beta: Tensor) -> Tensor:
    """Betas whose last step leaves no signal: sqrt(abar) shifted, scaled (Lin et al. 2024, algorithm 1)."""
    root = torch.cumprod(1 - beta, dim=0).sqrt()
    root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
    abar = root**2
    return 1 - torch.cat([abar[:1], abar[1:] / abar[:-1]])


def interpolate(t: Tensor, table: Tensor) -> Tensor:
    """The table at times between its own, on straight lines."""
    low = t.floor().long().clamp(0, len(table) - 2)
    return torch.lerp(table[low], table[low + 1], t - low)
