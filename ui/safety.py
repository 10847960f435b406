"""What pictures are not made of, and which are not shown: a pipeline like any other, around the one that makes them.

Both checks are off until a file of terms is given, one a line; "#" begins a comment.
"""

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from clip.ranker import Ranker
from diffusion.metadata import Named, with_checks
from diffusion.open import AnyPipeline
from diffusion.pipeline import Picture, Progress, Report
from diffusion.request import Request, Resolved

SYNTAX = re.compile(r"[()\[\]{}\\|]|:\s*[\d.]+")  # what weighs parts of a prompt, and may stand within a word
LETTER = "[0-9a-z\u00c0-\u024f]"  # of scripts that put spaces between words


class Blocked(ValueError):
    """A prompt or a picture that is not wanted here."""


class Terms:
    """The terms of a file, in one form: NFKC, casefolded, without what is invisible, spaces as one."""

    def __init__(self, path: Path) -> None:
        data = path.read_bytes()
        try:
            lines = [line.partition("#")[0].strip() for line in data.decode("utf-8-sig").splitlines()]
        except UnicodeDecodeError:
            raise ValueError(f"{path} is not UTF-8; save the terms as such, one a line.") from None
        self.written = [line for line in lines if normal(line)]
        if not self.written:
            raise ValueError(f"{path} has no terms; write one a line.")
        self.name = hashlib.sha256(data).hexdigest()[:12]
        parts = sorted({normal(line) for line in self.written}, key=len, reverse=True)
        self.pattern = re.compile("|".join(map(_whole, parts)))

    def find(self, text: str) -> str | None:
        """The first term in a text, weights and brackets left out or not."""
        found = self.pattern.search(normal(text)) or self.pattern.search(normal(SYNTAX.sub("", text)))
        return found[0] if found else None


def normal(text: str) -> str:
    """Full-width and half-width, upper and lower case as one."""
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join("".join(c for c in text if unicodedata.category(c) != "Cf").split())


def _whole(term: str) -> str:
    """A term's pattern: not within a longer word, where its script has words."""
    before = f"(?<!{LETTER})" if re.match(LETTER, term[0]) else ""
    after = f"(?!{LETTER})" if re.match(LETTER, term[-1]) else ""
    return before + re.escape(term) + after


class OutputCheck:
    """What a CLIP must not find in pictures."""

    def __init__(self, terms: Terms, ranker: Ranker, threshold: float | None = None) -> None:
        """The threshold is a cosine; by default, that of the CLIP."""
        self.terms = terms
        self.ranker = ranker
        self.threshold = ranker.concepts.threshold if threshold is None else threshold
        self.vectors: Tensor = ranker.names(terms.written)  # [N, P]

    def check(self, image: Image.Image) -> None:
        """Raises Blocked for a picture that shows one of the terms."""
        cosines = self.vectors @ self.ranker.pictures([image])[0]  # [N]
        if cosines.max() >= self.threshold:
            raise Blocked("The picture did not pass the output check and is not shown; change the prompt or the seed.")


class Safe:
    """A pipeline whose prompts and pictures are checked."""

    def __init__(self, pipeline: AnyPipeline, prompts: Terms | None = None, output: OutputCheck | None = None) -> None:
        self.pipeline = pipeline
        self.device: torch.device = pipeline.device
        self.dtype: torch.dtype = pipeline.dtype
        self.prompts = prompts
        self.output = output

    @property
    def model(self) -> Named:
        return self.pipeline.model

    def resolve(self, request: Request) -> Resolved:
        resolved = self.pipeline.resolve(request)
        if self.prompts and (term := self.prompts.find(resolved.prompt)):
            raise Blocked(f"The prompt has {term!r}, which is not allowed here; take it out.")
        return resolved

    def generate(
        self, requests: Iterable[Request], progress: Report | None = None, batch: int = 1
    ) -> Iterator[Picture]:
        made = self.pipeline.generate([self.resolve(request) for request in requests], self._unseen(progress), batch)
        return map(self._checked, made)

    def evaluations(self, request: Resolved) -> int:
        return self.pipeline.evaluations(request)

    def image(self, latents: Tensor) -> Image.Image:
        return self.pipeline.image(latents)

    def _unseen(self, progress: Report | None) -> Report | None:
        """Without previews where pictures may turn out not to be shown."""
        if progress is None or self.output is None:
            return progress
        report: Report = progress

        def unseen(made: Progress) -> None:
            report(replace(made, x0=None))

        return unseen

    def _checked(self, picture: Picture) -> Picture:
        checks = {"prompt": self.prompts.name} if self.prompts else {}
        if self.output:
            self.output.check(picture.image)
            checks["output"] = self.output.terms.name
        return replace(picture, texts=with_checks(picture.texts, checks))
