"""CLIP's tokenizer: byte-level BPE (Sennrich et al. 2016; bytes as in GPT-2). No text is unknown to it.

A word is lower-cased and spelt in bytes; then its bytes are merged pair by pair, in the order in which
training found the pairs. A token that ends a word carries the suffix `</w>`: "cat" the word is not the "cat"
of "catalogue". The ids are those of transformers' CLIPTokenizer, whose folders this one opens and writes.
"""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import tokenizers
import torch
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor

WORD_END = "</w>"
START, END = "<|startoftext|>", "<|endoftext|>"
SPECIAL_TOKENS = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}

# One printable character for each of the 256 bytes. In this order they head every CLIP vocabulary.
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())

# What counts as a word: an English contraction, letters, one digit, or a run of anything else but space.
WORD = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"

# The longest token that training may make, `</w>` included. Japanese has no spaces: without a limit, whole
# captions would become single tokens and say nothing about their parts.
LONGEST_TOKEN = 16


class Tokenizer:
    """`tokenizer(["a red apple"])` -> ids [1, L]: start, the text's ids, end, padding."""

    def __init__(
        self,
        vocab: dict[str, int],
        merges: Sequence[tuple[str, str]],
        length: int,
        special_tokens: dict[str, Any] = SPECIAL_TOKENS,
        clean: Callable[[str], str] | None = None,
    ):
        """
        Args:
            vocab: token -> id.
            merges: pairs of tokens, the first to be merged first.
            length: L, the ids of a text with start, end and padding; longer texts are cut.
            special_tokens: what starts, ends and pads a text, and stands for the unknown, by the names that
                transformers gives them; each is a string, or the JSON of an AddedToken.
            clean: applied to every text first. open_clip mends mojibake and HTML here, transformers nothing.
        """
        self._vocab = vocab
        self._merges = merges
        self._special_tokens = special_tokens
        added = {name: _added_token(value) for name, value in special_tokens.items()}
        for name, token in added.items():
            if token.content not in vocab:
                raise ValueError(f"{name} {token.content!r} is not in the vocabulary: name a token that is")

        start, end, unknown, pad = (added[name].content for name in SPECIAL_TOKENS)
        bpe = models.BPE(vocab, list(merges), unk_token=unknown, end_of_word_suffix=WORD_END)
        self._bpe = _byte_level(bpe, start, end)
        self._bpe.add_special_tokens(list(added.values()))
        self._clean = clean
        self.length = length
        self.vocab_size = len(vocab)
        self.start, self.end, self.pad = vocab[start], vocab[end], vocab[pad]

    @classmethod
    def from_folder(cls, path: str | Path, clean: Callable[[str], str] | None = None) -> "Tokenizer":
        """Open a folder with vocab.json and merges.txt, or with tokenizer.json."""
        folder = Path(path)
        if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
            vocab = _read_json(folder / "vocab.json")
            lines = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")
            merges = [line.split(" ") for line in lines if line and not line.startswith("#version")]
        elif (folder / "tokenizer.json").is_file():
            state = _read_json(folder / "tokenizer.json")
            vocab = state["model"]["vocab"]
            merges = [m.split(" ") if isinstance(m, str) else m for m in state["model"]["merges"]]
        else:
            raise ValueError(f"{folder} lacks vocab.json and merges.txt, or tokenizer.json: check the path")

        config: dict[str, Any] = {}
        # As transformers has it, the map overrides the configuration, unless that lists its added tokens itself:
        # Stable Diffusion 2 pads with "!" by its map, whatever its configuration says.
        for name in ("tokenizer_config.json", "special_tokens_map.json"):
            if (folder / name).is_file() and "added_tokens_decoder" not in config:
                config |= _read_json(folder / name)
        return cls(
            vocab,
            [(first, second) for first, second in merges],
            # Where nobody said, transformers writes 10 ** 30.
            length=config["model_max_length"] if config.get("model_max_length", 1e30) < 1e30 else 77,
            special_tokens={name: config.get(name) or token for name, token in SPECIAL_TOKENS.items()},
            clean=clean,
        )

    def padded(self, token: str) -> "Tokenizer":
        """The same tokenizer, which pads with another token."""
        special_tokens = {**self._special_tokens, "pad_token": token}
        return Tokenizer(self._vocab, self._merges, self.length, special_tokens, self._clean)

    def save(self, folder: str | Path) -> None:
        """Write the files of transformers' CLIPTokenizer, which `from_folder` reads."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        merges = "".join(f"{first} {second}\n" for first, second in self._merges)
        (folder / "merges.txt").write_text("#version: 0.2\n" + merges, encoding="utf-8", newline="\n")
        _write_json(folder / "vocab.json", self._vocab)
        _write_json(folder / "special_tokens_map.json", self._special_tokens)
        config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": self.length, "do_lower_case": True}
        _write_json(folder / "tokenizer_config.json", config | self._special_tokens)

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, length: int) -> "Tokenizer":
        """Learn a vocabulary from captions. Where they hold too few pairs, it is smaller than `vocab_size`.

        The layout is CLIP's: the 256 bytes, the 256 bytes that end a word, a token a merge, start, end.
        """
        base = [*ALPHABET, *(byte + WORD_END for byte in ALPHABET)]
        if vocab_size < len(base) + 2:
            raise ValueError(f"vocab_size {vocab_size} is too small: choose {len(base) + 2} or more")

        learner = _byte_level(models.BPE(end_of_word_suffix=WORD_END), START, END)
        learner.train_from_iterator(
            (_repair(text) for text in texts),
            trainers.BpeTrainer(
                vocab_size=vocab_size,
                min_frequency=2,
                show_progress=False,
                initial_alphabet=ALPHABET,
                end_of_word_suffix=WORD_END,
                max_token_length=LONGEST_TOKEN,
            ),
        )
        learnt = [tuple(merge) for merge in json.loads(learner.to_str())["model"]["merges"]]
        merges = learnt[: vocab_size - len(base) - 2]
        tokens = dict.fromkeys([*base, *(first + second for first, second in merges), START, END])
        return cls({token: i for i, token in enumerate(tokens)}, merges, length)

    def encode(self, text: str) -> list[int]:
        """The ids of a text, neither cut nor marked. A special token spelt out in it counts as itself."""
        return self._bpe.encode(self._prepare(text), add_special_tokens=False).ids

    def parts(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of the parts of a text. Each is read alone: no word is in two of them, and space says nothing."""
        return [self.encode(text) for text in texts]

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Texts -> ids [B, L]."""
        assert not isinstance(texts, str), "a list of texts is expected"
        texts = [self._prepare(text) for text in texts]
        ids = torch.full((len(texts), self.length), self.pad)
        encodings = self._bpe.encode_batch_fast(texts, add_special_tokens=False)
        for row, encoding in zip(ids, encodings, strict=True):
            marked = [self.start, *encoding.ids[: self.length - 2], self.end]
            row[: len(marked)] = torch.tensor(marked)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Ids -> text, special tokens left out. Case and spacing are what encoding has left of them."""
        return self._bpe.decode(list(ids), skip_special_tokens=True).strip()

    def _prepare(self, text: str) -> str:
        return _repair(self._clean(text) if self._clean else text)


def _byte_level(model: models.BPE, start: str, end: str) -> tokenizers.Tokenizer:
    """BPE between the steps that transformers' CLIPTokenizer takes before it and after it."""
    word = Regex(f"{re.escape(start)}|{re.escape(end)}|{WORD}")
    bpe = tokenizers.Tokenizer(model)
    bpe.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(word, behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    # "Ġ" is how the byte-level alphabet spells a space.
    bpe.decoder = decoders.Sequence([decoders.Replace(WORD_END, "Ġ"), decoders.ByteLevel()])
    return bpe


def _repair(text: str) -> str:
    """Broken Unicode made whole: paired surrogates become their character, lone ones U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _added_token(value: str | dict[str, Any]) -> AddedToken:
    if isinstance(value, str):
        return AddedToken(value, special=True)
    flags = {name: value[name] for name in ("single_word", "lstrip", "rstrip", "normalized") if name in value}
    return AddedToken(value["content"], special=True, **flags)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}): save the tokenizer again") from error


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
