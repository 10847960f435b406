"""Which part of an image is made anew, and that the rest of it comes back as it was."""

from dataclasses import dataclass

import pytest
import torch
from PIL import Image
from test_image import file

from diffusion.canvas import Canvas, image_settings, natural_size, surroundings, widened
from diffusion.request import Request

NOISE = Image.effect_noise((40, 30), 90).convert("RGB")
IMAGE, SMALL, BLACK = file(NOISE), file(Image.new("L", (9, 9), 255)), file(Image.new("L", (40, 30)))
WHITE = file(Image.new("L", (40, 30), 255))


def mask_of(box: tuple[int, int, int, int], size: tuple[int, int] = (40, 30)) -> Image.Image:
    mask = Image.new("L", size)
    mask.paste(255, box)
    return mask


def canvas(side: int = 16, factor: int = 2, image: Image.Image = NOISE, **fields: object) -> Canvas:
    """The canvas of a request that was filled up."""
    request = Request("a", image=file(image), **fields)  # type: ignore[arg-type]
    settled = {**vars(request), **image_settings(request, side, factor)}
    return Canvas.of(Request(**settled))


def changed(canvas: Canvas) -> tuple[int, int, int, int] | None:
    """The box of the pixels that differ from the canvas's own where all that is made is black or white."""
    differs = torch.zeros(canvas.image.height, canvas.image.width, dtype=torch.bool)
    own = torch.tensor(list(canvas.picture.tobytes())).view(canvas.image.height, canvas.image.width, 3)
    for colour in ("black", "white"):
        made = canvas.finish(Image.new("RGB", canvas.size, colour))
        differs |= (torch.tensor(list(made.tobytes())).view_as(own) != own).any(-1)
    return Image.fromarray(differs.numpy()).getbbox()


def test_an_image_to_be_redrawn_is_brought_to_the_model_s_size_in_its_own_shape() -> None:
    assert canvas().size == (18, 14)
    assert natural_size((768, 512), 512**2, 8) == (624, 416)
    assert natural_size((768, 512), None, 8) == (768, 512)
    assert natural_size((1000, 1), 512**2, 8) == (16192, 16)  # far too long: the check of sides says so
    assert canvas(width=20, height=20).view().shape == (1, 3, 20, 20)


def test_an_image_to_be_kept_in_part_keeps_its_size() -> None:
    made = canvas(mask=file(mask_of((10, 10, 20, 20))), mask_blur=0)
    assert made.size == made.image.size == (40, 30)
    assert changed(made) == (10, 10, 20, 20)
    assert made.hole().sum() == 100


def test_blend_reaches_beyond_the_mask_and_what_is_blended_is_made() -> None:
    made = canvas(mask=file(mask_of((10, 10, 20, 20))), mask_blur=2)
    left, top, right, bottom = changed(made) or (0, 0, 0, 0)
    assert (left, top) < (10, 10)
    assert (right, bottom) > (20, 20)
    hole = made.hole()[0, 0].bool()
    assert hole[top:bottom, left:right].sum() == hole.sum()


@pytest.mark.parametrize(
    ("fields", "strength"),
    [({}, 0.75), ({"mask": WHITE}, 0.75), ({"outpaint": (0, 0, 8, 0)}, 1.0), ({"outpaint": (0, 0, 0, 0)}, 0.75)],
)
def test_of_what_is_empty_there_is_nothing_to_begin_with(fields: dict, strength: float) -> None:
    assert image_settings(Request("a", image=IMAGE, **fields), 16, 2)["strength"] == strength


def test_what_is_transparent_changes() -> None:
    image = NOISE.convert("RGBA")
    image.paste((0, 0, 0, 0), (0, 0, 12, 30))
    made = canvas(image=image, mask_blur=0)
    assert changed(made) == (0, 0, 12, 30)
    assert made.mask is not None
    soft = canvas(image=image, mask_blur=1)
    assert soft.mask is not None
    assert soft.mask.getpixel((11, 15)) > 240  # type: ignore[operator]  # the blend lies where something is
    assert soft.finish(Image.new("RGB", (40, 30))).getpixel((39, 29)) == NOISE.getpixel((39, 29))


def test_outpainting_adds_room_and_keeps_the_image() -> None:
    made = canvas(outpaint=(8, 0, 4, 2), mask_blur=0)
    assert made.size == (52, 32)
    finished = made.finish(Image.new("RGB", made.size, "red"))
    assert finished.crop((8, 0, 48, 30)).tobytes() == NOISE.tobytes()
    assert finished.getpixel((0, 0)) == finished.getpixel((51, 31)) == (255, 0, 0)
    assert made.hole().sum() == 52 * 32 - 40 * 30
    assert made.view()[..., :30, :8].std() > 0  # the image's colours go on there


def test_padding_shows_the_masked_part_at_the_model_s_size() -> None:
    made = canvas(mask=file(mask_of((20, 10, 24, 14))), mask_blur=0, padding=3)
    assert made.size == (16, 16)
    assert made.box == (17, 7, 27, 17)
    assert made.image.size == (40, 30)
    assert changed(made) == (20, 10, 24, 14)


@pytest.mark.parametrize(
    ("box", "shape", "expected"),
    [
        ((10, 10, 20, 20), (1, 1), (10, 10, 20, 20)),
        ((10, 10, 20, 20), (2, 1), (5, 10, 25, 20)),
        ((0, 10, 10, 20), (2, 1), (0, 10, 20, 20)),  # at the edge it goes to one side
        ((0, 10, 40, 20), (1, 2), (0, 0, 40, 30)),  # no room to be higher
        ((10, 10, 20, 11), (1, 1), (10, 5, 20, 15)),
    ],
)
def test_shown_part_has_the_shape_of_the_picture(box: tuple, shape: tuple, expected: tuple) -> None:
    assert widened(box, shape, (40, 30)) == expected


def test_surroundings_end_at_the_edges() -> None:
    assert surroundings(mask_of((0, 10, 5, 30)), 8) == (0, 2, 13, 30)


@pytest.mark.parametrize(("fill", "kept"), [("original", True), ("noise", True), ("nothing", True), ("fill", False)])
def test_what_is_under_the_mask_before(fill: str, kept: bool) -> None:
    made = canvas(mask=file(mask_of((10, 10, 20, 20))), mask_blur=0, fill=fill)
    assert torch.equal(made.view(), canvas(mask=file(mask_of((10, 10, 20, 20)))).view()) == kept
    assert made.finish(Image.new("RGB", made.size)).getpixel((9, 9)) == NOISE.getpixel((9, 9))


@dataclass(frozen=True)
class Mistake:
    fields: dict[str, object]
    said: str


@pytest.mark.parametrize(
    "mistake",
    [
        Mistake({"image": IMAGE[:99]}, "The image cannot be used: it is no readable PNG, JPEG or WebP image"),
        Mistake({"image": "a.png"}, "The image is 'a.png'; expected the bytes"),
        Mistake({"image": IMAGE, "mask": b"no"}, "The mask cannot be used: it is no readable"),
        Mistake({"image": IMAGE, "mask": SMALL}, "The mask has 9x9 pixels and the image 40x30; give a mask of"),
        Mistake({"image": IMAGE, "mask": BLACK}, "The mask is all black"),
        Mistake({"mask": WHITE}, "The mask does nothing without an image"),
        Mistake({"strength": 0.5}, "The strength does nothing without an image"),
        Mistake({"outpaint": (0, 0, 8, 0)}, "The outpaint does nothing without an image"),
        Mistake({"image": IMAGE, "mask_blur": 4}, "The mask blur does nothing without a mask"),
        Mistake({"image": IMAGE, "padding": 4}, "The padding does nothing without a mask"),
        Mistake({"image": IMAGE, "fill": "noise"}, "The fill does nothing without a mask"),
        Mistake({"image": IMAGE, "strength": 1.5}, "The strength is 1.5; expected a number from 0 to 1."),
        Mistake({"image": IMAGE, "strength": "much"}, "The strength is 'much'"),
        Mistake({"image": IMAGE, "strength": float("nan")}, "The strength is nan"),
        Mistake({"image": IMAGE, "resize": "bend"}, "There is no resize mode 'bend'; choose one of stretch, crop"),
        Mistake({"image": IMAGE, "outpaint": (1, 2, 3)}, "expected four numbers"),
        Mistake({"image": IMAGE, "outpaint": (-1, 0, 0, 0)}, "The outpaint to the left is -1"),
        Mistake({"image": IMAGE, "outpaint": (0, 0, 0, 9999)}, "The outpaint to the bottom is 9999"),
        Mistake({"image": IMAGE, "mask": WHITE, "mask_blur": -1}, "The mask blur is -1"),
        Mistake({"image": IMAGE, "mask": WHITE, "fill": "love"}, "There is no fill 'love'; choose one of original"),
        Mistake({"image": IMAGE, "mask": WHITE, "padding": 1.5}, "The padding is 1.5; expected a whole number"),
    ],
    ids=lambda mistake: mistake.said,
)
def test_mistakes_are_one_sentence(mistake: Mistake) -> None:
    with pytest.raises(ValueError, match=r"\.$") as raised:
        image_settings(Request("a", **mistake.fields), 16, 2)  # type: ignore[arg-type]
    assert mistake.said in str(raised.value)
    assert "\n" not in str(raised.value)
