"""CLIP at work: ranking, captions, and a folder's index, through the real command on a tiny random CLIP."""

import json
import os
from pathlib import Path

import pytest
import torch
from clips import CAPTIONS, COLOURS, save_tiny_clip
from PIL import Image
from safetensors.torch import load_file

from clip.index import INDEX, refresh
from clip.rank import main
from clip.ranker import CONCEPTS, Ranker


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    for i, colour in enumerate(COLOURS):
        Image.new("RGB", (20 + i, 20), colour).save(folder / ("more" if i % 2 else "") / f"{colour}.png")
    return folder


def rows(capsys: pytest.CaptureFixture[str], *argv: object) -> list[dict]:
    assert main([*map(str, argv), "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_similarities_are_the_cosines_of_the_towers(
    clip: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = rows(capsys, "similarity", pictures / "red.png", *CAPTIONS, "--clip", clip)
    assert sorted(row["text"] for row in found) == sorted(CAPTIONS)
    cosines = [row["cosine"] for row in found]
    assert cosines == sorted(cosines, reverse=True)
    ranker = Ranker(clip)
    # Whole, uncut ids and the image by hand: what the command's shortcuts leave unchanged.
    red = torch.tensor([1.0, -1.0, -1.0]).view(1, 3, 1, 1).expand(1, 3, 16, 16)
    with torch.inference_mode():
        expected = ranker.clip.encode_image(red) @ ranker.clip.encode_text(ranker.tokenizer(CAPTIONS)).T
    assert {row["text"]: row["cosine"] for row in found} == pytest.approx(
        dict(zip(CAPTIONS, expected[0].tolist(), strict=True)), abs=1e-5
    )


def test_a_label_is_the_mean_of_its_sentences(clip: Path) -> None:
    ranker = Ranker(clip)
    one, two = ranker.texts(["a red square", "red, a square"])
    (mean,) = ranker.names(["red"], ["a {} square", "{}, a square"])
    torch.testing.assert_close(mean, torch.nn.functional.normalize(one + two, dim=0))
    assert ranker.chances(mean[None], ranker.names(["red", "blue"])).sum().item() == pytest.approx(1)


def test_classify_gives_the_likeliest_labels_first(
    clip: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = ("red", "blue", "青")
    (row,) = rows(
        capsys, "classify", pictures / "red.png", "--labels", ",".join(labels), "--count", 2, "--clip", clip
    )
    chances = list(row["labels"].values())
    assert len(chances) == 2
    assert chances == sorted(chances, reverse=True)
    assert set(row["labels"]) < set(labels)


def test_captions_are_made_of_the_concepts(
    clip: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    red = pictures / "red.png"
    assert main(["caption", str(red), "--clip", str(clip)]) == 2
    assert f"has no {CONCEPTS}" in capsys.readouterr().err
    taught = save_tiny_clip(tmp_path / "taught")
    (taught / CONCEPTS).write_text(json.dumps({
        "things": {"en": ["square"], "ja": ["四角"]}, "styles": {"en": ["drawing"], "ja": ["絵"]},
        "backgrounds": {"en": ["blue"], "ja": ["青"]}, "templates": {"en": ["{}"], "ja": ["{}"]},
    }))  # fmt: skip
    assert rows(capsys, "caption", red, "--clip", taught)[0]["caption"] == "square, drawing, blue background"
    assert rows(capsys, "caption", red, "--clip", taught, "--language", "ja")[0]["caption"] == "青背景の四角の絵"


def test_a_search_by_picture_finds_the_picture_itself(
    clip: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = rows(capsys, "search", pictures, "--picture", pictures / "more/green.png", "--clip", clip, "--count", 3)
    assert len(found) == 3
    assert found[0]["picture"] == str(pictures / "more/green.png")
    assert found[0]["cosine"] == pytest.approx(1, abs=2e-3)  # vectors are kept in float16
    by_text = rows(capsys, "search", pictures, "a red square", "--clip", clip)
    ranker = Ranker(clip)
    images = [Image.open(row["picture"]) for row in by_text]
    exact = (ranker.pictures(images) @ ranker.texts(["a red square"])[0]).tolist()
    assert [row["cosine"] for row in by_text] == pytest.approx(exact, abs=2e-3)
    assert len(by_text) == len(COLOURS)


def test_an_index_reads_only_what_is_new(clip: Path, pictures: Path, tmp_path: Path) -> None:
    ranker = Ranker(clip)

    def left() -> list[int]:
        return [left for _, left in refresh(pictures, ranker)]

    assert left() == [5, 0]
    assert left() == [0]
    Image.new("RGB", (30, 30), "white").save(pictures / "red.png")
    os.utime(pictures / "red.png", ns=(0, 1))
    (pictures / "more/green.png").unlink()
    Image.new("RGB", (9, 9), "grey").save(pictures / "grey.webp")
    assert left() == [2, 0]
    (index, _), *_ = refresh(pictures, ranker)
    names = ["black.png", "blue.png", "grey.webp", "more/yellow.png", "red.png"]
    assert sorted(name for name, *_ in index.files) == names
    assert index.vectors.shape == (5, 16)

    other = Ranker(save_tiny_clip(tmp_path / "other", seed=1))
    assert [left for _, left in refresh(pictures, other)] == [5, 0]  # another CLIP's vectors say nothing to it
    (pictures / INDEX).write_bytes(b"damaged")
    assert left() == [5, 0]


def test_a_stopped_index_keeps_what_was_read(
    clip: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for i in range(150):
        Image.new("RGB", (4, 4), (i, 0, 0)).save(folder / f"{i:03}.png")
    steps = refresh(folder, Ranker(clip), tmp_path / "kept.safetensors")
    assert [next(steps)[1], next(steps)[1]] == [150, 86]
    steps.close()  # as Ctrl-C does
    assert not (folder / INDEX).exists()
    assert load_file(tmp_path / "kept.safetensors")["vectors"].shape == (64, 16)
    assert [left for _, left in refresh(folder, Ranker(clip), tmp_path / "kept.safetensors")] == [86, 22, 0]


def test_what_is_no_picture_is_named_and_passed_over(
    clip: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pictures / "torn.png").write_bytes((pictures / "red.png").read_bytes()[:40])
    assert main(["search", str(pictures), "red", "--clip", str(clip)]) == 0
    said = capsys.readouterr()
    assert "passed over torn.png: it is no readable PNG" in said.err
    assert len(said.out.splitlines()) == len(COLOURS)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["search", "{empty}", "red"], "has no pictures in it"),
        (["search", "{pictures}/red.png", "red"], "is no folder"),
        (["search", "{pictures}"], "either a text or --picture"),
        (["search", "{pictures}", "red", "--picture", "{pictures}/red.png"], "either a text or --picture"),
        (["search", "{pictures}", "red", "--count", "0"], "--count is 0"),
        (["similarity", "{pictures}/none.png", "red"], "there is no such file"),
        (["similarity", "{clip}/config.json", "red"], "no readable PNG"),
        (["classify", "{pictures}/red.png", "--labels", "a,,b"], "expected names between commas"),
        (["classify", "{pictures}/red.png", "--labels", "a", "--templates", "photo"], "has no {}"),
        (["similarity", "{pictures}/red.png", "red", "--clip", "nowhere"], "There is no CLIP 'nowhere'"),
    ],
)
def test_a_mistake_is_one_sentence(
    argv: list[str], said: str, clip: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    places = {"pictures": pictures, "clip": clip, "empty": tmp_path / "empty"}
    argv = [word if "{}" in word else word.format(**places) for word in argv]
    assert main([*argv, *([] if "--clip" in argv else ["--clip", str(clip)])]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
