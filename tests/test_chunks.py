"""Long texts: which token goes into which chunk, by the rules of AUTOMATIC1111's web UI and of ComfyUI."""

import pytest

from clip.tokenizer import Tokenizer
from diffusion.chunks import chunks

WORDS = "one two three four five six seven eight nine ten"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """Reads eight tokens at once; each of WORDS is one, and so are "," and "."."""
    return Tokenizer.train([WORDS] * 2, vocab_size=600, length=10)


def said(tokenizer: Tokenizer, text: str, syntax: str) -> list[str]:
    return [tokenizer.decode(chunk.ids).strip() for chunk in chunks(text, syntax, tokenizer)]


A1111 = [
    ("", [""]),
    ("one two", ["one two"]),
    (f"{WORDS}", ["one two three four five six seven eight", "nine ten"]),
    ("one two, three four five six seven eight", ["one two ,", "three four five six seven eight"]),
    ("one, two, three four five six seven eight", ["one , two ,", "three four five six seven eight"]),
    ("one two three four five six seven, eight nine", ["one two three four five six seven ,", "eight nine"]),
    # A comma as the ninth begins the next chunk, and is no place to go back to.
    ("one two three four five six seven eight, nine", ["one two three four five six seven eight", ", nine"]),
    ("one BREAK two", ["one", "two"]),
    ("one BREAK", ["one"]),
    ("BREAK one", ["", "one"]),
    ("BREAK BREAK one", ["", "", "one"]),
    ("one, two BREAK three", ["one , two", "three"]),
    (f"one BREAK {WORDS}", ["one", "one two three four five six seven eight", "nine ten"]),
]

COMFY = [
    ("", [""]),
    ("one two, three four five six seven eight", ["one two , three four five six seven", "eight"]),
    ("one two three four five six.seven.eight", ["one two three four five", "six . seven . eight"]),  # a word is whole
    ("one " + "two." * 5, ["one two . two . two . two", ". two ."]),  # a long one is not
    ("one BREAK", ["one break"]),
]


@pytest.mark.parametrize(("text", "texts"), A1111)
def test_a1111(tokenizer: Tokenizer, text: str, texts: list[str]) -> None:
    assert said(tokenizer, text, "a1111") == texts


@pytest.mark.parametrize(("text", "texts"), COMFY)
def test_comfy(tokenizer: Tokenizer, text: str, texts: list[str]) -> None:
    assert said(tokenizer, text, "comfy") == texts


def test_a_phrase_of_more_than_twenty_tokens_is_split() -> None:
    tokenizer = Tokenizer.train([WORDS] * 2, vocab_size=600, length=32)
    for words, moved in ((29, 0), (20, 0), (19, 19)):
        text = "one " * (29 - words) + ", " + "two " * words + "three"
        first, second = chunks(text, "a1111", tokenizer)
        assert (len(first.ids), len(second.ids)) == (30 - moved, moved + 1)


def test_weights_stay_with_their_words(tokenizer: Tokenizer) -> None:
    first, second = chunks("one (two:2) three, (four five:3) six seven eight nine", "a1111", tokenizer)
    assert first.weights == [1, 2, 1, 1]
    assert second.weights == [3, 3, 1, 1, 1, 1]
    ids, weights = first.marked(tokenizer)
    assert ids == [tokenizer.start, *first.ids, tokenizer.end, *[tokenizer.pad] * 4]
    assert weights == [1, 1, 2, 1, 1, 1, 1, 1, 1, 1]


def test_plain_is_one_chunk_or_refused(tokenizer: Tokenizer) -> None:
    (chunk,) = chunks("(one) BREAK", "plain", tokenizer)
    assert tokenizer.decode(chunk.ids) == "( one ) break"
    with pytest.raises(ValueError, match=r"has 10 tokens and this model reads 8 at once; shorten it, or choose"):
        chunks(WORDS, "plain", tokenizer)


@pytest.mark.parametrize("syntax", ["a1111", "comfy"])
def test_no_word_is_lost(tokenizer: Tokenizer, syntax: str) -> None:
    text = "one, (two three), four. " * 40
    found = chunks(text, syntax, tokenizer)
    assert sum(len(chunk.ids) for chunk in found) == 40 * 7
    assert all(len(chunk.ids) <= 8 for chunk in found)
