"""python -m train.contrastive: CLIP from images and captions."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed.nn.functional as distributed
import torch.nn.functional as F
from torch import Tensor, nn

from clip.image import ImageConfig, ImageEncoder
from clip.model import CLIP
from clip.pretrained import save_clip, save_text_encoder
from clip.text import TextConfig, TextEncoder
from clip.tokenizer import Tokenizer
from train.augment import VARY_DRAWS, vary
from train.command import run
from train.data import Dataset
from train.loop import Metrics, fit, generator, order
from train.recipe import Recipe, arguments, build

EXAMPLES = """examples:
  python -m train.contrastive emoji-64                 # into runs/emoji-64/clip and runs/emoji-64/model/text_encoder
  python -m train.contrastive my.toml --folder photos --out runs/mine
  python -m train.contrastive emoji-64 --dry-run
"""


class Similarities(nn.Module):
    """CLIP as an objective: the features of a batch of pairs and the scale of their similarities."""

    def __init__(self, clip: CLIP) -> None:
        super().__init__()
        self.clip = clip

    def forward(self, images: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """images [B, 3, S, S], ids [B, L] => image features [B, P], text features [B, P], scale."""
        # The scale is held under 100, as the CLIP paper does, so that training stays stable.
        scale = self.clip.logit_scale.clamp(max=4.6052).exp()
        return self.clip.encode_image(images), self.clip.encode_text(ids), scale


def contrastive_loss(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    """Each image finds its text among all and each text its image (Radford et al. 2021, figure 3)."""
    first = 0
    all_images, all_texts = images, texts
    if torch.distributed.is_initialized():
        first = len(images) * torch.distributed.get_rank()
        all_images, all_texts = (torch.cat(distributed.all_gather(features)) for features in (images, texts))
    target = torch.arange(first, first + len(images), device=images.device)
    to_texts = F.cross_entropy(scale * images @ all_texts.T, target)
    to_images = F.cross_entropy(scale * texts @ all_images.T, target)
    return (to_texts + to_images) / 2


def train(
    recipe: Recipe, dataset: Dataset, out: Path, steps: int | None = None, precision: str | None = None
) -> None:
    """Trains tokenizer and CLIP into `out/model/tokenizer`, `out/model/text_encoder` and, whole, `out/clip`."""
    config = recipe.training("contrastive", steps, precision)
    tokenizer = Tokenizer.train(
        dataset.captions(), recipe.tokenizer["vocab_size"], recipe.tokenizer["length"]
    )
    tokenizer.save(out / "model" / "tokenizer")

    torch.manual_seed(config.seed)
    text = {"vocab_size": tokenizer.vocab_size, "length": tokenizer.length, "eos_token_id": tokenizer.end}
    image = {"image_size": recipe.size}
    clip = CLIP(
        TextEncoder(build(TextConfig, recipe.contrastive["text"] | text, "[contrastive.text]")),
        ImageEncoder(build(ImageConfig, recipe.contrastive["image"] | image, "[contrastive.image]")),
    )  # fmt: skip
    varied = recipe.contrastive.get("vary", False)  # few pictures are soon known by heart

    def loss(network: nn.Module, indices: list[int]) -> tuple[Tensor, Metrics]:
        device = next(network.parameters()).device
        pictures = order(indices, len(dataset), config.seed)
        visits = [index // len(dataset) for index in indices]
        pairs = [dataset.variation(i, k, config.seed) for i, k in zip(pictures, visits, strict=True)]
        images = torch.stack([image for image, _ in pairs]).to(device).float() / 127.5 - 1
        if varied:
            draws = torch.stack([torch.rand(VARY_DRAWS, generator=generator(config.seed, i)) for i in indices])
            images = vary(images, draws.to(device))
        ids = tokenizer([caption for _, caption in pairs])
        # Nothing past the longest caption's end token is read: the tower is causal and pools there.
        ids = ids[:, : int((ids == tokenizer.end).int().argmax(dim=1).max()) + 1].to(device)
        image_features, text_features, scale = network(images, ids)
        similarity = image_features.detach() @ text_features.detach().T
        found = (similarity.argmax(dim=1) == torch.arange(len(indices), device=device)).float().mean()
        # The softmax over similarities wants fp32, whatever the networks ran in.
        value = contrastive_loss(image_features.float(), text_features.float(), scale.float())
        return value, {"found": found}

    fit(Similarities(clip), loss, config, out / "contrastive")
    save_clip(clip.cpu().half(), out / "clip")  # it loads in float32, with rankings none the worse
    tokenizer.save(out / "clip")
    save_text_encoder(without_projection(clip.text), out / "model" / "text_encoder")


def without_projection(text: TextEncoder) -> TextEncoder:
    """The tower as a U-Net is conditioned by it: its tokens, not CLIP's shared space."""
    alone = TextEncoder(replace(text.config, projection=None))
    alone.load_state_dict({k: v for k, v in text.state_dict().items() if not k.startswith("projection.")})
    return alone


def main(argv: Sequence[str] | None = None) -> int:
    return run(arguments(__doc__, EXAMPLES), argv, {"contrastive": train})


if __name__ == "__main__":
    sys.exit(main())
