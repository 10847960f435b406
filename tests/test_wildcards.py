"""Templates: what is drawn from them, and what every combination is."""

import random
from collections import Counter
from pathlib import Path

import pytest

from diffusion.wildcards import combinations, fill

# A template, and all that can be drawn from it.
DRAWS = [
    ("a cat", {"a cat"}),
    ("a {red|blue} cat", {"a red cat", "a blue cat"}),
    ("{a|{b|c} d}", {"a", "b d", "c d"}),
    ("{a|b}{c|d}", {"ac", "ad", "bc", "bd"}),
    ("{a}", {"a"}),
    ("{}", {""}),
    ("{a|}", {"a", ""}),
    ("{2$$a|b|c}", {"a, b", "a, c", "b, a", "b, c", "c, a", "c, b"}),
    ("{2$$ and $$a|b}", {"a and b", "b and a"}),
    ("{2$$$$a|b}", {"ab", "ba"}),
    ("{0-1$$a|b}", {"", "a", "b"}),
    ("{9$$a|b}", {"a, b", "b, a"}),
    ("{2$$a|{b|c}}", {"a, b", "a, c", "b, a", "c, a"}),
    ("{[a|b]|c}", {"[a|b]", "c"}),
    ("[a|{b|c}]", {"[a|b]", "[a|c]"}),
    (r"\{a|b\}", {"{a|b}"}),
    (r"{a\}|b}", {"a}", "b"}),
    (r"\(a\) \\ {b}", {r"\(a\) \\ b"}),
    (r"\\{a|b}", {r"\\a", r"\\b"}),
    ("a | b", {"a | b"}),
    ("a {b|c", {"a {b|c"}),
    ("a} b", {"a} b"}),
    ("{a|{b|c}", {"{a|b", "{a|c"}),
    ("$$ {5 $$a}", {"$$ 5 $$a"}),
    ("__colour__", {"__colour__"}),  # without a folder it is text
]


@pytest.mark.parametrize(("template", "prompts"), DRAWS)
def test_draws(template: str, prompts: set[str]) -> None:
    assert {fill(template, str(seed)) for seed in range(200)} == prompts


def test_a_seed_always_draws_the_same() -> None:
    template = "{a|b|c} {2$$d|e|f}"
    assert [fill(template, f"prompt {seed}") for seed in range(4)] == ["b e, d", "c e, d", "c d, f", "a e, f"]


def test_draws_are_even() -> None:
    counts = Counter(fill("{a|b|c|d}", str(seed)) for seed in range(4000))
    assert all(850 < count < 1150 for count in counts.values())


@pytest.mark.parametrize(
    ("template", "templates"),
    [
        ("a {b|c}", ["a {b|c}"]),
        ("{e$$a|b} {e$$c|d}", ["a c", "a d", "b c", "b d"]),
        ("{e$$a|b} {c|d}", ["a {c|d}", "b {c|d}"]),
        ("{e$$a|{e$$b|c}}", ["a", "b", "c"]),
        ("{2$$a|{e$$b|c}}", ["{2$$a|b}", "{2$$a|c}"]),
        ("{e$$a}", ["a"]),
        (r"\{e$$a|b\} \(c\)", [r"\{e$$a|b\} \(c\)"]),
        ("{e$$a|b", ["{e$$a|b"]),
    ],
)
def test_combinations(template: str, templates: list[str]) -> None:
    assert combinations(template) == templates


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "colours").mkdir()
    (tmp_path / "colours" / "warm.txt").write_text("# a remark\n\nred\n  orange \n{dark|light} yellow\n", "utf-8")
    (tmp_path / "thing.txt").write_text("__colours/warm__ apple\n青い傘\n", "utf-8")
    (tmp_path / "loop.txt").write_text("a __loop__\n", "utf-8")
    (tmp_path / "empty.txt").write_text("# nothing\n", "utf-8")
    (tmp_path / "latin.txt").write_bytes("é\n".encode("latin-1"))
    return tmp_path


def test_files(folder: Path) -> None:
    warm = {"red", "orange", "dark yellow", "light yellow"}
    assert {fill("a __colours/warm__ b", str(seed), folder) for seed in range(100)} == {f"a {c} b" for c in warm}
    things = {f"{c} apple" for c in warm} | {"青い傘"}
    assert {fill("{__thing__}", str(seed), folder) for seed in range(200)} == things
    assert fill("snake_case __ a__b", "0", folder) == "snake_case __ a__b"


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("a __nothing__", "nothing.txt for __nothing__; "),
        ("__loop__", "name each other without end; see __loop__"),
        ("__empty__", "empty.txt has no line to draw"),
        ("__latin__", "is not UTF-8 text"),
        ("a {e$$b|c}", "asks by {e$$b|c} for several pictures"),
        ("{" * 60 + "a" + "}" * 60, "more than 50 deep"),
    ],
)
def test_mistakes_are_one_sentence(folder: Path, template: str, said: str) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]+[.]$") as mistake:
        fill(template, "0", folder)
    assert said in str(mistake.value)


def test_too_many_combinations_are_refused() -> None:
    with pytest.raises(ValueError, match="more than 10000 combinations"):
        combinations("{e$$a|b}" * 40)
    with pytest.raises(ValueError, match="more than 10000 combinations"):
        combinations("{x|" + "{e$$a|b}" * 40 + "}")


def test_any_string_is_drawn_from() -> None:
    rng = random.Random(0)
    pieces = [*"{}|\\$[] ", "$$", "2$$", "1-2$$", "cat", "りんご"]
    for _ in range(3000):
        template = "".join(rng.choices(pieces, k=rng.randrange(16)))
        assert fill(template, "0") == fill(template, "0")
        assert combinations(template) == [template]
