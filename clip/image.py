"""The image tower of CLIP: the same stack over patches (a ViT) => one embedding an image."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from clip.transformer import Activation, Transformer, TransformerConfig

Pool = Literal["class", "average"]


@dataclass(frozen=True)
class ImageConfig:
    """The defaults are CLIP ViT-B/32; `mean` and `std` are those of its training images' RGB in [0, 1].

    `pool` says what stands for the image: the class token, or the average of the patches (CLIPA), which has no
    `norm_in` either.
    """

    image_size: int = 224
    patch_size: int = 32
    width: int = 768
    layers: int = 12
    heads: int = 12
    mlp_width: int = 3072
    activation: Activation = "quick_gelu"
    projection: int = 512
    norm_eps: float = 1e-5
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    pool: Pool = "class"
    norm_in: bool = True
    layer_scale: bool = False

    def __post_init__(self) -> None:
        if self.pool not in get_args(Pool):
            raise ValueError(f"pool {self.pool!r} is unknown: choose {' or '.join(get_args(Pool))}")
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size {self.image_size} does not divide into patches: "
                f"make it a multiple of {self.patch_size}"
            )


class ImageEncoder(nn.Module):
    """Dosovitskiy et al., "An Image Is Worth 16x16 Words" (2021), with CLIP's extra norm before the stack."""

    def __init__(self, config: ImageConfig):
        super().__init__()
        self.config = config
        width, patch = config.width, config.patch_size
        patches = (config.image_size // patch) ** 2
        self.patch_embedding = nn.Conv2d(3, width, kernel_size=patch, stride=patch, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.position_embedding = nn.Parameter(torch.empty(1 + patches, width))
        self.norm_in = nn.LayerNorm(width, eps=config.norm_eps) if config.norm_in else nn.Identity()
        self.transformer = Transformer(
            TransformerConfig(
                width=width,
                layers=config.layers,
                heads=config.heads,
                mlp_width=config.mlp_width,
                activation=config.activation,
                mask="full",
                norm_eps=config.norm_eps,
                layer_scale=config.layer_scale,
            )
        )
        self.norm = nn.LayerNorm(width, eps=config.norm_eps)
        self.projection = nn.Linear(width, config.projection, bias=False)

        for parameter in (self.class_embedding, self.position_embedding, self.projection.weight):
            nn.init.normal_(parameter, std=width**-0.5)

    def forward(self, images: Tensor) -> Tensor:
        """Encode images [B, 3, H, W] in [-1, 1], H = W = `config.image_size` -> [B, P]."""
        size = self.config.image_size
        if images.shape[1:] != (3, size, size):
            raise ValueError(f"images [B, 3, {size}, {size}] expected, got {list(images.shape)}: resize them")
        # The project's pixels are in [-1, 1]; CLIP's have zero mean and unit variance over its training set.
        mean = images.new_tensor(self.config.mean).view(3, 1, 1)
        std = images.new_tensor(self.config.std).view(3, 1, 1)
        patches = self.patch_embedding((images * 0.5 + 0.5 - mean) / std)  # [B, D, H / patch, W / patch]

        x = patches.flatten(2).transpose(1, 2)  # [B, L, D]
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], dim=1) + self.position_embedding
        x = self.transformer(self.norm_in(x))
        pooled = x[:, 0] if self.config.pool == "class" else x[:, 1:].mean(dim=1)
        return self.projection(self.norm(pooled))
