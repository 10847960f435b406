"""The noise process: sigma is the only time coordinate.

A noised sample is x = x0 + sigma * eps ("variance exploding"). What a network was trained on is an adapter:
discrete betas as DDPM's (Ho et al. 2020), with sigma = sqrt((1 - abar) / abar), or rectified flow (Liu et al.
2022), with sigma = t / (1 - t). The names and meanings of the configuration are those of diffusers'
`scheduler_config.json`: sampled as it asks, a network is shown the same sigmas and times here as there.
"""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

import torch
from torch import Tensor

ZERO_SNR_ABAR = 2.0**-24  # what is left of the signal after a zero-SNR last step, as in diffusers: sigma 4096
FLOW_END = 1 - 2.0**-24  # the flow's t = 1 would have an infinite sigma; float32 cannot tell this t from it


@dataclass(frozen=True)
class Scheduler:
    """How one scheduler of diffusers reads the configuration that they all share."""

    sampler: str  # the sampler here that takes its steps
    knows: frozenset[str]  # the fields of NoiseConfig that not all of them have
    whole_times: bool = False  # rounds times; multiplies the first noise by sqrt(1 + sigma^2), not by sigma
    skips_last: bool = False  # spaces steps + 1 times and leaves out the last
    defaults: dict[str, Any] = field(default_factory=dict)  # where its own differ from NoiseConfig's
    states: dict[str, Any] = field(default_factory=dict)  # what else its file must say


SCHEDULERS: dict[str, Scheduler] = {
    "EulerDiscreteScheduler": Scheduler(
        sampler="euler", knows=frozenset({"rescale_betas_zero_snr", "use_karras_sigmas", "final_sigmas_type"})
    ),
    "EulerAncestralDiscreteScheduler": Scheduler(
        sampler="euler_ancestral", knows=frozenset({"rescale_betas_zero_snr"})
    ),
    "HeunDiscreteScheduler": Scheduler(
        sampler="heun",
        knows=frozenset({"use_karras_sigmas"}),
        defaults={"beta_start": 0.00085, "beta_end": 0.012},
    ),
    "DPMSolverMultistepScheduler": Scheduler(
        sampler="dpmpp_2m",
        knows=frozenset({"rescale_betas_zero_snr", "use_karras_sigmas", "final_sigmas_type"}),
        whole_times=True,
        skips_last=True,
        states={"algorithm_type": "dpmsolver++", "solver_order": 2, "solver_type": "midpoint"},
    ),
    "UniPCMultistepScheduler": Scheduler(
        sampler="uni_pc",
        knows=frozenset({"rescale_betas_zero_snr", "use_karras_sigmas", "final_sigmas_type"}),
        whole_times=True,
        skips_last=True,
        states={"solver_order": 2, "solver_type": "bh2"},
    ),
    "DDIMScheduler": Scheduler(  # diffusers' leaves its own grid under `linspace`; here it stays on it
        sampler="ddim",
        knows=frozenset({"rescale_betas_zero_snr", "set_alpha_to_one"}),
        whole_times=True,
        defaults={"timestep_spacing": "leading", "clip_sample": True},
        states={"clip_sample": False},
    ),
    "DDPMScheduler": Scheduler(
        sampler="ddpm",
        knows=frozenset({"rescale_betas_zero_snr"}),
        whole_times=True,
        defaults={"timestep_spacing": "leading", "clip_sample": True},
        states={"clip_sample": False},
    ),
    "PNDMScheduler": Scheduler(  # its times; its steps (PLMS) are not here, and DDIM's stand in for them
        sampler="ddim",
        knows=frozenset({"set_alpha_to_one"}),
        whole_times=True,
        defaults={"timestep_spacing": "leading", "set_alpha_to_one": False},
        states={"skip_prk_steps": True},
    ),
    "FlowMatchEulerDiscreteScheduler": Scheduler(
        sampler="euler", knows=frozenset({"shift"}), defaults={"prediction_type": "flow_prediction"}
    ),
}

# What diffusers' files may also say: each key with the values under which it changes nothing here.
_HONOURED: dict[str, tuple[Any, ...]] = {
    "algorithm_type": ("dpmsolver++",),
    "clip_sample": (False,),
    "disable_corrector": ([],),
    "interpolation_type": ("linear",),
    "invert_sigmas": (False,),
    "lambda_min_clipped": (-math.inf,),
    "lower_order_final": (True,),
    "predict_x0": (True,),
    "shift_terminal": (None,),
    "sigma_max": (None,),
    "sigma_min": (None,),
    "solver_order": (2,),
    "solver_p": (None,),
    "solver_type": ("midpoint", "bh2"),
    "stochastic_sampling": (False,),
    "thresholding": (False,),
    "timestep_type": ("discrete",),
    "use_beta_sigmas": (False, None),
    "use_dynamic_shifting": (False,),
    "use_exponential_sigmas": (False, None),
    "use_flow_sigmas": (False,),
    "use_lu_lambdas": (False,),
    "variance_type": (None, "fixed_small"),
}
_INERT = {
    *("base_image_seq_len", "base_shift", "max_image_seq_len", "max_shift", "time_shift_type", "flow_shift"),
    *("clip_sample_range", "dynamic_thresholding_ratio", "sample_max_value"),
    *("euler_at_final", "skip_prk_steps"),
}


@dataclass(frozen=True)
class NoiseConfig:
    """The fields of diffusers' `scheduler_config.json`; `scheduler` is its `_class_name`."""

    scheduler: str = "EulerDiscreteScheduler"
    prediction_type: str = "epsilon"  # epsilon | v_prediction | sample | flow_prediction
    num_train_timesteps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: str = "linear"  # linear | scaled_linear | squaredcos_cap_v2
    trained_betas: tuple[float, ...] | None = None  # replaces the three above
    rescale_betas_zero_snr: bool = False
    timestep_spacing: str = "linspace"  # linspace | leading | trailing
    steps_offset: int = 0  # added to `leading` times
    use_karras_sigmas: bool = False
    set_alpha_to_one: bool = True  # False: DDIM and PNDM end at sigmas[0] and not at 0
    final_sigmas_type: str = "zero"  # zero | sigma_min: the same question, as the other schedulers put it
    shift: float = 1.0  # of the flow's times (Esser et al. 2024, equation 23)

    def __post_init__(self) -> None:
        _one_of("scheduler", self.scheduler, SCHEDULERS)
        _one_of("beta_schedule", self.beta_schedule, ("linear", "scaled_linear", "squaredcos_cap_v2"))
        _one_of("timestep_spacing", self.timestep_spacing, ("linspace", "leading", "trailing"))
        _one_of("final_sigmas_type", self.final_sigmas_type, ("zero", "sigma_min"))
        discrete = ("epsilon", "v_prediction", "sample")
        _one_of("prediction_type", self.prediction_type, ("flow_prediction",) if self.flow else discrete)
        if self.trained_betas is not None and len(self.trained_betas) != self.num_train_timesteps:
            raise ValueError(f"trained_betas has length {len(self.trained_betas)}, not num_train_timesteps.")

    @property
    def flow(self) -> bool:
        return self.scheduler == "FlowMatchEulerDiscreteScheduler"

    @property
    def sampler(self) -> str:
        """The name of the sampler that the configuration's scheduler corresponds to."""
        return SCHEDULERS[self.scheduler].sampler

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Self:
        """The configuration that a `scheduler_config.json` holds.

        Raises ValueError for a scheduler, key or value that would change the picture and cannot be honoured.
        """
        scheduler = config.get("_class_name", cls.scheduler)
        _one_of("_class_name", scheduler, SCHEDULERS)
        names = {field.name for field in fields(cls)}
        values: dict[str, Any] = {}
        for key, value in {**SCHEDULERS[scheduler].defaults, **config}.items():
            if key in names:
                values[key] = tuple(value) if isinstance(value, list) else value
            elif key in _HONOURED:
                _one_of(key, value, _HONOURED[key])
            elif not key.startswith("_") and key not in _INERT and value not in (None, False):
                raise ValueError(f"{scheduler} with {key}={value!r} is not supported; the key is unknown.")
        return cls(**{**values, "scheduler": scheduler})

    def to_dict(self) -> dict[str, Any]:
        """A `scheduler_config.json` that says the same, in the keys that its scheduler knows."""
        scheduler = SCHEDULERS[self.scheduler]
        foreign = frozenset[str]().union(*(other.knows for other in SCHEDULERS.values())) - scheduler.knows
        if self.flow:  # of the fields that the others share, it has the number of times alone
            foreign |= {field.name for field in fields(self)} - scheduler.knows - {"num_train_timesteps"}
        kept = {key: value for key, value in asdict(self).items() if key not in foreign | {"scheduler"}}
        return {"_class_name": self.scheduler, **kept, **scheduler.states}


class Noise:
    """One noise process, and the grids of sigmas to sample it on.

    `sigmas` is its table, float64 [T], increasing. A time t is what the network is fed: a number from 0 to T,
    whole in training if the process is discrete, T times the flow's own t if it is a flow.
    """

    def __init__(self, config: NoiseConfig) -> None:
        self.config = config
        self.steps = config.num_train_timesteps
        if config.flow:
            t = torch.arange(1, self.steps + 1, dtype=torch.float64)
            self.sigmas = self.sigma(t)
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
        return _interpolate(t, self.sigmas.to(t.device))

    def timestep(self, sigma: Tensor | float) -> Tensor:
        """The time of each sigma, float64, clamped to the table.

        Between whole times it is linear in log sigma, so not quite the inverse of `sigma`, linear in sigma.
        Both are diffusers' rules; they agree at whole times.
        """
        sigma = torch.as_tensor(sigma, dtype=torch.float64)
        if self.config.flow:
            return self.steps * sigma / (1 + sigma)
        knots = self.log_sigmas.to(sigma.device)
        log = sigma.log().clamp(knots[0], knots[-1])
        low = (torch.searchsorted(knots, log, right=True) - 1).clamp(max=self.steps - 2)
        t = low + (log - knots[low]) / (knots[low + 1] - knots[low])
        rounds = self.config.use_karras_sigmas and SCHEDULERS[self.config.scheduler].whole_times
        return t.round() if rounds else t

    def quantile(self, q: Tensor) -> Tensor:
        """Training times [B] for numbers q [B] in [0, 1): uniform if q is, and whole ones if discrete."""
        return q * self.steps if self.config.flow else (q * self.steps).long().clamp(max=self.steps - 1)

    def start(self, sigma: float) -> float:
        """What unit noise is multiplied by to be the first x, at `sigma`: the spread of x if x0's is 1.

        Some schedulers of diffusers take sigma alone: 0.2 % less at Stable Diffusion's first sigma, 14.6.
        """
        if self.config.flow:
            return 1 + sigma  # so that the network, which sees x / (1 + sigma), is given the noise itself
        whole_times = SCHEDULERS[self.config.scheduler].whole_times
        return math.hypot(1, sigma) if whole_times or self.config.timestep_spacing == "leading" else sigma

    def schedule(self, name: str, steps: int) -> Tensor:
        """The sigmas of a grid of SCHEDULES, float64 [steps + 1], decreasing to where sampling ends: to 0."""
        if steps < 1:
            raise ValueError(f"{steps} steps: expected at least 1.")
        return SCHEDULES[name](self, steps)


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


def _normal(noise: Noise, steps: int) -> Tensor:
    """Equal steps of the network's time, from the most noise to the least, then 0."""
    first = 1.0 if noise.config.flow else 0.0  # the flow's time 0 is sigma 0 itself
    times = torch.linspace(noise.steps - 1 + first, first, steps, dtype=torch.float64)
    return _end(noise.sigma(times), 0.0)


def _karras(noise: Noise, steps: int) -> Tensor:
    """Karras et al. 2022, equation 5, over the whole table."""
    return _end(_equation_5(noise.sigmas[-1], noise.sigmas[0], steps), 0.0)


def _automatic(noise: Noise, steps: int) -> Tensor:
    """The grid that the configuration's own scheduler samples on."""
    config, scheduler = noise.config, SCHEDULERS[noise.config.scheduler]
    last = 0.0
    if config.final_sigmas_type == "sigma_min" or not config.set_alpha_to_one:
        last = noise.sigmas[0].item()
    if config.flow:
        return _end(noise.sigma(_flow_times(noise.steps, config.shift, steps)), last)
    sigmas = noise.sigma(_spaced_times(config, scheduler, steps))
    if config.use_karras_sigmas:  # over the grid's own range, or the table's where times are whole
        ends = noise.sigmas.flip(0) if scheduler.whole_times else sigmas
        sigmas = _equation_5(ends[0], ends[-1], steps)
    return _end(sigmas, last)


SCHEDULES: dict[str, Callable[[Noise, int], Tensor]] = {
    "automatic": _automatic,
    "normal": _normal,
    "karras": _karras,
}


def _spaced_times(config: NoiseConfig, scheduler: Scheduler, steps: int) -> Tensor:
    """The times of Lin et al. 2024, table 2, decreasing, float64 [steps]."""
    count, points = config.num_train_timesteps, steps + scheduler.skips_last
    if points > count:
        raise ValueError(f"{steps} steps are too many: {config.scheduler} has {count} times for them.")
    if config.timestep_spacing == "trailing":
        times = (count - torch.arange(steps, dtype=torch.float64) * (count / steps)).round() - 1
    elif config.timestep_spacing == "leading":
        times = (torch.arange(points).flip(0) * (count // points) + config.steps_offset).to(torch.float64)
    else:
        times = torch.arange(points, dtype=torch.float64).flip(0) * ((count - 1) / max(points - 1, 1))
        times = times.round() if scheduler.whole_times else times
    return times[:steps].clamp(max=count - 1)


def _flow_times(count: int, shift: float, steps: int) -> Tensor:
    """From T to 1, shifted; the last is shifted twice, as diffusers does it. Float64 [steps]."""

    def shifted(t: Tensor) -> Tensor:
        return shift * t / (1 + (shift - 1) * t)

    last = shifted(torch.tensor(1 / count, dtype=torch.float64)).item()
    return count * shifted(torch.linspace(1.0, last, steps, dtype=torch.float64))


def _equation_5(sigma_max: Tensor, sigma_min: Tensor, steps: int, rho: float = 7.0) -> Tensor:
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return (high + ramp * (low - high)) ** rho


def _interpolate(t: Tensor, table: Tensor) -> Tensor:
    low = t.floor().long().clamp(0, len(table) - 2)
    return torch.lerp(table[low], table[low + 1], t - low)


def _end(sigmas: Tensor, last: float) -> Tensor:
    return torch.cat([sigmas, sigmas.new_tensor([last])])


def _one_of(key: str, value: Any, allowed: Collection[Any]) -> None:
    if value not in allowed:
        raise ValueError(f"{key} is {value!r}; expected {' or '.join(map(repr, allowed))}.")
