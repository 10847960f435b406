"""What a person does in the web demo, a deed each: it is done, held to what it should be, and told in a line.

Deeds of one visit follow one another: what one has made, the next one finds.
"""

import io
import itertools
import time
from collections.abc import Callable
from pathlib import Path

from PIL import Image, ImageChops

from benchmarks.visit import Visit
from diffusion.texts import encode_picture
from ui.words import WORDS

HOSTILE = (
    "<script>{}</script>", "<img src=x onerror={}>", '"><svg onload={}>', "' onmouseover='{}' x='",
    '" autofocus onfocus="{}', "${{{}}}", "`${{{}}}`", "{{{{constructor.constructor('{}')()}}}}",
    "</textarea><script>{}</script>", "<iframe srcdoc='<script>parent.{}</script>'>", "<a href=javascript:{}>x</a>",
    "<details open ontoggle={}>", "<body onload={}>", "<math><mtext><img src=x onerror={}>",
    "&lt;img src=x onerror={}&gt;", "<style>@import 'javascript:{}'</style>", "@children<img src=x onerror={}>",
    "<template><script>{}</script></template>", "\u2028<img src=x onerror={}>", "<object data='javascript:{}'>",
)  # fmt: skip
CALLS = ("alert(1)", "confirm(1)", "prompt(1)", "window.harmed=1", "top.harmed=1")


def first_picture(visit: Visit, out: Path) -> str:
    page, start = visit.page, time.perf_counter()
    page.click("#examples button >> nth=0")
    page.wait_for_function("document.querySelector('#prompt textarea').value")
    page.click("#make")
    page.wait_for_selector("#stage figure.running img")
    preview = time.perf_counter() - start
    page.wait_for_selector("#stage figure.done img")
    seconds = time.perf_counter() - start
    visit.made()
    assert page.evaluate("document.querySelector('#stage img').naturalWidth") == 64
    assert page.locator("#gallery button").count() == 1
    return f"a preview {preview:.1f} s after an example was clicked, the picture after {seconds:.1f} s"


def previews_and_stop(visit: Visit, out: Path) -> str:
    page, seen, steps = visit.page, set(), set()
    visit.unfold("settings")
    visit.number("Pictures", 9)
    visit.number("Steps", 100)
    page.click("#make")
    page.wait_for_selector("#stage figure.running img")
    for _ in range(20):
        seen.add(page.evaluate("document.querySelector('#stage figure.running img')?.src"))
        steps.add(page.inner_text("#stage .status"))
        page.wait_for_timeout(60)
    visit.shoot(out, "running")
    start = time.perf_counter()
    page.click("#stop")
    page.wait_for_selector("#make")
    seconds = time.perf_counter() - start
    assert page.locator("#stage figure.cancelled").count() >= 1
    assert len(seen) > 4
    return f"{len(seen)} previews and {len(steps)} states of the bar in 20 looks; stopped in {seconds:.1f} s"


def reload_in_the_middle(visit: Visit, out: Path) -> str:
    page = visit.page
    visit.number("Pictures", 4)
    visit.say("a flat illustration of a fox")
    page.click("#make")
    page.wait_for_selector("#stage figure.running img")
    visit.open()
    page.wait_for_selector("#stop")
    page.wait_for_selector("#stage figure.running img")
    at = page.inner_text("#stage .status")
    assert page.input_value("#prompt textarea") == "a flat illustration of a fox"
    visit.made()
    assert page.locator("#stage figure.done").count() == 4
    visit.open()
    page.wait_for_selector("#stage figure.done")
    pictures = page.locator("#gallery button").count()
    assert pictures >= 5
    return f"found at “{at}” and seen to its end; {pictures} pictures are in the gallery after another reload"


def dropped_file(visit: Visit, out: Path) -> str:
    page = visit.page
    page.click("#gallery button >> nth=-1")
    page.wait_for_function("document.querySelector('#stage .words').textContent == 'a red apple'")
    file = visit.shown()
    visit.unfold("settings")
    visit.number("Steps", 7)
    visit.say("something else")
    visit.unfold("restore")
    choose = page.locator("#restore input[type=file]")
    choose.set_input_files({"name": "apple.png", "mimeType": "image/png", "buffer": file})
    page.wait_for_function("document.querySelector('#prompt textarea').value == 'a red apple'")
    assert page.input_value("#settings input[aria-label='number input for Steps']") == "20"
    visit.make()
    assert visit.shown() == file
    for hostile in (b"no picture", file[: len(file) // 2]):
        page.locator("#restore input[type=file]").set_input_files(
            {"name": "x.png", "mimeType": "image/png", "buffer": hostile}
        )
        page.wait_for_selector("#restore .mistake")
        said = page.inner_text("#restore .mistake")
    return f"the picture made again is the same file; broken ones: “{said}”"


def compared(visit: Visit, out: Path) -> str:
    page = visit.page
    visit.unfold("compare")
    page.click("#compare input[type=checkbox]")
    visit.number("Steps", 3, "compare")
    visit.number("Guidance", 5, "compare")
    visit.say("a penguin")
    visit.make()
    assert page.locator("#stage figure.done").count() == 2
    visit.shoot(out, "compared")
    said = " | ".join(text.replace("\n", " ") for text in page.locator("#stage figcaption").all_inner_texts())
    visit.open()
    assert page.locator("#stage figcaption").count() == 2
    return said


def inpainted(visit: Visit, out: Path) -> str:
    page = visit.page
    visit.say("a cat on a blue background")
    visit.make()
    before = Image.open(io.BytesIO(visit.shown()))
    page.click("#deeds button >> nth=1")
    canvas = page.locator("#brush canvas").first
    canvas.wait_for()
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x - 40, y)
    page.mouse.down()
    page.mouse.move(x + 40, y + 20, steps=12)
    page.mouse.up()
    visit.say("a red apple")
    visit.make()
    after = Image.open(io.BytesIO(visit.shown()))
    visit.shoot(out, "inpainted")
    changed = ImageChops.difference(before, after).getbbox()
    assert changed is not None
    left, top, right, bottom = changed
    assert left > 8
    assert top > 8
    assert right < 60
    assert bottom < 60
    page.click("#begin button.quiet")
    page.wait_for_selector("#brush", state="hidden")
    return f"what changed lies within {changed} of 64x64; all around is as it was"


def completed(visit: Visit, out: Path) -> str:
    page = visit.page
    visit.say("a red")
    page.click("#complete")
    page.wait_for_selector("#completions button")
    texts = page.locator("#completions button").all_inner_texts()
    page.click("#completions button >> nth=0")
    page.wait_for_function(f"document.querySelector('#prompt textarea').value == {texts[0]!r}")
    page.wait_for_selector("#familiarity .moons")
    return f"{texts}; {page.inner_text('#familiarity')}"


def others_see_nothing(visit: Visit, out: Path) -> str:
    assert visit.page.locator("#gallery button").count() == 0
    return "another browser's gallery is empty"


def hostile_prompts(visit: Visit, out: Path) -> str:
    page, count = visit.page, 0
    visit.unfold("settings")
    visit.number("Steps", 1)
    for form, call in itertools.product(HOSTILE, CALLS):
        visit.say(form.format(call))
        visit.make()
        count += 1
    visit.open()
    page.wait_for_function(f"document.querySelectorAll('#gallery button').length >= {count}")
    for picture in page.locator("#gallery button").all()[:20]:
        picture.hover()
        picture.click()
    page.wait_for_timeout(1000)
    assert page.evaluate("window.harmed === undefined")
    tags = page.evaluate("[...new Set([...document.querySelectorAll('#stage *, #gallery *')].map(e => e.tagName))]")
    assert {*tags} <= {"DIV", "FIGURE", "IMG", "P", "BUTTON", "FIGCAPTION", "B", "SPAN"}, tags
    return f"{count} made and shown; no script ran"


def japanese(visit: Visit, out: Path) -> str:
    page = visit.page
    for section in ("settings", "begin", "compare", "restore"):
        visit.unfold(section)
    assert page.evaluate("document.documentElement.lang") == "ja"
    said = page.inner_text("body") + " ".join(
        page.evaluate("[...document.querySelectorAll('[placeholder]')].map(e => e.placeholder)")
    )
    words = {text for name, text in WORDS["en"].items() if "{" not in text and name != "prompt_hint"}  # an example, too
    english = [text for text in words if text in said]
    assert not english, english
    page.locator("#settings input[maxlength='20']").fill("one")
    page.click("#settings input[type=checkbox]")
    page.click("#make")
    page.wait_for_selector("#message .mistake")
    mistake = page.inner_text("#message")
    page.locator("#begin input[type=file]").set_input_files(
        {"name": "x.png", "mimeType": "image/png", "buffer": encode_picture(Image.new("RGB", (64, 64)), {})}
    )
    page.wait_for_selector("#brush canvas")
    page.wait_for_selector("#brush button:visible")
    labels = [button.get_attribute("title") or "" for button in page.locator("#brush button:visible").all()]
    assert len(labels) > 5
    assert not [label for label in labels if label.isascii()], labels
    visit.shoot(out, "japanese")
    return f"no English word of ours; the brush: {', '.join(labels)}; a wrong seed: “{mistake}”"


Deed = Callable[[Visit, Path], str]
DEEDS: tuple[Deed, ...] = (
    first_picture, previews_and_stop, reload_in_the_middle, dropped_file, compared, inpainted, completed
)  # fmt: skip
# In browsers of their own.
OTHERS: tuple[tuple[Deed, str], ...] = (
    (others_see_nothing, "en-US"), (hostile_prompts, "en-US"), (japanese, "ja-JP")
)  # fmt: skip
