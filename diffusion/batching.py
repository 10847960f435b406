"""Pictures that go through the network together: gathered by what they have in common, and always as many.

A kernel may sum in another order for another number of rows. So groups are of one fixed size, the last picture
standing in for those that are missing: a picture's bytes depend on that size, and never on its company.
"""

import json
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby

import torch
from torch import Tensor

from diffusion.conditioning import stack
from diffusion.guidance import Script
from diffusion.request import FILES, Resolved, to_json
from diffusion.seeds import Draw

# Fields in which pictures of one batch may differ: those that become texts and noise, and what was drawn to get there.
OWN = {
    "prompt", "negative", "prompt_syntax", "template", "negative_template", "expanded_from", "embeddings", "seed",
    "variation_seed", "variation_strength", *FILES,
}  # fmt: skip


def shape(request: Resolved) -> str:
    """What pictures have in common that can be made in one batch, but for the outline of their texts."""
    said = to_json(request)
    files = {field: True for field in FILES if field in said}  # whatever is in them
    return json.dumps({name: value for name, value in said.items() if name not in OWN} | files)


def alone(request: Resolved) -> bool:
    """What begins with an image, or goes on to a second pass, goes alone."""
    return request.image is not None or request.hires_scale is not None


def gathered(
    requests: Sequence[Resolved], size: int, outline: Callable[[Resolved], Hashable]
) -> Iterator[Sequence[Resolved]]:
    """Groups of at most `size` neighbours. `outline` tells what their texts must have in common besides."""

    def common(indexed: tuple[int, Resolved]) -> tuple[Hashable, ...]:
        index, request = indexed
        return (index,) if size == 1 or alone(request) else (shape(request), outline(request))

    for _, alike in groupby(enumerate(requests), common):
        group = [request for _, request in alike]
        for first in range(0, len(group), size):
            yield group[first : first + size]


def filled(group: Sequence[Resolved], size: int) -> list[Resolved]:
    """The group with its last picture again, to its full size; one that goes alone stays so."""
    return [*group, *[group[-1]] * (0 if alone(group[0]) else size - len(group))]


def together(prompts: Sequence[Sequence[Script]]) -> list[Script]:
    """The scripts of each picture, of one outline => scripts with a row for each picture."""
    scripts = []
    for same in zip(*prompts, strict=True):
        lines = zip(*(script.lines for script in same), strict=True)
        stacked = tuple((line[0][0], stack(*(said for _, said in line))) for line in lines)
        scripts.append(replace(same[0], lines=stacked))
    return scripts


def draws(each: Sequence[Draw]) -> Draw:
    """Draws every picture's own noise: [B, C, h, w]."""
    return lambda: torch.cat([draw() for draw in each])


def rows(batch: Tensor, count: int) -> list[Tensor]:
    """The first rows of a batch, [1, ...] each; the rest filled it up."""
    return list(batch[:count].split(1))
