"""The models that come with the package: what README promises of them."""

import json
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.difference import difference
from benchmarks.parity import make_with_diffusers, open_with_diffusers, same_steps
from clip.rank import main as rank
from clip.ranker import DEFAULT_CLIP, Ranker
from diffusion.checkpoint import DEFAULT_MODEL, SHIPPED, load_model
from diffusion.pipeline import Pipeline
from diffusion.request import Request
from diffusion.sample import main
from ui.safety import Blocked, OutputCheck, Terms

ROOT = Path(__file__).parent.parent
FOLDER = SHIPPED / DEFAULT_MODEL
MEGABYTES = 40
HEAVY = {"torchvision", "transformers", "open_clip", "diffusers", "accelerate", "gradio"}
APPLE, RINGO = "a red apple", "りんご"


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline(load_model(DEFAULT_MODEL))


@pytest.mark.parametrize("prompt", [APPLE, RINGO])
def test_diffusers_makes_the_same_picture(pipeline: Pipeline, prompt: str) -> None:
    request = same_steps(pipeline, Request(prompt, seed=1))
    (ours,) = pipeline.generate([request])
    theirs = make_with_diffusers(open_with_diffusers(DEFAULT_MODEL), pipeline, request)
    found = difference(ours.image, theirs)
    assert found.within_rounding, found


def test_folder_is_small_and_has_its_card() -> None:
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert 1 < sum(path.stat().st_size for path in files) / 1e6 <= MEGABYTES
    assert {path.suffix or path.name for path in files} == {".json", ".md", ".safetensors", ".txt", "SHA256SUMS"}
    assert "license" in (FOLDER / "README.md").read_text(encoding="utf-8").lower()


def test_same_bytes_alone_in_a_batch_and_in_another_order(pipeline: Pipeline) -> None:
    batch = [Request(prompt, seed=seed, steps=4) for seed in range(4) for prompt in (APPLE, RINGO)]
    pictures = [picture.png() for picture in pipeline.generate(batch)]
    assert len(set(pictures)) == 8
    assert [picture.png() for picture in pipeline.generate(reversed(batch))] == pictures[::-1]
    for i in (0, 1):
        (alone,) = pipeline.generate([batch[i]])
        assert alone.png() == pictures[i]


def test_command_makes_a_picture_by_default_and_imports_nothing_heavy(tmp_path: Path) -> None:
    # With `importtime` a process names on stderr every module that it imports.
    command = [sys.executable, "-X", "importtime", "-m", "diffusion.sample", APPLE, "--steps", "2", "--json"]
    done = subprocess.run([*command, "--out", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=True)
    assert Path(json.loads(done.stdout)["path"]).read_bytes().startswith(b"\x89PNG")
    times = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    packages = {line.rpartition("|")[2].strip().partition(".")[0] for line in times}
    assert {"torch", "safetensors", "tokenizers", "PIL", "diffusion"} <= packages
    assert not HEAVY & packages


# the CLIP

NAMES = {"penguin": "ペンギン", "snowman": "雪だるま", "lion": "ライオン", "key": "鍵", "crown": "王冠"}


@pytest.fixture(scope="module")
def ranker() -> Ranker:
    return Ranker()


@pytest.fixture(scope="module")
def shown(pipeline: Pipeline) -> list[Image.Image]:
    return [picture.image for picture in pipeline.generate([Request(name, steps=8) for name in NAMES])]


@pytest.mark.parametrize("names", [NAMES.keys(), NAMES.values()])
def test_clip_names_what_the_model_makes(ranker: Ranker, shown: list[Image.Image], names: Iterable[str]) -> None:
    chances = ranker.chances(ranker.pictures(shown), ranker.names(list(names)))
    assert chances.argmax(dim=1).tolist() == list(range(len(NAMES)))
    assert chances.diagonal().min() > 0.5


def test_clip_captions_and_checks_what_the_model_makes(
    ranker: Ranker, shown: list[Image.Image], tmp_path: Path
) -> None:
    penguin, snowman, *_ = shown
    assert re.fullmatch("penguin, .+, white background", ranker.caption(penguin))
    (tmp_path / "terms.txt").write_text("penguin\n")
    check = OutputCheck(Terms(tmp_path / "terms.txt"), ranker).check
    check(snowman)
    with pytest.raises(Blocked):
        check(penguin)


def test_clip_is_small_and_at_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sum(path.stat().st_size for path in DEFAULT_CLIP.iterdir()) < 6e6
    assert "license" in (DEFAULT_CLIP / "README.md").read_text(encoding="utf-8")
    assert main(["a lion", "--best-of", "2", "--steps", "2", "--out", str(tmp_path)]) == 0
    (picture,) = tmp_path.iterdir()
    assert rank(["search", str(tmp_path), "a lion"]) == 0
    assert capsys.readouterr().out.endswith(f"{picture}\n")
