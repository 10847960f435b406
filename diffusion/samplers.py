"""Samplers: from noise to data, given a denoiser.

Each is a function (denoise, x, sigmas, noise) => x0 without state:
    denoise(x, sigma)   the expected x0 of x = x0 + sigma * eps, all of the batch at one sigma
    x                   noise at sigmas[0], [B, ...] (see `Noise.start`)
    sigmas              decreasing, to 0 as a rule; if to more, what returns is x at the last of them
    noise()             one draw of standard normal numbers of x's shape, independent of all others
and, for some, keywords: `options` tells which of those that a request may set.
"""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor

from diffusion import correctors, dpm, ode, sde
from diffusion.schedules import SCHEDULE_NAMES

Sampler = Callable[..., Tensor]  # (Denoise, Tensor, Tensor, Draw, **options) => Tensor

# Our names are ComfyUI's, where it has one. The last four are what files of diffusers' schedulers ask for, besides.
SAMPLERS: dict[str, Sampler] = {
    "euler": ode.euler,
    "euler_ancestral": sde.euler_ancestral,
    "heun": ode.heun,
    "dpmpp_2m": dpm.dpmpp_2m,
    "ddim": sde.ddim,
    "ddpm": sde.ddpm,
    "uni_pc": correctors.uni_pc,
    "dpm_2": ode.dpm_2,
    "dpm_2_ancestral": sde.dpm_2_ancestral,
    "lms": ode.lms,
    "plms": ode.plms,
    "dpmpp_2s_ancestral": sde.dpmpp_2s_ancestral,
    "dpmpp_sde": sde.dpmpp_sde,
    "dpmpp_2m_sde": dpm.dpmpp_2m_sde,
    "dpmpp_2m_sde_heun": dpm.dpmpp_2m_sde_heun,
    "dpmpp_3m_sde": dpm.dpmpp_3m_sde,
    "lcm": sde.lcm,
    "tcd": sde.tcd,
    "restart": sde.restart,
    "dpmpp_2s": dpm.dpmpp_2s,
    "dpmpp_3m": dpm.dpmpp_3m,
    "deis": ode.deis,
    "sa_solver": correctors.sa_solver,
}

# And those of AUTOMATIC1111's web UI. Both are understood.
SAMPLER_NAMES = {
    "euler": "Euler",
    "euler_ancestral": "Euler a",
    "heun": "Heun",
    "dpmpp_2m": "DPM++ 2M",
    "ddim": "DDIM",
    "ddpm": "DDPM",
    "uni_pc": "UniPC",
    "dpm_2": "DPM2",
    "dpm_2_ancestral": "DPM2 a",
    "lms": "LMS",
    "plms": "PLMS",
    "dpmpp_2s_ancestral": "DPM++ 2S a",
    "dpmpp_sde": "DPM++ SDE",
    "dpmpp_2m_sde": "DPM++ 2M SDE",
    "dpmpp_2m_sde_heun": "DPM++ 2M SDE Heun",
    "dpmpp_3m_sde": "DPM++ 3M SDE",
    "lcm": "LCM",
    "tcd": "TCD",
    "restart": "Restart",
    "dpmpp_2s": "DPM++ 2S",
    "dpmpp_3m": "DPM++ 3M",
    "deis": "DEIS",
    "sa_solver": "SA-Solver",
}

# The samplers that the web UI gives one sigma more and then takes the last but one away from.
DISCARDS_PENULTIMATE = frozenset({"dpm_2", "dpm_2_ancestral", "dpmpp_3m_sde"})

# Every way in which a sampler is called, in lower case: "Euler a", "k_euler_a", "sample_euler_ancestral", ...
_SPELLINGS = {
    spelling: ours
    for ours, theirs in SAMPLER_NAMES.items()
    for name in (ours, ours.replace("_ancestral", "_a"))
    for spelling in (theirs.lower(), name, f"k_{name}", f"sample_{name}", f"{name}_gpu")
} | {"unipc": "uni_pc", "pndm": "plms"}
_ENDINGS = {f" {theirs.lower()}": ours for ours, theirs in SCHEDULE_NAMES.items()}
_ENDINGS |= {"_ka": "karras", "_exp": "exponential"}

# The keywords that a request may set. The others are for what a model's configuration says.
OPTIONS = ("eta", "s_churn", "s_tmin", "s_tmax", "s_noise")


def options(name: str) -> dict[str, float]:
    """The options that a request may set of a sampler, with its own values."""
    parameters = inspect.signature(SAMPLERS[name]).parameters
    return {option: parameters[option].default for option in OPTIONS if option in parameters}


def effective(name: str, said: Mapping[str, float | None]) -> dict[str, float]:
    """What of the options said changes what a sampler does.

    Raises ValueError for an option that it has not, unless its value means that nothing be done.
    """
    own = options(name)
    idle = {"s_tmin", "s_tmax"} if not said["s_churn"] else set()
    if idle and "s_churn" in own:
        idle.add("s_noise")
    effective = {}
    for option, value in said.items():
        if value is None or option in idle or value == own.get(option, 1 if option == "s_noise" else 0):
            continue
        if option not in own:
            able = ", ".join(other for other in SAMPLERS if option in options(other))
            raise ValueError(f"The sampler {name} has no option {option}; leave it out, or choose one of {able}.")
        effective[option] = float(value)
    return effective


def sampler(name: str, said: Mapping[str, Any]) -> Sampler:
    """A sampler with those of the options said that it knows; a `limit` is what any is given its x0 within."""
    known = inspect.signature(SAMPLERS[name]).parameters
    told = partial(SAMPLERS[name], **{option: value for option, value in said.items() if option in known})
    if (limit := said.get("limit")) is None:
        return told
    return lambda denoise, *others: told(lambda x, sigma: limit(denoise(x, sigma)), *others)


def our_sampler(name: str) -> tuple[str, str | None]:
    """A sampler's name in ours, whoever's it is, and the grid's that older programs fold into it, if one is.

    A name that is not known comes back as it is.
    """
    text = name.strip().lower()
    if text in _SPELLINGS:
        return _SPELLINGS[text], None
    for ending, grid in _ENDINGS.items():
        if text.endswith(ending) and (ours := _SPELLINGS.get(text.removesuffix(ending))) is not None:
            return ours, grid
    return name, None
