"""Of several pictures of one prompt, the one that CLIP finds closest to it."""

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from clip.ranker import Ranker
from diffusion.grammar import read, stretches
from diffusion.pipeline import Picture
from diffusion.request import DEFAULT_SYNTAX, Resolved


def best(made: Iterable[tuple[Path, Picture]], count: int, ranker: Ranker) -> Iterator[tuple[Path, Picture]]:
    """The best of every `count` pictures, each held against its own prompt, with its path; the first of equals."""
    made = iter(made)
    while candidates := list(islice(made, count)):
        # Each by its own words: a template says something else by each seed.
        wanted = ranker.texts([words(picture.request) for _, picture in candidates])
        cosines = (ranker.pictures([picture.image for _, picture in candidates]) * wanted).sum(dim=1)  # [count]
        yield candidates[int(cosines.argmax())]


def words(request: Resolved) -> str:
    """What a prompt says at the end, without the syntax that weighs and times it."""
    syntax = request.prompt_syntax or DEFAULT_SYNTAX
    terms = read(request.prompt, request.steps, syntax)
    parts = [part for term in terms for line in stretches(term.spans[-1].text, syntax) for part in line]
    return " ".join(part.text.strip() for part in parts)
