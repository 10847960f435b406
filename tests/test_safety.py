"""What is not made, and what is not shown."""

import json
from pathlib import Path

import pytest
from clips import save_tiny_clip
from PIL import Image

from clip.ranker import Ranker
from diffusion.checkpoint import load_model
from diffusion.pipeline import Pipeline
from diffusion.request import Request
from diffusion.store import Store
from diffusion.texts import read_texts
from ui.safety import Blocked, OutputCheck, Safe, Terms
from ui.service import Service


@pytest.fixture(scope="module")
def pipeline(tiny_model: Path) -> Pipeline:
    return Pipeline(load_model(tiny_model))


@pytest.fixture
def terms(tmp_path: Path) -> Terms:
    path = tmp_path / "terms.txt"
    path.write_text("# what is not wanted\nnude\nSecret Agent\nカタカナ\n爆弾  # a comment\nüber\n", encoding="utf-8")
    return Terms(path)


@pytest.mark.parametrize(
    ("prompt", "found"),
    [
        ("a nude", "nude"),
        ("NUDE!", "nude"),
        ("ｎｕｄｅ", "nude"),  # full width
        ("nu\u200bde", "nude"),  # a space of no width
        ("(nu:1.2)de", "nude"),
        ("a [nu]de", "nude"),
        ("denuded", None),  # another word
        ("secret   agent", "secret agent"),
        ("ｶﾀｶﾅの絵", "カタカナ"),  # half width
        ("赤い爆弾の絵", "爆弾"),  # within a sentence, for there are no spaces
        ("U\u0308BER", "über"),  # a letter and its dots apart
        ("a red apple", None),
        ("comment", None),
    ],
)
def test_terms(terms: Terms, prompt: str, found: str | None) -> None:
    assert terms.find(prompt) == found


@pytest.mark.parametrize(("data", "message"), [(b"# nothing\n\n", "no terms"), (b"\xff\xfe\x00", "not UTF-8")])
def test_files_that_are_none(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "terms.txt").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        Terms(tmp_path / "terms.txt")


def test_prompts_are_refused_as_they_are_drawn(pipeline: Pipeline, terms: Terms) -> None:
    safe = Safe(pipeline, terms)
    with pytest.raises(Blocked, match="'nude'"):
        safe.resolve(Request("a {nude|nude} figure"))
    assert safe.resolve(Request("a red apple", negative="nude")).negative == "nude"


def test_pictures_say_what_they_were_checked_by(pipeline: Pipeline, terms: Terms) -> None:
    request = Request("a red apple", steps=1)
    (plain,), (checked,) = pipeline.generate([request]), Safe(pipeline, terms).generate([request])
    assert checked.image == plain.image
    assert json.loads(read_texts(checked.png())["oboro"])["checks"] == {"prompt": terms.name}
    assert "checks" not in plain.texts["oboro"]
    (unchecked,) = Safe(pipeline).generate([request])
    assert unchecked.png() == plain.png()


@pytest.mark.parametrize(("threshold", "state"), [(1.1, "done"), (-1.1, "failed")])
def test_pictures_that_fail_are_not_shown(
    pipeline: Pipeline, terms: Terms, tmp_path: Path, threshold: float, state: str
) -> None:
    output = OutputCheck(terms, Ranker(save_tiny_clip(tmp_path / "clip")), threshold)
    service = Service(Safe(pipeline, None, output), Store(tmp_path / "jobs"))
    service.start()
    (job,) = service.submit([Request("a red apple", steps=4)])
    events = [*service.watch([job.id])]
    service.stop()
    job = events[-1].job
    assert job.state == state
    assert not any(event.preview for event in events)
    if state == "done":
        checks = json.loads(read_texts(service.picture(job))["oboro"])["checks"]
        assert checks == {"output": terms.name}
    else:
        assert "did not pass the output check" in (job.error or "")
        assert not [*service.store.folder.glob("*.png")]


def test_a_picture_is_the_term_that_it_shows(terms: Terms, tmp_path: Path) -> None:
    ranker = Ranker(save_tiny_clip(tmp_path / "clip"))
    image = Image.new("RGB", (16, 16), "red")
    highest = float((ranker.names(terms.written) @ ranker.pictures([image])[0]).max())
    OutputCheck(terms, ranker, highest + 1e-4).check(image)
    with pytest.raises(Blocked):
        OutputCheck(terms, ranker, highest - 1e-4).check(image)
