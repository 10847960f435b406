"""The text tower of CLIP: token ids => one embedding a token, and one for the whole text."""

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clip.transformer import Activation, Mask, Transformer, TransformerConfig

Pool = Literal["eos", "argmax", "first", "last"]


@dataclass(frozen=True)
class TextConfig:
    """The defaults are the text encoder of Stable Diffusion 1.x (CLIP ViT-L/14).

    `pool` says which token stands for the text: the first that is `eos_token_id`, the one of the highest id
    (OpenAI's own way: its end token is that), the first, or the last. A `class_token`, which follows the text and does
    not see where it is `pad_token_id`, does so in their place (CoCa).
    """

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
    mask: Mask = "causal"
    pool: Pool = "eos"
    class_token: bool = False
    pad_token_id: int = 0
    layer_scale: bool = False
    projection_bias: bool = False

    def __post_init__(self) -> None:
        if self.pool not in get_args(Pool):
            raise ValueError(f"pool {self.pool!r} is unknown: choose {' or '.join(get_args(Pool))}")


class TextOutput(NamedTuple):
    tokens: Tensor  # [B, L, D], after the final norm
    pooled: Tensor  # [B, D], or [B, P] where the tower has a projection


class TextEncoder(nn.Module):
    """Radford et al., "Learning Transferable Visual Models From Natural Language Supervision" (2021)."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.width)
        self.position_embedding = nn.Parameter(torch.empty(config.length + config.class_token, config.width))
        self.class_embedding = nn.Parameter(torch.empty(config.width)) if config.class_token else None
        self.transformer = Transformer(
            TransformerConfig(
                width=config.width,
                layers=config.layers,
                heads=config.heads,
                mlp_width=config.mlp_width,
                activation=config.activation,
                mask=config.mask,
                norm_eps=config.norm_eps,
                layer_scale=config.layer_scale,
            )
        )
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.projection = None
        if config.projection is not None:
            self.projection = nn.Linear(config.width, config.projection, bias=config.projection_bias)

        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.position_embedding, std=0.01)
        if self.class_embedding is not None:
            nn.init.normal_(self.class_embedding, std=0.01)
        if self.projection is not None:
            nn.init.normal_(self.projection.weight, std=config.width**-0.5)
            if self.projection.bias is not None:
                nn.init.zeros_(self.projection.bias)

    def forward(
        self, ids: Tensor, skip: int = 0, norm: bool = True, inputs: Tensor | None = None
    ) -> TextOutput:
        """Encode ids [B, L], L at most `config.length`; `inputs` [B, L, D] stand for their own embeddings.

        `skip` leaves that many last layers out of `tokens`: 0 gives the last layer's output, 1 the one
        before. The final norm follows in Stable Diffusion 1.x, and not (`norm=False`) in XL. `pooled` always
        comes from the whole stack.
        """
        layers, length = self.config.layers, ids.shape[1]
        if length > self.config.length:
            raise ValueError(f"a text of {length} tokens is too long: cut it to {self.config.length}")
        if not 0 <= skip < layers:
            raise ValueError(f"skip {skip} is out of range: leave out 0 to {layers - 1} layers")

        x, valid = self.token_embedding(ids) if inputs is None else inputs, None  # [B, L, D]
        if self.class_embedding is not None:
            x = torch.cat([x, self.class_embedding.expand(len(x), 1, -1)], dim=1)  # [B, L + 1, D]
            # Told of padding one place late: so CoCa was trained, and so its weights want it.
            valid = F.pad(ids != self.config.pad_token_id, (1, 0), value=True)  # [B, L + 1]
        x = x + self.position_embedding[: x.shape[1]]
        x = self.transformer(x, stop=layers - skip, valid=valid)
        tokens = self.norm(x[:, :length]) if norm else x[:, :length]

        last = self.transformer(x, start=layers - skip, valid=valid)
        pooled = self.norm(last[torch.arange(len(ids), device=ids.device), self._place(ids)])  # [B, D]
        return TextOutput(tokens, pooled if self.projection is None else self.projection(pooled))

    def _place(self, ids: Tensor) -> Tensor:
        """Where the token stands that is the embedding of each text.  # [B]"""
        if self.config.class_token:
            return ids.new_full((len(ids),), ids.shape[1])
        match self.config.pool:
            case "eos":
                return (ids == self.config.eos_token_id).int().argmax(dim=1)
            case "argmax":
                return ids.argmax(dim=1)
            case "first":
                return ids.new_zeros(len(ids))
            case "last":
                return ids.new_full((len(ids),), ids.shape[1] - 1)
