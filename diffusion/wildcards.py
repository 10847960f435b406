"""Templates of prompts: what is left to chance in them, or asked for in every combination.

    {red|blue}            one of them; groups nest
    {2$$a|b|c}            two different ones, "a, c"; {1-3$$…}: one to three; {2$$ and $$a|b|c}: "a and c"
    {e$$red|blue}         each of them, in a picture of its own: `combinations`
    __colors/warm__       a line of colors/warm.txt in the folder of wildcards, where one is given
    \\{ \\}                 the characters themselves

What is drawn is a function of the template and a seed alone, so that a picture's own seed decides it.
"""

import itertools
import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

MAX_COMBINATIONS = 10_000
MAX_DEPTH = 50
MAX_FILES = 1000  # wildcards in one prompt, those of the files' own lines among them

TOKEN = re.compile(r"\\.?|[{}|\[\]]|[^\\{}|\[\]]+", re.DOTALL)
COUNT = re.compile(r"(e|\d{1,3})(?:-(\d{1,3}))?\$\$(?:([^$]*)\$\$)?")
FILE = re.compile(r"__([\w-]+(?:/[\w-]+)*?)__")

T = TypeVar("T")


@dataclass(frozen=True)
class Group:
    options: "tuple[Nodes, ...]"
    count: str = ""  # as it was written, "2$$", with the separator

    def text(self) -> str:
        return "{" + self.count + "|".join(map(_text, self.options)) + "}"


Nodes = tuple[str | Group, ...]  # text keeps its escapes until it is drawn


def fill(template: str, seed: str, folder: Path | None = None) -> str:
    """The prompt that `seed` draws; other texts are returned as they are.

    Raises ValueError where the template asks for several pictures, or for a file that `folder` does not have.
    """
    draw, files, said, todo = random.Random(seed), 0, list[str](), list(reversed(_parse(template)))
    while todo:
        node = todo.pop()
        if isinstance(node, Group):
            todo += reversed(_drawn(node, draw))
            continue
        text, name, rest = _split_at_file(node) if folder else (node, "", "")
        said.append(re.sub(r"\\([{}\\])", lambda match: match[0] if match[1] == "\\" else match[1], text))
        if folder and name:
            files += 1
            if files > MAX_FILES:
                raise ValueError(f"The wildcards of {folder} name each other without end; see __{name}__.")
            todo += [rest, *reversed(_parse(_choose(_lines(folder, name), draw)))]
    return "".join(said)


def combinations(template: str) -> list[str]:
    """The templates that one with {e$$…} stands for; any other stands for itself."""
    found = _first(_every(_parse(template)))
    if len(found) > MAX_COMBINATIONS:
        raise ValueError(f"The prompt has more than {MAX_COMBINATIONS} combinations; ask for fewer at a time.")
    return [_text(nodes) for nodes in found]


def _every(nodes: Nodes) -> Iterator[Nodes]:
    for choice in itertools.product(*map(_alternatives, nodes)):
        yield tuple(itertools.chain.from_iterable(choice))


def _alternatives(node: str | Group) -> list[Nodes]:
    """What a node becomes in each combination; no more than show that there are too many."""
    if isinstance(node, str):
        return [(node,)]
    options = [_first(_every(option)) for option in node.options]
    if node.count == "e$$":
        return _first(itertools.chain.from_iterable(options))
    return [(Group(choice, node.count),) for choice in _first(itertools.product(*options))]


def _first(many: Iterable[T]) -> list[T]:
    return list(itertools.islice(many, MAX_COMBINATIONS + 1))


def _drawn(group: Group, draw: random.Random) -> Nodes:
    """The options that are drawn from a group, with what stands between them."""
    match = COUNT.fullmatch(group.count)
    low, high, separator = match.groups() if match else ("1", None, None)
    if low == "e":
        raise ValueError(f"The prompt asks by {group.text()} for several pictures where one is made; name one of them.")
    rest = list(group.options)
    count = int(low) + int(draw.random() * (max(int(high), int(low)) + 1 - int(low))) if high else int(low)
    taken: list[str | Group] = []
    for i in range(min(count, len(rest))):
        taken += [", " if separator is None else separator] if i else []
        taken += rest.pop(int(draw.random() * len(rest)))
    return tuple(taken)


def _choose(lines: list[str], draw: random.Random) -> str:
    return lines[int(draw.random() * len(lines))]


def _split_at_file(text: str) -> tuple[str, str, str]:
    """What stands before the first name of a file, the name, and what stands after it."""
    match = FILE.search(text)
    return (text[: match.start()], match[1], text[match.end() :]) if match else (text, "", "")


def _lines(folder: Path, name: str) -> list[str]:
    """What a file of wildcards offers; empty lines and those that begin with # are remarks."""
    path = folder / f"{name}.txt"
    if not path.is_file():
        known = ", ".join(sorted(f"__{file.relative_to(folder).with_suffix('')}__" for file in folder.rglob("*.txt")))
        raise ValueError(f"There is no {path} for __{name}__; {folder} has {known or 'no .txt file'}.")
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 text; save it as such.") from None
    if not (lines := [line for line in lines if line and not line.startswith("#")]):
        raise ValueError(f"{path} has no line to draw; write one option a line.")
    return lines


def _parse(template: str) -> Nodes:
    """A brace that is not closed is text, and so is one too many."""
    stack: list[list[list[str | Group]]] = [[[]]]  # of the open groups, each its options
    squares = [0]  # [a|b] is an alternation, also inside a group
    for token in TOKEN.findall(template):
        options = stack[-1]
        if token == "{":
            stack.append([[]])
            squares.append(0)
            if len(stack) > MAX_DEPTH:
                raise ValueError(f"The prompt nests braces more than {MAX_DEPTH} deep; write them side by side.")
        elif token == "}" and len(stack) > 1:
            stack.pop()
            squares.pop()
            stack[-1][-1].append(_group(options))
        elif token == "|" and len(stack) > 1 and not squares[-1]:
            options.append([])
        else:
            squares[-1] = max(0, squares[-1] + {"[": 1, "]": -1}.get(token, 0))
            options[-1].append(token)
    while len(stack) > 1:
        options = stack.pop()
        stack[-1][-1] += ["{", *options[0]]
        for option in options[1:]:
            stack[-1][-1] += ["|", *option]
    return _joined(stack[0][0])


def _group(options: list[list[str | Group]]) -> Group:
    first, *others = map(_joined, options)
    if first and isinstance(first[0], str) and (match := COUNT.match(first[0])):
        return Group(((first[0][match.end() :], *first[1:]), *others), match[0])
    return Group((first, *others))


def _joined(nodes: list[str | Group]) -> Nodes:
    """Neighbouring texts as one."""
    joined: list[str | Group] = []
    for node in nodes:
        if isinstance(node, str) and joined and isinstance(joined[-1], str):
            joined[-1] += node
        else:
            joined.append(node)
    return tuple(joined)


def _text(nodes: Nodes) -> str:
    return "".join(node if isinstance(node, str) else node.text() for node in nodes)
