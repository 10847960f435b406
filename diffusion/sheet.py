"""Many pictures on one sheet."""

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

MARGIN = 8  # pixels around a label
TEXT = 14  # pixels, the size of its letters


def sheet(images: Sequence[Image.Image], columns: int = 0) -> Image.Image:
    """Equally large pictures, row by row; where `columns` is 0, about twice as wide as high."""
    columns = columns or math.ceil(math.sqrt(2 * len(images)))
    width, height = images[0].size
    made = Image.new("RGB", (columns * width, math.ceil(len(images) / columns) * height), "white")
    for i, image in enumerate(images):
        made.paste(image, (i % columns * width, i // columns * height))
    return made


def labelled(images: Sequence[Image.Image | None], across: Sequence[str], down: Sequence[str]) -> Image.Image:
    """A sheet with a label above each column and before each row; None leaves its place empty."""
    side = tuple(max(image.size[i] for image in images if image) for i in (0, 1))
    cells = [Image.new("RGB", side, "white") for _ in images]
    for cell, image in zip(cells, images, strict=True):
        if image:
            cell.paste(image)
    pictures = sheet(cells, len(across))
    font = ImageFont.load_default(TEXT)
    left = round(max(font.getlength(shown(label)) for label in down)) + 2 * MARGIN if any(down) else 0
    top = TEXT + 2 * MARGIN if any(across) else 0
    made = Image.new("RGB", (left + pictures.width, top + pictures.height), "white")
    made.paste(pictures, (left, top))
    draw = ImageDraw.Draw(made)
    for i, label in enumerate(across):
        centre = left + (2 * i + 1) * side[0] // 2
        draw.text((centre, top // 2), fitting(shown(label), font, side[0]), "black", font, anchor="mm")
    for i, label in enumerate(down):
        draw.text((left - MARGIN, top + (2 * i + 1) * side[1] // 2), shown(label), "black", font, anchor="rm")
    return made


def shown(label: str) -> str:
    """A label as Pillow's own font can show it: it has the letters of ASCII alone, so others are escaped."""
    return label.encode("ascii", "backslashreplace").decode()


def fitting(label: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """As much of a label as is no wider than so many pixels."""
    if font.getlength(label) <= width:
        return label
    while label and font.getlength(label + "...") > width:
        label = label[:-1]
    return label + "..."
