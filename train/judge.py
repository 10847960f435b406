"""The judge of generated pictures: a plain classifier of things, trained apart from every other network.

    pictures of the real things, in every style there is  =>  over random backgrounds  =>  which thing?

It shares no weights, no captions and no compositor with the model that it judges, and it sees styles that the
model never saw. A tenth of the real pictures is held out from it: how well it names those is its own accuracy.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from train.augment import PLACE_DRAWS, TINT_DRAWS, places, tint
from train.emoji import STYLES, EmojiConfig, Thing, held_out, load_emoji
from train.loop import LoopConfig, Metrics, fit, generator, order
from train.packages import PACKAGES, Package

WIDTHS = (32, 64, 128, 256)
GROUPS = 8
SMOOTHING = 0.1  # of the labels: four pictures a thing are soon known by heart

WHITE_SHARE = 1 / 3  # of the backgrounds; the others are of any colour
DRAWS = PLACE_DRAWS + TINT_DRAWS + 4  # uniform numbers that one augmented picture takes


class Judge(nn.Module):
    """Four halvings, a last look around at the coarsest scale, an average over places, a score a thing.

    About 25 million multiplications a 64x64 picture. Group norms, so that a picture is judged by itself.
    """

    def __init__(self, things: int) -> None:
        super().__init__()
        last = WIDTHS[-1]
        halvings = [convolution(*widths, stride=2) for widths in pairwise((3, *WIDTHS))]
        self.features = nn.Sequential(*halvings, convolution(last, last, stride=1))
        self.scores = nn.Linear(last, things)

    def forward(self, images: Tensor) -> Tensor:
        """images [B, 3, H, W] in [-1, 1] => scores, before the softmax, [B, things]"""
        return self.scores(self.features(images).mean(dim=(2, 3)))


def convolution(before: int, after: int, stride: int) -> nn.Module:
    layer = nn.Conv2d(before, after, kernel_size=3, stride=stride, padding=1, bias=False)
    return nn.Sequential(layer, nn.GroupNorm(GROUPS, after), nn.SiLU())


@dataclass(frozen=True)
class RealPictures:
    """Every style's pictures of some things: `rgba[n]` shows thing `labels[n]`; `held_out[n]` the judge never sees."""

    rgba: Tensor  # uint8 [N, 4, S, S], straight alpha
    labels: Tensor  # [N]
    held_out: Tensor  # bool [N]

    @property
    def seen(self) -> Tensor:
        """The numbers of the pictures that the judge learns from.  # [n]"""
        return torch.nonzero(~self.held_out)[:, 0]


def load_real(
    things: list[Thing], config: EmojiConfig, cache: Path, fetched: Path | None = None,
    packages: Mapping[str, Package] = PACKAGES,
) -> RealPictures:  # fmt: skip
    """The pictures of `things`, which `config` selects, in every style that draws them.

    Raises ValueError where the things are so few that chance holds none of them out.
    """
    label = {thing.code: i for i, thing in enumerate(things)}
    rgba, labels, apart = [], [], []
    for style in STYLES:  # one at a time: of several, `load_emoji` keeps what all of them draw
        emoji = load_emoji(replace(config, styles=(style,)), cache, fetched, packages)
        for n, (i, _) in enumerate(emoji.records):
            thing = emoji.things[i]
            if thing.code in label:
                rgba.append(emoji.pictures[n])
                labels.append(label[thing.code])
                apart.append(held_out(thing, style))
    if not 0 < sum(apart) < len(apart):
        raise ValueError(
            f"Of {len(apart)} pictures {sum(apart)} are held out from the judge, which has to learn from some and to "
            "be tried on others: select more things in [data]."
        )
    return RealPictures(torch.stack(rgba), torch.tensor(labels), torch.tensor(apart))


def train_judge(real: RealPictures, things: int, config: LoopConfig, folder: Path) -> Judge:
    """Trains a judge of so many things into `folder`, or goes on there; a finished one is not trained again."""
    torch.manual_seed(config.seed)
    judge = Judge(things)
    seen = real.seen

    def loss(network: nn.Module, indices: list[int]) -> tuple[Tensor, Metrics]:
        device = next(network.parameters()).device
        chosen = seen[order(indices, len(seen), config.seed)]
        draws = torch.stack([torch.rand(DRAWS, generator=generator(config.seed, i)) for i in indices])
        images, labels = augment(real.rgba[chosen].to(device), draws.to(device)), real.labels[chosen].to(device)
        scores = network(images)
        value = F.cross_entropy(scores, labels, label_smoothing=SMOOTHING)
        return value, {"top1": (scores.argmax(dim=1) == labels).float().mean()}

    fit(judge, loss, config, folder)
    return judge


def augment(rgba: Tensor, draws: Tensor) -> Tensor:
    """uint8 RGBA [B, 4, S, S], uniform draws [B, DRAWS] => pictures over a background, [B, 3, S, S] in [-1, 1].

    Each is moved, scaled, perhaps mirrored, and turned a little in hue and brightness; then laid on its background.
    """
    place, colour, background = draws.split((PLACE_DRAWS, TINT_DRAWS, 4), dim=1)
    white, *behind = background.T[:, :, None, None]  # [B, 1, 1] each
    grid = places(place, rgba.shape[-1])
    colours, alpha = rgba.float().div(255).split((3, 1), dim=1)
    moved = F.grid_sample(torch.cat((colours * alpha, alpha), dim=1), grid, align_corners=False)
    colours, alpha = moved.split((3, 1), dim=1)  # premultiplied, or clear pixels would bleed into the edges
    ground = torch.where(white[:, None] < WHITE_SHARE, 1.0, torch.stack(behind, dim=1))  # [B, 3, 1, 1]
    over = torch.minimum(tint(colours, colour).clamp(min=0), alpha) + (1 - alpha) * ground
    return 2 * over - 1


@torch.inference_mode()
def ranks(judge: Judge, images: Tensor, labels: Tensor) -> Tensor:
    """How many other things the judge would sooner see in images [N, 3, S, S] than the right one.  # [N]

    0 is a right answer. What scores the same counts against it, so a judge that cannot tell is never right.
    """
    device = next(judge.parameters()).device
    scores = torch.cat([judge(batch.to(device)).float().cpu() for batch in images.split(128)])  # [N, things]
    return ahead(scores, labels)


def ahead(scores: Tensor, labels: Tensor) -> Tensor:
    """How many of each row's scores [N, M] are no lower than that of the right label [N].  # [N]"""
    return (scores >= scores.gather(1, labels[:, None])).sum(dim=1) - 1
