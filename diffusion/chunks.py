"""Parts of a text => chunks of tokens, each as long as a text encoder reads at once. Nothing is cut off.

a1111 fills chunk by chunk. Where a chunk ends within 20 tokens after a comma, what follows the comma moves on with
the rest of its phrase. BREAK ends a chunk. comfy keeps words of fewer than eight tokens whole. Both keep the vectors
of an embedding together. plain is one chunk, and a text that is longer is refused.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from clip.language_encoder import LanguageTokenizer
from clip.tokenizer import Tokenizer
from diffusion.embeddings import Embedding, Embeddings, Vector
from diffusion.grammar import Part, stretches

BACKTRACK = 20  # tokens
LONG_WORD = 8  # tokens
EMBEDDING = "embedding:"


@dataclass
class Chunk:
    """The words of a chunk, without the tokens that start, end and pad it."""

    ids: list[int | Vector] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)

    def add(self, ids: Iterable[int | Vector], weight: float) -> None:
        for token in ids:
            self.ids.append(token)
            self.weights.append(weight)

    @property
    def embeddings(self) -> list[Embedding]:
        return [token.embedding for token in self.ids if isinstance(token, Vector)]

    def cut(self, position: int) -> "Chunk":
        """Takes off what begins at a position, and returns it."""
        rest = Chunk(self.ids[position:], self.weights[position:])
        del self.ids[position:], self.weights[position:]
        return rest

    def marked(self, tokenizer: Tokenizer) -> tuple[list[int | Vector], list[float]]:
        """Ids and weights with start, end and padding, [L]."""
        padding = tokenizer.length - 2 - len(self.ids)
        ids = [tokenizer.start, *self.ids, tokenizer.end, *[tokenizer.pad] * padding]
        return ids, [1.0, *self.weights, 1.0, *[1.0] * padding]


def chunks(text: str, syntax: str, tokenizer: Tokenizer, embeddings: Embeddings | None = None) -> list[Chunk]:
    """The chunks of a text that holds at one step, at least one.

    Raises ValueError for a plain one that is too long, and for ComfyUI's syntax where a language model reads: it takes
    words apart from the spaces before them, which are in a language model's tokens.
    """
    parts = stretches(text, syntax)
    if syntax == "a1111":
        return list(_a1111(parts, tokenizer, embeddings))
    if syntax == "comfy":
        if isinstance(tokenizer, LanguageTokenizer):
            raise ValueError("The prompt syntax comfy is none that a language model reads; choose a1111 or plain.")
        return list(_comfy(parts[0], tokenizer, embeddings))
    ids, room = tokenizer.encode(text), tokenizer.length - 2
    if len(ids) > room:
        raise ValueError(
            f"The text {_short(text)!r} has {len(ids)} tokens and this model reads {room} at once; shorten it, or "
            "choose another syntax than plain: the others read long texts in chunks."
        )
    return [Chunk([*ids], [1.0] * len(ids))]


def _a1111(parts: list[list[Part]], tokenizer: Tokenizer, embeddings: Embeddings | None) -> Iterator[Chunk]:
    room, comma = tokenizer.length - 2, tokenizer.encode(",")
    chunk = Chunk()
    for i, stretch in enumerate(parts):
        after_comma: int | None = None  # where the last phrase of the chunk begins
        read = tokenizer.parts([part.text for part in stretch]) if stretch else []
        for part, own in zip(stretch, read, strict=True):
            for ids in _tokens(own, tokenizer, embeddings):
                is_comma, full = ids == comma, len(chunk.ids) == room
                if full or len(chunk.ids) + len(ids) > room:
                    moves = full and not is_comma and after_comma is not None and room - after_comma < BACKTRACK
                    rest = chunk.cut(after_comma) if moves and after_comma else Chunk()
                    yield chunk
                    chunk, after_comma = rest, None
                    if len(chunk.ids) + len(ids) > room:
                        yield chunk
                        chunk = Chunk()
                chunk.add(ids, part.weight)
                if is_comma and not full:
                    after_comma = len(chunk.ids)
        if i < len(parts) - 1:
            yield chunk
            chunk = Chunk()
    if chunk.ids or len(parts) == 1:
        yield chunk


def _comfy(parts: list[Part], tokenizer: Tokenizer, embeddings: Embeddings | None) -> Iterator[Chunk]:
    room, chunk = tokenizer.length - 2, Chunk()
    for part in parts:
        for word in part.text.replace("\n", " ").split(" "):
            for ids in _word(word, tokenizer, embeddings):
                long = len(ids) >= min(LONG_WORD, room)
                while len(chunk.ids) + len(ids) > room:
                    free = room - len(chunk.ids) if long else 0
                    chunk.add(ids[:free], part.weight)
                    ids = ids[free:]
                    yield chunk
                    chunk = Chunk()
                chunk.add(ids, part.weight)
    yield chunk


def _tokens(ids: list[int], tokenizer: Tokenizer, embeddings: Embeddings | None) -> Iterable[list[int | Vector]]:
    """One token at a time, or all vectors of an embedding."""
    return ([token] for token in ids) if embeddings is None else embeddings.replace(ids, tokenizer)


def _word(word: str, tokenizer: Tokenizer, embeddings: Embeddings | None) -> Iterator[list[int | Vector]]:
    """A word of ComfyUI's, or the vectors of `embedding:name` and what follows the name: commas."""
    if embeddings is None or not word.startswith(EMBEDDING):
        yield [*tokenizer.encode(word)]
        return
    name = word.removeprefix(EMBEDDING).rstrip(",")
    yield embeddings.vectors(Path(name.removesuffix(".safetensors")).name)
    yield [*tokenizer.encode("," * (len(word) - len(EMBEDDING) - len(name)))]


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:60] + "…"
