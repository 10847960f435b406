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
    font = ImageFont.load_default(TEXT)
    wide = lambda labels: max(round(font.getlength(shown(label))) for label in labels)
    left, top = (wide(down) + 2 * MARGIN if any(down) else 0), (TEXT + 2 * MARGIN if any(across) else 0)
    width = max(*(image.width for image in images if image), wide(across) + MARGIN if any(across) else 0)
    height = max(image.height for image in images if image)
    cells = [Image.new("RGB", (width, height), "white") for _ in images]
    for cell, image in zip(cells, images, strict=True):
        if image:
            cell.paste(image, ((width - image.width) // 2, 0))
    pictures = sheet(cells, len(across))
    made = Image.new("RGB", (left + pictures.width, top + pictures.height), "white")
    made.paste(pictures, (left, top))
    draw = ImageDraw.Draw(made)
    for i, label in enumerate(across):
        draw.text((left + (2 * i + 1) * width // 2, top // 2), shown(label), "black", font, anchor="mm")
    for i, label in enumerate(down):
        draw.text((left - MARGIN, top + (2 * i + 1) * height // 2), shown(label), "black", font, anchor="rm")
    return made


def shown(label: str) -> str:
    """A label as Pillow's own font can show it: it has the letters of ASCII alone, so others are escaped."""
    return label.encode("ascii", "backslashreplace").decode()
