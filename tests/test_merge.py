"""Merging: the arithmetic, weight by weight; what does not go together is refused."""

from pathlib import Path

import models
import pytest
import torch
from networks import randomize
from safetensors.torch import load_file
from test_lora import save_kohya
from test_pipeline import psnr
from torch import Tensor

from diffusion.adapters import Lora
from diffusion.checkpoint import load_model, save_model
from diffusion.merge import main
from diffusion.open import open_pipeline
from diffusion.pipeline import Pipeline
from diffusion.request import Request

FILES = ("unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors")


@pytest.fixture(scope="module")
def folders(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models a, b and c of one architecture, and LoRAs."""
    root = tmp_path_factory.mktemp("merge")
    for seed, name in enumerate("abc"):
        model = load_model(tiny_model)
        for network in (model.unet, *model.text_encoders):
            randomize(network, seed)
        networks = model.text_encoders, model.unet, model.autoencoder
        save_model(root / name, model.tokenizers, *networks, model.noise, model.defaults)
    (root / "loras").mkdir()
    save_kohya(tiny_model, root / "loras" / "ink.safetensors")
    return root


def merge(root: Path, *options: str) -> int:
    """Of the models of the folder: `--with b` is its model b."""
    named = [str(root / option) if option in {"a", "b", "c", "out", "loras"} else option for option in options]
    return main(named)


def weights(folder: Path) -> dict[str, Tensor]:
    return {f"{file}: {name}": weight for file in FILES for name, weight in load_file(folder / file).items()}


@pytest.mark.parametrize(
    ("options", "shares"),
    [
        (["--with", "b"], (0.5, 0.5, 0)),
        (["--with", "b", "--by", "0.3"], (0.7, 0.3, 0)),
        (["--with", "b", "--minus", "c"], (1, 1, -1)),
        (["--with", "b", "--minus", "c", "--by", "0.4"], (1, 0.4, -0.4)),
    ],
)
def test_weights_are_the_sum(folders: Path, tmp_path: Path, options: list[str], shares: tuple[float, ...]) -> None:
    assert merge(folders, "a", *options, "--out", str(tmp_path / "out")) == 0
    made, sources = weights(tmp_path / "out"), [weights(folders / name) for name in "abc"]
    for name, weight in made.items():
        expected = sum(share * source[name] for share, source in zip(shares, sources, strict=True))
        assert torch.allclose(weight, expected, atol=1e-6)
    (picture,) = Pipeline(load_model(tmp_path / "out")).generate([Request("a red apple")])
    assert len(set(picture.image.tobytes())) > 50
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_loras_are_baked_in(folders: Path, tmp_path: Path) -> None:
    options = ["--loras", "loras", "--lora", "ink:0.6", "--dtype", "float16"]
    assert merge(folders, "a", *options, "--out", str(tmp_path / "out")) == 0
    assert {weight.dtype for weight in weights(tmp_path / "out").values()} == {torch.float16}
    live = Pipeline(load_model(folders / "a"), loras=folders / "loras")
    (expected,) = live.generate([Request("a red apple", loras=(Lora("ink", 0.6),))])
    (made,) = Pipeline(load_model(tmp_path / "out")).generate([Request("a red apple")])
    assert psnr(made.image, expected.image) > 40  # float16


def test_single_files_of_xl(tmp_path: Path) -> None:
    """In and out; what was the model before comes back."""
    folder, single, both = models.save_model("xl", tmp_path / "xl"), tmp_path / "a.safetensors", tmp_path / "both"
    vocabulary = ["--tokenizer", str(folder)]
    assert main([str(folder), "--with", str(folder), "--out", str(single)]) == 0
    assert main([str(single), "--with", str(folder), "--by", "0.25", "--out", str(both), *vocabulary]) == 0
    asked = Request("a red apple", steps=2, width=16, height=16)
    made, before = (next(iter(open_pipeline(each).generate([asked]))) for each in (both, folder))
    assert psnr(made.image, before.image) > 60


def test_dry_run_writes_nothing(folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert merge(folders, "a", "--with", "b", "--dry-run", "--out", str(tmp_path / "out")) == 0
    assert "All of it goes together" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_mistakes(folders: Path, pixel_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = str(tmp_path / "out")
    for options, said in (
        ([], "There is nothing to merge; give a model by --with"),
        (["--minus", "c"], "give the model by --with"),
        (["--by", "0.5", "--lora", "ink"], "give the model by --with"),
        (["--with", "b", "--by", "nan"], "--by is nan"),
        (["--with", "nowhere"], "There is no model 'nowhere'"),
        (["--with", str(pixel_model)], "conv_in.weight of the unet is [32, 4, 3, 3] in the one, [32, 3, 3, 3] in the"),
        (["--lora", "ink"], "no folder of LoRAs is given"),
        (["--lora", "nothing", "--loras", "loras"], "There is no LoRA 'nothing'"),
        (["--with", "b", "--out", "a"], "is there already"),
    ):
        assert merge(folders, "a", "--out", out, *options) == 2
        err = capsys.readouterr().err
        assert said in err
        assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_stopped(folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def press(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(torch.nn.Module, "to", press)
    assert merge(folders, "a", "--with", "b", "--out", str(tmp_path / "out")) == 130
    assert not list(tmp_path.iterdir())


def test_help_has_examples(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    assert "--with paintings --by 0.3" in capsys.readouterr().out
