"""A tiny random CLIP in a folder: what the tests of ranking share."""

from pathlib import Path

from networks import randomize

from clip.image import ImageConfig, ImageEncoder
from clip.model import CLIP
from clip.pretrained import save_clip
from clip.text import TextConfig, TextEncoder
from clip.tokenizer import Tokenizer

COLOURS = ("red", "green", "blue", "yellow", "black")
CAPTIONS = [f"a {colour} square" for colour in COLOURS] + ["赤い四角", "青い四角"]


def save_tiny_clip(folder: Path, seed: int = 0) -> Path:
    tokenizer = Tokenizer.train(CAPTIONS * 4, vocab_size=560, length=16)
    size = {"width": 32, "layers": 1, "heads": 2, "mlp_width": 64, "projection": 16}
    clip = CLIP(
        TextEncoder(TextConfig(tokenizer.vocab_size, 16, eos_token_id=tokenizer.end, **size)),
        ImageEncoder(ImageConfig(image_size=16, patch_size=8, **size)),
    )
    randomize(clip, seed)
    save_clip(clip, folder)
    tokenizer.save(folder)
    return folder
