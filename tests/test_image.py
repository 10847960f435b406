"""Files that come from anyone, and pictures of other sizes and without some of their pixels."""

import contextlib
import io
import random
import struct
import zlib

import pytest
import torch
from PIL import Image

from diffusion.image import RESIZE, fit, flatten, read_image, to_image, to_pixels


def file(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and has no pixels."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))


RED = Image.new("RGB", (9, 6), "red")


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_formats(form: str) -> None:
    image = read_image(file(RED, form), "The image")
    assert (image.mode, image.size) == ("RGBA", (9, 6))
    red, green, blue, alpha = image.getpixel((4, 3))  # type: ignore[misc]
    assert red > 240
    assert max(green, blue) < 15
    assert alpha == 255


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_modes(mode: str) -> None:
    assert read_image(file(Image.new(mode, (3, 2))), "The image").size == (3, 2)


def test_photographs_are_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held on its side
    assert read_image(file(RED, "JPEG", exif=exif), "The image").size == (6, 9)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "The image cannot be used: it is no readable PNG, JPEG or WebP image."),
        (b"not an image", "no readable"),
        (file(RED)[:-30], "no readable"),
        (file(RED, "JPEG")[:-200], "no readable"),
        (file(RED, "WEBP")[:-20], "no readable"),
        (file(RED, "GIF"), "no readable"),
        (file(RED, "TIFF"), "no readable"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "no readable"),
        (png_header(13_000, 13_000), "no readable"),  # Pillow's own limit comes first
        (file(Image.new("1", (9_000, 9_000))), "claims 9000x9000 pixels, more than 64000000."),
        (file(Image.new("I;16", (4, 4))), "has mode I;16: save it with eight bits a channel."),
        ("photo.png", "The image is 'photo.png'; expected the bytes of a PNG"),
        (None, "The image is None"),
    ],
)
def test_files_that_are_refused(data: bytes, said: str) -> None:
    with pytest.raises(ValueError, match=r"^The image .*\.$") as mistake:
        read_image(data, "The image")
    assert said in str(mistake.value)
    assert "\n" not in str(mistake.value)


def test_damage_is_one_sentence() -> None:
    """Whatever bytes are changed or cut off: an image, or a ValueError."""
    draw, refused = random.Random(0), 0
    for form in ("PNG", "JPEG", "WEBP"):
        whole = file(Image.effect_noise((20, 16), 60).convert("RGB"), form)
        for _ in range(100):
            damaged = bytearray(whole)
            for _ in range(draw.randint(1, 8)):
                damaged[draw.randrange(len(damaged))] = draw.randrange(256)
            data = bytes(damaged[: draw.choice([len(damaged), draw.randrange(len(damaged))])])
            with contextlib.suppress(ValueError):
                read_image(data, "It")
                refused -= 1
            refused += 1
    assert 150 < refused < 300


def test_pixels_and_back() -> None:
    image = Image.effect_noise((5, 4), 80).convert("RGB")
    pixels = to_pixels(image)
    assert pixels.shape == (3, 4, 5)
    assert pixels.abs().max() <= 1
    assert to_image(pixels).tobytes() == image.tobytes()
    assert to_image(torch.full((3, 1, 1), 2.0)).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(("how", "corner"), [("stretch", 255), ("crop", 255), ("pad", 0)])
def test_resizing(how: str, corner: int) -> None:
    fitted = fit(Image.new("RGBA", (20, 10), "red"), (8, 8), how)
    assert fitted.size == (8, 8)
    assert fitted.getchannel("A").getpixel((0, 0)) == corner
    assert how in RESIZE


def test_colours_go_on_where_nothing_is() -> None:
    image = Image.new("RGBA", (32, 32), "red")
    image.paste((0, 0, 255, 255), (0, 0, 8, 32))
    image.paste((0, 0, 0, 0), (12, 0, 32, 32))
    flat = flatten(image)
    assert flat.crop((0, 0, 12, 32)).tobytes() == image.crop((0, 0, 12, 32)).convert("RGB").tobytes()
    near, far = flat.getpixel((12, 16)), flat.getpixel((31, 16))
    assert near[0] > 180  # type: ignore[index]
    assert abs(far[0] - 85) < 60  # type: ignore[index]  # a third of all that there is is red
    assert flatten(Image.new("RGBA", (3, 3))).getpixel((1, 1)) == (128, 128, 128)  # nothing is anywhere
