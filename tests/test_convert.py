"""Conversions between the layouts, which prove themselves before they take their place."""

import shutil
from collections.abc import Callable
from pathlib import Path

import models
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from diffusion.checkpoint import Model, load_model
from diffusion.convert import main, outputs, parts

UNET = "unet/diffusion_pytorch_model.safetensors"


def weights(model: Model) -> list[nn.Parameter]:
    return [parameter for network in parts(model).values() for parameter in network.parameters()]


@pytest.mark.parametrize("kind", models.KINDS)
def test_there_and_back(
    sd_folder: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    folder, single, again = sd_folder(kind), tmp_path / "model.safetensors", tmp_path / "again"
    assert main([str(folder), str(single), "--check"]) == 0
    said = capsys.readouterr()
    names = ["unet", "text_encoder", *["text_encoder_2"] * (kind == "xl"), "vae"]
    assert [line.partition(": ")[0] for line in said.out.splitlines()] == names
    assert all(": largest difference 0, of outputs up to" in line for line in said.out.splitlines())
    assert f"open it with --tokenizer {folder}" in said.err
    assert main([str(single), str(again), "--tokenizer", str(folder), "--check"]) == 0
    model, expected = load_model(again), load_model(folder)
    assert all(torch.equal(a, b) for a, b in zip(weights(model), weights(expected), strict=True))
    assert model.noise.config == expected.noise.config
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "model.safetensors"]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_narrower_weights_are_rounded_and_the_difference_is_said(
    sd_folder: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], dtype: str
) -> None:
    assert main([str(sd_folder("sd1")), str(tmp_path / "narrow"), "--dtype", dtype, "--check"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all("largest difference 0," not in line for line in lines)
    assert {weight.dtype for weight in load_file(tmp_path / "narrow" / UNET).values()} == {getattr(torch, dtype)}
    # Wider again, it is the same: what was rounded away is gone, and nothing else.
    assert main([str(tmp_path / "narrow"), str(tmp_path / "wide"), "--dtype", "float32", "--check"]) == 0
    assert all("largest difference 0," in line for line in capsys.readouterr().out.splitlines())


@pytest.mark.parametrize("destination", ["out", "out.safetensors"])
def test_failed_check_leaves_nothing(
    sd_folder: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], destination: str
) -> None:
    model = load_model(sd_folder("sd1"))
    with torch.no_grad():
        model.unet.conv_in.weight[0] *= 1e6  # beyond float16
    source = shutil.copytree(sd_folder("sd1"), tmp_path / "source")
    save_file(model.unet.state_dict(), source / UNET)
    assert main([str(source), str(tmp_path / destination), "--dtype", "float16", "--check"]) == 2
    error = capsys.readouterr().err
    assert "holds what is no number" in error  # read again, as the check does, it is refused
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_outputs_that_differ_are_taken_back(
    sd_folder: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = load_model(sd_folder("sd1"))
    with torch.no_grad():  # float16 has no number so small but 0, and so all of the output would be 0
        model.unet.conv_norm_out.weight *= 1e-12
        for zero in (model.unet.conv_norm_out.bias, model.unet.conv_out.bias):
            zero.zero_()
    source = shutil.copytree(sd_folder("sd1"), tmp_path / "source")
    save_file(model.unet.state_dict(), source / UNET)
    assert main([str(source), str(tmp_path / "out"), "--dtype", "float16", "--check"]) == 2
    error = capsys.readouterr().err
    assert "The unet that was written differs by" in error
    assert "it is taken back" in error
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_shipped_kind_of_model_goes_too(tiny_model: Path, pixel_model: Path, tmp_path: Path) -> None:
    for model in (tiny_model, pixel_model):
        single = tmp_path / f"{model.name}.safetensors"
        assert main([str(model), str(single), "--check"]) == 0
        expected = outputs(load_model(model))
        found = outputs(load_model(single, tokenizer=model))
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in found)


def test_prediction_type_and_autoencoder_are_kept(sd_folder: Callable[[str], Path], tmp_path: Path) -> None:
    options = ["--prediction-type", "v_prediction", "--vae", str(sd_folder("xl")), "--layout", "single"]
    assert main([str(sd_folder("sd1")), str(tmp_path / "model"), *options, "--check"]) == 0
    model = load_model(tmp_path / "model", tokenizer=sd_folder("sd1"))
    assert model.noise.config.prediction_type == "v_prediction"
    assert model.autoencoder.config == load_model(sd_folder("xl")).autoencoder.config


def test_dry_run_writes_nothing(
    sd_folder: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(sd_folder("sd2")), str(tmp_path / "a" / "b.safetensors"), "--dtype", "float16", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "would be a single file of" in said
    assert "prediction type: v_prediction" in said
    assert not list(tmp_path.iterdir())


def test_mistakes_are_one_sentence(
    sd_folder: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "there").mkdir()
    for command, said in (
        (["nowhere", str(tmp_path / "new")], "There is no model 'nowhere'"),
        ([str(sd_folder("sd1")), str(tmp_path / "there")], "is there already"),
        ([str(sd_folder("sd1")), str(tmp_path / "new"), "--vae", "nowhere"], "There is no autoencoder 'nowhere'"),
    ):
        assert main(command) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
