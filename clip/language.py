"""python -m clip.language "a red": a language model of prompts completes them, and scores them."""

import argparse
import json
import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Self

import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers, trainers
from torch.nn import functional as F

from clip.folder import write_json
from clip.language_model import LanguageModel, Sampling, generate
from clip.pretrained_language import language_model_from_folder, save_language_model
from clip.tokenizer import LONGEST_TOKEN

SHIPPED = Path(__file__).parent / "models" / "prompts"
BOUNDARY = "<|endoftext|>"  # starts a text and ends it
COMMAND = "python -m clip.language"
EXAMPLES = """examples:
  python -m clip.language "a red"                        # one completion
  python -m clip.language "a red" "赤い" --count 5       # five of each, of seeds 0 to 4
  python -m clip.language "a red" --temperature 0        # the likeliest next token, always
  python -m clip.language "a red" --top-p 0.9 --seed 7
  python -m clip.language "a red apple" --score          # bits a byte: the fewer, the more expected
  python -m clip.language "Once upon" --model path/to/gpt2

exit codes: 0 done; 2 a mistake in what was asked, said in one sentence; 130 stopped by Ctrl-C.
"""


class PromptModel:
    """A language model with its tokenizer: texts in, texts out."""

    def __init__(self, model: LanguageModel, tokenizer: tokenizers.Tokenizer) -> None:
        self.model = model
        self.tokenizer = tokenizer

    @classmethod
    def from_folder(cls, folder: str | Path = SHIPPED) -> Self:
        """Open a GPT-2 or a LLaMA with its tokenizer.json, as transformers writes them."""
        folder = Path(folder)
        if not folder.is_dir():
            raise ValueError(f"There is no folder {folder}; give that of a GPT-2 or a LLaMA.")
        tokenizer = tokenizer_from_folder(folder)
        return cls(language_model_from_folder(folder), tokenizer)

    def save(self, folder: str | Path) -> None:
        """Write a folder that `from_folder` opens, and transformers' AutoModelForCausalLM and AutoTokenizer."""
        folder = Path(folder)
        save_language_model(self.model, folder)
        self.tokenizer.save(str(folder / "tokenizer.json"))
        config = self.model.config
        end = config.end_token_ids[0] if config.end_token_ids else None
        ids = {"bos_token": config.start_token_id, "eos_token": end, "unk_token": end}
        special = {name: self.tokenizer.id_to_token(id) for name, id in ids.items() if id is not None}
        length = {"model_max_length": config.length}
        write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"} | special | length)

    def encode(self, text: str) -> list[int]:
        """The start token, where the model has one, and the text's."""
        start = self.model.config.start_token_id
        ids = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids if start is None else [start, *ids]

    def complete(self, prompt: str, sampling: Sampling, seed: int = 0, most: int = 32) -> str:
        """The prompt with what follows it: `most` tokens at most. The same seed, the same text."""
        ids = self.encode(prompt.rstrip())  # a space belongs to the word that it precedes
        if not ids:
            raise ValueError("The prompt is empty and this model has no start token; give it a word to go on from.")
        (new,) = generate(self.model, torch.tensor([ids]), sampling.chooser([seed]), most)
        skip = 0 if self.model.config.start_token_id is None else 1
        # Decoded as a whole: a character may be split between old tokens and new ones.
        return self.tokenizer.decode(ids[skip:] + new, skip_special_tokens=True)

    @torch.inference_mode()
    def bits(self, text: str) -> float:
        """How surprising a whole text is, its end included: -log2 of its probability."""
        ids = self.encode(text) + list(self.model.config.end_token_ids[:1])
        if len(ids) < 2:
            raise ValueError("An empty text cannot be scored; give it a word.")
        row = torch.tensor([ids])
        nats = F.cross_entropy(self.model(row[:, :-1])[0], row[0, 1:], reduction="sum")
        return float(nats) / math.log(2)

    def bits_per_byte(self, text: str) -> float:
        return self.bits(text) / len(text.encode())


def tokenizer_from_folder(folder: Path) -> tokenizers.Tokenizer:
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ValueError(f"{folder} has no tokenizer.json; save its tokenizer with transformers' fast kind.")
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"{path} cannot be read as a tokenizer ({error}): fetch or save it again") from None


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> tokenizers.Tokenizer:
    """Byte-level BPE as GPT-2 has it: what is decoded is what was encoded, in any script."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOUNDARY],
        initial_alphabet=alphabet,
        max_token_length=LONGEST_TOKEN,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=COMMAND, description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("prompts", nargs="+", metavar="PROMPT")
    add("--model", type=Path, default=SHIPPED, help="a folder of a GPT-2 or a LLaMA (default: the shipped one)")
    add("--score", action="store_true", help="print the bits a byte of each prompt, and complete nothing")
    add("--count", type=int, default=1, help="completions a prompt (default: 1)")
    add("--seed", type=int, default=0, help="completion i of a prompt has seed + i (default: 0)")
    add("--temperature", type=float, default=0.8, help="0 takes the likeliest; 1 as learnt (default: %(default)s)")
    add("--top-k", type=int, default=0, help="draw from that many of the likeliest (default: all)")
    add("--top-p", type=float, default=1.0, help="draw from the likeliest of this probability together (default: 1)")
    add("--most", type=int, default=32, help="tokens that are added, at most (default: %(default)s)")
    add("--json", action="store_true", help="print a line of JSON each")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = arguments().parse_intermixed_args(argv)
    try:
        for line in lines(args):
            print(json.dumps(line, ensure_ascii=False) if args.json else line["text"], flush=True)
    except (ValueError, OSError) as mistake:
        print(f"{COMMAND}: {mistake}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def lines(args: argparse.Namespace) -> Iterable[dict[str, str | int | float]]:
    sampling = Sampling(args.temperature, args.top_k, args.top_p)
    for name, value, low in (("--count", args.count, 1), ("--seed", args.seed, 0), ("--most", args.most, 1)):
        if not low <= value < 2**62:
            raise ValueError(f"{name} is {value}; expected {low} or more, below 2 ** 62.")
    prompts = PromptModel.from_folder(args.model)
    for prompt in args.prompts:
        if args.score:
            bits = round(prompts.bits_per_byte(prompt), 4)
            yield {"prompt": prompt, "bits_per_byte": bits, "text": f"{bits:.3f}  {prompt}"}
            continue
        for seed in range(args.seed, args.seed + args.count):
            yield {"prompt": prompt, "seed": seed, "text": prompts.complete(prompt, sampling, seed, args.most)}


if __name__ == "__main__":
    sys.exit(main())
