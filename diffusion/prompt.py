"""python -m diffusion.prompt: what a prompt means: its parts and weights, tokens by chunk, and what changes when."""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path

from clip.command import attempt
from clip.tokenizer import Tokenizer
from diffusion.adapters import split_loras
from diffusion.checkpoint import DEFAULT_MODEL, find_model, load_model
from diffusion.chunks import Chunk, chunks
from diffusion.embeddings import Embeddings, Vector
from diffusion.files import Files
from diffusion.folder import load_tokenizer
from diffusion.grammar import SYNTAXES, Term, read
from diffusion.request import DEFAULT_SYNTAX, MAX_STEPS, Request, draw_prompts
from diffusion.wildcards import combinations

COMMAND = "python -m diffusion.prompt"
SHOWN = 8  # ranges of steps in a line
EXAMPLES = """examples:
  python -m diffusion.prompt "a (red:1.3) apple, [on a table]"      # weights
  python -m diffusion.prompt "a [cat:dog:0.4] AND a [tree|tower] :0.7" --steps 30
  python -m diffusion.prompt "a {red|blue} apple" --seed 7          # what chance makes of it
  python -m diffusion.prompt "((a apple:1.5) b:2)" --syntax comfy --json
  python -m diffusion.prompt "a cat" --negative "(blurry:1.2)" --model path/to/folder --embeddings path/to/embeddings

In what it prints, "red·dish" is a word of two tokens, "(red apple ×1.3)" weighs 1.3, and <name> is an embedding.

exit codes: 0 done; 2 a mistake in what was asked, said in one sentence.
"""


@dataclass(frozen=True)
class Piece:
    """What can be shown of a chunk: a token, several that are one character, or the vectors of an embedding."""

    text: str
    tokens: int
    weight: float
    begins: bool  # a word


@dataclass(frozen=True)
class Turn:
    """What is said at some of the steps."""

    steps: list[int]  # counted from 1
    text: str
    chunks: list[list[Piece]]


@dataclass(frozen=True)
class Text:
    """One of those that guidance adds up."""

    weight: float
    turns: list[Turn]


@dataclass(frozen=True)
class Explained:
    kind: str  # "prompt" or "negative prompt"
    prompt: str
    template: str | None  # what it was drawn from
    loras: list[str]
    syntax: str
    steps: int
    room: int  # tokens in a chunk
    texts: list[Text]


@dataclass(frozen=True)
class Explainer:
    tokenizer: Tokenizer
    embeddings: Embeddings | None
    syntax: str
    steps: int

    def explain(self, kind: str, prompt: str, template: str | None) -> Explained:
        prompt, loras = split_loras(prompt) if kind == "prompt" else (prompt, ())
        terms = read(prompt, self.steps, self.syntax, negative=kind != "prompt")
        texts = [Text(term.weight, [self.turn(*said) for said in self.said(term).items()]) for term in terms]
        room, tags = self.tokenizer.length - 2, [lora.tag for lora in loras]
        return Explained(kind, prompt, template, tags, self.syntax, self.steps, room, texts)

    def said(self, term: Term) -> dict[str, list[int]]:
        """What is said at which steps. Those of prompts and of sampling are counted apart: see `reader._above`."""
        said: dict[str, list[int]] = {}
        for step in range(self.steps):
            span = next(span for span in term.spans if step <= span.end)
            said.setdefault(span.text, []).append(step + 1)
        return said

    def turn(self, text: str, steps: list[int]) -> Turn:
        found = chunks(text, self.syntax, self.tokenizer, self.embeddings)
        return Turn(steps, text, [self.pieces(chunk) for chunk in found])

    def pieces(self, chunk: Chunk) -> list[Piece]:
        pieces, ids, begin, before = list[Piece](), list[int](), 0, ""
        for i, (token, weight) in enumerate(zip(chunk.ids, chunk.weights, strict=True)):
            if isinstance(token, Vector):
                count = len(token.embedding.vectors[0])
                if token.row == 0:
                    pieces.append(Piece(f"<{token.embedding.name}>", count, weight, True))
                ids, begin, before = [], i + 1, ""
                continue
            ids.append(token)
            text = self.tokenizer.decode(ids)
            if text.endswith("\ufffd") and i + 1 < len(chunk.ids):
                continue  # bytes that are no whole character yet
            new = text.removeprefix(before)
            pieces.append(Piece(new.strip(), i + 1 - begin, weight, not before or new.startswith(" ")))
            begin, before = i + 1, text
        return pieces


def show(said: Explained) -> str:
    """An explanation as lines for the reader."""
    lines = [f"{said.kind}: {said.prompt or '(empty)'}"]
    if said.template is not None:
        lines.append(f"  drawn from: {said.template}")
    if said.loras:
        lines.append(f"  LoRAs: {' '.join(said.loras)}")
    lines.append(f"  read as {said.syntax}, in chunks of {said.room} tokens, over {said.steps} steps")
    for i, text in enumerate(said.texts, start=1):
        lines.append("")
        if len(said.texts) > 1:
            lines.append(f"  text {i} of {len(said.texts)}, weight {text.weight:g}")
        for turn in text.turns:
            lines.append(f"  {when(turn.steps, said.steps)}: {turn.text.strip() or '(empty)'}")
            for j, chunk in enumerate(turn.chunks, start=1):
                count = sum(piece.tokens for piece in chunk)
                label = f"chunk {j}, {count} token{'s' * (count != 1)}"
                lines.append(f"    {label:<20} {words(chunk)}".rstrip())
    return "\n".join(lines)


def when(steps: list[int], of: int) -> str:
    """Steps as "steps 1-3, 5"; all of them as "every step"."""
    if len(steps) == of:
        return "every step"
    ranges = []
    for _, run in groupby(enumerate(steps), lambda numbered: numbered[1] - numbered[0]):
        (_, first), *rest = run
        ranges.append(f"{first}-{rest[-1][1]}" if rest else str(first))
    if len(ranges) > SHOWN:
        ranges = [*ranges[: SHOWN - 2], "…", ranges[-1]]
    return f"step{'s' * (len(steps) > 1)} {', '.join(ranges)}"


def words(chunk: list[Piece]) -> str:
    """The words of a chunk, each run with the weight that it has."""
    runs = []
    for weight, run in groupby(chunk, lambda piece: piece.weight):
        text = "".join((" " if piece.begins else "·") + piece.text for piece in run).lstrip(" ·")
        runs.append(text if weight == 1 else f"({text} ×{weight:.4g})")
    return " ".join(runs)


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=COMMAND,
        description="Explains a prompt: parts and weights, tokens by chunk, what changes at which step.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("prompt", metavar="PROMPT")
    add("--negative", default="", metavar="PROMPT", help="a negative prompt, to be explained too")
    add("--syntax", default=DEFAULT_SYNTAX, choices=SYNTAXES, help="(default: %(default)s)")
    add("--steps", type=int, default=20, help="of the sampler (default: %(default)s)")
    add("--seed", type=int, default=0, help="of the picture: it draws what is left to chance (default: %(default)s)")
    add("--model", default=DEFAULT_MODEL, help="whose tokenizer reads the prompt (default: %(default)s)")
    add("--embeddings", type=Path, metavar="FOLDER", help="of textual inversion's words")
    add("--wildcards", type=Path, metavar="FOLDER", help="__name__ in a prompt is a line of FOLDER/name.txt")
    add("--json", action="store_true", help="print a line of JSON for each prompt")
    return parser


def run(args: argparse.Namespace) -> Iterator[Explained]:
    if not 1 <= args.steps <= MAX_STEPS:
        raise ValueError(f"--steps is {args.steps}; expected 1 to {MAX_STEPS}.")
    path, embeddings = find_model(args.model), None
    if args.embeddings or not (path / "tokenizer").is_dir():  # embeddings are made for a model's text encoders
        model = load_model(path)
        tokenizer, embeddings = model.tokenizers[0], Embeddings(model, args.embeddings)
    else:
        tokenizer = load_tokenizer(Files(path), "tokenizer")
    explainer = Explainer(tokenizer, embeddings, args.syntax, args.steps)
    for prompt in [args.prompt] if args.syntax == "plain" else combinations(args.prompt):
        asked = Request(prompt, args.negative, args.seed, prompt_syntax=args.syntax)
        drawn = draw_prompts(asked, args.wildcards)
        yield explainer.explain("prompt", drawn.prompt, drawn.template)
        if drawn.negative:
            yield explainer.explain("negative prompt", drawn.negative, drawn.negative_template)


def main(argv: Sequence[str] | None = None) -> int:
    args = arguments().parse_args(argv)
    return attempt(COMMAND, lambda: explain(args))


def explain(args: argparse.Namespace) -> None:
    for i, said in enumerate(run(args)):
        print(json.dumps(asdict(said), ensure_ascii=False) if args.json else "\n" * (i > 0) + show(said))


if __name__ == "__main__":
    sys.exit(main())
