"""The schedulers of diffusers that are followed: which sampler each is, and how it reads its configuration."""

from dataclasses import dataclass, field
from typing import Any

Solver = tuple[str, dict[str, Any]]  # one of several samplers that a scheduler is, and what it is told


@dataclass(frozen=True)
class Scheduler:
    """How one scheduler of diffusers reads the configuration that they all share."""

    sampler: str  # the sampler here that takes its steps
    knows: frozenset[str]  # the fields of NoiseConfig that not all of them have
    whole_times: bool = False  # rounds times; multiplies the first noise by sqrt(1 + sigma^2), not by sigma
    skips_last: bool = False  # spaces steps + 1 times and leaves out the last
    leaps: bool = False  # its steps are of T // steps times: see `schedules.leap`
    stops_short: bool = False  # its grid ends at the least sigma, whatever the configuration says
    ignores: frozenset[str] = frozenset()  # fields of NoiseConfig that all others have
    defaults: dict[str, Any] = field(default_factory=dict)  # where its own differ from NoiseConfig's
    accepts: dict[str, tuple[Any, ...]] = field(default_factory=dict)  # of a key's values, those honoured here
    solvers: dict[tuple[str, int], Solver] = field(default_factory=dict)  # by `algorithm_type` and `solver_order`
    cannot: tuple[dict[str, Any], ...] = ()  # what, taken together, diffusers makes an error of, or no numbers


CURVES = frozenset({"use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"})
THRESHOLD = frozenset({"thresholding", "dynamic_thresholding_ratio", "sample_max_value"})
CLIP = THRESHOLD | {"clip_sample", "clip_sample_range"}
K_DIFFUSION = {"beta_start": 0.00085, "beta_end": 0.012}  # the defaults of some that come from there
# What EDM's schedulers do not have, and what they alone have.
DISCRETE = frozenset({"beta_start", "beta_end", "beta_schedule", "trained_betas", "timestep_spacing", "steps_offset"})
EDM = frozenset({"sigma_min", "sigma_max", "sigma_data", "sigma_schedule", "rho"})
MULTISTEP_KNOWS = frozenset(
    {"final_sigmas_type", "algorithm_type", "solver_order", "solver_type", "lower_order_final", "euler_at_final"}
    | THRESHOLD
)
OF_NOISE = frozenset({"dpmsolver", "sde-dpmsolver", "noise_prediction"})  # the algorithms
SOLVER_TYPES = ("midpoint", "heun")
MULTISTEP: dict[tuple[str, int], Solver] = {
    ("dpmsolver++", 1): ("ddim", {}),
    ("dpmsolver++", 2): ("dpmpp_2m", {}),
    ("dpmsolver++", 3): ("dpmpp_3m", {}),
    ("sde-dpmsolver++", 1): ("euler_ancestral", {}),
    ("sde-dpmsolver++", 2): ("dpmpp_2m_sde", {}),
    ("sde-dpmsolver++", 3): ("dpmpp_3m", {"sde": True}),
}
MULTISTEP_OF_NOISE: dict[tuple[str, int], Solver] = {
    ("dpmsolver", 1): ("ddim", {}),
    ("dpmsolver", 2): ("dpmpp_2m", {}),
    ("dpmsolver", 3): ("dpmpp_3m", {}),
    ("sde-dpmsolver", 1): ("dpmpp_2m_sde", {"first_order": True}),
    ("sde-dpmsolver", 2): ("dpmpp_2m_sde", {}),  # of a third order diffusers knows no formula
}
SINGLESTEP: dict[tuple[str, int], Solver] = {
    (algorithm, order): ("dpmpp_2s", {"order": order} | said)
    for algorithm, said in (("dpmsolver++", {}), ("sde-dpmsolver++", {"sde": True}), ("dpmsolver", {}))
    for order in (1, 2, 3)
}

SCHEDULERS: dict[str, Scheduler] = {
    "EulerDiscreteScheduler": Scheduler(
        sampler="euler", knows=CURVES | {"rescale_betas_zero_snr", "final_sigmas_type"}
    ),
    "EulerAncestralDiscreteScheduler": Scheduler(
        sampler="euler_ancestral", knows=frozenset({"rescale_betas_zero_snr"})
    ),
    "HeunDiscreteScheduler": Scheduler(sampler="heun", knows=CURVES, defaults=K_DIFFUSION),
    "KDPM2DiscreteScheduler": Scheduler(sampler="dpm_2", knows=CURVES, defaults=K_DIFFUSION),
    "KDPM2AncestralDiscreteScheduler": Scheduler(sampler="dpm_2_ancestral", knows=CURVES, defaults=K_DIFFUSION),
    "LMSDiscreteScheduler": Scheduler(sampler="lms", knows=CURVES),
    "DPMSolverSDEScheduler": Scheduler(sampler="dpmpp_sde", knows=CURVES, defaults=K_DIFFUSION),
    "DPMSolverMultistepScheduler": Scheduler(
        sampler="dpmpp_2m",
        knows=CURVES | MULTISTEP_KNOWS | {"rescale_betas_zero_snr", "use_lu_lambdas"},
        whole_times=True,
        skips_last=True,
        accepts={"solver_type": SOLVER_TYPES},
        solvers=MULTISTEP | MULTISTEP_OF_NOISE,
        cannot=(
            {"algorithm_type": "dpmsolver", "final_sigmas_type": "zero"},
            {"algorithm_type": "sde-dpmsolver", "final_sigmas_type": "zero"},
        ),
    ),
    "DPMSolverSinglestepScheduler": Scheduler(
        sampler="dpmpp_2s",
        knows=CURVES | MULTISTEP_KNOWS - {"euler_at_final"},
        whole_times=True,
        skips_last=True,
        ignores=frozenset({"timestep_spacing", "steps_offset"}),
        defaults={"lower_order_final": False},
        accepts={"solver_type": SOLVER_TYPES},
        solvers=SINGLESTEP,
        cannot=(
            {"algorithm_type": "dpmsolver", "final_sigmas_type": "zero"},
            {"algorithm_type": "dpmsolver", "thresholding": True},
        ),
    ),
    "UniPCMultistepScheduler": Scheduler(
        sampler="uni_pc",
        knows=CURVES
        | {"rescale_betas_zero_snr", "final_sigmas_type", "solver_order", "solver_type", "lower_order_final"}
        | {"disable_corrector", "predict_x0"}
        | THRESHOLD,
        whole_times=True,
        skips_last=True,
        defaults={"solver_type": "bh2"},
        cannot=({"predict_x0": False, "final_sigmas_type": "zero"},),
        accepts={"solver_order": (1, 2, 3), "solver_type": ("bh1", "bh2", "midpoint")},  # which is bh2 to it
    ),
    "DEISMultistepScheduler": Scheduler(
        sampler="deis",
        knows=CURVES | {"solver_order", "lower_order_final"} | THRESHOLD,
        whole_times=True,
        skips_last=True,
        stops_short=True,
        accepts={"algorithm_type": ("deis",), "solver_order": (1, 2, 3), "solver_type": ("logrho",)},
    ),
    "SASolverScheduler": Scheduler(
        sampler="sa_solver",
        knows=CURVES | {"algorithm_type", "predictor_order", "corrector_order", "lower_order_final"} | THRESHOLD,
        whole_times=True,
        skips_last=True,
        stops_short=True,
        defaults={"algorithm_type": "data_prediction"},
        accepts={
            "algorithm_type": ("data_prediction", "noise_prediction"),
            "predictor_order": (1, 2, 3, 4),
            "corrector_order": (1, 2, 3, 4),
            "tau_func": (None,),
        },
        cannot=({"algorithm_type": "noise_prediction", "thresholding": True},),
    ),
    "DDIMScheduler": Scheduler(
        sampler="ddim",
        knows=CLIP | {"rescale_betas_zero_snr", "set_alpha_to_one"},
        whole_times=True,
        leaps=True,
        defaults={"timestep_spacing": "leading", "clip_sample": True},
    ),
    "DDPMScheduler": Scheduler(
        sampler="ddpm",
        knows=CLIP | {"rescale_betas_zero_snr", "variance_type"},
        whole_times=True,
        defaults={"timestep_spacing": "leading", "clip_sample": True},
        accepts={"variance_type": ("fixed_small", "fixed_small_log", "fixed_large")},
    ),
    "PNDMScheduler": Scheduler(
        sampler="plms",
        knows=frozenset({"set_alpha_to_one", "skip_prk_steps"}),
        whole_times=True,
        leaps=True,
        defaults={"timestep_spacing": "leading", "set_alpha_to_one": False, "skip_prk_steps": False},
        accepts={"prediction_type": ("epsilon", "v_prediction")},
    ),
    "LCMScheduler": Scheduler(
        sampler="lcm",
        knows=CLIP | {"rescale_betas_zero_snr", "original_inference_steps", "timestep_scaling"},
        whole_times=True,
        ignores=frozenset({"timestep_spacing", "steps_offset"}),
        defaults={**K_DIFFUSION, "beta_schedule": "scaled_linear"},
    ),
    "TCDScheduler": Scheduler(
        sampler="tcd",
        knows=frozenset({"rescale_betas_zero_snr", "original_inference_steps"}),
        whole_times=True,
        stops_short=True,
        ignores=frozenset({"timestep_spacing", "steps_offset"}),
        defaults={**K_DIFFUSION, "beta_schedule": "scaled_linear"},
        accepts={"clip_sample": (True, False)},  # it clips nothing
    ),
    "EDMEulerScheduler": Scheduler(
        sampler="euler", knows=EDM | {"final_sigmas_type"}, ignores=DISCRETE, defaults={"sigma_data": 0.5},
        accepts={"prediction_type": ("epsilon", "v_prediction")},
    ),
    "EDMDPMSolverMultistepScheduler": Scheduler(
        sampler="dpmpp_2m",
        knows=EDM | MULTISTEP_KNOWS,
        ignores=DISCRETE,
        defaults={"sigma_data": 0.5},
        accepts={"solver_type": SOLVER_TYPES, "prediction_type": ("epsilon", "v_prediction")},
        solvers=MULTISTEP,
    ),
    "FlowMatchEulerDiscreteScheduler": Scheduler(
        sampler="euler", knows=frozenset({"shift"}), defaults={"prediction_type": "flow_prediction"}
    ),
}
