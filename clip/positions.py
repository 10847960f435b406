"""Where a token stands: rotary angles with the scalings that LLaMA's kin use, and T5's relative buckets.

Learned positions need none of this: a tower adds a row of its table to each token.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import torch
from torch import Tensor

Scaling = Literal["none", "linear", "dynamic", "llama3", "yarn"]
Rotation = tuple[Tensor, Tensor]  # cosines and sines, each [L, d] or [B, 1, L, d]


@dataclass(frozen=True)
class Rotary:
    """Su et al., "RoFormer" (2021): queries and keys turn by angles that grow with their positions.

    `scaling` reads texts longer than the `length` that training had:
        linear   every angle divided by `factor` (Chen et al. 2023)
        dynamic  the base raised as the text outgrows `length` (NTK-aware; bloc97 and emozilla 2023)
        llama3   slow angles divided, fast ones kept, those between blended: waves that fit into `length`
                 `low` to `high` times
        yarn     the same idea, the blend linear in the dimension (Peng et al. 2023); `low` to `high` turns
                 in `length`, and `magnitude` scales what attention sees
    """

    theta: float = 10000.0
    scaling: Scaling = "none"
    factor: float = 1.0
    length: int = 2048
    low: float = 1.0
    high: float = 4.0
    magnitude: float = 1.0

    def __post_init__(self) -> None:
        known = get_args(Scaling)
        if self.scaling not in known:
            raise ValueError(f"rotary scaling {self.scaling!r} is unknown: choose one of {', '.join(known)}")


@dataclass(frozen=True)
class Relative:
    """Raffel et al., "T5" (2020): a learned bias a head for each bucket of distances.

    Half of the buckets are single distances; the others widen logarithmically up to `distance`.
    """

    buckets: int = 32
    distance: int = 128


def rotation(rotary: Rotary, width: int, positions: Tensor, length: int) -> Rotation:
    """By what tokens at `positions` [L] or [B, L] of a text of `length` turn, in heads of `width`."""
    if rotary.scaling != "dynamic":
        length = 0  # the others do not depend on it
    angles = positions[..., None] * frequencies(rotary, width, length).to(positions.device)  # [..., L, d / 2]
    angles = torch.cat([angles, angles], dim=-1)
    if positions.ndim == 2:
        angles = angles[:, None]  # the same for every head
    return angles.cos() * rotary.magnitude, angles.sin() * rotary.magnitude


def rotate(x: Tensor, by: Rotation) -> Tensor:
    """x [B, H, L, d], its halves the two coordinates of d / 2 planes, turned."""
    cos, sin = by
    first, second = x.chunk(2, dim=-1)
    return (x * cos + torch.cat([-second, first], dim=-1) * sin).to(x.dtype)


@lru_cache
def frequencies(rotary: Rotary, width: int, length: int) -> Tensor:
    """Radians a position of every plane, fastest first.  # [d / 2]"""
    theta, factor = rotary.theta, rotary.factor
    if rotary.scaling == "dynamic" and length > rotary.length:
        theta *= (factor * length / rotary.length - (factor - 1)) ** (width / (width - 2))
    fast = 1 / theta ** (torch.arange(0, width, 2).float() / width)
    slow = fast / factor
    match rotary.scaling:
        case "linear":
            return slow
        case "llama3":
            turns = rotary.length * fast / (2 * math.pi)  # in the length that training had
            keep = ((turns - rotary.low) / (rotary.high - rotary.low)).clamp(0, 1)
            return torch.lerp(slow, fast, keep)
        case "yarn":

            def plane(turns: float) -> float:
                return width * math.log(rotary.length / (turns * 2 * math.pi)) / (2 * math.log(theta))

            first, last = max(math.floor(plane(rotary.high)), 0), min(math.ceil(plane(rotary.low)), width - 1)
            planes = torch.arange(width // 2).float()
            return torch.lerp(fast, slow, ((planes - first) / max(last - first, 0.001)).clamp(0, 1))
    return fast


def bucket(distance: Tensor, relative: Relative, causal: bool) -> Tensor:
    """The bucket of each distance, key less query; where the mask is not causal, half of them look ahead."""
    count = relative.buckets if causal else relative.buckets // 2
    ahead = 0 if causal else (distance > 0) * count
    distance = -distance.clamp(max=0) if causal else distance.abs()
    single = count // 2
    ratio = torch.log(distance.clamp(min=1).float() / single) / math.log(relative.distance / single)
    wide = single + (ratio * (count - single)).long()
    return ahead + torch.where(distance < single, distance, wide.clamp(max=count - 1))
