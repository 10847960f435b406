"""Grids of sigmas: the web UI's numbers, their ends, lists of one's own. The models' own grids: `test_noise`."""

import pytest
import torch

from diffusion.noise import Noise
from diffusion.schedulers import NoiseConfig
from diffusion.schedules import SCHEDULE_NAMES, SCHEDULES, beta, our_schedule, schedule

STABLE_DIFFUSION = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@pytest.fixture(scope="module")
def noise() -> Noise:
    return Noise(NoiseConfig(**STABLE_DIFFUSION))


# AUTOMATIC1111's formulas, by numpy 2.4 and scipy 1.17, on Stable Diffusion's sigmas; 7 steps.
WEB_UI = [
    ("uniform", [14.61465, 5.948901, 2.918308, 1.615581, 0.9323584, 0.4935522, 0.02916753, 0]),
    ("exponential", [14.61465, 5.185694, 1.840032, 0.652896, 0.2316662, 0.08220177, 0.02916753, 0]),
    ("polyexponential", [14.61465, 5.185694, 1.840032, 0.652896, 0.2316662, 0.08220177, 0.02916753, 0]),
    ("sgm_uniform", [14.61465, 6.678002, 3.522058, 2.060642, 1.276833, 0.7912604, 0.4396663, 0]),
    ("simple", [14.61465, 6.701632, 3.528205, 2.061672, 1.276236, 0.7900615, 0.4380623, 0]),
    ("ddim", [6.570652, 3.485456, 2.047313, 1.272063, 0.7900615, 0.4403096, 0.04131448, 0]),
    ("beta", [14.61465, 13.28027, 10.59761, 7.321907, 4.046202, 1.363546, 0.02916753, 0]),
    ("kl_optimal", [14.61465, 3.493485, 1.878124, 1.187867, 0.7770374, 0.4831877, 0.2443282, 0.02916753]),
    ("align_your_steps", [14.615, 4.587187, 2.393873, 1.396, 0.7425183, 0.2892432, 0.029, 0]),
]


@pytest.mark.parametrize(("name", "golden"), WEB_UI)
def test_the_web_uis_grids(noise: Noise, name: str, golden: list[float]) -> None:
    # Between whole times it draws straight lines in log sigma, and we, as diffusers, in sigma: 1e-5 of it.
    assert schedule(noise, name, 7).tolist() == pytest.approx(golden, rel=2e-5)


def test_golden_grids(noise: Noise) -> None:
    normal, karras = schedule(noise, "normal", 4).tolist(), schedule(noise, "karras", 4).tolist()
    assert normal == pytest.approx([14.61465, 2.918308, 0.9323584, 0.02916753, 0], rel=1e-5)
    assert karras == pytest.approx([14.61465, 3.168611, 0.4469209, 0.02916753, 0], rel=1e-5)


def test_align_your_steps_has_a_table_for_xl(noise: Noise) -> None:
    golden = [14.615, 4.478117, 1.855046, 0.862, 0.4311417, 0.1835848, 0.029, 0]
    assert schedule(noise, "align_your_steps", 7, xl=True).tolist() == pytest.approx(golden, rel=1e-6)


def test_beta_is_scipys_quantile() -> None:
    upper = [1, 0.942843636377586, 0.824319621347305, 0.6706185042786161]  # of 0.6 and 0.6, by scipy 1.17
    golden = [*upper, 0.5, *(1 - quantile for quantile in reversed(upper))]
    assert beta(1.0, 0.0, 9).tolist() == pytest.approx(golden, abs=1e-14)


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_grid_decreases_to_its_end(name: str) -> None:
    for scheduler in ("EulerDiscreteScheduler", "DEISMultistepScheduler", "FlowMatchEulerDiscreteScheduler"):
        kind = "flow_prediction" if scheduler.startswith("Flow") else "epsilon"
        noise = Noise(NoiseConfig(scheduler=scheduler, prediction_type=kind))
        above = name == "kl_optimal" or (name == "automatic" and scheduler.startswith("DEIS"))
        for steps in (1, 3, 30):
            grid = schedule(noise, name, steps)
            assert grid.dtype == torch.float64
            assert grid.shape == (steps + 1,)
            assert (grid.diff() < 0).all()
            assert grid[-1] == (noise.sigmas[0] if above else 0)


def test_the_last_sigma_but_one_is_taken_from_a_longer_grid(noise: Noise) -> None:
    longer = schedule(noise, "karras", 8).tolist()
    assert schedule(noise, "karras", 7, discard=True).tolist() == [*longer[:7], 0]
    assert torch.equal(schedule(noise, "automatic", 7, discard=True), schedule(noise, "automatic", 7))


def test_lists_are_taken_as_they_are(noise: Noise) -> None:
    assert schedule(noise, (14.6, 3.1, 0.5, 0), 3, discard=True).tolist() == [14.6, 3.1, 0.5, 0]
    assert our_schedule("14.6, 3.1,0.5,0") == (14.6, 3.1, 0.5, 0)


def test_other_programs_names_are_understood() -> None:
    assert SCHEDULE_NAMES.keys() == SCHEDULES.keys()
    for ours, theirs in SCHEDULE_NAMES.items():
        assert our_schedule(ours) == our_schedule(theirs) == our_schedule(theirs.upper()) == ours
    assert our_schedule("SGMUniform") == "sgm_uniform"
    assert our_schedule("ddim_uniform") == "ddim"
    assert our_schedule("carras") == "carras"


@pytest.mark.parametrize(
    ("scheduler", "name", "steps"),
    [
        ("DDIMScheduler", "automatic", 0),
        ("DDIMScheduler", "automatic", 1001),
        ("DDIMScheduler", "simple", 1001),
        ("DDIMScheduler", "ddim", 1001),
        ("LCMScheduler", "automatic", 51),
    ],
)
def test_impossible_numbers_of_steps_are_refused(scheduler: str, name: str, steps: int) -> None:
    with pytest.raises(ValueError, match=f"{steps} steps"):
        schedule(Noise(NoiseConfig(scheduler=scheduler)), name, steps)
