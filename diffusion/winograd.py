"""3x3 convolutions with a quarter of the multiplications: Winograd's F(4x4, 3x3) (Lavin & Gray 2016).

A tile of 4x4 results is made of 6x6 numbers of the input, which are evaluated, as polynomials, at the points 0, 1, -1,
2, -2 and infinity of both directions. There, a convolution is a product: 36 matrix products in place of 9 times 16.
Exact but for rounding, about 1e-5 of the largest number.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from diffusion.onednn import linear

TILE = 4  # results a side
POINTS = TILE + 2
# Numbers of the largest band of tiles at all points, and of the largest filters: 16 MB and 64 MB in float32.
BAND, FILTERS = 2**22, 2**24
# G of section 4.3: a filter's three taps => its value at each point.
TAPS = ((1 / 4, 0, 0), (-1 / 6, -1 / 6, -1 / 6), (-1 / 6, 1 / 6, -1 / 6), (1 / 24, 1 / 12, 1 / 6),
        (1 / 24, -1 / 12, 1 / 6), (0, 0, 1))  # fmt: skip


def winograd(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The convolution, without padding, of x [B, h + 2, w + 2, C] by a weight [O, C, 3, 3] => [B, h, w, O]."""
    batch, height, width, channels = x.shape
    down, across = (-(-(length - 2) // TILE) for length in (height, width))  # tiles
    lacking = TILE * across + 2 - width, TILE * down + 2 - height
    if any(lacking):
        x = F.pad(x, (0, 0, 0, lacking[0], 0, lacking[1]))
    out = x.new_empty(batch, down, TILE, across, TILE, len(weight))
    parts = weight.split(max(1, FILTERS // (POINTS**2 * channels)))
    whole = filters(weight) if len(parts) == 1 else None  # otherwise made anew for each band: few are needed then
    rows = max(1, BAND // (POINTS**2 * channels * across))  # of tiles a band
    for image, result in zip(x, out, strict=True):
        for top in range(0, down, rows):
            count = min(rows, down - top)
            tiles = evaluated(image[TILE * top : TILE * (top + count) + 2], count, across)
            first = 0
            for part in parts:
                last = first + len(part)
                biases: list[Tensor | None] = [None] * POINTS**2
                if bias is not None:
                    biases[POINTS + 1] = bias[first:last]  # what is 1 at the points 1, 1 and else 0 is 1 everywhere
                products = [*map(linear, tiles, filters(part) if whole is None else whole, biases)]
                shaped = [product.view(count, across, -1) for product in products]
                interpolated(shaped, result[top : top + count, ..., first:last])
                first = last
    out = out.view(batch, TILE * down, TILE * across, -1)
    return out[:, : height - 2, : width - 2]


def filters(weight: Tensor) -> Tensor:
    """[O, C, 3, 3] => [36, O, C]."""
    taps = weight.new_tensor(TAPS)
    outer = torch.kron(taps, taps)  # [36, 9]
    return torch.matmul(outer, weight.permute(2, 3, 0, 1).reshape(9, -1)).view(-1, *weight.shape[:2])


def evaluated(x: Tensor, down: int, across: int) -> Tensor:
    """Rows of an image [4 down + 2, 4 across + 2, C] => its tiles at the points [36, down across, C]."""
    channels = x.shape[-1]
    rows = x.new_empty(POINTS, down, x.shape[1], channels)
    at_points([x[i : i + TILE * (down - 1) + 1 : TILE] for i in range(POINTS)], rows)
    tiles = x.new_empty(POINTS, POINTS, down, across, channels)
    columns = [rows[:, :, i : i + TILE * (across - 1) + 1 : TILE] for i in range(POINTS)]
    at_points(columns, tiles.transpose(0, 1))
    return tiles.view(POINTS**2, down * across, channels)


def at_points(x: list[Tensor], out: Tensor) -> None:
    """B^T of section 4.3: six neighbours => their values at the points, written to `out` [6, ...]."""
    far, near, inner = x[4] - x[2], x[3] - x[1], torch.sub(x[4], x[2], alpha=4)
    outer = torch.sub(x[3], x[1], alpha=4)
    torch.add(far, x[0] - x[2], alpha=4, out=out[0])
    torch.add(inner, outer, out=out[1])
    torch.sub(inner, outer, out=out[2])
    torch.add(far, near, alpha=2, out=out[3])
    torch.sub(far, near, alpha=2, out=out[4])
    torch.sub(x[5] - x[3], near, alpha=4, out=out[5])


def interpolated(products: Sequence[Tensor], out: Tensor) -> None:
    """Values at the 36 points, each [down, across, O] => the results [down, 4, across, 4, O], written to `out`."""
    rows = out.new_empty(TILE, POINTS, *products[0].shape)
    for i in range(POINTS):
        from_points(products[i::POINTS], rows[:, i])
    from_points(rows.transpose(0, 1), out.permute(3, 1, 0, 2, 4))


def from_points(x: Tensor | Sequence[Tensor], out: Tensor) -> None:
    """A^T of section 4.3: values at the points [6, ...] => four neighbours, written to `out` [4, ...]."""
    even, odd, evens, odds = x[1] + x[2], x[1] - x[2], x[3] + x[4], x[3] - x[4]
    torch.add(x[0] + even, evens, out=out[0])
    torch.add(odd, odds, alpha=2, out=out[1])
    torch.add(even, evens, alpha=4, out=out[2])
    torch.add(odd + x[5], odds, alpha=8, out=out[3])
