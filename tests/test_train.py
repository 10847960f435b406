"""The trainers through their real commands, on six tiny pictures."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from recipes import PIXELS, trace, write_recipe
from safetensors.torch import load_file

from diffusion.autoencoder import Autoencoder, AutoencoderConfig
from diffusion.checkpoint import load_model
from diffusion.pipeline import Pipeline
from diffusion.request import Request
from train import __main__ as whole
from train import autoencoder, checkpoints, denoiser
from train.autoencoder import normalise
from train.loop import LoopConfig, generator, order, rate


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return write_recipe(tmp_path)


def train_whole(recipe: Path, out: Path) -> None:
    assert whole.main([str(recipe), "--out", str(out), "--precision", "no"]) == 0


def test_whole_recipe_of_a_latent_model_ends_in_a_model_that_samples(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train_whole(recipe, out)
    for stage in ("autoencoder", "contrastive", "denoiser"):
        assert [row["step"] for row in trace(out / stage)] == [1, 2, 3]
        assert (out / stage / "loss.png").exists()
    assert (out / "denoiser" / "samples.png").exists()
    assert Image.open(out / "autoencoder" / "samples.png").size == (16 * 18, 2 * 2 * 18)
    (picture,) = Pipeline(load_model(out / "model")).generate([Request(prompt="a red circle")])
    assert picture.image.size == (16, 16)
    assert picture.request.steps == 2


def test_pixel_space_model_trains_and_samples(tmp_path: Path) -> None:
    out = tmp_path / "run"
    train_whole(write_recipe(tmp_path, autoencoder=PIXELS, prediction="epsilon"), out)
    assert not (out / "model" / "vae").exists()
    (picture,) = Pipeline(load_model(out / "model")).generate([Request(prompt="a red circle")])
    assert picture.image.size == (16, 16)


def test_training_learns(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, training="steps = 40\nbatch = 4\nwarmup = 1\nlog_every = 1")
    assert autoencoder.main([str(recipe), "--out", str(tmp_path / "run"), "--precision", "no"]) == 0
    losses = [row["loss"] for row in trace(tmp_path / "run/autoencoder")]
    assert losses[-1] < 0.7 * losses[0]


def test_a_finished_run_is_not_trained_again(recipe: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    train_whole(recipe, out)
    before = (out / "denoiser/metrics.jsonl").read_bytes()
    weights = (out / "model/unet/diffusion_pytorch_model.safetensors").read_bytes()
    train_whole(recipe, out)
    assert (out / "denoiser/metrics.jsonl").read_bytes() == before
    assert (out / "model/unet/diffusion_pytorch_model.safetensors").read_bytes() == weights


def test_resuming_from_damaged_files_ends_in_the_same_weights(recipe: Path, tmp_path: Path) -> None:
    calm, hit = tmp_path / "calm", tmp_path / "hit"
    for run in (calm, hit):
        assert autoencoder.main([str(recipe), "--out", str(run), "--precision", "no"]) == 0
    newest = "autoencoder/checkpoints/step-00000003"
    data = bytearray((hit / newest / "weights.safetensors").read_bytes())
    data[-1] ^= 1
    (hit / newest / "weights.safetensors").write_bytes(data)
    metrics = hit / "autoencoder/metrics.jsonl"
    metrics.write_bytes(metrics.read_bytes()[:-10])  # as a full disk leaves the last line
    assert autoencoder.main([str(recipe), "--out", str(hit), "--precision", "no"]) == 0  # from step 2
    assert trace(hit / "autoencoder") == trace(calm / "autoencoder")
    for name in ("weights", "average", "optimizer"):
        ours, theirs = (load_file(run / newest / f"{name}.safetensors") for run in (hit, calm))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_stage_says_which_one_has_to_come_first(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert denoiser.main([str(recipe), "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert "train.contrastive" in error
    assert len(error.splitlines()) == 1


def test_other_settings_do_not_continue_a_run(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "run")
    assert autoencoder.main([str(recipe), "--out", out, "--steps", "2", "--precision", "no"]) == 0
    assert autoencoder.main([str(recipe), "--out", out, "--steps", "3", "--precision", "no"]) == 2
    assert "other settings" in capsys.readouterr().err


def test_dry_run_writes_nothing(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert whole.main([str(recipe), "--out", str(tmp_path / "run"), "--dry-run"]) == 0
    assert "denoiser" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("batch = 4", "bach = 4", "'bach'"),
        ("size = 16", "size = ", "not valid TOML"),
        ("[tokenizer]", "[tokeniser]", "'tokeniser'"),
    ],
)
def test_mistakes_in_a_recipe(
    recipe: Path, capsys: pytest.CaptureFixture[str], before: str, after: str, said: str
) -> None:
    recipe.write_text(recipe.read_text().replace(before, after, 1))
    assert whole.main([str(recipe)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1


def test_order_visits_every_picture_once_an_epoch() -> None:
    seen = order(list(range(30)), 10, seed=0)
    assert all(sorted(seen[start : start + 10]) == list(range(10)) for start in (0, 10, 20))
    assert seen[:10] != seen[10:20]
    assert order([17, 3], 10, seed=0) == [seen[17], seen[3]]


def test_generator_is_a_function_of_seed_and_index() -> None:
    draws = [torch.randn(2, generator=generator(seed, i)) for seed, i in ((0, 1), (0, 2), (1, 1))]
    assert torch.equal(draws[0], torch.randn(2, generator=generator(0, 1)))
    assert not torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_learning_rate_rises_and_falls_to_zero() -> None:
    config = LoopConfig(steps=1000, warmup=10)
    assert [rate(0, config), rate(9, config), rate(10, config)] == [0.1, 1.0, 1.0]
    assert rate(505, config) == pytest.approx(0.5)
    assert rate(1000, config) == pytest.approx(0, abs=1e-6)


def test_checkpoints_keep_two_and_skip_what_does_not_verify(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        checkpoints.save(tmp_path, step, {"weights": {"w": torch.full((2,), float(step))}}, {})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]
    (tmp_path / "step-00000003" / "manifest.json").unlink()
    found = checkpoints.newest(tmp_path)
    assert found is not None
    assert found[1]["step"] == 2
    assert torch.equal(found[0]["weights"]["w"], torch.tensor([2.0, 2.0]))


def test_normalised_latents_reconstruct_the_same() -> None:
    torch.manual_seed(0)
    config = AutoencoderConfig(block_out_channels=(8, 16), norm_num_groups=4, latent_channels=4, scaling_factor=1.0)
    network = Autoencoder(config).eval()
    images = torch.rand(16, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        before = network.decode(network.encode(images))
        normalise(network, images)
        latents = network.encode(images)
        torch.testing.assert_close(network.decode(latents), before, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(latents.mean(dim=(0, 2, 3)), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(latents.std(dim=(0, 2, 3)), torch.ones(4), atol=1e-3, rtol=0)
