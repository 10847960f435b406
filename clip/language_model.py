"""Language models: the same stack over tokens, with a next-token head or, to encode alone, without one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clip.positions import Rotary
from clip.transformer import Cache, Transformer, TransformerConfig, token_positions

Head = Literal["tied", "untied", "none"]
Choose = Callable[[Tensor], Tensor]  # logits [B, V] -> the next ids [B]


@dataclass(frozen=True)
class LanguageConfig:
    """GPT-2, LLaMA and T5's encoder differ in `stack`, and in what makes logits of its output: the table of
    token embeddings once more (tied), a matrix of its own (untied), or nothing.

    `length` is how many tokens a text has at most; rotary and relative positions reach beyond it, not as well.
    """

    vocab_size: int
    length: int
    stack: TransformerConfig
    head: Head = "tied"
    start_token_id: int | None = None
    end_token_ids: tuple[int, ...] = ()


class LanguageModel(nn.Module):
    """Radford et al., "Language Models are Unsupervised Multitask Learners" (2019), and its successors."""

    def __init__(self, config: LanguageConfig):
        super().__init__()
        self.config = config
        width = config.stack.width
        self.token_embedding = nn.Embedding(config.vocab_size, width)
        self.position_embedding = None
        if config.stack.positions == "learned":
            self.position_embedding = nn.Parameter(torch.empty(config.length, width))
            nn.init.normal_(self.position_embedding, std=0.01)
        self.transformer = Transformer(config.stack)
        self.norm = config.stack.make_norm()
        self.head = nn.Linear(width, config.vocab_size, bias=False) if config.head == "untied" else None

        nn.init.normal_(self.token_embedding.weight, std=0.02)
        if self.head is not None:
            nn.init.normal_(self.head.weight, std=0.02)

    def forward(self, ids: Tensor, valid: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        """ids [B, L] -> the logits of what follows each of them [B, L, V]. The rest is as in `encode`."""
        return self.logits(self.encode(ids, valid, cache))

    def encode(self, ids: Tensor, valid: Tensor | None = None, cache: Cache | None = None, skip: int = 0) -> Tensor:
        """ids [B, L] -> one vector a token [B, L, D], after all but the last `skip` layers and the final norm.

        `valid` [B, K] is false at padding, left or right. With a `cache`, ids follow the tokens in it, which
        `valid` covers too.
        """
        past = 0 if cache is None else cache.length
        x = self.token_embedding(ids)
        if self.position_embedding is not None:
            if past + ids.shape[1] > self.config.length:
                raise ValueError(f"a text of {past + ids.shape[1]} tokens is too long: cut it to {self.config.length}")
            x = x + self.position_embedding[token_positions(x, valid, past)]
        return self.norm(self.transformer(x, stop=self.config.stack.layers - skip, valid=valid, cache=cache))

    def logits(self, encoded: Tensor) -> Tensor:
        """What `encode` gave [..., D] -> logits [..., V]."""
        assert self.config.head != "none", "this model encodes: it has no head"
        return F.linear(encoded, self.token_embedding.weight if self.head is None else self.head.weight)


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn of its logits. `temperature` 0 takes the likeliest, always.

    `top_k` keeps that many of the likeliest (0: all of them); `top_p` then keeps the fewest that have this
    probability together (Holtzman et al., "The Curious Case of Neural Text Degeneration", 2020).
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        for name, value, low, high in (
            ("temperature", self.temperature, 0, 10),
            ("top_k", self.top_k, 0, 2**31),
            ("top_p", self.top_p, 0, 1),
        ):
            if not low <= value <= high:
                raise ValueError(f"{name} is {value}; expected {low} to {high}.")

    def probabilities(self, logits: Tensor) -> Tensor:
        """Logits [..., V] => probabilities [..., V] to draw from."""
        if self.temperature == 0:
            return F.one_hot(logits.argmax(dim=-1), logits.shape[-1]).float()
        logits = logits.float() / self.temperature
        if 0 < self.top_k < logits.shape[-1]:
            least = logits.topk(self.top_k, dim=-1).values[..., -1:]
            logits = logits.masked_fill(logits < least, -torch.inf)
        if self.top_p < 1:
            sorted_, order = logits.softmax(dim=-1).sort(dim=-1, descending=True)
            surplus = sorted_.cumsum(dim=-1) - sorted_ >= self.top_p  # the likelier ones suffice
            surplus[..., 0] = False
            logits = logits.masked_fill(surplus.scatter(-1, order, surplus), -torch.inf)
        return logits.softmax(dim=-1)

    def chooser(self, seeds: Sequence[int]) -> Choose:
        """Draws for one text a seed; what is drawn for a text depends on its own seed alone."""
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]

        def choose(logits: Tensor) -> Tensor:
            if self.temperature == 0:
                return logits.argmax(dim=-1)
            probabilities = self.probabilities(logits).cpu()
            drawn = [torch.multinomial(p, 1, generator=g) for p, g in zip(probabilities, generators, strict=True)]
            return torch.cat(drawn).to(logits.device)

        return choose


@torch.inference_mode()
def generate(
    model: LanguageModel,
    ids: Tensor,
    choose: Choose,
    most: int,
    valid: Tensor | None = None,
    use_cache: bool = True,
) -> list[list[int]]:
    """What follows each of ids [B, L], token by token: `most` at most, up to an end token, which is left out.

    Texts of several lengths are padded on the left, where `valid` [B, L] is false. The cache changes how long
    it takes, not what comes out.
    """
    config = model.config
    if config.head == "none" or config.stack.mask != "causal":
        raise ValueError("This model encodes texts and cannot go on with them; take one with a next-token head.")
    most = min(most, config.length - ids.shape[1]) if model.position_embedding is not None else most
    if most < 1:
        return [[] for _ in ids]
    length = ids.shape[1] + most
    rotary = config.stack.positions
    if isinstance(rotary, Rotary) and rotary.scaling == "dynamic" and length > rotary.length:
        use_cache = False  # each longer text turns all of its keys anew
    cache = Cache(config.stack, len(ids), length, model.token_embedding.weight) if use_cache else None

    ends = torch.tensor(config.end_token_ids, device=ids.device)
    ended = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
    new: list[Tensor] = []
    read = ids
    for _ in range(most):
        last = model.encode(read, valid, cache)[:, -1]  # [B, D]
        chosen = choose(model.logits(last))  # [B]
        ended = ended | torch.isin(chosen, ends)
        new.append(chosen)
        if ended.all():
            break
        read = chosen[:, None] if use_cache else torch.cat([read, chosen[:, None]], dim=1)
        if valid is not None:
            valid = F.pad(valid, (0, 1), value=True)
    return [_until(row, config.end_token_ids) for row in torch.stack(new, dim=1).tolist()]


def _until(ids: list[int], ends: Sequence[int]) -> list[int]:
    stop = next((i for i, token in enumerate(ids) if token in ends), len(ids))
    return ids[:stop]
