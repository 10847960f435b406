"""Bits a byte of a language model on captions that no training saw, beside 5-gram models with back-off."""

import argparse
import math
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from clip.language import SHIPPED, PromptModel
from clip.language_model import Sampling
from train.data import Dataset, open_dataset
from train.language import caption, held_out
from train.recipe import Recipe

COMMAND = "python -m benchmarks.language"
EXAMPLES = """examples:
  python -m benchmarks.language emoji-64
  python -m benchmarks.language emoji-64 --out runs/mine --model runs/mine/prompts --captions 200
  python -m benchmarks.language emoji-64 --completions    # twenty of them, uncurated
"""
ORDER, DISCOUNT = 5, 0.75
ENGLISH = ("a", "an", "a red", "a flat", "a 3D", "glossy", "two", "the", "green", "a cat")
JAPANESE = ("赤", "青", "猫", "水色", "黄色い", "りんご", "フラット", "立体的な", "花", "雪")


class NGrams:
    """A model of the next token given the four before: absolute discounting, each order mixed with the one below.

    Ney, Essen and Kneser, "On structuring probabilistic dependences in stochastic language modelling" (1994).
    """

    def __init__(self, texts: Iterable[Sequence[int]], vocabulary: int) -> None:
        """`texts` are ids with the boundary at both ends; below single tokens lies the uniform distribution."""
        self.vocabulary = vocabulary
        self.counts: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
        for text in texts:
            for i in range(1, len(text)):
                for context in range(min(i, ORDER - 1) + 1):
                    self.counts[tuple(text[i - context : i])][text[i]] += 1

    def probability(self, context: Sequence[int], token: int) -> float:
        """p(token | context) = (count - d)+ / total + d * kinds / total * p(token | shorter context)."""
        probability = 1 / self.vocabulary
        for length in range(min(len(context), ORDER - 1) + 1):
            seen = self.counts.get(tuple(context[len(context) - length :]))
            if seen is None:
                break
            total = seen.total()
            probability = max(seen[token] - DISCOUNT, 0) / total + DISCOUNT * len(seen) / total * probability
        return probability

    def bits(self, text: Sequence[int]) -> float:
        return -sum(math.log2(self.probability(text[:i], text[i])) for i in range(1, len(text)))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog=COMMAND, description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", help="a shipped recipe's name (emoji-64) or the path of a TOML file")
    parser.add_argument("--out", type=Path, help="the run folder, which holds the data (default: runs/NAME)")
    parser.add_argument("--fetched", type=Path, help="a folder of already fetched .tgz packages for the emoji data")
    parser.add_argument("--model", type=Path, default=SHIPPED, help="a language model (default: the shipped one)")
    parser.add_argument("--captions", type=int, default=1000, help="held-out captions (default: %(default)s)")
    parser.add_argument("--completions", action="store_true", help="print twenty completions and no more")
    args = parser.parse_args(argv)
    try:
        prompts = PromptModel.from_folder(args.model)
        if args.completions:
            for start in ENGLISH + JAPANESE:
                print(f"{start} → {prompts.complete(start, Sampling(0.8))}")
            return 0
        recipe = Recipe.load(args.recipe)
        cache = (args.out or Path("runs") / recipe.name) / "data"
        compare(prompts, recipe, open_dataset(recipe.data, recipe.size, cache, fetched=args.fetched), args.captions)
    except (ValueError, OSError) as mistake:
        print(f"{COMMAND}: {mistake}", file=sys.stderr)
        return 2
    return 0


def compare(prompts: PromptModel, recipe: Recipe, dataset: Dataset, wanted: int) -> None:
    """Prints the table. The n-grams count as many captions as the recipe's training visits."""
    training = recipe.training("language")
    visits = range(training.steps * training.batch)
    seen = [caption(dataset, i % len(dataset), i // len(dataset), training.seed) for i in visits]
    unseen = held_out_captions(dataset, wanted)
    english = [text for text in unseen if text.isascii()]
    japanese = [text for text in unseen if not text.isascii()]
    (end,) = prompts.model.config.end_token_ids
    tokens = lambda text: [*prompts.encode(text), end]
    letters = lambda text: [256, *text.encode(), 256]
    by_tokens = NGrams(map(tokens, seen), prompts.model.config.vocab_size)
    by_bytes = NGrams(map(letters, seen), 257)

    parameters = sum(parameter.numel() for parameter in prompts.model.parameters())
    print(f"{len(unseen)} held-out captions; {len(seen)} for training, {len(set(seen))} of them different.\n")
    print("| model | size | English | Japanese | both |\n|:--|--:|--:|--:|--:|")
    for name, size, bits in (
        ("5-gram of bytes", f"{sum(map(len, by_bytes.counts.values())):,} counts", lambda t: by_bytes.bits(letters(t))),
        ("5-gram of the same tokens", f"{sum(map(len, by_tokens.counts.values())):,} counts",
         lambda t: by_tokens.bits(tokens(t))),
        ("**language model**", f"{parameters:,} parameters", prompts.bits),
    ):  # fmt: skip
        per_byte = [
            sum(map(bits, texts)) / max(1, sum(len(text.encode()) for text in texts))
            for texts in (english, japanese, unseen)
        ]
        print(f"| {name} | {size} | {' | '.join(f'{value:.3f}' for value in per_byte)} |", flush=True)


def held_out_captions(dataset: Dataset, wanted: int) -> list[str]:
    """Different captions that training never sees: the first visits' that are held out, picture by picture."""
    found: dict[str, None] = {}
    for k in range(1000):
        for i in range(len(dataset)):
            text = dataset.variation(i, k, seed=1)[1]
            if held_out(text):
                found[text] = None
                if len(found) == wanted:
                    return list(found)
    return list(found)


if __name__ == "__main__":
    sys.exit(main())
