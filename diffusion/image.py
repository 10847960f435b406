"""Pictures as files, as Pillow's images and as tensors, at other sizes and without their holes."""

import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F

from clip.pictures import BadPicture, read_picture

LANCZOS = Image.Resampling.LANCZOS
MAX_FILLED = 2**22  # pixels; what goes on where nothing is, is so smooth that larger pictures have no need of more
RESIZE = {  # as AUTOMATIC1111's resize modes 0, 1 and 2
    "stretch": lambda image, size: image.resize(size, LANCZOS),
    "crop": lambda image, size: ImageOps.fit(image, size, LANCZOS),  # what is left of it is cut off, evenly
    "pad": lambda image, size: ImageOps.pad(image, size, LANCZOS),  # what is left of `size` is empty
}


def read_image(data: bytes, name: str) -> Image.Image:
    """A PNG, JPEG or WebP file as RGBA, upright. Raises ValueError, in one sentence that begins with `name`."""
    if not isinstance(data, bytes):
        raise ValueError(f"{name} is {data!r:.50}; expected the bytes of a PNG, JPEG or WebP file.")
    try:
        return read_picture(data)
    except BadPicture as reason:
        raise ValueError(f"{name} cannot be used: {reason}.") from None


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
    small = image.convert("RGBa")  # colours times alpha, which alone can be averaged
    while small.width * small.height > MAX_FILLED:
        small = small.reduce(2)
    pixels = to_pixels(small.convert("RGBA"))[None]  # [1, 4, h, w]
    colours, alpha = pixels[:, :3], (pixels[:, 3:] + 1) / 2
    beneath = to_image(_pull_push(colours * alpha, alpha)[0]).resize(image.size, Image.Resampling.BILINEAR)
    return Image.alpha_composite(beneath.convert("RGBA"), image).convert("RGB")


def _pull_push(colours: Tensor, alpha: Tensor) -> Tensor:
    """Colours [1, 3, H, W], each times its alpha [1, 1, H, W] => colours without holes."""
    if alpha.min() > 0 or colours.shape[-2:] == (1, 1):
        return colours / alpha.clamp(min=1e-6)
    halve = lambda x: F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False)
    below = _pull_push(halve(colours), halve(alpha))
    below = F.interpolate(below, size=colours.shape[-2:], mode="bilinear")
    return colours + (1 - alpha) * below
