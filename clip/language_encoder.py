"""A language model in the text encoder's place: the same face as TextEncoder's and Tokenizer's, around LanguageModel.

    language_model/    a folder that python -m clip.language opens, with one file more:
        text_encoder.json    the settings of EncoderSettings, by name
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any, get_args

import tokenizers
import torch
from torch import Tensor, nn

from clip.folder import State, write_json
from clip.language import PromptModel
from clip.language_model import LanguageConfig, LanguageModel
from clip.pretrained_language import language_model_from_weights
from clip.text import TextOutput
from clip.tokenizer import Tokenizer
from clip.transformer import Mask

SETTINGS = "text_encoder.json"


@dataclass(frozen=True)
class EncoderSettings:
    """How a language model is read as a text encoder."""

    length: int = 32  # ids of a text: start, end and padding among them
    skip: int = 0  # last layers left out; the final norm follows the layer that is read
    mask: Mask | None = None  # None: the model's own


@dataclass(frozen=True)
class EncoderConfig:
    """What TextConfig says of a text tower, said of a language model."""

    language: LanguageConfig
    settings: EncoderSettings
    projection: None = None

    def __post_init__(self) -> None:
        length, skip, mask = self.settings.length, self.settings.skip, self.settings.mask
        longest = self.language.length
        if not 3 <= length <= longest:
            raise ValueError(f"length is {length}: this language model reads 3 to {longest} tokens as a text encoder")
        if not 0 <= skip < self.language.stack.layers:
            raise ValueError(f"skip is {skip}: leave out 0 to {self.language.stack.layers - 1} layers")
        if mask is not None and mask not in get_args(Mask):
            raise ValueError(f"mask {mask!r} is unknown: choose {' or '.join(get_args(Mask))}")
        if not self.language.end_token_ids:
            raise ValueError("this language model has no end token: a text encoder needs one, to know where texts end")

    @property
    def vocab_size(self) -> int:
        return self.language.vocab_size

    @property
    def length(self) -> int:
        return self.settings.length

    @property
    def width(self) -> int:
        return self.language.stack.width

    @property
    def layers(self) -> int:
        """Those that are read, of which `forward` can leave out more."""
        return self.language.stack.layers - self.settings.skip


class LanguageEncoder(nn.Module):
    """Ids => the hidden states of a layer, normed; zeros at padding, where a language model's own mean nothing."""

    def __init__(self, model: LanguageModel, settings: EncoderSettings):
        super().__init__()
        self.config = EncoderConfig(model.config, settings)
        self.model = masked(model, settings.mask or model.config.stack.mask)

    @property
    def token_embedding(self) -> nn.Embedding:
        return self.model.token_embedding

    def forward(
        self, ids: Tensor, skip: int = 0, norm: bool = True, inputs: Tensor | None = None
    ) -> TextOutput:
        """As TextEncoder's, for ids [B, L] of `LanguageTokenizer`. The final norm always follows."""
        assert norm, "the final norm is a part of what a language model is read by"
        assert inputs is None, "words have no vectors of their own here"
        valid = self.valid(ids)
        tokens = self.model.encode(ids, valid, skip=self.config.settings.skip + skip) * valid[..., None]
        return TextOutput(tokens, tokens[torch.arange(len(ids), device=ids.device), valid.sum(dim=1) - 1])

    def valid(self, ids: Tensor) -> Tensor:
        """False at padding [B, L]: after the first end token that is not the start, for all three may be one id."""
        ends = (ids == self.config.language.end_token_ids[0]).int()
        ends[:, 0] = 0
        return ends.cumsum(dim=1) - ends == 0


class LanguageTokenizer(Tokenizer):
    """A language model's tokenizer, which marks and pads texts as CLIP's does.

    A model without a start token has the end token there too, as between GPT-2's texts.
    """

    def __init__(self, bpe: tokenizers.Tokenizer, config: EncoderConfig):
        bpe.no_truncation()
        bpe.no_padding()
        self._bpe, self._clean = bpe, None
        self.length, self.vocab_size = config.length, bpe.get_vocab_size()
        start, self.end = config.language.start_token_id, config.language.end_token_ids[0]
        self.start, self.pad = self.end if start is None else start, self.end

    def parts(self, texts: Sequence[str]) -> list[list[int]]:
        """As Tokenizer's, but for the space before a word, which is in its token: read whole, then dealt out."""
        ends = list(accumulate(map(len, texts)))
        whole = self._prepare("".join(texts))
        if len(whole) != ends[-1]:  # broken Unicode, which was mended
            return [self.encode(text) for text in texts]
        encoding = self._bpe.encode(whole, add_special_tokens=False)
        found: list[list[int]] = [[] for _ in texts]
        for token, (_, stop) in zip(encoding.ids, encoding.offsets, strict=True):
            found[bisect_left(ends, stop)].append(token)
        return found

    @property
    def bpe(self) -> tokenizers.Tokenizer:
        return self._bpe


def language_encoder(prompts: PromptModel, settings: EncoderSettings) -> tuple[LanguageTokenizer, LanguageEncoder]:
    """Any language model of the stack with its tokenizer => both, as a text encoder's."""
    encoder = LanguageEncoder(prompts.model, settings).eval()
    return LanguageTokenizer(prompts.tokenizer, encoder.config), encoder


def language_encoder_from_weights(
    config: dict[str, Any], state: State, settings: EncoderSettings, folder: Path, dtype: torch.dtype | None = None
) -> LanguageEncoder:
    return LanguageEncoder(language_model_from_weights(config, state, folder, dtype), settings).eval()


def save_language_encoder(encoder: LanguageEncoder, tokenizer: LanguageTokenizer, folder: Path) -> None:
    PromptModel(masked(encoder.model, encoder.config.language.stack.mask), tokenizer.bpe).save(folder)
    write_json(folder / SETTINGS, asdict(encoder.config.settings))


def masked(model: LanguageModel, mask: Mask) -> LanguageModel:
    """A model of the same weights that looks by another mask."""
    if mask == model.config.stack.mask:
        return model
    with torch.device("meta"):
        other = LanguageModel(replace(model.config, stack=replace(model.config.stack, mask=mask)))
    other.load_state_dict(model.state_dict(), assign=True)
    return other
