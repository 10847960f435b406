"""Pictures as others might have drawn them: moved, scaled, mirrored, turned a little in hue and brightness.

Few pictures are soon known by heart. What looks at them, a judge or CLIP's image tower, is shown each one otherwise at
every visit; what makes them is not, or it would make them askew.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

SHIFT = (-0.15, 0.15)  # of half a side
SCALES = (0.8, 1.1)
HUE = (-0.15, 0.15)  # radians
BRIGHTNESS = (0.85, 1.15)
# Uniform numbers that each takes a picture
PLACE_DRAWS, TINT_DRAWS = 4, 2
VARY_DRAWS = PLACE_DRAWS + TINT_DRAWS


def places(draws: Tensor, side: int) -> Tensor:
    """Draws [B, 4] => where in the original each pixel of the moved picture comes from, [B, side, side, 2].

    x' = (x - shift) / scale with x in [-1, 1]: the grid of `torch.nn.functional.grid_sample`.
    """
    mirror, scale, right, down = draws.T[:, :, None, None]  # [B, 1, 1] each
    centres = (2 * torch.arange(side, device=draws.device) + 1) / side - 1  # [S]
    scale = between(SCALES, scale)
    x = (centres.view(1, 1, side) - between(SHIFT, right)) / scale * torch.where(mirror < 0.5, -1.0, 1.0)
    y = (centres.view(1, side, 1) - between(SHIFT, down)) / scale
    return torch.stack((x.expand(-1, side, -1), y.expand(-1, -1, side)), dim=-1)


def tint(colours: Tensor, draws: Tensor) -> Tensor:
    """Colours [B, 3, H, W] from 0 up, draws [B, 2] => the same in another hue and brightness."""
    hue, brightness = draws.T[:, :, None, None, None]  # [B, 1, 1, 1] each
    return turn(colours, between(HUE, hue)) * between(BRIGHTNESS, brightness)


def vary(images: Tensor, draws: Tensor) -> Tensor:
    """Pictures [B, 3, S, S] in [-1, 1], draws [B, 6] => the same, varied; what comes in at an edge has its colour."""
    place, colour = draws.split((PLACE_DRAWS, TINT_DRAWS), dim=1)
    grid = places(place, images.shape[-1])
    moved = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    return tint(moved / 2 + 0.5, colour).clamp(0, 1) * 2 - 1


def between(limits: tuple[float, float], draws: Tensor) -> Tensor:
    low, high = limits
    return low + (high - low) * draws


def turn(colours: Tensor, angle: Tensor) -> Tensor:
    """Colours [B, 3, H, W] turned about the axis of greys: Rodrigues' formula with k = (1, 1, 1) / sqrt(3)."""
    grey = colours.mean(dim=1, keepdim=True)
    across = (colours.roll(1, dims=1) - colours.roll(-1, dims=1)) / 3**0.5  # k x colours
    return angle.cos() * colours + (1 - angle.cos()) * grey + angle.sin() * across
