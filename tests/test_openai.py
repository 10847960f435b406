"""OpenAI's images API, asked by OpenAI's own client."""

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import requests
from openai import OpenAI
from PIL import Image
from servers import served

from diffusion.metadata import request_of
from diffusion.sample import main as sample
from diffusion.texts import read_texts
from ui.server import Access
from ui.service import Service

TOKEN = "a secret"
LONG = {"seed": 1, "num_inference_steps": 400}
HUGE = {"size": "2048x2048", "extra_body": {"num_inference_steps": 1000}}


@pytest.fixture(scope="module")
def server(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Service]]:
    with served(tiny_model, tmp_path_factory.mktemp("jobs"), Access(TOKEN)) as found:
        yield found


@pytest.fixture(scope="module")
def service(server: tuple[str, Service]) -> Service:
    return server[1]


@pytest.fixture(scope="module")
def client(server: tuple[str, Service]) -> OpenAI:
    return OpenAI(base_url=f"{server[0]}/v1", api_key=TOKEN, max_retries=0)


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def picture(text: str | None) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text or ""))).convert("RGB")


def by_command(model: Path, out: Path, *options: str) -> Image.Image:
    assert sample(["a red apple", "--model", str(model), "--out", str(out), *options]) == 0
    return Image.open(out).convert("RGB")


def test_generate(client: OpenAI, tiny_model: Path, tmp_path: Path) -> None:
    more = {"seed": 5, "num_inference_steps": 3, "guidance_scale": 2, "negative_prompt": "a star"}
    answer = client.images.generate(prompt="a red apple", n=2, size="32x16", extra_body=more)  # type: ignore[call-overload]
    assert (answer.size, answer.output_format, len(answer.data)) == ("32x16", "png", 2)
    options = ["--size", "32x16", "--steps", "3", "--guidance", "2", "--negative", "a star"]
    for i, made in enumerate(answer.data):
        expected = by_command(tiny_model, tmp_path / "a.png", *options, "--seed", str(5 + i))
        assert picture(made.b64_json) == expected
        assert base64.b64decode(made.b64_json) == (tmp_path / "a.png").read_bytes()
        assert made.revised_prompt == "a red apple"


@pytest.mark.parametrize(("format", "name"), [("png", "PNG"), ("jpeg", "JPEG"), ("webp", "WEBP")])
def test_formats(client: OpenAI, format: Any, name: str) -> None:
    answer = client.images.generate(prompt="a blue star", output_format=format, response_format="url")
    reply = requests.get(answer.data[0].url or "")  # type: ignore[index]  # by its unguessable name, without the token
    assert reply.headers["content-type"] == f"image/{format}"
    assert Image.open(io.BytesIO(reply.content)).format == name
    assert request_of(read_texts(reply.content)).prompt == "a blue star"


def test_compression(client: OpenAI) -> None:
    sizes = []
    for quality in (10, 90):
        made = client.images.generate(
            prompt="a", output_format="jpeg", output_compression=quality, extra_body={"seed": 1}
        )
        sizes.append(len(made.data[0].b64_json or ""))  # type: ignore[index]
    assert sizes[0] < sizes[1]


def test_edit(client: OpenAI, tiny_model: Path, tmp_path: Path) -> None:
    image, hole = Image.new("RGB", (16, 16), "teal"), Image.new("RGBA", (16, 16), "black")
    hole.paste((0, 0, 0, 0), (4, 4, 12, 12))
    answer = client.images.edit(
        image=("image.png", png(image)), mask=("mask.png", png(hole)), prompt="a red apple",
        extra_body={"seed": 7, "strength": 1},
    )  # fmt: skip
    white = Image.new("L", (16, 16))
    white.paste(255, (4, 4, 12, 12))
    (tmp_path / "image.png").write_bytes(png(image))
    (tmp_path / "mask.png").write_bytes(png(white))
    files = ["--image", str(tmp_path / "image.png"), "--mask", str(tmp_path / "mask.png")]
    expected = by_command(tiny_model, tmp_path / "a.png", *files, "--seed", "7", "--strength", "1")
    assert picture(answer.data[0].b64_json) == expected  # type: ignore[index]
    assert expected.getpixel((0, 0)) == image.getpixel((0, 0))


def test_edit_all_of_an_image(client: OpenAI) -> None:
    answer = client.images.edit(image=("image.webp", png(Image.new("RGB", (32, 32), "teal"))), prompt="a blue star")
    assert answer.size == "16x16"


def test_stream(client: OpenAI) -> None:
    with client.images.generate(
        prompt="a red apple", stream=True, partial_images=2, extra_body={"seed": 1, "num_inference_steps": 60}
    ) as events:
        said = [*events]
    assert [event.type for event in said][-1] == "image_generation.completed"
    partial = [event for event in said if event.type == "image_generation.partial_image"]
    assert [event.partial_image_index for event in partial] == [0, 1]
    assert {picture(event.b64_json).size for event in said} == {(16, 16)}
    assert said[0].b64_json != said[-1].b64_json
    whole = client.images.generate(prompt="a red apple", extra_body={"seed": 1, "num_inference_steps": 60})
    assert whole.data[0].b64_json == said[-1].b64_json  # type: ignore[index]  # watching changes nothing


def test_stream_an_edit(client: OpenAI) -> None:
    image = ("image.png", png(Image.new("RGB", (16, 16), "teal")))
    with client.images.edit(image=image, prompt="a red apple", stream=True, partial_images=0) as events:
        assert [event.type for event in events] == ["image_edit.completed"]


def test_who_leaves_a_stream_cancels_its_picture(client: OpenAI, service: Service) -> None:
    with client.images.generate(prompt="a red apple", stream=True, partial_images=3, extra_body=LONG) as events:
        next(iter(events))
        (job,) = service.store.jobs(limit=1)
    *_, event = service.watch([job.id], previews=False)
    assert event.job.state == "cancelled"


@pytest.mark.parametrize(("key", "state"), [(None, "cancelled"), ("mine", "done")])
def test_who_leaves_cancels_what_has_no_key(
    server: tuple[str, Service], service: Service, key: str | None, state: str
) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}"} | ({"Idempotency-Key": key} if key else {})
    body = {"prompt": "a red apple", "seed": 1, "num_inference_steps": 200}
    with pytest.raises(requests.Timeout):
        requests.post(f"{server[0]}/v1/images/generations", json=body, headers=headers, timeout=0.1)
    (job,) = service.store.jobs(limit=1)
    *_, event = service.watch([job.id], previews=False)
    assert event.job.state == state


def test_an_idempotency_key_gives_the_same_pictures(client: OpenAI) -> None:
    keyed = client.with_options(default_headers={"Idempotency-Key": "twice"})
    first, second = (keyed.images.generate(prompt="a red apple") for _ in range(2))  # of a seed that is drawn
    assert first.data == second.data
    with pytest.raises(openai.BadRequestError, match="came with other requests"):
        keyed.images.generate(prompt="a blue star")


def test_models(client: OpenAI, tiny_model: Path) -> None:
    (model,) = client.models.list()
    assert model.id == tiny_model.name == client.models.retrieve(tiny_model.name).id


@pytest.mark.parametrize(
    ("said", "kind", "message", "param", "code"),
    [
        ({"n": 11}, openai.BadRequestError, "less than or equal to 10", "n", None),
        ({"n": 0}, openai.BadRequestError, "greater than", "n", None),
        ({"size": "huge"}, openai.BadRequestError, "expected WxH", "size", None),
        ({"size": "17x16"}, openai.BadRequestError, "not a multiple", None, None),
        ({"model": "gpt-image-1"}, openai.NotFoundError, "does not exist", "model", "model_not_found"),
        ({"background": "transparent"}, openai.BadRequestError, "auto", "background", None),
        ({"output_format": "gif"}, openai.BadRequestError, "png", "output_format", None),
        ({"extra_body": {"loras": "x"}}, openai.BadRequestError, "no parameter", "loras", "unknown_parameter"),
        ({"extra_body": {"num_inference_steps": 0}}, openai.BadRequestError, "number of steps", None, None),
        (HUGE, openai.BadRequestError, "times the work", None, "too_much_work"),
        ({"prompt": "x" * 40_000}, openai.BadRequestError, "at most 32000", "prompt", None),
    ],
)
def test_mistakes(
    client: OpenAI, said: dict[str, Any], kind: type[openai.APIStatusError], message: str, param: str, code: str
) -> None:
    with pytest.raises(kind) as mistake:
        client.images.generate(**{"prompt": "a red apple", **said})
    assert isinstance(mistake.value.body, dict)
    assert message in mistake.value.body["message"]
    assert mistake.value.body["type"] == "invalid_request_error"
    assert (mistake.value.param, mistake.value.code) == (param, code)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "takes an image"),
        ({"image": [("a.png", png(Image.new("RGB", (16, 16))))] * 2}, "one image at a time"),
        ({"image": ("a.png", b"no picture")}, "The image cannot be used"),
        (
            {"image": ("a.png", png(Image.new("RGB", (16, 16)))), "mask": ("m.png", b"\x89PNG")},
            "The mask cannot be used",
        ),
        (
            {"image": ("a.png", png(Image.new("RGB", (16, 16)))), "mask": ("m.png", png(Image.new("RGB", (16, 16))))},
            "nothing transparent",
        ),
        (
            {"image": ("a.png", png(Image.new("RGB", (16, 16)))), "mask": ("m.png", png(Image.new("RGBA", (8, 8))))},
            "mask of the image's size",
        ),
    ],
)
def test_mistakes_in_edits(server: tuple[str, Service], files: dict[str, Any], message: str) -> None:
    parts = [(name, one) for name, some in files.items() for one in (some if isinstance(some, list) else [some])]
    parts = parts or [("prompt", (None, "again"))]
    headers = {"Authorization": f"Bearer {TOKEN}"}
    answer = requests.post(f"{server[0]}/v1/images/edits", {"prompt": "a red apple"}, files=parts, headers=headers)
    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]


def test_a_wrong_token(server: tuple[str, Service]) -> None:
    with pytest.raises(openai.AuthenticationError) as mistake:
        OpenAI(base_url=f"{server[0]}/v1", api_key="wrong", max_retries=0).images.generate(prompt="a")
    assert mistake.value.code == "invalid_api_key"


def test_too_many(client: OpenAI, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "max_queue", 0)
    monkeypatch.setattr(service, "waiting", lambda: 1)
    with pytest.raises(openai.BadRequestError, match="at most 0"):
        client.images.generate(prompt="a")
    monkeypatch.setattr(service, "max_queue", 1)
    with pytest.raises(openai.RateLimitError) as refusal:
        client.images.generate(prompt="a")
    assert int(refusal.value.response.headers["retry-after"]) >= 1
