"""What is asked for: its form as JSON, which outlives the programs that write it."""

import json

import pytest

from diffusion.request import Request, Resolved, file_name, from_json, to_json

PLAIN = Resolved(
    "a cat", seed=42, steps=20, sampler="heun", schedule="karras", guidance=7.0, width=512, height=512
)  # fmt: skip
VARIED = Request("a cat", seed=1, variation_seed=5, variation_strength=0.25)


def test_record_of_a_plain_picture_stays_as_it_was() -> None:
    """Names and bytes of pictures hang on it, down to the order."""
    assert json.dumps(to_json(PLAIN)) == (
        '{"prompt": "a cat", "negative": "", "seed": 42, "steps": 20, "sampler": "heun", "schedule": "karras", '
        '"guidance": 7.0, "width": 512, "height": 512}'
    )


@pytest.mark.parametrize("request_", [Request("a cat"), VARIED])
def test_json_and_back(request_: Request) -> None:
    assert from_json(json.loads(json.dumps(to_json(request_)))) == request_


def test_what_is_not_asked_for_is_left_out() -> None:
    assert to_json(Request("a cat")) == {"prompt": "a cat", "negative": "", "seed": 0}
    assert from_json({"prompt": "a cat", "steps": None, "variation_seed": None}) == Request("a cat")


def test_files_are_named_by_their_hash() -> None:
    assert file_name(b"") == "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


@pytest.mark.parametrize(
    ("said", "mistake"),
    [
        ("a cat", "expected an object"),
        ({}, "no prompt"),
        ({"prompt": "a cat", "prompts": 1}, "no field 'prompts'"),
    ],
)
def test_mistakes(said: object, mistake: str) -> None:
    with pytest.raises(ValueError, match=mistake):
        from_json(said)
