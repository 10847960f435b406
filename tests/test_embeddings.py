"""Textual inversion: files, words in prompts, and what a picture says of them."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from diffusion.checkpoint import load_model
from diffusion.chunks import chunks
from diffusion.embeddings import Embeddings
from diffusion.files import sha256
from diffusion.metadata import request_of
from diffusion.pipeline import Pipeline
from diffusion.request import Request

WIDTH, ROOM = 32, 14  # of the tiny model: numbers a token, tokens a chunk


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("embeddings")
    draw = torch.Generator().manual_seed(0)
    vectors = {n: torch.randn(n, WIDTH, generator=draw) for n in (1, 3, 20)}
    (folder / "more").mkdir()
    save_file({"emb_params": vectors[3]}, folder / "zorblax.safetensors")
    save_file({"<quux>": vectors[1][0]}, folder / "more" / "quux.safetensors")
    save_file({"emb_params": vectors[3].half()}, folder / "zorblax two.safetensors")
    save_file({"emb_params": torch.zeros(2, 48)}, folder / "wide.safetensors")
    save_file({"emb_params": vectors[20]}, folder / "many.safetensors")
    save_file({"clip_l": vectors[3], "clip_g": torch.ones(3, 48)}, folder / "xl.safetensors")
    (folder / "pickled.pt").write_bytes(b"\x80\x02}q\x00.")
    (folder / "broken.safetensors").write_bytes(b"PK\x03\x04" + bytes(600))
    return folder


@pytest.fixture(scope="module")
def pipeline(tiny_model: Path, folder: Path) -> Pipeline:
    return Pipeline(load_model(tiny_model), embeddings=folder)


def sizes(pipeline: Pipeline, text: str, syntax: str = "a1111") -> list[tuple[int, int]]:
    """Of each chunk: its tokens, and those of them that are vectors."""
    found = chunks(text, syntax, pipeline.model.tokenizers[0], pipeline.embeddings)
    return [(len(chunk.ids), len(chunk.embeddings)) for chunk in found]


def test_words_take_as_many_tokens_as_they_have_vectors(pipeline: Pipeline) -> None:
    assert sizes(pipeline, "a quux") == [(2, 1)]
    assert sizes(pipeline, "a Zorblax, ZORBLAX") == [(8, 6)]
    assert sizes(pipeline, "(zorblax:1.2)") == [(3, 3)]
    assert sizes(pipeline, "zorblax two")[0][1] == 3  # the longer name
    assert sizes(pipeline, "a " * 12 + "zorblax") == [(12, 0), (3, 3)]  # never apart
    assert sizes(pipeline, "a, " * 7 + "zorblax") == [(14, 0), (3, 3)]
    assert sizes(pipeline, "a quux, embedding:quux, a", "comfy")[0][1] == 1
    assert sizes(pipeline, "embedding:more/quux.safetensors", "comfy") == [(1, 1)]
    assert sizes(pipeline, "quux", "plain")[0][1] == 0


@pytest.mark.parametrize(("text", "words"), [("a quux star", ["quux"]), ("quux zorblax", ["quux", "zorblax"])])
def test_their_vectors_stand_for_the_tokens(
    pipeline: Pipeline, folder: Path, text: str, words: list[str]
) -> None:
    """As in a vocabulary that has them: the encoder, given tokens of its own with these vectors, says the same."""
    encoder, tokenizer = pipeline.text_encoders[0], pipeline.model.tokenizers[0]
    request = pipeline.resolve(Request(text))
    assert request.embeddings == tuple((word, sha256(next(folder.rglob(f"{word}.safetensors")))) for word in words)
    with torch.inference_mode():
        ours = pipeline.reader.prompt(request, pipeline.sigmas(request))[0].lines[0][1].tokens
        table = encoder.token_embedding.weight
        (chunk,) = chunks(text, "a1111", tokenizer, pipeline.embeddings)
        rows = [table[token] if isinstance(token, int) else token.embedding.vectors[0][token.row] for token in
                chunk.marked(tokenizer)[0]]  # fmt: skip
        hook = encoder.token_embedding.register_forward_hook(lambda *_: torch.stack(rows)[None])
        ids = tokenizer([""]).clone()
        expected: Tensor = encoder(ids).tokens
        hook.remove()
    torch.testing.assert_close(ours, expected)


def test_pictures_name_their_files(pipeline: Pipeline, folder: Path, tiny_model: Path) -> None:
    with_word, other = pipeline.generate([Request("a zorblax", steps=2), Request("a star", steps=2)])
    digest = sha256(folder / "zorblax.safetensors")
    assert f'TI hashes: "zorblax\\u003a {digest[:12]}"' in with_word.texts["parameters"]
    assert "TI hashes" not in other.texts["parameters"]
    assert json.loads(with_word.texts["oboro"])["request"]["embeddings"] == [["zorblax", digest]]
    read = request_of(with_word.texts)
    (again,) = pipeline.generate([read])
    assert again.image.tobytes() == with_word.image.tobytes()
    without = Pipeline(load_model(tiny_model))
    assert next(without.generate([Request("a zorblax", steps=2)])).image.tobytes() != with_word.image.tobytes()
    with pytest.raises(ValueError, match="made with the embedding 'zorblax'; give its folder by --embeddings"):
        without.resolve(read)
    with pytest.raises(ValueError, match="is not the embedding that was meant: its SHA-256 is"):
        pipeline.resolve(replace(read, embeddings=(("zorblax", "0" * 64),)))


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (Request("a wide star"), "its vectors have 48 numbers, not the 32 of this model's text encoder"),
        (Request("many"), f"has 20 vectors; expected 1 to {ROOM}"),
        (Request("a", negative="xl"), "has clip_l and clip_g; this model reads one tensor"),
        (Request("a pickled star"), "pickled.pt can run code when it is loaded; convert it to safetensors"),
        (Request("broken"), "is a zip archive"),
        (Request("embedding:nothing", prompt_syntax="comfy"), "There is no embedding 'nothing'; "),
        (Request("a [b:broken:0.5]"), "is a zip archive"),
    ],
)
def test_mistakes_are_one_sentence(pipeline: Pipeline, request_: Request, said: str) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]+[.]$") as mistake:
        pipeline.resolve(request_)
    assert said in str(mistake.value)


def test_a_folder_that_is_not_there(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"There is no folder .* of embeddings"):
        Pipeline(load_model(tiny_model), embeddings=tmp_path / "nowhere").resolve(Request("a"))


def test_files_of_two_encoders(pipeline: Pipeline, folder: Path) -> None:
    model = pipeline.model
    (encoder,), (tokenizer,) = model.text_encoders, model.tokenizers
    wide = type(encoder)(replace(encoder.config, width=48))
    double = replace(model, text_encoders=(encoder, wide), tokenizers=(tokenizer, tokenizer))
    xl: Callable[[str], list] = Embeddings(double, folder).vectors
    vector = xl("xl")[2]
    assert [tensor.shape for tensor in vector.embedding.vectors] == [(3, WIDTH), (3, 48)]
    with pytest.raises(ValueError, match="has emb_params; this model reads clip_l and clip_g"):
        xl("zorblax")
