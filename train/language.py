"""python -m train.language: a language model of prompts from the captions alone."""

import hashlib
import math
import sys
from collections.abc import Sequence
from itertools import count
from pathlib import Path

import tokenizers
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip.durable import write_atomically
from clip.language import BOUNDARY, PromptModel, train_tokenizer
from clip.language_model import LanguageConfig, LanguageModel, Sampling
from clip.positions import Rotary
from clip.transformer import TransformerConfig
from train.command import run
from train.data import Dataset
from train.loop import Metrics, fit, order
from train.recipe import Recipe, arguments, build

EXAMPLES = """examples:
  python -m train.language emoji-64                 # into runs/emoji-64/language and runs/emoji-64/prompts
  python -m train.language my.toml --folder photos --out runs/mine
  python -m train.language emoji-64 --dry-run
"""
HELD_OUT = 10  # one caption in so many is never trained on
LATER = 1_000_003  # visits from here on are drawn where an earlier one's caption is held out
STARTS = ("a red", "a flat", "an", "3D", "赤", "水色の背景の", "猫", "")  # of the samples on the way


def held_out(text: str) -> bool:
    """Whether this caption is one that training must not see: it measures what was learnt."""
    return int(hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest(), 16) % HELD_OUT == 0


def caption(dataset: Dataset, i: int, k: int, seed: int) -> str:
    """The caption of visit `k` to picture `i`; where that one is held out, of the first later visit that is not."""
    for again in count():
        text = dataset.variation(i, k + again * LATER, seed)[1]
        if not held_out(text) or again == 100:  # of one caption alone, held out, nothing else can be had
            return text
    raise AssertionError


def language_config(recipe: Recipe, tokenizer: tokenizers.Tokenizer) -> LanguageConfig:
    """A small LLaMA, its head tied: what a recipe's [language] table leaves open of one."""
    table = dict(recipe.language["model"])
    length = table.pop("length", 64)
    stack = {"activation": "swiglu", "norm": "rms", "attention_bias": False, "mlp_bias": False, "norm_eps": 1e-5}
    config = build(TransformerConfig, stack | {"positions": Rotary(length=length)} | table, "[language.model]")
    (boundary,) = tokenizer.encode(BOUNDARY).ids
    return LanguageConfig(
        tokenizer.get_vocab_size(), length, config, "tied", start_token_id=boundary, end_token_ids=(boundary,)
    )


def train(recipe: Recipe, dataset: Dataset, out: Path, steps: int | None = None, precision: str | None = None) -> None:
    """Trains tokenizer and language model into `out/prompts`, a folder that clip.language and transformers open."""
    config = recipe.training("language", steps, precision)
    texts = (text for text in dataset.captions() if not held_out(text))
    tokenizer = train_tokenizer(texts, recipe.language["vocab_size"])
    torch.manual_seed(config.seed)
    model = LanguageModel(language_config(recipe, tokenizer))
    prompts = PromptModel(model, tokenizer)

    def loss(network: nn.Module, indices: list[int]) -> tuple[Tensor, Metrics]:
        pictures = order(indices, len(dataset), config.seed)
        visits = [index // len(dataset) for index in indices]
        captions = [caption(dataset, i, k, config.seed) for i, k in zip(pictures, visits, strict=True)]
        device = next(network.parameters()).device
        ids, targets = (part.to(device) for part in batch(prompts, captions))
        logits = network(ids).flatten(0, 1).float()
        value = F.cross_entropy(logits, targets.flatten())
        bits = value.detach() * (targets != -100).sum() / math.log(2)
        return value, {"bits_per_byte": bits / sum(len(text.encode()) for text in captions)}

    def samples(network: nn.Module, folder: Path) -> None:
        assert isinstance(network, LanguageModel)
        trained = PromptModel(network, tokenizer)
        lines = [trained.complete(start, Sampling(0.8), seed) for start in STARTS for seed in range(2)]
        write_atomically(folder / "samples.txt", "".join(f"{line}\n" for line in lines).encode())

    fit(model, loss, config, out / "language", samples)
    model.half()
    prompts.save(out / "prompts")


def batch(prompts: PromptModel, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Texts, cut to the model's length => ids [B, L], and what follows each: -100 after a text's end."""
    config = prompts.model.config
    (end,) = config.end_token_ids
    rows = [[*prompts.encode(text)[: config.length], end] for text in texts]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [end] * (longest - len(row)) for row in rows])  # [B, L + 1]
    beyond = torch.arange(longest)[None] >= torch.tensor([len(row) for row in rows])[:, None]
    return ids[:, :-1], ids.masked_fill(beyond, -100)[:, 1:]


def main(argv: Sequence[str] | None = None) -> int:
    return run(arguments(__doc__, EXAMPLES), argv, {"language": train})


if __name__ == "__main__":
    sys.exit(main())
