"""Prompts => what guidance is told, and when.

Every text that a prompt has at some step is read in chunks. Each is encoded alone, and they stand one after the other
in the sequence that the U-Net attends to. Weights act on the embeddings.
"""

import itertools
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from diffusion.chunks import Chunk, chunks
from diffusion.conditioning import (
    AESTHETIC_SCORE,
    NEGATIVE_AESTHETIC_SCORE,
    Conditioning,
    Encoder,
    encode,
    join,
)
from diffusion.embeddings import Embedding, Embeddings, Vector
from diffusion.grammar import Term, read
from diffusion.guidance import Script, always
from diffusion.model import Model
from diffusion.request import DEFAULT_SYNTAX, Resolved

Text = list[list[Chunk]]  # the chunks of a text, by each tokenizer


class Reader:
    """Reads for a model, whose text encoders are where its pictures are made."""

    def __init__(
        self, model: Model, encoders: Sequence[Encoder], dtype: torch.dtype, embeddings: Embeddings | None = None
    ) -> None:
        self.model = model
        self.embeddings = embeddings
        self.encoders = encoders
        self.dtype = dtype  # of the network that is told
        self.empty: dict[int | None, Conditioning] = {}  # by the layers that are skipped

    def prompt(self, request: Resolved, sigmas: Tensor, before: int = 0) -> list[Script]:
        """The texts that a prompt is composed of, all as long as the longest: AUTOMATIC1111 repeats the last token."""
        syntax = request.prompt_syntax or DEFAULT_SYNTAX
        terms = read(request.prompt, request.steps, syntax, before=before)
        scripts = [self._script(term, request, sigmas) for term in terms]
        longest = max(line.tokens.shape[1] for script in scripts for _, line in script.lines)
        return [
            replace(script, lines=tuple((above, lengthened(line, longest)) for above, line in script.lines))
            for script in scripts
        ]

    def negative(self, request: Resolved, sigmas: Tensor, before: int = 0) -> Script:
        """What the picture is led away from. Its length may be another: the network is told it apart then."""
        if not request.negative:
            return always(self._about(self.nothing(_skip(request)), request, NEGATIVE_AESTHETIC_SCORE))
        syntax = request.prompt_syntax or DEFAULT_SYNTAX
        (term,) = read(request.negative, request.steps, syntax, negative=True, before=before)
        return self._script(term, request, sigmas, NEGATIVE_AESTHETIC_SCORE)

    def nothing(self, skip: int | None = None) -> Conditioning:
        """The empty prompt, which most pictures are led away from."""
        if skip not in self.empty:
            encoding = self._encode([[Chunk()] for _ in self.encoders], "plain", skip)
            self.empty[skip] = encoding.zeros() if self.model.reading.empty_is_zero else encoding
        return self.empty[skip]

    def outline(self, request: Resolved) -> Hashable:
        """What prompts have in common that can be told to one batch: turns, weights and lengths."""
        texts = (request.prompt, False), (request.negative, True)
        return tuple(tuple(self._outline(text, request, negative)) for text, negative in texts)

    def _outline(self, prompt: str, request: Resolved, negative: bool) -> Iterator[Hashable]:
        syntax = request.prompt_syntax or DEFAULT_SYNTAX
        for term in read(prompt, request.steps, syntax, negative):
            most = max(len(each) for span in term.spans for each in self._chunks(span.text, syntax))
            yield term.weight, tuple(span.end for span in term.spans), most

    def used(self, request: Resolved) -> list[Embedding]:
        """The embeddings that a request's prompts name, in their order."""
        syntax = request.prompt_syntax or DEFAULT_SYNTAX
        terms = read(request.prompt, request.steps, syntax) + read(request.negative, request.steps, syntax, True)
        texts = dict.fromkeys(span.text for term in terms for span in term.spans)
        found = [chunk.embeddings for text in texts for each in self._chunks(text, syntax) for chunk in each]
        return list(dict.fromkeys(itertools.chain.from_iterable(found)))

    def _chunks(self, text: str, syntax: str) -> Text:
        return [chunks(text, syntax, tokenizer, self.embeddings) for tokenizer in self.model.tokenizers]

    def _script(self, term: Term, request: Resolved, sigmas: Tensor, score: float = AESTHETIC_SCORE) -> Script:
        """One of the texts over the course of sampling. Empty chunks make its turns equally long."""
        syntax, skip = request.prompt_syntax or DEFAULT_SYNTAX, _skip(request)
        texts = {span.text: self._chunks(span.text, syntax) for span in term.spans}
        most = max(len(each) for text in texts.values() for each in text)
        said = {}
        for text, by_tokenizer in texts.items():
            padded = [[*each, *[Chunk()] * (most - len(each))] for each in by_tokenizer]
            said[text] = self._about(self._encode(padded, syntax, skip), request, score)
        return Script(tuple((_above(span.end, sigmas), said[span.text]) for span in term.spans), term.weight)

    def _about(self, text: Conditioning, request: Resolved, score: float) -> Conditioning:
        """The same, with what some networks are told of the picture besides."""
        told = score if self.model.reading.scored else None
        return text.sized(request.height, request.width, told).guided(request.guidance)

    def _encode(self, text: Text, syntax: str, skip: int | None) -> Conditioning:
        """The chunks of one text => [1, chunks * L, D]. What the text is as a whole is what its first chunk is."""
        weighed = any(weight != 1 for each in text for chunk in each for weight in chunk.weights)
        if weighed and syntax == "comfy":
            text = [[*each, Chunk()] for each in text]
        ids, inputs, weights = [], [], []
        for i, (each, tokenizer) in enumerate(zip(text, self.model.tokenizers, strict=True)):
            marked = [chunk.marked(tokenizer) for chunk in each]
            part, given = self._inputs([row for row, _ in marked], i)
            ids.append(part)
            inputs.append(given)
            weights.append(torch.tensor([row for _, row in marked], device=part.device))  # [chunks, L]
        parts, pooled = encode(self.encoders, ids, self.model.reading, skip, inputs)  # [chunks, L, D] each
        if weighed:
            weigh = from_empty if syntax == "comfy" else keeping_mean
            parts = [weigh(part, by) for part, by in zip(parts, weights, strict=True)]
        tokens = join(parts, self.model.reading)
        return Conditioning(tokens.flatten(0, 1)[None], pooled[:1]).to(self.dtype)

    def _inputs(self, rows: list[list[int | Vector]], encoder: int) -> tuple[Tensor, Tensor | None]:
        """Ids [B, L], and what an encoder is to take for their embeddings [B, L, D] where words have their own."""
        table = self.encoders[encoder].token_embedding
        ids = torch.tensor([[0 if isinstance(token, Vector) else token for token in row] for row in rows])
        ids = ids.to(table.weight.device)
        places = [(b, i, v) for b, row in enumerate(rows) for i, v in enumerate(row) if isinstance(v, Vector)]
        if not places:
            return ids, None
        inputs = table(ids)
        for b, i, vector in places:
            inputs[b, i] = vector.embedding.vectors[encoder][vector.row].to(inputs)
        return ids, inputs


def keeping_mean(tokens: Tensor, weights: Tensor) -> Tensor:
    """Embeddings [N, L, D] times weights [N, L], then scaled so that the mean of each chunk is what it was.

    AUTOMATIC1111's weights. The mean of embeddings means little, but years of pictures have been made by it. Where
    it is nothing beside their spread, as in the models trained here, the scale would be noise and is left out.
    """
    weighted = tokens * weights[..., None]
    means = [each.mean((1, 2), keepdim=True) for each in (tokens, weighted)]
    telling = means[0].abs() > 1e-3 * tokens.std((1, 2), keepdim=True)
    return weighted * torch.where(telling, means[0] / means[1], 1.0)


def from_empty(tokens: Tensor, weights: Tensor) -> Tensor:
    """Embeddings [N + 1, L, D], weights [N + 1, L] => [N, L, D], each `weight` times the way from the empty prompt's.

    ComfyUI's weights. The last chunk is the empty one.
    """
    tokens, empty, weights = tokens[:-1], tokens[-1:], weights[:-1, :, None]
    return torch.where(weights == 1, tokens, empty + weights * (tokens - empty))


def lengthened(conditioning: Conditioning, length: int) -> Conditioning:
    """The same with its last token repeated, to a length."""
    tokens = conditioning.tokens
    last = tokens[:, -1:].expand(-1, length - tokens.shape[1], -1)
    return replace(conditioning, tokens=torch.cat([tokens, last], dim=1)) if last.shape[1] else conditioning


def _above(end: int, sigmas: Tensor) -> float:
    """The sigma above which something holds that ends with a step.

    AUTOMATIC1111 counts the steps of prompts from 1 and those of sampling from 0, and compares the two: [a:b:3]
    is `a` for four steps. So a turn ends where its sampling step `end`, counted from 0, does. All evaluations of
    a step are above the sigma of the next one; rounding must not bring that one above itself.
    """
    return sigmas[end + 1].item() * (1 + 1e-6) if end + 1 < len(sigmas) else 0.0


def _skip(request: Resolved) -> int | None:
    return None if request.clip_skip is None else request.clip_skip - 1
