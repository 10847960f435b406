"""Winograd's algorithm is a convolution, of any sides, in bands, with its filters in parts."""

import pytest
import torch
from networks import relative_error
from torch.nn import functional as F

from diffusion import winograd as algorithm
from diffusion.winograd import winograd

X, WEIGHT, BIAS = torch.randn(2, 5, 18, 23), torch.randn(7, 5, 3, 3), torch.randn(7)


@pytest.mark.parametrize("sides", [(1, 1), (4, 4), (16, 8), (18, 23)], ids=str)
@pytest.mark.parametrize("bias", [None, BIAS], ids=["", "bias"])
def test_any_sides(sides: tuple[int, int], bias: torch.Tensor | None) -> None:
    x = X[:, :, : sides[0], : sides[1]]
    ours = winograd(F.pad(x, (1, 1, 1, 1)).permute(0, 2, 3, 1), WEIGHT, bias).permute(0, 3, 1, 2)
    assert relative_error(ours, F.conv2d(x, WEIGHT, bias, padding=1)) < 1e-5


@pytest.mark.parametrize("band", [1, 36 * 5 * 2 * 6, 10**9])
@pytest.mark.parametrize("filters", [1, 36 * 5 * 3, 10**9])
def test_bands_and_parts(band: int, filters: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(algorithm, "BAND", band)
    monkeypatch.setattr(algorithm, "FILTERS", filters)
    ours = winograd(X.permute(0, 2, 3, 1), WEIGHT, BIAS).permute(0, 3, 1, 2)
    assert relative_error(ours, F.conv2d(X, WEIGHT, BIAS)) < 1e-5
