"""CLIP's loss against open_clip's, and a recipe of CLIP alone."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from open_clip.loss import ClipLoss
from recipes import trace, write_recipe

from clip.pretrained import clip_from_folder
from train import __main__ as whole
from train import denoiser
from train.augment import VARY_DRAWS, vary
from train.contrastive import contrastive_loss


def test_contrastive_loss_is_open_clips() -> None:
    torch.manual_seed(0)
    images, texts = (F.normalize(torch.randn(8, 16), dim=-1) for _ in range(2))
    scale = torch.tensor(14.3)
    torch.testing.assert_close(contrastive_loss(images, texts, scale), ClipLoss()(images, texts, scale))


def test_varied_pictures_by_hand() -> None:
    images = torch.zeros(2, 3, 8, 8)
    images[:, :, 2:4, 1:3] = 1
    still = torch.tensor([[0.9, 2 / 3, 0.5, 0.5, 0.5, 0.5]])  # scale 1, neither moved nor turned nor brighter
    mirrored, dark = still.clone(), still.clone()
    mirrored[0, 0], dark[0, 5] = 0.1, 0.0
    assert still.shape[1] == VARY_DRAWS
    torch.testing.assert_close(vary(images[:1], still), images[:1], atol=1e-5, rtol=0)
    torch.testing.assert_close(vary(images[:1], mirrored), images[:1].flip(-1), atol=1e-5, rtol=0)
    torch.testing.assert_close(vary(images[:1], dark) + 1, 0.85 * (images[:1] + 1), atol=1e-5, rtol=0)
    wild = vary(images, torch.rand(2, VARY_DRAWS, generator=torch.Generator().manual_seed(0)))
    assert -1 <= wild.min() < wild.max() <= 1


def test_a_recipe_of_clip_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe, out = write_recipe(tmp_path), tmp_path / "run"
    text = recipe.read_text()
    start, end = text.index("[contrastive]"), text.index("[denoiser]")
    alone = text[: text.index("[autoencoder]")] + text[start:end].replace("[contrastive]", "[contrastive]\nvary = true")
    recipe.write_text(alone)
    assert whole.main([str(recipe), "--out", str(out), "--precision", "no"]) == 0
    assert [path.name for path in out.iterdir() if path.is_dir() and path.name != "data"].count("denoiser") == 0
    assert [row["step"] for row in trace(out / "contrastive")] == [1, 2, 3]
    assert clip_from_folder(out / "clip").image.config.image_size == 16
    assert denoiser.main([str(recipe), "--out", str(out)]) == 2
    assert "has no table for this stage" in capsys.readouterr().err
