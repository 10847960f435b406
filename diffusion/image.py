"""Pictures as files, as Pillow's images and as tensors. Files come from anyone and are read with suspicion."""

import io
import struct
import warnings
import zlib
from pathlib import Path

import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional as F

FORMATS = ("PNG", "JPEG", "WEBP")
MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"}  # eight bits a channel at most
MAX_PIXELS = 64_000_000  # more than most cameras'; a file of a few kilobytes can claim a gigapixel
LANCZOS = Image.Resampling.LANCZOS
BOMB = Image.DecompressionBombError
RESIZE = {  # as AUTOMATIC1111's resize modes 0, 1 and 2
    "stretch": lambda image, size: image.resize(size, LANCZOS),
    "crop": lambda image, size: ImageOps.fit(image, size, LANCZOS),  # what is left of it is cut off, evenly
    "pad": lambda image, size: ImageOps.pad(image, size, LANCZOS),  # what is left of `size` is empty
}
DAMAGE = (OSError, ValueError, SyntaxError, EOFError, struct.error, zlib.error, BOMB, Warning)


def read_image(source: bytes | Path, name: str) -> Image.Image:
    """A PNG, JPEG or WebP file as RGBA, upright.

    Raises ValueError, in one sentence that begins with `name`, for all that is none, or not whole, or claims
    more than MAX_PIXELS; FileNotFoundError where `source` is a path to nothing.
    """
    if not isinstance(source, bytes | Path):
        raise ValueError(f"{name} is {source!r:.50}; expected the bytes of a PNG, JPEG or WebP file.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # Pillow only warns of bombs and of broken metadata
            file = io.BytesIO(source) if isinstance(source, bytes) else source
            with Image.open(file, formats=FORMATS) as image:
                width, height, mode = image.width, image.height, image.mode
                if width * height <= MAX_PIXELS and mode in MODES:
                    return ImageOps.exif_transpose(image).convert("RGBA")
    except FileNotFoundError:
        raise
    except DAMAGE as error:
        why = "" if isinstance(error, UnidentifiedImageError) else f" ({str(error).rstrip('.')})"
        raise ValueError(f"{name} is no readable PNG, JPEG or WebP image{why}.") from None
    if mode not in MODES:
        raise ValueError(f"{name} has mode {mode}; save it with eight bits a channel.")
    raise ValueError(f"{name} claims {width}x{height} pixels, more than {MAX_PIXELS:,}; make it smaller.")


def to_image(pixels: Tensor) -> Image.Image:
    """Pixels [3, H, W] in [-1, 1] => picture; what lies outside is clamped."""
    height, width = pixels.shape[1:]
    buffer = bytearray(3 * height * width)
    rounded = ((pixels.clamp(-1, 1) + 1) * 127.5).round().byte()
    torch.frombuffer(buffer, dtype=torch.uint8).view(height, width, 3).copy_(rounded.permute(1, 2, 0))
    return Image.frombytes("RGB", (width, height), bytes(buffer))


def to_pixels(image: Image.Image) -> Tensor:
    """Picture => pixels [C, H, W] in [-1, 1], a channel a band of the image."""
    values = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return values.view(image.height, image.width, -1).permute(2, 0, 1) / 127.5 - 1


def fit(image: Image.Image, size: tuple[int, int], how: str) -> Image.Image:
    """The image at another size: one of RESIZE."""
    return RESIZE[how](image, size)


def has_empty(image: Image.Image) -> bool:
    """Whether anything of an RGBA image is transparent, if only a little."""
    return image.getchannel("A").point(lambda alpha: 255 - alpha).getbbox() is not None


def flatten(image: Image.Image) -> Image.Image:
    """RGBA => RGB: in what is transparent, the colours around it go on, ever smoother.

    Pull-push (Gortler et al. 1996, "The Lumigraph", section 3.4): halve the picture, leaving out what is not
    there, until something is everywhere; then fill each size's holes from the next smaller one.
    """
    if not has_empty(image):
        return image.convert("RGB")
    pixels = to_pixels(image)[None]  # [1, 4, H, W]
    colours, alpha = pixels[:, :3], (pixels[:, 3:] + 1) / 2
    return to_image(_pull_push(colours * alpha, alpha)[0])


def _pull_push(colours: Tensor, alpha: Tensor) -> Tensor:
    """Colours [1, 3, H, W], each times its alpha [1, 1, H, W] => colours without holes."""
    if alpha.min() > 0 or colours.shape[-2:] == (1, 1):
        return colours / alpha.clamp(min=1e-6)
    halve = lambda x: F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False)
    below = _pull_push(halve(colours), halve(alpha))
    below = F.interpolate(below, size=colours.shape[-2:], mode="bilinear")
    return colours + (1 - alpha) * below
