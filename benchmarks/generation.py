"""Tokens a second with the cache, beside transformers' generate on the same weights and the same CPU."""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers
from torch import Tensor

from clip.language_model import LanguageConfig, LanguageModel, Sampling, generate
from clip.positions import Rotary
from clip.pretrained_language import save_language_model
from clip.transformer import TransformerConfig

COMMAND = "python -m benchmarks.generation"
EXAMPLES = """examples:
  python -m benchmarks.generation
  python -m benchmarks.generation --lengths 64 1024 --pairs 9 --batch 4
"""
LENGTH, PROMPT = 2048, 8
GPT2 = TransformerConfig(320, layers=6, heads=5, mlp_width=1280, activation="gelu_tanh")
LLAMA = TransformerConfig(
    320, layers=6, heads=5, mlp_width=848, activation="swiglu", norm="rms", positions=Rotary(length=LENGTH),
    attention_bias=False, mlp_bias=False,
)  # fmt: skip
MODELS = {name: LanguageConfig(8192, LENGTH, stack) for name, stack in {"GPT-2": GPT2, "LLaMA": LLAMA}.items()}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog=COMMAND, description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lengths", type=int, nargs="+", default=[32, 128, 512], metavar="TOKENS")
    parser.add_argument("--pairs", type=int, default=5, help="timings of each, taken in turn (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=1, help="texts at once (default: %(default)s)")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    print(f"Greedy, float32, one thread, batch {args.batch}, {PROMPT} tokens given; medians of {args.pairs} pairs;")
    print(f"CPU seconds. torch {version('torch')}, transformers {version('transformers')}.\n")
    print("| model | parameters | new tokens | tokens/s, oboro | tokens/s, transformers | ratio |")
    print("|:--|--:|--:|--:|--:|--:|")
    for name, config in MODELS.items():
        torch.manual_seed(0)
        ours = LanguageModel(config).eval()
        theirs = opened_by_transformers(ours)
        millions = sum(parameter.numel() for parameter in ours.parameters()) / 1e6
        ids = torch.randint(0, config.vocab_size, (args.batch, PROMPT))
        for length in args.lengths:
            mine, other = compare(ours, theirs, ids, length, args.pairs)
            made = args.batch * length
            rates = f"{made / mine:.0f} | {made / other:.0f} | {other / mine:.2f}"
            print(f"| {name} | {millions:.1f} M | {length} | {rates} |", flush=True)
    return 0


def opened_by_transformers(model: LanguageModel) -> Any:
    with TemporaryDirectory() as folder:
        save_language_model(model, folder)
        return transformers.AutoModelForCausalLM.from_pretrained(Path(folder), dtype=torch.float32).eval()


def compare(ours: LanguageModel, theirs: Any, ids: Tensor, length: int, pairs: int) -> tuple[float, float]:
    """Median CPU seconds of each for the same `length` new tokens."""

    def mine() -> list[list[int]]:
        return generate(ours, ids, Sampling(temperature=0).chooser(range(len(ids))), length)

    def other() -> list[list[int]]:
        settings = {"max_new_tokens": length, "do_sample": False, "pad_token_id": 0}
        return theirs.generate(ids, attention_mask=torch.ones_like(ids), **settings)[:, ids.shape[1] :].tolist()

    assert mine() == other(), "the two go on differently"  # and both are warm
    timings = [(seconds(mine), seconds(other)) for _ in range(pairs)]
    return median(first for first, _ in timings), median(second for _, second in timings)


def seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


if __name__ == "__main__":
    sys.exit(main())
