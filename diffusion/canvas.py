"""The image that a picture begins with: which part of it is made anew, and how that part comes back into it.

    canvas = Canvas.of(request)      the image, and the mask of what changes
    canvas.view(), canvas.hole()     what the autoencoder is shown
    canvas.finish(made)              what was made, in its place; outside the mask, the image's own pixels
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import torch
from PIL import Image, ImageChops, ImageFilter
from torch import Tensor

from diffusion.checks import MAX_SIDE, check_name, check_needed, check_number
from diffusion.image import RESIZE, fit, flatten, has_empty, read_image, to_pixels

FILLS = ("original", "fill", "noise", "nothing")  # as AUTOMATIC1111's inpainting_fill 1, 0, 2 and 3
OF_MASK = ("mask_blur", "fill", "padding")  # the fields of a request that go with a mask
Size = tuple[int, int]  # width, height
Box = tuple[int, int, int, int]  # left, top, right, bottom


def image_settings(request: Any, side: int, factor: int) -> dict[str, Any]:
    """What a request leaves open of the image that it begins with: those fields of it, checked.

    The model's pictures have `side` pixels a side, and a latent stands for `factor` of them.
    """
    if request.image is None:
        check_needed(request, ("mask", "strength", "resize", "outpaint", *OF_MASK), "an image")
        return {}
    outpaint = _checked_outpaint(request.outpaint)
    image, mask = read_files(request)
    size = shown_size(request, image.size, mask is not None, side, factor)
    empty_alone = mask is not None and request.mask is None  # of what is empty there is nothing to begin with
    strength = 1.0 if empty_alone else 0.75
    settings = {"strength": strength, "resize": "stretch", "width": size[0], "height": size[1]}
    if mask is None:
        check_needed(request, OF_MASK, "a mask")
    else:  # the blend is a 128th of the finished picture: 4 pixels of 512
        finished = size if request.padding is None else image.size
        settings |= {"mask_blur": min(finished) / 128, "fill": "original"}
    settings |= {name: value for name in settings if (value := getattr(request, name)) is not None}
    check_number("The strength", settings["strength"], 0, 1, whole=False)
    check_name("resize mode", settings["resize"], RESIZE)
    if mask is not None:
        check_number("The mask blur", settings["mask_blur"], 0, 256, whole=False)
        check_name("fill", settings["fill"], FILLS)
    if request.padding is not None:
        check_number("The padding", request.padding, 0, MAX_SIDE, whole=True)
    return settings | {"outpaint": outpaint}


def _checked_outpaint(outpaint: Any) -> Box | None:
    if outpaint is None:
        return None
    if not isinstance(outpaint, tuple | list) or len(outpaint) != 4:
        raise ValueError(f"The outpaint is {outpaint!r}; expected four numbers: left, top, right, bottom.")
    for edge, pixels in zip(("left", "top", "right", "bottom"), outpaint, strict=True):
        check_number(f"The outpaint to the {edge}", pixels, 0, MAX_SIDE, whole=True)
    left, top, right, bottom = outpaint
    return (left, top, right, bottom) if any(outpaint) else None


def shown_size(request: Any, image: Size, masked: bool, side: int, factor: int) -> Size:
    """The size that the model is shown, which without `padding` is the finished picture's, too.

    By default an image to be redrawn is brought to the model's own number of pixels, in its own shape; one that
    is kept in part keeps its size; and of one that is shown in part, the part is shown at the model's own size.
    """
    if request.width is not None or request.height is not None:
        return request.width or side, request.height or side
    if request.padding is not None:
        return side, side
    return natural_size(image, None if masked else side**2, factor)


@dataclass(frozen=True)
class Canvas:
    image: Image.Image  # RGBA, of the finished picture's size; empty where nothing is known
    mask: Image.Image | None  # L: 255 is made anew, 0 stays, between them the two are blended; None: all is
    box: Box  # the part of the image that is shown to the model
    size: Size  # and at which size
    fill: str  # one of FILLS: what is under the mask before

    @classmethod
    def of(cls, request: Any) -> Self:
        """The canvas of a resolved request that has an image."""
        image, mask = read_files(request)
        size = request.width, request.height
        if request.padding is None:
            image, mask = fit(image, size, request.resize), mask and fit(mask, size, request.resize)
        box = (0, 0, *image.size)
        if mask is not None:
            blur = ImageFilter.GaussianBlur(request.mask_blur)
            # The blend with what is empty lies beside it, where there is something to be blended with.
            empty = ImageChops.invert(image.getchannel("A")).filter(blur).point(lambda value: 255 * (value > 8))
            mask = ImageChops.lighter(mask, empty).filter(blur)
            if request.padding is not None:
                box = widened(surroundings(mask, request.padding), size, image.size)
        return cls(image, mask, box, size, request.fill or "original")

    @classmethod
    def blank(cls, size: Size) -> Self:
        """One on which nothing is."""
        return cls(Image.new("RGBA", size), None, (0, 0, *size), size, "original")

    @cached_property
    def picture(self) -> Image.Image:
        """The image as RGB, its empty parts continued from what is around them."""
        return flatten(self.image)

    def view(self) -> Tensor:
        """What the model begins with, [1, 3, H, W] in [-1, 1]."""
        view = self.picture
        if self.fill == "fill" and self.mask is not None:
            known = self.image.copy()
            known.putalpha(ImageChops.subtract(known.getchannel("A"), self.mask))
            view = flatten(known)
        return to_pixels(fit(view.crop(self.box), self.size, "stretch"))[None]

    def hole(self) -> Tensor:
        """Where the view is made anew, [1, 1, H, W] of 0 and 1: wherever the mask is not black."""
        if self.mask is None:
            return torch.ones(1, 1, self.size[1], self.size[0])
        mask = fit(self.mask.crop(self.box), self.size, "stretch")
        return (to_pixels(mask)[None] > -1).float()

    def finish(self, made: Image.Image) -> Image.Image:
        """The image with what was made of the view; outside the mask its pixels are the image's own."""
        if self.mask is None:
            return made
        left, top, right, bottom = self.box
        finished = self.picture.copy()
        finished.paste(fit(made, (right - left, bottom - top), "stretch"), self.box, self.mask.crop(self.box))
        return finished


def read_files(request: Any) -> tuple[Image.Image, Image.Image | None]:
    """The image, RGBA, with the room that `outpaint` adds, and the mask, if anything is to stay.

    What is empty in the image changes, too. Raises ValueError where a file cannot be read, the two differ in
    size, or nothing changes.
    """
    image, mask = read_image(request.image, "The image"), None
    if request.mask is not None:
        mask = flatten(read_image(request.mask, "The mask")).convert("L")
        if mask.size != image.size:
            raise ValueError(
                f"The mask has {mask.width}x{mask.height} pixels and the image {image.width}x{image.height}; "
                "give a mask of the image's size."
            )
        if mask.getbbox() is None:
            raise ValueError("The mask is all black, so that nothing would change; paint what is to change white.")
    if request.outpaint is not None:
        left, top, right, bottom = request.outpaint
        room = (-left, -top, image.width + right, image.height + bottom)
        image, mask = image.crop(room), mask and mask.crop(room)  # beyond an image, `crop` finds nothing: 0
    if mask is None and has_empty(image):
        mask = Image.new("L", image.size)
    return image, mask


def surroundings(mask: Image.Image, padding: int) -> Box:
    """What is not black in the mask, and `padding` pixels around it."""
    left, top, right, bottom = mask.getbbox() or (0, 0, *mask.size)
    return (
        max(left - padding, 0),
        max(top - padding, 0),
        min(right + padding, mask.width),
        min(bottom + padding, mask.height),
    )


def widened(box: Box, shape: Size, room: Size) -> Box:
    """The box, made wider or higher about its middle to the shape of `shape`, as far as there is room."""
    left, top, right, bottom = box
    width, height = right - left, bottom - top
    width = min(max(width, round(height * shape[0] / shape[1])), room[0])
    height = min(max(height, round(width * shape[1] / shape[0])), room[1])
    left = min(max((left + right - width) // 2, 0), room[0] - width)
    top = min(max((top + bottom - height) // 2, 0), room[1] - height)
    return left, top, left + width, top + height


def natural_size(shape: Size, pixels: int | None, multiple: int) -> Size:
    """The size in whole multiples that is nearest to a shape, at its own number of pixels or at `pixels`."""
    scale = 1.0 if pixels is None else math.sqrt(pixels / (shape[0] * shape[1]))
    width, height = (max(round(side * scale / multiple), 1) * multiple for side in shape)
    return width, height
