"""--best-of: of several pictures of one prompt, the command keeps the one that CLIP ranks highest."""

from pathlib import Path

import pytest
from clips import save_tiny_clip
from PIL import Image

from clip.ranker import Ranker
from diffusion.best import words
from diffusion.metadata import request_of
from diffusion.open import open_pipeline
from diffusion.request import Request
from diffusion.sample import main
from diffusion.texts import read_texts


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_clip(tmp_path_factory.mktemp("clip"))


def sample(model: Path, out: Path, *options: str, prompt: str = "a red square") -> list[Path]:
    assert main([prompt, "--model", str(model), "--out", str(out), *options]) == 0
    return sorted(out.iterdir(), key=lambda path: request_of(read_texts(path.read_bytes())).seed)


def test_the_best_of_each_three_seeds_is_kept(tiny_model: Path, clip: Path, tmp_path: Path) -> None:
    every = sample(tiny_model, tmp_path / "every", "--count", "6")
    ranker = Ranker(clip)
    cosines = (ranker.pictures([Image.open(path) for path in every]) @ ranker.texts(["a red square"])[0]).tolist()
    expected = [max(range(first, first + 3), key=cosines.__getitem__) for first in (0, 3)]
    kept = sample(tiny_model, tmp_path / "kept", "--count", "2", "--best-of", "3", "--clip", str(clip))
    assert [path.name for path in kept] == [every[i].name for i in expected]
    assert [path.read_bytes() for path in kept] == [every[i].read_bytes() for i in expected]


def test_each_picture_is_held_against_its_own_words(tiny_model: Path, tmp_path: Path) -> None:
    template, clip = "{a red square|赤い四角|青い四角|black}", save_tiny_clip(tmp_path / "clip", seed=1)
    every = sample(tiny_model, tmp_path / "every", "--count", "6", prompt=template)
    said = [request_of(read_texts(path.read_bytes())).prompt for path in every]
    ranker = Ranker(clip)
    cosines = ranker.pictures([Image.open(path) for path in every]) @ ranker.texts(said).T  # [pictures, prompts]
    own, first = int(cosines.diagonal().argmax()), int(cosines[:, 0].argmax())
    assert own != first  # else this would show nothing
    options = ("--best-of", "6", "--clip", str(clip))
    (kept,) = sample(tiny_model, tmp_path / "kept", *options, prompt=template)
    assert kept.read_bytes() == every[own].read_bytes()


def test_one_file_takes_the_best_of_several(
    tiny_model: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["a red square", "--model", str(tiny_model), "--clip", str(clip), "--out", str(tmp_path / "one.png")]
    assert main([*argv, "--best-of", "2"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'one.png'}\n"
    assert main([*argv, "--best-of", "2", "--count", "2"]) == 2
    assert "names one picture and 2 are asked for" in capsys.readouterr().err
    assert main([*argv, "--best-of", "0"]) == 2
    assert "--best-of is 0; expected 1 or more." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("prompt", "syntax", "said"),
    [
        ("a red square", None, "a red square"),
        ("a (red:1.3) [square:circle:0.5]", None, "a red circle"),
        ("a square AND a star :0.5", None, "a square a star"),
        ("a (red:1.3) square", "plain", "a (red:1.3) square"),
    ],
)
def test_clip_is_asked_for_the_words_alone(prompt: str, syntax: str | None, said: str, tiny_model: Path) -> None:
    assert words(open_pipeline(tiny_model).resolve(Request(prompt, prompt_syntax=syntax))) == said
