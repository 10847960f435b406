"""Decoding a large picture in overlapping tiles, whose seams are blended: memory goes by the tile, not by the picture.

Not exact: each tile is normalised by itself, so tones can differ a little from tile to tile; whole decoding stays
the default. A strip of tiles is what diffusers' `enable_tiling` makes of it.
"""

from itertools import pairwise

import torch
from torch import Tensor

from diffusion.autoencoder import Autoencoder, PixelSpace
from diffusion.checks import check_side

OVERLAP = 1 / 4  # of a tile's side, shared with the next tile


def tile_of(tile: int | None, size: tuple[int, int], factor: int) -> int | None:
    """The tile's side in pixels for a picture of a size; None where it holds all of it.

    Raises ValueError for a side that is none: the overlap has to be whole latents, `factor` pixels each.
    """
    if tile is None:
        return None
    check_side("tile", tile, round(factor / OVERLAP))
    return None if max(size) <= tile else tile


def decode(autoencoder: Autoencoder | PixelSpace, latents: Tensor, tile: int | None) -> Tensor:
    """Latents [B, C, h, w] => images [B, 3, H, W], by tiles of so many pixels a side; None: whole."""
    if tile is None:
        return autoencoder.decode(latents)
    factor, (count, _, height, width) = autoencoder.factor, latents.shape
    image = latents.new_zeros(count, 3, height * factor, width * factor)
    for top, bottom, down in _spans(height, tile, factor):
        for left, right, across in _spans(width, tile, factor):
            pixels = autoencoder.decode(latents[:, :, top:bottom, left:right])
            weights = (down[:, None] * across).to(image)
            image[:, :, top * factor : bottom * factor, left * factor : right * factor] += pixels * weights
    return image


def _spans(length: int, tile: int, factor: int) -> list[tuple[int, int, Tensor]]:
    """Tiles along one side, in latents: first, end, and the weight of each pixel between [(end - first) factor].

    A tile fades in over its overlap with the one before, which fades out as much: weights add up to 1.
    """
    side = tile // factor
    last = max(0, length - side)  # the last tile is moved back, for it is to see as much as the others
    starts = [*range(0, last, round(side * (1 - OVERLAP))), last]
    pixel = torch.arange(length * factor)
    fades = [((pixel - start * factor) / (tile * OVERLAP)).clamp(0, 1) for start in starts[1:]]
    present = [torch.ones(len(pixel)), *fades, torch.zeros(len(pixel))]
    ends = [min(start + side, length) for start in starts]
    return [
        (start, end, (here - there)[start * factor : end * factor])
        for start, end, (here, there) in zip(starts, ends, pairwise(present), strict=True)
    ]
