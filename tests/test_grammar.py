"""What prompts mean: tables of what AUTOMATIC1111's web UI and ComfyUI make of the same strings."""

import random

import pytest

from diffusion.grammar import SYNTAXES, Part, compose, read, schedule, stretches

# A prompt, and what its parts weigh; "BREAK" lies between stretches.
WEIGHTS = [
    ("normal text", [("normal text", 1)]),
    ("", [("", 1)]),
    ("an (important) word", [("an ", 1), ("important", 1.1), (" word", 1)]),
    ("((very)) (((much)))", [("very", 1.1**2), (" ", 1), ("much", 1.1**3)]),
    ("a [faint] b", [("a ", 1), ("faint", 1 / 1.1), (" b", 1)]),
    ("[[a]]", [("a", 1 / 1.1**2)]),
    ("([a])", [("a", 1)]),
    ("(a:1.3)", [("a", 1.3)]),
    ("(a: 1.3 )", [("a", 1.3)]),
    ("(a:.5)(b:2.)", [("a", 0.5), ("b", 2)]),
    ("(a:0)", [("a", 0)]),
    ("(a:-1)(b:+2)", [("a", -1), ("b", 2)]),
    ("((a:1.5) b)", [("a", 1.65), (" b", 1.1)]),
    ("((a:2):3)", [("a", 6)]),
    ("(a:1.3:1.2)", [("a:1.3", 1.2)]),
    ("(a:b)", [("a:b", 1.1)]),
    ("(a:1e1)", [("a:1e1", 1.1)]),
    ("(a:1.2.3)", [("a:1.2.3", 1.1)]),
    ("a:1.3", [("a:1.3", 1)]),
    ("a:1.3)", [("a:1.3)", 1)]),
    ("[a:1.3]", [("a:1.3", 1 / 1.1)]),
    ("[a:1.3)", [("a:1.3)", 1 / 1.1)]),
    ("(unbalanced", [("unbalanced", 1.1)]),
    ("[unbalanced (more", [("unbalanced ", 1 / 1.1), ("more", 1)]),
    ("a) b]", [("a) b]", 1)]),
    ("(a] b)", [("a] b", 1.1)]),
    ("(a [b) c]", [("a ", 1.1), ("b", 1), (" c", 1 / 1.1)]),
    ("()", [("", 1)]),
    ("(unnecessary)(parens)", [("unnecessaryparens", 1.1)]),
    (r"\(literal\]", [("(literal]", 1)]),
    (r"a \\ b", [("a \\ b", 1)]),
    (r"a\b", [("ab", 1)]),
    (r"(a\):1.5)", [("a)", 1.5)]),
    (r"smile \(style:1.2\)", [("smile (style:1.2)", 1)]),
    (
        "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
        [
            *(("a ", 1), ("house", 1.3 * 1.1**2), (" ", 1.1), ("on", 1), (" a ", 1.1)),
            *(("hill", 0.55), (", sun, ", 1.1), ("sky", 1.1**4), (".", 1.1)),
        ],
    ),
    ("りんご(赤い:1.2)", [("りんご", 1), ("赤い", 1.2)]),
    ("a BREAK b", [("a", 1), "BREAK", ("b", 1)]),
    ("a\n BREAK \tb BREAK", [("a", 1), "BREAK", ("b", 1), "BREAK", ("", 1)]),
    ("BREAK BREAK a", [("", 1), "BREAK", ("", 1), "BREAK", ("a", 1)]),
    ("BREAKFAST or a break", [("BREAKFAST or a break", 1)]),
    ("(a BREAK b:1.5) c", [("a", 1.5), "BREAK", ("b", 1.5), (" c", 1)]),
]

# A prompt, and what it says until which of ten steps.
SCHEDULES = [
    ("test", [(10, "test")]),
    ("a [b:3]", [(3, "a "), (10, "a b")]),
    ("a [b: 3 ]", [(3, "a "), (10, "a b")]),
    ("a [b:c:0.5] d", [(5, "a b d"), (10, "a c d")]),
    ("a [b::0.5] c", [(5, "a b c"), (10, "a  c")]),
    ("a [:b:0.5] c", [(5, "a  c"), (10, "a b c")]),
    ("a [b:.5] c", [(5, "a  c"), (10, "a b c")]),
    ("a [b : c : 1] d", [(1, "a b  d"), (10, "a  c  d")]),
    ("[a:b:0.29]", [(2, "a"), (10, "b")]),  # 2.9 steps are two
    ("[a:b:1.0]", [(10, "a")]),  # a dot: all of the steps
    ("[a:b:1]", [(1, "a"), (10, "b")]),  # no dot: the first step
    ("[a:b:0.05]", [(10, "b")]),
    ("[a:b:0]", [(10, "b")]),
    ("[a:b:-3]", [(10, "b")]),
    ("[a:b:30]", [(10, "a")]),
    ("[a:b:1e1]", [(10, "a")]),
    ("[a:b:9e99]", [(10, "a")]),
    ("a [[[b]]:2]", [(2, "a "), (10, "a [[b]]")]),
    ("[(a:2):3]", [(3, ""), (10, "(a:2)")]),
    ("([a:b:3]:1.2)", [(3, "(a:1.2)"), (10, "(b:1.2)")]),
    ("a[b:[c:d:2]:1]e", [(1, "abe"), (2, "ace"), (10, "ade")]),
    ("a [unbalanced", [(10, "a [unbalanced")]),
    ("a [b] c", [(10, "a [b] c")]),
    ("a [b:c] d", [(10, "a [b:c] d")]),
    ("a [b:c:d:3] e", [(10, "a [b:c:d:3] e")]),
    ("[a:b:c]", [(10, "[a:b:c]")]),
    ("[a:b:(3)]", [(10, "[a:b:(3)]")]),
    ("((a][:b:c [d:3]", [(3, "((a][:b:c "), (10, "((a][:b:c d")]),
    ("(a:b:c) [d:3]", [(3, "(a:b:c) "), (10, "(a:b:c) d")]),
    (r"[a\:b\]:c:3]", [(3, r"a\:b\]"), (10, "c")]),
    (r"\[a:b:3\]", [(10, r"\[a:b:3\]")]),
    ("a | b [c:3]", [(10, "a | b [c:3]")]),  # a bar in the open: nothing switches
    ("[a|b [c:3]", [(10, "[a|b [c:3]")]),
    ("[a:b:3] \\", [(10, "[a:b:3] \\")]),
    (
        "fantasy landscape with a [mountain:lake:0.25] and [an oak:a christmas tree:0.75]"
        "[ in foreground::0.6][ in background:0.25] [shoddy:masterful:0.5]",
        [
            (2, "fantasy landscape with a mountain and an oak in foreground shoddy"),
            (5, "fantasy landscape with a lake and an oak in foreground in background shoddy"),
            (6, "fantasy landscape with a lake and an oak in foreground in background masterful"),
            (7, "fantasy landscape with a lake and an oak in background masterful"),
            (10, "fantasy landscape with a lake and a christmas tree in background masterful"),
        ],
    ),
]

# A prompt, and what it says at each of four steps.
ALTERNATIONS = [
    ("[a|(b:1.1)]", ["a", "(b:1.1)", "a", "(b:1.1)"]),
    ("[a|b|c] d", ["a d", "b d", "c d", "a d"]),
    ("[fe|]male", ["female", "male", "female", "male"]),
    ("[fe|||]male", ["female", "male", "male", "male"]),
    ("[[a|b]|c]", ["a", "c", "a", "c"]),
    ("[a|[b:c:2]]", ["a", "b", "a", "c"]),
    ("[[a|b]:c:2]", ["a", "b", "c", "c"]),
    ("([a|b]:1.2)", ["(a:1.2)", "(b:1.2)"] * 2),
]

COMPOSITIONS = [
    ("a cat", [("a cat", 1)]),
    ("a AND b", [("a", 1), (" b", 1)]),
    ("a cat :1.2 AND a dog AND a penguin :2.2", [("a cat", 1.2), (" a dog", 1), (" a penguin", 2.2)]),
    ("a:0.5 AND b: -1", [("a", 0.5), (" b", -1)]),
    ("a:.5 AND b:2. AND c:x", [("a", 0.5), (" b", 2), (" c:x", 1)]),
    ("SAND and ANDES", [("SAND and ANDES", 1)]),
    ("a clock at 10:30", [("a clock at 10:30", 1)]),
    ("a AND", [("a", 1), ("", 1)]),
    ("(a AND b:1.2)", [("(a", 1), (" b:1.2)", 1)]),
]

COMFY = [
    ("a (b) c", [("a ", 1), ("b", 1.1), (" c", 1)]),
    ("(a:1.3)", [("a", 1.3)]),
    ("(a: 1.3 )", [("a", 1.3)]),
    ("(a:1e1)", [("a", 10)]),
    ("((a))", [("a", 1.1**2)]),
    ("((a:1.5) b:2)", [("a", 1.5), (" b", 2)]),  # the inner number stands
    ("((a):1.5)", [("a", 1.5 * 1.1)]),
    ("(:1.2)", [(":1.2", 1.1)]),
    ("(a:b)", [("a:b", 1.1)]),
    ("[a] [b:c:3] BREAK d AND e", [("[a] [b:c:3] BREAK d AND e", 1)]),
    (r"\(a\) (b\):1.2)", [("(a) ", 1), ("b)", 1.2)]),
    ("a (b", [("a (b", 1)]),
    ("a) (b)", [("a) (b)", 1)]),
    ("(a) (b (c)", [("a", 1.1), (" ", 1), ("b (c", 1.1)]),
]


def flat(text: str, syntax: str) -> list[tuple[str, float] | str]:
    first, *others = stretches(text, syntax)
    parts: list[tuple[str, float] | str] = list(first)
    for other in others:
        parts += ["BREAK", *other]
    return parts


def about(parts: list) -> list:
    return [part if part == "BREAK" else (part[0], pytest.approx(part[1])) for part in parts]


@pytest.mark.parametrize(("text", "parts"), WEIGHTS)
def test_weights(text: str, parts: list) -> None:
    assert flat(text, "a1111") == about(parts)


@pytest.mark.parametrize(("text", "parts"), COMFY)
def test_comfy_weights(text: str, parts: list) -> None:
    assert flat(text, "comfy") == about(parts)


@pytest.mark.parametrize(("prompt", "spans"), SCHEDULES)
def test_switches(prompt: str, spans: list[tuple[int, str]]) -> None:
    assert schedule(prompt, 10) == spans


@pytest.mark.parametrize(
    ("prompt", "spans"),
    [
        ("a [b:.5] c", [(10, "a b c")]),
        ("a [b:1.5] c", [(5, "a  c"), (10, "a b c")]),
        ("a [b:20] c", [(10, "a b c")]),
        ("a [b:24] c", [(4, "a  c"), (10, "a b c")]),
        ("a [b:2.5] c", [(10, "a  c")]),
    ],
)
def test_a_second_pass_counts_on(prompt: str, spans: list[tuple[int, str]]) -> None:
    """Ten steps after twenty."""
    assert schedule(prompt, 10, before=20) == spans


@pytest.mark.parametrize(("prompt", "texts"), ALTERNATIONS)
def test_alternations(prompt: str, texts: list[str]) -> None:
    assert schedule(prompt, 4) == list(enumerate(texts, start=1))


@pytest.mark.parametrize(("prompt", "parts"), COMPOSITIONS)
def test_compositions(prompt: str, parts: list[tuple[str, float]]) -> None:
    assert compose(prompt) == parts


def test_each_syntax_reads_its_own() -> None:
    prompt = "(a) AND [b|c]"
    assert [len(term.spans) for term in read(prompt, 4, "a1111")] == [1, 4]
    assert len(read(prompt, 4, "a1111", negative=True)) == 1
    for syntax in ("comfy", "plain"):
        assert read(prompt, 4, syntax) == [(1, ((4, prompt),))]
    assert stretches(prompt, "plain") == [[Part(prompt)]]


@pytest.mark.parametrize("syntax", ["a1111", "comfy"])
@pytest.mark.parametrize("text", ["(a:999999999)", "(" * 90 + "a" + ")" * 90, f"(a:{'9' * 400})"])
def test_weights_beyond_reason_are_refused(syntax: str, text: str) -> None:
    with pytest.raises(ValueError, match=r"The weight of 'a' is .*; expected at most 1000"):
        stretches(text, syntax)


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_any_string_is_read(syntax: str) -> None:
    """Whatever is typed has some meaning, at every step, and no word is lost."""
    rng = random.Random(0)
    pieces = [*"()[]{}:|\\,\n ", "AND", " BREAK ", "cat", "りんご", "0.5", ":1.3)", "[a:b:3]", "[a|b]", "\0", "🍎"]
    for _ in range(3000):
        prompt = "".join(rng.choices(pieces, k=rng.randrange(24)))
        for term in read(prompt, 5, syntax):
            assert [span.end for span in term.spans] == sorted({span.end for span in term.spans})
            assert term.spans[-1].end == 5
            for span in term.spans:
                said = "".join(part.text for stretch in stretches(span.text, syntax) for part in stretch)
                assert said.count("cat") == span.text.count("cat")


@pytest.mark.parametrize("prompt", ["(" * 5000, "[a:" * 3000, "[a|" * 3000 + "]" * 3000, "[" * 3000 + ":1]" * 3000])
def test_deep_brackets_are_read_in_time(prompt: str) -> None:
    for span in schedule(prompt, 3):
        assert stretches(span.text[:2000].replace("[", "("), "comfy")
