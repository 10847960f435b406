"""CLIP's loss against open_clip's."""

import torch
import torch.nn.functional as F
from open_clip.loss import ClipLoss

from train.contrastive import contrastive_loss


def test_contrastive_loss_is_open_clips() -> None:
    torch.manual_seed(0)
    images, texts = (F.normalize(torch.randn(8, 16), dim=-1) for _ in range(2))
    scale = torch.tensor(14.3)
    torch.testing.assert_close(contrastive_loss(images, texts, scale), ClipLoss()(images, texts, scale))
