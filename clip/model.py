"""CLIP: two towers that send a picture and its caption to the same place on the unit sphere."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clip.image import ImageEncoder
from clip.text import TextEncoder


class CLIP(nn.Module):
    """Radford et al., "Learning Transferable Visual Models From Natural Language Supervision" (2021)."""

    def __init__(self, text: TextEncoder, image: ImageEncoder):
        super().__init__()
        if text.config.projection != image.config.projection:
            raise ValueError(
                f"the text tower projects to {text.config.projection} dimensions and the image tower to "
                f"{image.config.projection}: give both the same projection"
            )
        self.text = text
        self.image = image
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))  # the log of 1 / temperature

    def encode_text(self, ids: Tensor) -> Tensor:
        """Ids [B, L] -> unit vectors [B, P]."""
        return F.normalize(self.text(ids).pooled, dim=-1)

    def encode_image(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [-1, 1] -> unit vectors [B, P]."""
        return F.normalize(self.image(images), dim=-1)

    def similarity(self, images: Tensor, ids: Tensor) -> Tensor:
        """Every image against every text: cosines over the temperature -> [images, texts]. CLIP's loss is the
        cross entropy of these logits with the diagonal, along rows and along columns."""
        return self.logit_scale.exp() * self.encode_image(images) @ self.encode_text(ids).T
