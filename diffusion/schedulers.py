"""What diffusers' `scheduler_config.json` says of a noise process, of the sampler and of its grid.

The names and meanings are those of that file: sampled as it asks, a network is shown the same sigmas and times
here as there. What would change the picture and cannot be honoured is refused by name.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from diffusion.checks import check_name
from diffusion.config import checked
from diffusion.scheduler_table import CURVES, OF_NOISE, SCHEDULERS, Solver
from diffusion.steps import Clip, Threshold

# What diffusers' files may also say: each key with the values under which it changes nothing here.
_HONOURED: dict[str, tuple[Any, ...]] = {
    "clip_sample": (False,),
    "interpolation_type": ("linear",),
    "invert_sigmas": (False,),
    "lambda_min_clipped": (-math.inf,),
    "shift_terminal": (None,),
    "sigma_max": (None,),
    "sigma_min": (None,),
    "solver_p": (None,),
    "stochastic_sampling": (False,),
    "timestep_type": ("discrete",),
    "use_dynamic_shifting": (False,),
    "use_flow_sigmas": (False,),
    "variance_type": (None, "fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"),
}
_INERT = {
    *("base_image_seq_len", "base_shift", "max_image_seq_len", "max_shift", "time_shift_type", "flow_shift"),
    "noise_sampler_seed",
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
    use_karras_sigmas: bool = False  # one of the four, at most: see `schedules`
    use_exponential_sigmas: bool = False
    use_beta_sigmas: bool = False
    use_lu_lambdas: bool = False  # exponential sigmas with other times
    set_alpha_to_one: bool = True  # False: DDIM and PNDM end at sigmas[0] and not at 0
    skip_prk_steps: bool = True  # False: PNDM begins with steps of Runge and Kutta's
    final_sigmas_type: str = "zero"  # zero | sigma_min: the same question, as the other schedulers put it
    algorithm_type: str = "dpmsolver++"  # or dpmsolver, and sde- of both; SA-Solver's: {data,noise}_prediction
    solver_order: int = 2  # 1 | 2 | 3
    solver_type: str = "midpoint"  # midpoint | heun; UniPC's are bh1 | bh2
    lower_order_final: bool = True  # whether the last of few steps have lower orders
    euler_at_final: bool = False  # whether the last of many has order 1, too
    predictor_order: int = 2  # these two are SA-Solver's: 1 to 4
    corrector_order: int = 2
    predict_x0: bool = True  # False: UniPC predicts the noise in x
    disable_corrector: tuple[int, ...] = ()  # the steps that UniPC does not correct
    clip_sample: bool = False  # of x0 to +-clip_sample_range
    clip_sample_range: float = 1.0
    thresholding: bool = False  # of x0, instead: see `steps.Threshold`
    dynamic_thresholding_ratio: float = 0.995
    sample_max_value: float = 1.0
    variance_type: str = "fixed_small"  # fixed_small | fixed_small_log, which is the same | fixed_large: DDPM's noise
    original_inference_steps: int = 50  # the times that a consistency model was distilled at
    timestep_scaling: float = 10.0  # of LCM's time, where it asks how much of x to keep
    shift: float = 1.0  # of the flow's times (Esser et al. 2024, equation 23)
    sigma_min: float = 0.002  # these five are EDM's alone (Karras et al. 2022)
    sigma_max: float = 80.0
    sigma_data: float = 1.0  # the spread of x0
    sigma_schedule: str = "karras"  # karras | exponential
    rho: float = 7.0  # of equation 5

    def __post_init__(self) -> None:
        check_name("scheduler", self.scheduler, SCHEDULERS)
        _one_of("beta_schedule", self.beta_schedule, ("linear", "scaled_linear", "squaredcos_cap_v2"))
        _one_of("timestep_spacing", self.timestep_spacing, ("linspace", "leading", "trailing"))
        _one_of("final_sigmas_type", self.final_sigmas_type, ("zero", "sigma_min"))
        discrete = ("epsilon", "v_prediction", "sample")
        _one_of("prediction_type", self.prediction_type, ("flow_prediction",) if self.flow else discrete)
        scheduler = SCHEDULERS[self.scheduler]
        for key, allowed in scheduler.accepts.items():
            if key in _fields(self.scheduler):
                _one_of(f"{key} of {self.scheduler}", getattr(self, key), allowed)
        if scheduler.solvers:
            orders = [order for algorithm, order in scheduler.solvers if algorithm == self.algorithm_type]
            _one_of("algorithm_type", self.algorithm_type, dict.fromkeys(name for name, _ in scheduler.solvers))
            _one_of(f"solver_order with algorithm_type {self.algorithm_type!r}", self.solver_order, orders)
        for together in scheduler.cannot:
            if all(getattr(self, key) == value for key, value in together.items()):
                asked = " and ".join(f"{key} {value!r}" for key, value in together.items())
                raise ValueError(f"{self.scheduler} with {asked} is not supported: in diffusers, too, that fails.")
        if not 0 <= self.dynamic_thresholding_ratio <= 1 or self.sample_max_value <= 0:
            raise ValueError(
                f"dynamic_thresholding_ratio is {self.dynamic_thresholding_ratio} and sample_max_value "
                f"{self.sample_max_value}; expected a number from 0 to 1, and one above 0."
            )
        _one_of("sigma_schedule", self.sigma_schedule, ("karras", "exponential"))
        if not 0 < self.sigma_min < self.sigma_max or self.sigma_data <= 0 or self.rho <= 0:
            raise ValueError(
                f"sigma_min is {self.sigma_min}, sigma_max {self.sigma_max}, sigma_data {self.sigma_data} and rho "
                f"{self.rho}; expected numbers above 0, and a sigma_max above sigma_min."
            )
        curves = [*sorted(CURVES), "use_lu_lambdas"]
        if sum(getattr(self, curve) for curve in curves) > 1:
            raise ValueError(f"More than one of {', '.join(curves)} is true; expected one at most.")
        if not self.num_train_timesteps or not 0 < self.beta_start <= self.beta_end < 1:
            raise ValueError(
                f"num_train_timesteps is {self.num_train_timesteps}, beta_start {self.beta_start} and beta_end "
                f"{self.beta_end}; expected 1 or more, and betas that grow between 0 and 1."
            )
        if self.trained_betas is not None and len(self.trained_betas) != self.num_train_timesteps:
            raise ValueError(f"trained_betas has length {len(self.trained_betas)}, not num_train_timesteps.")

    @property
    def flow(self) -> bool:
        return "shift" in SCHEDULERS[self.scheduler].knows

    @property
    def edm(self) -> bool:
        return "sigma_data" in SCHEDULERS[self.scheduler].knows

    @property
    def distilled(self) -> bool:
        """Whether it is a consistency model's, whose grid is of the times that it was distilled at."""
        return "original_inference_steps" in SCHEDULERS[self.scheduler].knows

    @property
    def solver(self) -> Solver | None:
        """Which sampler it is of a scheduler that is several in one, and what that is told."""
        return SCHEDULERS[self.scheduler].solvers.get((self.algorithm_type, self.solver_order))

    @property
    def of_noise(self) -> bool:
        """Whether its solver predicts the noise in x, and not x0."""
        return self.algorithm_type in OF_NOISE or not self.predict_x0

    @property
    def predicts(self) -> str:
        """What the network predicts, in the names of `denoiser`: EDM's files say epsilon of the paper's own F."""
        return "edm_prediction" if self.edm and self.prediction_type == "epsilon" else self.prediction_type

    @property
    def sampler(self) -> str:
        """The name of the sampler that the configuration's scheduler corresponds to."""
        return self.solver[0] if self.solver else SCHEDULERS[self.scheduler].sampler

    @property
    def options(self) -> dict[str, Any]:
        """What the samplers that know it are told: as in diffusers, where one scheduler's file opens as another's."""
        knows = SCHEDULERS[self.scheduler].knows
        said: dict[str, Any] = {}
        if self.solver:
            said |= self.solver[1]
        elif "solver_order" in knows:
            said["order"] = self.solver_order
        if "predictor_order" in knows:
            said |= {"predictor": self.predictor_order, "corrector": self.corrector_order}
        if "solver_type" in knows:
            said["midpoint"] = self.solver_type != "heun"
        if not self.lower_order_final:
            said["few"] = 0
        if self.euler_at_final:
            said["euler_last"] = True
        if self.of_noise:
            said["of_noise"] = True
        if self.solver_type == "bh1":
            said["bh1"] = True
        if self.disable_corrector:
            said["uncorrected"] = self.disable_corrector
        if self.thresholding and self.predict_x0:
            limit = Threshold(self.dynamic_thresholding_ratio, self.sample_max_value)
            said["clip" if "clip_sample" in knows else "limit"] = limit
        elif self.clip_sample:
            said["clip"] = Clip(self.clip_sample_range)
        if self.variance_type == "fixed_large":
            said["large"] = True
        if "timestep_scaling" in knows:
            said["scaling"] = self.timestep_scaling
        if self.prediction_type == "v_prediction" and self.scheduler == "PNDMScheduler":
            said["velocity"] = True
        if not self.skip_prk_steps:
            said["runge_kutta"] = True
        return said

    @property
    def ends_at_zero(self) -> bool:
        """Whether the scheduler's own grid goes down to no noise at all."""
        short = SCHEDULERS[self.scheduler].stops_short
        return self.set_alpha_to_one and self.final_sigmas_type == "zero" and not short

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Self:
        """The configuration that a `scheduler_config.json` holds.

        Raises ValueError for a scheduler, key or value that would change the picture and cannot be honoured.
        A key that another scheduler would read and this one does not is passed over, as diffusers does.
        """
        name = config.get("_class_name", cls.scheduler)
        check_name("scheduler", name, SCHEDULERS)
        scheduler, known = SCHEDULERS[name], _fields(name)
        values: dict[str, Any] = {}
        for key, value in {**scheduler.defaults, **config}.items():
            if key in known:
                values |= {} if value is None and isinstance(getattr(cls, key), bool) else {key: value}
            elif key in scheduler.accepts:
                _one_of(f"{key} of {name}", value, scheduler.accepts[key])
            elif key in _HONOURED:
                _one_of(key, value, _HONOURED[key])
            elif key.startswith("_") or key in _INERT or key in ALL_FIELDS or value in (None, False):
                continue
            else:
                raise ValueError(f"{name} with {key}={value!r} is not supported; the key is unknown.")
        return cls(**{**checked(cls, values), "scheduler": name})

    def to_dict(self) -> dict[str, Any]:
        """A `scheduler_config.json` that says the same, in the keys that its scheduler knows."""
        known = _fields(self.scheduler)
        if self.flow:  # of the fields that the others share, it has the number of times alone
            known = SCHEDULERS[self.scheduler].knows | {"num_train_timesteps"}
        fields = asdict(self).items()
        kept = {key: [*value] if isinstance(value, tuple) else value for key, value in fields if key in known}
        return {"_class_name": self.scheduler, **kept}


ALL_FIELDS = frozenset(field.name for field in fields(NoiseConfig)) - {"scheduler"}


def _fields(name: str) -> frozenset[str]:
    """The fields of NoiseConfig that a scheduler reads."""
    scheduler = SCHEDULERS[name]
    special = frozenset[str]().union(*(other.knows for other in SCHEDULERS.values()))
    return (ALL_FIELDS - special - scheduler.ignores) | scheduler.knows


def _one_of(key: str, value: Any, allowed: Collection[Any]) -> None:
    if value not in allowed:
        raise ValueError(f"{key} is {value!r}; expected {' or '.join(map(repr, allowed))}.")
