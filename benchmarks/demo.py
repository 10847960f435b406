"""python -m benchmarks.demo: the web demo driven in a headless Chromium, as a person would; its screenshots.

Needs `pip install playwright` and a Chromium that is there (--chromium); nothing is fetched. The server is started for
it, on this machine alone, with a store of its own, unless --url names one. Exit code 1 where anything was not as it
should be.
"""

import argparse
import io
import itertools
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops
from playwright.sync_api import Browser, ConsoleMessage, Dialog, Response, sync_playwright

from ui.words import WORDS

HOSTILE = (
    "<script>{}</script>", "<img src=x onerror={}>", '"><svg onload={}>', "' onmouseover='{}' x='",
    '" autofocus onfocus="{}', "${{{}}}", "`${{{}}}`", "{{{{constructor.constructor('{}')()}}}}",
    "</textarea><script>{}</script>", "<iframe srcdoc='<script>parent.{}</script>'>", "<a href=javascript:{}>x</a>",
    "<details open ontoggle={}>", "<body onload={}>", "<math><mtext><img src=x onerror={}>",
    "&lt;img src=x onerror={}&gt;", "<style>@import 'javascript:{}'</style>", "@children<img src=x onerror={}>",
    "<template><script>{}</script></template>", "\u2028<img src=x onerror={}>", "<object data='javascript:{}'>",
)  # fmt: skip
TIMEOUT = 180_000  # milliseconds, for machines that do other work, too; a canvas drawn without a GPU takes seconds
CALLS = ("alert(1)", "confirm(1)", "prompt(1)", "window.harmed=1", "top.harmed=1")
# The addresses of those that are done; nothing while any is not.
PICTURES = """() => document.querySelector("#stage figure:not(.done)") ? "" :
  [...document.querySelectorAll("#stage figure.done img")].map(image => image.src).join()"""


class Visit:
    """A page, and what went wrong on it."""

    def __init__(
        self, browser: Browser, url: str, language: str = "en-US", width: int = 1280, dark: bool = False
    ) -> None:
        self.url = url
        self.context = browser.new_context(
            locale=language, viewport={"width": width, "height": 900 if width > 500 else 844},
            color_scheme="dark" if dark else "light", device_scale_factor=1 if width > 500 else 2,
        )  # fmt: skip
        self.page = self.context.new_page()
        self.page.set_default_timeout(TIMEOUT)
        self.errors: list[str] = []
        self.leaving = False  # what was streamed is broken off when a page is left, and Gradio says so
        self.page.on("console", self._heard)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("dialog", self._shouted)
        self.page.on("response", self._answered)
        self.page.on("request", lambda asked: self._asked(asked.url))
        self.open()

    def _heard(self, message: ConsoleMessage) -> None:
        if message.type == "error" and not self.leaving:
            self.errors.append(message.text)

    def _shouted(self, dialog: Dialog) -> None:
        self.errors.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def _answered(self, answer: Response) -> None:
        if not answer.ok:
            self.errors.append(f"{answer.status} {answer.url}")

    def _asked(self, url: str) -> None:
        if not url.startswith((self.url, "data:", "blob:")):
            self.errors.append(f"another host is asked: {url}")

    def open(self) -> None:
        self.leaving = True
        self.page.goto(self.url)
        self.page.wait_for_selector("#examples button")
        self.leaving = False

    def say(self, prompt: str) -> None:
        self.page.fill("#prompt textarea", prompt)

    def make(self) -> None:
        """Presses the button, and waits until other pictures than before are there."""
        before = self.page.evaluate(f"({PICTURES})()")
        self.page.click("#make")
        self.page.wait_for_function(f"before => !['', before].includes(({PICTURES})())", arg=before)
        self.made()

    def made(self) -> None:
        self.page.wait_for_selector("#make")
        self.page.wait_for_function("[...document.images].every(image => image.complete)")

    def unfold(self, section: str) -> None:
        self.page.click(f"#{section} > .label-wrap")
        self.page.wait_for_timeout(300)

    def number(self, label: str, value: float, section: str = "settings") -> None:
        field = self.page.locator(f"#{section} input[aria-label='number input for {label}']")
        field.fill(f"{value:g}")
        field.press("Tab")

    def shown(self) -> bytes:
        """The file of the picture on the stage."""
        source = self.page.get_attribute("#stage figure.done img", "src")
        with urllib.request.urlopen(f"{self.url}/{source}") as answer:
            return bytes(answer.read())

    def shoot(self, out: Path, name: str) -> None:
        self.page.evaluate("document.activeElement.blur(); window.scrollTo(0, 0)")
        self.page.mouse.move(0, 0)
        self.page.wait_for_timeout(400)
        self.page.screenshot(path=out / f"{name}.png", full_page=True)


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
    page.wait_for_timeout(1500)
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x - 40, y)
    page.mouse.down()
    page.mouse.move(x + 40, y + 20, steps=12)
    page.mouse.up()
    page.wait_for_timeout(1500)
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


def hostile_prompts(visit: Visit, out: Path) -> str:
    page, count = visit.page, 0
    visit.open()
    visit.unfold("settings")
    visit.number("Steps", 1)
    for form, call in itertools.product(HOSTILE, CALLS):
        visit.say(form.format(call))
        visit.make()
        count += 1
        assert not page.locator("#message .mistake").count(), page.inner_text("#message")
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


def others_see_nothing(visit: Visit, out: Path) -> str:
    assert visit.page.locator("#gallery button").count() == 0
    return "another browser's gallery is empty"


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
    visit.shoot(out, "japanese")
    return f"no English word of ours; a wrong seed: “{mistake}”"


def shots(browser: Browser, url: str, out: Path) -> Iterator[Visit]:
    """The page with some pictures, in both languages, wide and narrow, by day and by night."""
    prompts = {
        "en-US": ["a rocket on a blue background", "a glossy icon of a star", "a flat illustration of a fox",
                  "a penguin", "a sunflower", "a red apple"],
        "ja-JP": ["赤背景のペンギン", "クジラのフラットなイラスト", "雪だるま", "ひまわり", "寿司",
                  "りんごの3Dイラスト"],
    }  # fmt: skip
    for language, width, dark in itertools.product(prompts, (1280, 390), (False, True)):
        visit = Visit(browser, url, language, width, dark)
        name = f"{language[:2]}-{width}{'-dark' if dark else ''}"
        visit.shoot(out, f"{name}-empty")
        for prompt in prompts[language]:
            visit.say(prompt)
            visit.make()
        visit.shoot(out, name)
        for section in ("settings", "begin", "compare", "restore"):
            visit.unfold(section)
        visit.shoot(out, f"{name}-unfolded")
        yield visit
        visit.context.close()


@contextmanager
def server(folder: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-m", "ui", "--port", str(port), "--jobs", str(folder)])
    try:
        for _ in range(600):
            with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health"):
                break
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def drive(browser: Browser, url: str, out: Path, only: list[str]) -> bool:
    """Whether all is well; each finding is printed."""
    well = True

    def tell(name: str, visit: Visit, found: Callable[[Visit, Path], str]) -> None:
        nonlocal well
        try:
            print(f"{name}: {found(visit, out)}", flush=True)
        except Exception as error:  # whatever it is, the other deeds are tried
            well = False
            print(f"{name}: FAILED: {type(error).__name__}: {error}"[:1000], flush=True)
        for complaint in visit.errors:
            well = False
            print(f"{name}: in the browser: {complaint[:300]}", flush=True)
        visit.errors.clear()

    deeds: list[Callable[[Visit, Path], str]] = [
        first_picture, previews_and_stop, reload_in_the_middle, dropped_file, compared, inpainted, completed,
        hostile_prompts,
    ]  # fmt: skip
    visit: Any = None
    for deed in deeds:
        if not only or deed.__name__ in only:
            visit = visit or Visit(browser, url)
            tell(deed.__name__, visit, deed)
    for other, language in ((others_see_nothing, "en-US"), (japanese, "ja-JP")):
        if not only or other.__name__ in only:
            tell(other.__name__, Visit(browser, url, language), other)
    if not only or "shots" in only:
        for shot in shots(browser, url, out):
            tell("screenshots", shot, lambda visit, out: f"{visit.page.viewport_size}")
    return well


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("outputs/demo"), help="where screenshots go (%(default)s)")
    parser.add_argument("--chromium", default="/usr/bin/chromium", metavar="PATH", help="(default: %(default)s)")
    parser.add_argument("--url", help="of a server that runs already")
    parser.add_argument("--only", nargs="*", default=[], metavar="DEED", help="first_picture, shots, ...")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=args.chromium, args=["--no-sandbox"])
        if args.url:
            return 0 if drive(browser, args.url, args.out, args.only) else 1
        with server(Path(folder)) as url:
            return 0 if drive(browser, url, args.out, args.only) else 1


if __name__ == "__main__":
    sys.exit(main())
