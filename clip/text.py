"""The text tower of CLIP: token ids => one embedding a token, and one for the whole text."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from clip.transformer import Activation, Transformer, TransformerConfig

# CLIP configurations written before transformers 4.31 all say that the end token is 2, which it never was.
# There, as in OpenAI's own code, the end token is the highest id.
LEGACY_EOS = 2


@dataclass(frozen=True)
class TextConfig:
    """The defaults are the text encoder of Stable Diffusion 1.x (CLIP ViT-L/14)."""

    vocab_size: int = 49408
    length: int = 77
    width: int = 768
    layers: int = 12
    heads: int = 12
    mlp_width: int = 3072
    activation: Activation = "quick_gelu"
    projection: int | None = None
    eos_token_id: int = 49407
    norm_eps: float = 1e-5


class TextOutput(NamedTuple):
    tokens: Tensor  # [B, L, D], after the final norm where it is asked for
    pooled: Tensor  # [B, D], or [B, P] where the tower has a projection


class TextEncoder(nn.Module):
    """Radford et al., "Learning Transferable Visual Models From Natural Language Supervision" (2021)."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.width)
        self.position_embedding = nn.Parameter(torch.empty(config.length, config.width))
        self.transformer = Transformer(
            TransformerConfig(
                width=config.width,
                layers=config.layers,
                heads=config.heads,
                mlp_width=config.mlp_width,
                activation=config.activation,
                mask="causal",
                norm_eps=config.norm_eps,
            )
        )
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.projection = None
        if config.projection is not None:
            self.projection = nn.Linear(config.width, config.projection, bias=False)

        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.position_embedding, std=0.01)
        if self.projection is not None:
            nn.init.normal_(self.projection.weight, std=config.width**-0.5)

    def forward(self, ids: Tensor, skip: int = 0, norm: bool = True) -> TextOutput:
        """Encode ids [B, L], L at most `config.length`.

        `skip` leaves that many last layers out of `tokens`: 0 gives the last layer's output, 1 the one
        before. The final norm follows in Stable Diffusion 1.x, and not (`norm=False`) in XL. `pooled` always
        comes from the whole stack: it is the embedding at the first end token, where all of the text has been
        seen.
        """
        layers, length = self.config.layers, ids.shape[1]
        if length > self.config.length:
            raise ValueError(f"a text of {length} tokens is too long: cut it to {self.config.length}")
        if not 0 <= skip < layers:
            raise ValueError(f"skip {skip} is out of range: leave out 0 to {layers - 1} layers")

        x = self.token_embedding(ids) + self.position_embedding[:length]  # [B, L, D]
        x = self.transformer(x, stop=layers - skip)
        tokens = self.norm(x) if norm else x

        last = self.transformer(x, start=layers - skip)
        pooled = self.norm(last[torch.arange(len(ids), device=ids.device), self._end(ids)])  # [B, D]
        return TextOutput(tokens, pooled if self.projection is None else self.projection(pooled))

    def _end(self, ids: Tensor) -> Tensor:
        """Where the first end token of each text stands.  # [B]"""
        if self.config.eos_token_id == LEGACY_EOS:
            return ids.argmax(dim=1)
        return (ids == self.config.eos_token_id).int().argmax(dim=1)
