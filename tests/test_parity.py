"""The table of every sampler, as the benchmark prints it, in part: all of it takes minutes."""

from pathlib import Path

import pytest

from benchmarks.samplers import NOT_THEIRS, THEIRS, compare
from diffusion.samplers import SAMPLERS
from tests.models import save_model


@pytest.mark.slow
def test_samplers_make_diffusers_pictures(tmp_path: Path) -> None:
    folder = save_model("sd2", tmp_path / "sd2")
    rows = compare(folder, folder, ["plms", "ddim", "ddpm", "dpmpp_2m_sde", "dpmpp_3m", "deis", "lcm", "restart"])
    *compared, alone = rows
    for row in compared:
        assert row.found is not None
        assert row.found.within_rounding, row
    assert alone.found is None


def test_every_sampler_is_accounted_for() -> None:
    assert THEIRS.keys() | NOT_THEIRS.keys() == SAMPLERS.keys()
    assert not THEIRS.keys() & NOT_THEIRS.keys()
