"""What people write in prompts: the syntax of AUTOMATIC1111's web UI and of ComfyUI, as pure functions of strings.

    read(prompt, steps, syntax)   the terms that AND joins, and what each says at which step
    stretches(text, syntax)       one such text as parts, each of one weight; BREAK lies between stretches

a1111   a AND b :0.5        two prompts, composed by guidance; the weight of each stands at its end
        [a:b:0.5] [b:3]     a, then b, from that fraction of the steps, or from that step; the first may be empty
        [a|b]               another one at every step
        (a) [a] (a:1.3)     1.1 times the attention, 1 / 1.1 times, 1.3 times; they nest and multiply
        BREAK               what follows begins a new chunk of tokens
        \\( \\) \\[ \\] \\\\      the characters themselves
comfy   (a) (a:1.3) \\( \\)   1.1 times and 1.3 times; an inner number replaces the outer ones
plain   nothing at all

Both are followed to the letter, in what they make of broken brackets too, where anyone could mean it. Not followed:
a1111 takes the end of "a clock at 10:30" for a weight though nothing is composed, BREAK inside brackets for a word,
and a switch that touches a stray bracket, as in "[a:b:3])", for text.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

SYNTAXES = ("a1111", "comfy", "plain")
MAX_WEIGHT = 1000.0


class Part(NamedTuple):
    """Words of one weight."""

    text: str
    weight: float = 1.0


class Span(NamedTuple):
    """What is said until a step."""

    end: int  # the last step of it, counted from 1
    text: str


class Term(NamedTuple):
    """One of the prompts that guidance adds up."""

    weight: float
    spans: tuple[Span, ...]  # the last one ends with the last step


def has_syntax(prompt: str) -> bool:
    """Whether there is anything in a prompt that some syntax, or a template, takes for more than text."""
    return bool(re.search(r"[()\[\]{}\\]|\b(?:AND|BREAK)\b|\bembedding:", prompt))


def read(prompt: str, steps: int, syntax: str, negative: bool = False, before: int = 0) -> list[Term]:
    """A prompt as the terms that AND joins; a negative prompt is always one.

    `before` are the steps of a first pass that went before. Prompts count on: 1.5 is the middle of the second.
    """
    if syntax != "a1111":
        return [Term(1.0, (Span(steps, prompt),))]
    composed = [Part(prompt)] if negative else compose(prompt)
    return [Term(part.weight, tuple(schedule(part.text, steps, before))) for part in composed]


def stretches(text: str, syntax: str) -> list[list[Part]]:
    """A text that holds at one step, as parts. Only a1111 has more stretches than one."""
    if syntax == "plain":
        return [[Part(text)]]
    found = a1111_weights(text) if syntax == "a1111" else [_merged(list(comfy_weights(text)))]
    for part in (part for stretch in found for part in stretch):
        if not abs(part.weight) <= MAX_WEIGHT:
            raise ValueError(f"The weight of {part.text!r} is {part.weight:g}; expected at most {MAX_WEIGHT:g}.")
    return found


# ---- a AND b :0.5

TERM_WEIGHT = re.compile(r":\s*([-+]?(?:\d+\.?|\d*\.\d+))$")


def compose(prompt: str) -> list[Part]:
    """The prompts that AND joins, with their weights."""
    texts = re.split(r"\bAND\b", prompt)
    if len(texts) == 1:
        return [Part(prompt)]
    parts = []
    for text in map(str.rstrip, texts):
        weight = TERM_WEIGHT.search(text)
        parts.append(Part(text[: weight.start()].rstrip(), float(weight[1])) if weight else Part(text))
    return parts


# ---- [a:b:0.5] and [a|b]

NUMBER = r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?"
WHEN = re.compile(rf"\s*({NUMBER})\s*")
PLAIN = re.compile(r"(?:[^\\\[\]():|]|\\.)+")
CLOSES = {")": "(", "]": "["}


@dataclass(frozen=True)
class Switch:
    before: "Nodes"
    after: "Nodes"
    when: int  # the last step of `before`, counted from 1

    def at(self, step: int) -> "Nodes":
        return self.before if step <= self.when else self.after


@dataclass(frozen=True)
class Alternate:
    options: "list[Nodes]"

    def at(self, step: int) -> "Nodes":
        return self.options[(step - 1) % len(self.options)]


Nodes = list[str | Switch | Alternate]


@dataclass
class Bracket:
    """An open one, or the text around all. Marks cut what it holds into pieces."""

    opening: str
    mark: str  # ":" or "|", once it has any
    pieces: list[Nodes]

    def text(self) -> Nodes:
        """As it was written."""
        nodes: Nodes = [self.opening, *self.pieces[0]]
        for piece in self.pieces[1:]:
            nodes += [self.mark, *piece]
        return nodes


def schedule(prompt: str, steps: int, before: int = 0) -> list[Span]:
    """What a prompt says at which of `steps` steps. Its other brackets are left in the texts."""
    found = _parse(prompt, steps, before)
    if found is None:
        return [Span(steps, prompt)]
    nodes, ends = found
    return [Span(end, _render(nodes, end)) for end in sorted({*ends, steps})]


def _parse(prompt: str, steps: int, before: int) -> tuple[Nodes, set[int]] | None:
    """The prompt's nodes, and the steps at which something ends; None where "|" or "\\" stands outside of order.

    One pass with a stack. A bracket that cannot be what its kind must be is text, and with it those around it.
    """
    stack, ends, position = [Bracket("", "", [[]])], set[int](), 0
    while position < len(prompt):
        match = PLAIN.match(prompt, position)
        token = match[0] if match else prompt[position]
        position += len(token)
        top = stack[-1]
        if match:
            top.pieces[-1].append(token)
        elif token in "([":
            stack.append(Bracket(token, "", [[]]))
        elif token in ":|" and _may_mark(top, token):
            top.mark = token
            top.pieces.append([])
        elif token in CLOSES and (closed := _close(top, token, steps, before, ends)) is not None:
            stack.pop()
            stack[-1].pieces[-1] += closed
        else:
            _give_up(stack)
            stack[-1].pieces[-1].append(token)
    _give_up(stack)
    nodes = stack[0].pieces[0]
    return None if {"|", "\\"} & {node for node in nodes if isinstance(node, str)} else (nodes, ends)


def _may_mark(bracket: Bracket, mark: str) -> bool:
    marks = len(bracket.pieces) - 1
    if bracket.opening == "[":
        return bracket.mark in ("", mark) and (mark == "|" or marks < 2)
    return bracket.opening == "(" and mark == ":" and marks == 0


def _close(bracket: Bracket, closing: str, steps: int, before: int, ends: set[int]) -> Nodes | None:
    """What a bracket is, if this closes it; None if nothing."""
    if bracket.opening != CLOSES[closing]:
        return None
    if bracket.opening == "(":
        return [*bracket.text(), ")"]
    if not bracket.mark:
        return [*bracket.text(), "]"]
    if bracket.mark == "|":
        ends.update(range(1, steps + 1))
        return [Alternate(bracket.pieces)]
    *texts, last = bracket.pieces
    number = WHEN.fullmatch("".join(last)) if all(isinstance(node, str) for node in last) else None  # type: ignore[arg-type]
    if number is None:
        return None
    value = float(number[1])  # 1.0 is all of the steps, 1 the first
    value = (value - bool(before)) * steps if "." in number[1] else value - before
    when = int(max(0, min(steps, value)))
    if when >= 1:
        ends.add(when)
    return [Switch(texts[0] if len(texts) == 2 else [], texts[-1], when)]


def _give_up(stack: list[Bracket]) -> None:
    """All open brackets are text."""
    while len(stack) > 1:
        text = stack.pop().text()
        stack[-1].pieces[-1] += text


def _render(nodes: Nodes, step: int) -> str:
    texts, todo = [], nodes[::-1]
    while todo:
        node = todo.pop()
        if isinstance(node, str):
            texts.append(node)
        else:
            todo += reversed(node.at(step))
    return "".join(texts)


# ---- (a:1.3), [a] and BREAK

UP, DOWN = 1.1, 1 / 1.1
WEIGHED = re.compile(r"\\[()\[\]\\]?|[(\[]|:\s*([-+]?(?:\d+\.?\d*|\.\d+))\s*\)|[)\]:]|[^\\()\[\]:]+")


def a1111_weights(text: str) -> list[list[Part]]:
    """The parts of a text, between BREAKs. An unclosed bracket runs to the end, a stray one is text."""
    texts, weights = list[str](), list[float]()
    breaks = list[int]()  # how many parts come before each
    opened: dict[str, list[int]] = {"(": [], "[": []}  # the part that each begins with

    def add(words: str) -> None:
        texts.append(words)
        weights.append(1.0)

    def close(bracket: str, factor: float) -> None:
        for i in range(opened[bracket].pop(), len(weights)):
            weights[i] *= factor

    for match in WEIGHED.finditer(text):
        token = match[0]
        if token[0] == "\\":
            add(token[1:])
        elif token in opened:
            opened[token].append(len(texts))
        elif match[1] and opened["("]:
            close("(", float(match[1]))
        elif token == ")" and opened["("]:
            close("(", UP)
        elif token == "]" and opened["["]:
            close("[", DOWN)
        else:
            first, *others = re.split(r"\bBREAK\b", token)
            add(first.rstrip() if others else first)
            for words in others:
                breaks.append(len(texts))
                add(words.strip() if words is not others[-1] else words.lstrip())
    for bracket, factor in (("(", UP), ("[", DOWN)):
        while opened[bracket]:
            close(bracket, factor)

    parts = [Part(words, weight) for words, weight in zip(texts, weights, strict=True)]
    return [_merged(parts[begin:end]) for begin, end in pairwise([0, *breaks, len(parts)])]


def _merged(parts: Sequence[Part]) -> list[Part]:
    """Neighbours of one weight become one, so that words are whole again."""
    merged = list[Part]()
    for part in parts:
        if merged and merged[-1].weight == part.weight:
            part = Part(merged.pop().text + part.text, part.weight)
        merged.append(part)
    return merged or [Part("")]


# ---- (a:1.3), as ComfyUI has it

COMFY_WEIGHT = re.compile(rf"\s*({NUMBER})\s*")
MAX_DEPTH = 100


def comfy_weights(text: str, weight: float = 1.0, depth: int = 0) -> Iterator[Part]:
    """The parts of a text of this weight. An unclosed bracket and a stray one are text."""
    if depth > MAX_DEPTH:
        raise ValueError(f"The prompt nests brackets more than {MAX_DEPTH} deep; write the weight as a number.")
    for piece in _bracketed(text):
        if piece.startswith("(") and piece.endswith(")") and not piece.endswith("\\)"):
            inside = piece[1:-1]
            words, _, number = inside.rpartition(":")
            match = COMFY_WEIGHT.fullmatch(number) if words else None
            inner, factor = (words, float(match[1])) if match else (inside, weight * UP)
            yield from comfy_weights(inner, factor, depth + 1)
        else:
            yield Part(re.sub(r"\\([()])", r"\1", piece), weight)


def _bracketed(text: str) -> Iterator[str]:
    """The text cut before and after each of its outermost brackets."""
    start, depth = 0, 0
    for match in re.finditer(r"\\[()]|[()]", text):
        if match[0] == "(":
            if depth == 0 and match.start() > start:
                yield text[start : match.start()]
                start = match.start()
            depth += 1
        elif match[0] == ")":
            depth -= 1
            if depth == 0:
                yield text[start : match.end()]
                start = match.end()
    if start < len(text):
        yield text[start:]
