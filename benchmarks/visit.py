"""A page of the web demo in a browser: what a person does there, and what goes wrong on it."""

import urllib.request
from pathlib import Path

from playwright.sync_api import Browser, ConsoleMessage, Dialog, Response

TIMEOUT = 180_000  # milliseconds, for machines that do other work, too; a canvas drawn without a GPU takes seconds
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
        mistake = "document.querySelector('#message .mistake')"
        self.page.wait_for_function(f"before => {mistake} || !['', before].includes(({PICTURES})())", arg=before)
        assert not self.page.locator("#message .mistake").count(), self.page.inner_text("#message")
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
