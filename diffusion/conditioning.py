"""What the U-Net is told beside x and the time: a text's embeddings and, if it is Stable Diffusion XL's, a picture's
sizes, or if it was distilled, the guidance that it imitates."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from clip.language_encoder import LanguageEncoder
from clip.text import TextEncoder

Encoder = TextEncoder | LanguageEncoder

SIZES = 6  # numbers: heights and widths of the original and the target, and the corner of the crop between them
# Scores of beauty that XL's refiner is told in the target's place: of what is asked for, and of the opposite.
AESTHETIC_SCORE, NEGATIVE_AESTHETIC_SCORE = 6.0, 2.5


@dataclass(frozen=True)
class Conditioning:
    """Of B pictures. A network leaves alone what it has no use for; what it needs must be there."""

    tokens: Tensor  # [B, L, D], which the cross-attentions look at
    pooled: Tensor | None = None  # [B, P], the text as one vector
    sizes: Tensor | None = None  # [B, 6], or [B, 5] (Podell et al. 2023, section 2.2), as `sized` writes them
    guidance: Tensor | None = None  # [B], its scale less 1

    def to(self, dtype: torch.dtype) -> "Conditioning":
        """The embeddings in the network's own dtype; few can hold the other numbers."""
        pooled = None if self.pooled is None else self.pooled.to(dtype)
        return replace(self, tokens=self.tokens.to(dtype), pooled=pooled)

    def zeros(self) -> "Conditioning":
        """What says nothing, for a model that was trained to take it for no text at all."""
        pooled = None if self.pooled is None else torch.zeros_like(self.pooled)
        return replace(self, tokens=torch.zeros_like(self.tokens), pooled=pooled)

    def sized(self, height: int, width: int, score: float | None = None) -> "Conditioning":
        """The same, of pictures of so many pixels that were neither scaled nor cropped to them, or of such a score."""
        original, corner, target = (height, width), (0, 0), (height, width) if score is None else (score,)
        sizes = self.tokens.new_tensor([*original, *corner, *target], dtype=torch.float32)
        return replace(self, sizes=sizes.expand(len(self.tokens), -1))

    def guided(self, scale: float) -> "Conditioning":
        """The same, of pictures that are led so far by their text."""
        return replace(self, guidance=self.tokens.new_full((len(self.tokens),), scale - 1, dtype=torch.float32))


def stack(*conditionings: Conditioning) -> Conditioning:
    """Those of one batch after those of the other: all of them have the same fields, and texts of one length."""
    return Conditioning(
        torch.cat([c.tokens for c in conditionings]),
        _joined([c.pooled for c in conditionings]),
        _joined([c.sizes for c in conditionings]),
        _joined([c.guidance for c in conditionings]),
    )


def _joined(values: Sequence[Tensor | None]) -> Tensor | None:
    tensors = [value for value in values if value is not None]
    assert len(tensors) in (0, len(values))
    return torch.cat(tensors) if tensors else None


@dataclass(frozen=True)
class Reading:
    """How a kind of model reads its text encoders. The defaults are Stable Diffusion 1.x's.

    2.x's text encoder comes without the layers that it leaves out; XL reads both of its own without the last
    layer and the norm after it.
    """

    skip: int = 0  # last layers left out; AUTOMATIC1111's "clip skip" is one more
    norm: bool = True  # whether the final norm follows
    empty_is_zero: bool = False  # the empty negative prompt is `zeros()`
    apart: bool = False  # encoders' tokens stand one after the other, not side by side
    scored: bool = False  # a score of beauty is told with the text: XL's refiner

    @property
    def sizes(self) -> int:
        """How many numbers are told beside the text, to a network that is told any."""
        return SIZES - self.scored


PLAIN = Reading()
XL = Reading(skip=1, norm=False, empty_is_zero=True)
REFINER = Reading(skip=1, norm=False, scored=True)
LANGUAGE = Reading(apart=True)


def encoder_names(encoders: Sequence[Encoder], reading: Reading) -> list[str]:
    """What a model folder calls them: CLIPs come first and are numbered from the second on, XL's second alone, too."""
    clips = sum(isinstance(encoder, TextEncoder) for encoder in encoders)
    names = ["text_encoder", "text_encoder_2"][reading.scored :]
    return names[:clips] + ["language_model"] * (len(encoders) - clips)


def encode(
    encoders: Sequence[Encoder],
    ids: Sequence[Tensor],
    reading: Reading,
    skip: int | None = None,
    inputs: Sequence[Tensor | None] | None = None,
) -> tuple[list[Tensor], Tensor]:
    """Ids [B, L] of the same texts, by each encoder's own tokenizer => each one's embeddings, for `join`.

    With them comes the last one's `pooled`. `skip` replaces the reading's own, `inputs` [B, L, D] the ids' own
    embeddings where they are given.
    """
    skip = reading.skip if skip is None else skip
    each = zip(encoders, ids, inputs or [None] * len(ids), strict=True)
    outputs = [encoder(part, skip, reading.norm, given) for encoder, part, given in each]
    return [output.tokens for output in outputs], outputs[-1].pooled


def join(tokens: Sequence[Tensor], reading: Reading) -> Tensor:
    """Embeddings [B, L, D] by several encoders as one text. D becomes the sum of their widths.

    Side by side, they are of texts of one length. Apart, each has columns of its own and zeros in the others', so that
    one projection of all columns is a projection for each encoder; L becomes the sum of their lengths.
    """
    if not reading.apart:
        return torch.cat([*tokens], dim=-1)
    widths = [part.shape[-1] for part in tokens]
    padded = [F.pad(part, (sum(widths[:i]), sum(widths[i + 1 :]))) for i, part in enumerate(tokens)]
    return torch.cat(padded, dim=1)
