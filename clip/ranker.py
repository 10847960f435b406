"""CLIP at work: pictures and texts as unit vectors, and what follows from their cosines."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from clip.folder import read_json
from clip.pictures import square
from clip.pretrained import clip_from_folder
from clip.tokenizer import Tokenizer

DEFAULT_CLIP = Path(__file__).parent / "models" / "emoji-clip"
LANGUAGES = ("en", "ja")
BATCH = 64
CONCEPTS = "concepts.json"
# How a caption goes on from the thing to its style, and from both to the background.
SENTENCES = {"en": "{thing}, {style}", "ja": "{thing}の{style}"}
GROUNDS = {"en": "{said}, {colour} background", "ja": "{colour}背景の{said}"}


@dataclass(frozen=True)
class Concepts:
    """What a CLIP was taught to tell apart, in each language, and the sentences that it heard it in.

    A list says the same in both languages, entry by entry; `{}` in a template stands for the name of a thing. From
    the cosine `threshold` on, a picture is taken to show a text; that of CLIPs of OpenAI's kind where none is said.
    """

    things: Mapping[str, Sequence[str]]
    styles: Mapping[str, Sequence[str]]
    backgrounds: Mapping[str, Sequence[str]]
    templates: Mapping[str, Sequence[str]]
    threshold: float = 0.27


# For a CLIP that says nothing itself; of photographs, as most are.
PLAIN = Concepts({}, {}, {}, {"en": ("{}", "a picture of {}", "a photo of {}"), "ja": ("{}", "{}の写真", "{}の絵")})


class Ranker:
    """A CLIP with its tokenizer. All that it is asked is answered from unit vectors, float32 [N, P]."""

    def __init__(self, folder: str | Path = DEFAULT_CLIP, device: torch.device | str = "cpu") -> None:
        """Opens a folder, of transformers' or open_clip's form. Raises ValueError where there is none."""
        self.folder = Path(folder).resolve()
        if not self.folder.is_dir():
            raise ValueError(
                f"There is no CLIP {str(folder)!r}; give the folder of a CLIPModel or of open_clip's, or leave it to "
                "the shipped one."
            )
        self.device = torch.device(device)
        self.clip = clip_from_folder(self.folder).eval().to(self.device)
        self.tokenizer = Tokenizer.from_folder(self.folder)
        self.concepts = PLAIN
        if (self.folder / CONCEPTS).is_file():
            self.concepts = Concepts(**read_json(self.folder / CONCEPTS))

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """texts => [N, P]"""
        ids = self.tokenizer(texts).to(self.device)
        # Nothing past the last end token is read: the tower is causal and pools there.
        ids = ids[:, : int((ids == self.tokenizer.end).int().argmax(dim=1).max()) + 1]
        return torch.cat([self.clip.encode_text(batch).cpu() for batch in ids.split(BATCH)])

    @torch.inference_mode()
    def pictures(self, images: Sequence[Image.Image]) -> Tensor:
        """RGB pictures, of which the square about the centre is seen => [N, P]"""
        size = self.clip.image.config.image_size
        pixels = torch.stack([square(image, size, Image.Resampling.BICUBIC) for image in images])  # [N, 3, S, S]
        batches = (batch.to(self.device).float() / 127.5 - 1 for batch in pixels.split(BATCH))
        return torch.cat([self.clip.encode_image(batch).cpu() for batch in batches])

    def names(self, names: Sequence[str], templates: Sequence[str] | None = None) -> Tensor:
        """Each name as the mean of the sentences that it fills (Radford et al. 2021, section 3.1.4) => [N, P]"""
        given = [templates or self.concepts.templates["en" if name.isascii() else "ja"] for name in names]
        sentences = [template.format(name) for name, own in zip(names, given, strict=True) for template in own]
        vectors = self.texts(sentences).split([len(own) for own in given])
        return F.normalize(torch.stack([own.mean(dim=0) for own in vectors]), dim=-1)

    def chances(self, pictures: Tensor, names: Tensor) -> Tensor:
        """Pictures [N, P] among names [M, P] => how likely each name is, if one is right, [N, M]"""
        return (self.clip.logit_scale.exp().item() * pictures @ names.T).softmax(dim=1)

    def caption(self, image: Image.Image, language: str = "en") -> str:
        """What the picture shows, in which style, on which background: of each, what ranks highest.

        A style is asked for beside the thing that was found, a background beside both: no word stands alone in the
        captions that CLIP learnt from. Raises ValueError where its folder says nothing of what it can tell apart.
        """
        if not self.concepts.things:
            raise ValueError(f"{self.folder} has no {CONCEPTS}, the words to make a caption of; classify by --labels.")
        picture = self.pictures([image])[0]

        def best(words: Sequence[str], templates: Sequence[str] | None = None) -> str:
            return words[int((self.names(words, templates) @ picture).argmax())]

        thing = best(self.concepts.things[language])
        said = SENTENCES[language].format(thing=thing, style="{}")
        said = said.format(best(self.concepts.styles[language], [said]))
        ground = GROUNDS[language].format(said=said, colour="{}")
        return ground.format(best(self.concepts.backgrounds[language], [ground]))
