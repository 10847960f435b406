"""Token ids are transformers' and, with its cleaning, open_clip's, on whatever people type."""

import html
import json
import random
from pathlib import Path

import pytest
import torch
from open_clip.tokenizer import SimpleTokenizer, get_clean_fn
from transformers import CLIPTokenizer

from clip.tokenizer import END, START, Tokenizer

CAPTIONS = [
    *(f"a {colour} {thing}" for colour in ("red", "green", "blue") for thing in ("apple", "cat", "bicycle")),
    *(f"{colour}{thing}の絵" for colour in ("赤い", "青い", "緑の") for thing in ("りんご", "猫", "自転車")),
]

PIECES = {
    "english": ["a photo of", "CAT", "it's", "they'LL", "we’ve", "naïve", "3.14", "(masterpiece:1.2)"],
    "japanese": ["赤いりんご", "ﾊﾝｶｸ", "全角ＡＢＣ", "が", "か\u3099", "、。「」", "１２３", "々〆ヶ"],
    "emoji": ["🍎", "👩‍🚀", "👨‍👩‍👧‍👦", "🏳️‍🌈", "👍🏽", "🇯🇵", "☕️", "1️⃣"],
    "scripts": ["Ελληνικά ΣΟΦΟΣ", "İstanbul", "ẞ", "Ѐлка", "العربية", "हिन्दी", "한국어", "ไทย"],
    "forms": ["é", "e\u0301", "ﬁ", "Ⅷ", "½", "x²", "ſ", "K"],
    "marks": ["!!!", "...", "<>", "@#$%^&*", "—", "“quoted”", "'s", "''", "\\", "</w>", "Ġ", "#version: 0.2"],
    "control": ["\0", "\x01", "\x1b[31m", "\x7f", "\x85", "\u200b", "\u200d", "\u202e", "\ufeff"],
    "space": [" ", "  ", "\t", "\n", "\r\n", "\u00a0", "\u3000", "\u2028"],
    "html": ["&amp;", "&amp;lt;", "&#127822;", "&nbsp;", "<b>bold</b>", "&eacute;", "&unknown;"],
    "mojibake": ["schÃ¶n", "â€œquotesâ€\u009d", "l\u0092amour"],
    "runs": ["a" * 300, "🍎" * 50, "の" * 200, "!" * 200, "1" * 90],
    "special": [START, END, END + END, "<|STARTOFTEXT|>", " <start_of_text> ", " <end_of_text> "],
}


def generated_texts(count: int = 1000) -> list[str]:
    """Every piece alone, then random mixtures of them, with spaces between or without."""
    draw = random.Random(0)
    pieces = [piece for group in PIECES.values() for piece in group]
    texts = ["", *pieces]
    while len(texts) < count:
        texts.append(draw.choice(["", " "]).join(draw.choices(pieces, k=draw.randint(2, 8))))
    return texts


TEXTS = generated_texts()


def write_clip_folder(folder: Path, start: str = START, end: str = END) -> Path:
    """OpenAI's vocabulary, as open_clip ships it, in the files of Stable Diffusion's tokenizer folder."""
    theirs = SimpleTokenizer()
    names = {theirs.sot_token_id: start, theirs.eot_token_id: end}
    vocab = {names.get(i, token): i for token, i in theirs.encoder.items()}
    merges = "".join(f"{first} {second}\n" for first, second in theirs.bpe_ranks)
    special = {"bos_token": start, "eos_token": end, "unk_token": end, "pad_token": end}
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text("#version: 0.2\n" + merges, encoding="utf-8")
    config = special | {"model_max_length": 77, "tokenizer_class": "CLIPTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip_folder(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    return Tokenizer.train(CAPTIONS * 2, vocab_size=560, length=16)


def test_ids_equal_transformers(clip_folder: Path) -> None:
    ours, theirs = Tokenizer.from_folder(clip_folder), CLIPTokenizer.from_pretrained(clip_folder)
    assert (ours.start, ours.end, ours.pad, ours.vocab_size, ours.length) == (49406, 49407, 49407, 49408, 77)
    expected = theirs(TEXTS, padding="max_length", truncation=True, return_tensors="pt").input_ids
    assert torch.equal(ours(TEXTS), expected)
    for text in TEXTS:
        ids = ours.encode(text)
        assert ids == theirs(text, add_special_tokens=False).input_ids
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


def test_ids_equal_open_clip_after_its_cleaning(tmp_path: Path) -> None:
    """Two corners stay transformers': a combining mark written as an HTML entity is composed with its letter,
    and a start or end token is found within a run of punctuation."""
    theirs = SimpleTokenizer()
    folder = write_clip_folder(tmp_path, "<start_of_text>", "<end_of_text>")
    ours = Tokenizer.from_folder(folder, clean=get_clean_fn("lower"))
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text)


def test_cleaning_is_what_parts_the_libraries(clip_folder: Path) -> None:
    plain = Tokenizer.from_folder(clip_folder)
    clean = Tokenizer.from_folder(clip_folder, clean=html.unescape)
    assert plain.encode("salt &amp; pepper") != plain.encode("salt & pepper")
    assert clean.encode("salt &amp; pepper") == plain.encode("salt & pepper")


def test_broken_unicode_is_replaced(trained: Tokenizer) -> None:
    assert trained.encode("a \ud83c\udf4e") == trained.encode("a 🍎")
    for broken in ("a \ud83c", "a \udf4e", "a \udf4e\ud83c"):
        mended = "".join("\ufffd" if c > "\ud7ff" else c for c in broken)
        assert trained.encode(broken) == trained.encode(mended)


def test_a_special_token_with_flags_reads_as_in_transformers(clip_folder: Path, tmp_path: Path) -> None:
    """Stable Diffusion's own folders mark them "normalized": sought after lower-casing, not before it."""
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_bytes((clip_folder / name).read_bytes())
    flags = {"__type": "AddedToken", "lstrip": False, "normalized": True, "single_word": False}
    special = {"bos_token": {"content": START} | flags, "eos_token": {"content": END} | flags}
    config = special | {"pad_token": "!", "unk_token": END, "tokenizer_class": "CLIPTokenizer"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))

    ours, theirs = Tokenizer.from_folder(tmp_path), CLIPTokenizer.from_pretrained(tmp_path)
    assert ours.pad == theirs.pad_token_id == 0
    for text in [*TEXTS[:100], "a <|EndOfText|> b"]:
        assert ours.encode(text) == theirs(text, add_special_tokens=False).input_ids


def test_training_makes_clips_layout(trained: Tokenizer) -> None:
    assert trained.vocab_size == 560
    assert (trained.start, trained.end, trained.pad) == (558, 559, 559)
    assert trained.encode("apple") == trained.encode(" APPLE ")
    assert len(trained.encode("a red apple")) == 3
    assert len(trained.encode("赤いりんごの絵")) < len("赤いりんごの絵".encode()) / 2
    # The bytes stand where they stand in OpenAI's vocabulary.
    theirs = SimpleTokenizer().encoder
    assert [trained.encode(letter) for letter in "!xyz"] == [[theirs[letter + "</w>"]] for letter in "!xyz"]


def test_training_is_reproducible(trained: Tokenizer, tmp_path: Path) -> None:
    trained.save(tmp_path / "a")
    Tokenizer.train(CAPTIONS * 2, vocab_size=560, length=16).save(tmp_path / "b")
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


def test_a_trained_tokenizer_knows_every_text(trained: Tokenizer) -> None:
    """What the normaliser keeps comes back byte for byte: nothing is unknown."""
    for text in PIECES["emoji"] + PIECES["japanese"][:1] + ["👩‍🚀と猫", "\0\x01", "naïve"]:
        assert trained.decode(trained.encode(text)).replace(" ", "") == text
    for text in TEXTS:
        assert trained.end not in trained.encode(text) or END in text


@pytest.mark.parametrize("reopen", [False, True])
def test_saved_folders_open_here_and_there(trained: Tokenizer, reopen: bool, tmp_path: Path) -> None:
    trained.save(tmp_path)
    theirs = CLIPTokenizer.from_pretrained(tmp_path)
    if reopen:  # transformers writes tokenizer.json, without vocab.json and merges.txt
        tmp_path = tmp_path / "theirs"
        theirs.save_pretrained(tmp_path)
    ours = Tokenizer.from_folder(tmp_path)

    expected = theirs(TEXTS, padding="max_length", truncation=True, return_tensors="pt").input_ids
    assert torch.equal(trained(TEXTS), expected)
    assert torch.equal(ours(TEXTS), expected)


def test_texts_are_marked_cut_and_padded(trained: Tokenizer) -> None:
    short, long = trained(["a red apple", "red " * 100])
    assert short.tolist() == [trained.start, *trained.encode("a red apple"), *[trained.end] * 12]
    assert long.tolist() == [trained.start, *trained.encode("red") * 14, trained.end]
    assert trained([]).shape == (0, 16)


def test_users_mistakes_are_named(trained: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="vocab_size 500 is too small: choose 514 or more"):
        Tokenizer.train(CAPTIONS, vocab_size=500, length=16)
    with pytest.raises(ValueError, match=r"vocab\.json and merges\.txt, or tokenizer\.json"):
        Tokenizer.from_folder(tmp_path)
    trained.save(tmp_path)
    (tmp_path / "special_tokens_map.json").write_text('{"pad_token": "<pad>"}')
    with pytest.raises(ValueError, match="pad_token '<pad>' is not in the vocabulary"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "vocab.json").write_text("{")
    with pytest.raises(ValueError, match=r"vocab\.json is not valid JSON"):
        Tokenizer.from_folder(tmp_path)
