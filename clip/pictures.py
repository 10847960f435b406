"""Picture files => pixels, read with suspicion: a file may come from anyone."""

import io
import struct
import warnings
import zlib
from pathlib import Path

import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK"}  # eight bits a channel at most
PIXEL_LIMIT = 64_000_000  # more than most cameras'; a file of a few kilobytes can claim a gigapixel
BOMB = Image.DecompressionBombError
DAMAGE = (OSError, ValueError, SyntaxError, EOFError, struct.error, zlib.error, BOMB, Warning)


class BadPicture(ValueError):
    """Why a file is not taken for a picture: half a sentence, to follow the file's name."""


def read_picture(source: Path | bytes) -> Image.Image:
    """A PNG, JPEG or WebP file, by its bytes and not its name => RGBA, upright. Raises BadPicture."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # Pillow only warns of bombs and of broken metadata
            file = io.BytesIO(source) if isinstance(source, bytes) else source
            with Image.open(file, formats=sorted(set(FORMATS.values()))) as image:
                if image.width * image.height > PIXEL_LIMIT:
                    raise BadPicture(f"it claims {image.width}x{image.height} pixels, more than {PIXEL_LIMIT}")
                if image.mode not in MODES:
                    raise BadPicture(f"it has mode {image.mode}: save it with eight bits a channel")
                return ImageOps.exif_transpose(image).convert("RGBA")
    except BadPicture:
        raise
    except FileNotFoundError:
        raise BadPicture("there is no such file") from None
    except UnidentifiedImageError:  # it would say where in memory the file was
        raise BadPicture("it is no readable PNG, JPEG or WebP image") from None
    except DAMAGE as error:
        raise BadPicture(f"it is no readable PNG, JPEG or WebP image ({error})") from None


def over_white(image: Image.Image) -> Image.Image:
    """RGBA => RGB, white where it is transparent."""
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def square(image: Image.Image, size: int, resample: Image.Resampling = Image.Resampling.LANCZOS) -> Tensor:
    """RGB, cropped about its centre and resized => uint8 [3, size, size]."""
    pixels = ImageOps.fit(image, (size, size), resample)
    return torch.frombuffer(bytearray(pixels.tobytes()), dtype=torch.uint8).view(size, size, 3).permute(2, 0, 1)
