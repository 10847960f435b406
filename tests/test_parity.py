"""The table of every sampler, as the benchmark prints it, in part: all of it takes minutes."""

from pathlib import Path

import pytest

from benchmarks.samplers import LAYOUTS, NOT_THEIRS, THEIRS, compare
from diffusion.samplers import SAMPLERS
from tests.models import save_model


@pytest.mark.slow
def test_samplers_make_diffusers_pictures(tmp_path: Path) -> None:
    folder = save_model("sd2", tmp_path / "sd2")
    compared = ["plms", "ddim", "ddpm", "dpmpp_2m_sde", "dpmpp_3m", "deis", "sa_solver", "lcm", "tcd", "restart"]
    *rows, alone = compare(folder, compared)
    for row in rows:
        assert row.found.keys() == {*LAYOUTS}
        assert all(found.within_rounding for found in row.found.values()), row
    assert not alone.found


def test_every_sampler_is_accounted_for() -> None:
    assert THEIRS.keys() | NOT_THEIRS.keys() == SAMPLERS.keys()
    assert not THEIRS.keys() & NOT_THEIRS.keys()
