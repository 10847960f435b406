"""python -m benchmarks.demo: the web demo driven in a headless Chromium, as a person would; its screenshots.

Needs `pip install playwright` and a Chromium that is there (--chromium); nothing is fetched. The server is started for
it, on this machine alone, with a store of its own, unless --url names one. Exit code 1 where anything was not as it
should be.
"""

import argparse
import itertools
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

from benchmarks import tour
from benchmarks.served import Server, serving
from benchmarks.visit import Visit


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


def tell(name: str, found: Callable[[], str], errors: list[str]) -> bool:
    """Prints a finding; whether all is well."""
    try:
        said, well = found(), not errors
    except Exception as error:  # whatever it is, the other deeds are tried
        said, well = f"FAILED: {type(error).__name__}: {error}"[:1000], False
    print(f"{name}: {said}", flush=True)
    for complaint in errors:
        print(f"{name}: in the browser: {complaint[:300]}", flush=True)
    errors.clear()
    return well


def drive(browser: Browser, url: str, out: Path, only: Sequence[str]) -> Iterator[bool]:
    """Whether each of the deeds is well."""
    asked = lambda deed: not only or deed.__name__ in only
    if deeds := [*filter(asked, tour.DEEDS)]:
        visit = Visit(browser, url)
        for deed in deeds:
            yield tell(deed.__name__, partial(deed, visit, out), visit.errors)
    for deed, language in filter(lambda each: asked(each[0]), tour.OTHERS):
        visit = Visit(browser, url, language)
        yield tell(deed.__name__, partial(deed, visit, out), visit.errors)
    if asked(shots):
        for visit in shots(browser, url, out):
            yield tell("shots", partial(str, visit.page.viewport_size), visit.errors)


def stopped(server: Server) -> str:
    """The server ends while its pages are open, and has nothing to say of it."""
    code, said = server.end(signal.SIGTERM), server.log.read_text().splitlines()[1:]
    assert (code, said) == (0, []), said
    return "in silence, with pages open"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("outputs/demo"), help="where screenshots go (%(default)s)")
    parser.add_argument("--chromium", default="/usr/bin/chromium", metavar="PATH", help="(default: %(default)s)")
    parser.add_argument("--url", help="of a server that runs already")
    parser.add_argument("--only", nargs="*", default=[], metavar="DEED", help="first_picture, shots, ...")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=args.chromium, args=["--no-sandbox"])
        if args.url:
            return int(not all([*drive(browser, args.url, args.out, args.only)]))
        with serving(module="ui") as server:
            well = [*drive(browser, server.url, args.out, args.only)]
            well.append(tell("stopped", partial(stopped, server), []))
    return int(not all(well))


if __name__ == "__main__":
    sys.exit(main())
