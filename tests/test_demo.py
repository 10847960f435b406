"""The demo without a browser: form <=> requests, what files tell, words, markup, and the page's own handlers.

What a browser shows of it: `python -m benchmarks.demo`.
"""

import asyncio
import string
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest
from PIL import Image

from clip.language import PromptModel
from diffusion.job import Job
from diffusion.open import AnyPipeline, open_pipeline
from diffusion.pipeline import Pipeline
from diffusion.request import Request, to_json
from diffusion.samplers import SAMPLERS
from diffusion.store import Store
from diffusion.texts import encode_picture
from ui import views
from ui.controls import Controls
from ui.demo import Demo, build
from ui.layout import Page
from ui.markup import tag
from ui.service import Service
from ui.settings import (
    Choice,
    Form,
    begin_with,
    canvas_of,
    defaults_of,
    form_of,
    mask_of,
    requests_of,
    restored,
    samplers,
    schedules,
    sizes,
)  # fmt: skip
from ui.words import MISTAKES, WORDS, language_of, mistake


@pytest.fixture(scope="module")
def pipeline(tiny_model: Path) -> AnyPipeline:
    return open_pipeline(tiny_model)


@pytest.fixture
def service(pipeline: AnyPipeline, tmp_path: Path) -> Iterator[Service]:
    service = Service(pipeline, Store(tmp_path))
    service.start()
    yield service
    service.stop()


def form(**values: Any) -> Form:
    return replace(Form("a red apple", "blue", Choice("heun", "karras", 3, 2.5), "16x24", "7"), **values)


PICTURE = encode_picture(Image.new("RGB", (40, 30), "red"), {})
SQUARE = begin_with(PICTURE, "16x16")
MASK = encode_picture(Image.new("L", (16, 16), 255), {})


# form <=> requests


def test_a_form_asks_for_one_picture_a_seed() -> None:
    first, second = requests_of(form(count=2))
    assert first == Request(
        "a red apple", "blue", seed=7, steps=3, sampler="heun", schedule="karras", guidance=2.5, width=16, height=24
    )
    assert second == replace(first, seed=8)


def test_what_is_compared_has_words_and_seed_in_common() -> None:
    a, b, c, d = requests_of(form(count=2), Choice("ddim", "simple", 5, 1.0))
    assert [request.seed for request in (a, b, c, d)] == [7, 7, 8, 8]
    assert b == replace(a, sampler="ddim", schedule="simple", steps=5, guidance=1.0)


@pytest.mark.parametrize(
    "request_",
    [
        Request("a red apple", seed=2**63 - 100),  # JavaScript's numbers would round it
        Request("a (red:1.2) apple", "blue", sampler="dpmpp_2m", schedule="karras", steps=7, guidance=1.5),
        Request("", schedule=(9.0, 2.0, 0.5, 0.0)),
        Request("an apple", sampler="euler_ancestral", eta=0.5, guidance_rescale=0.7, hires_scale=2),
        Request("an apple", variation_seed=3, variation_strength=0.2, clip_skip=2),
        Request("an apple", image=SQUARE, strength=0.5, width=16, height=16, resize="crop"),
        Request("an apple", image=SQUARE, mask=MASK, mask_blur=2.0, strength=1.0, width=16, height=16, resize="crop"),
    ],
)
def test_a_picture_is_asked_for_again(request_: Request, pipeline: AnyPipeline) -> None:
    asked = pipeline.resolve(request_)
    (again,) = requests_of(form_of(asked))
    assert to_json(pipeline.resolve(again)) == to_json(asked)


def test_drawn_words_are_what_is_asked_for_again(pipeline: AnyPipeline) -> None:
    asked = pipeline.resolve(Request("a {red|green} apple"))
    (again,) = requests_of(form_of(asked))
    assert asked.template is not None
    assert again == replace(again, prompt=asked.prompt, template=None)


def test_defaults_are_the_models(pipeline: AnyPipeline) -> None:
    defaults = defaults_of(pipeline)
    assert defaults.choice == Choice("euler", "automatic", 4, 3.0)
    assert defaults.size == sizes(pipeline)[0] == "16x16"
    assert {*samplers(pipeline).values()} == {*SAMPLERS}
    for size in sizes(pipeline):
        for name in schedules(pipeline).values():
            asked = replace(form(), size=size, choice=Choice("euler", name, 4, 2.0))
            assert pipeline.resolve(requests_of(asked)[0]).schedule == name


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"seed": "one"}, "The seed is 'one'"),
        ({"seed": "-1"}, "The seed is '-1'"),
        ({"seed": "9" * 19}, "The seed is"),
        ({"size": "large"}, "The size is 'large'"),
        ({"more": {"colour": 1}}, "no field 'colour'"),
    ],
)
def test_mistakes_in_a_form_are_named(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        requests_of(form(**wrong))


# pictures


def test_settings_come_back_from_a_file(pipeline: AnyPipeline) -> None:
    asked = Request("りんご", seed=5, steps=2, sampler="heun")
    (picture,) = pipeline.generate([asked])
    request, without_image = restored(picture.png())
    assert pipeline.resolve(request) == picture.request
    assert not without_image
    foreign = encode_picture(picture.image, {"parameters": picture.texts["parameters"]})
    assert pipeline.resolve(restored(foreign).request) == picture.request


def test_a_file_does_not_hold_what_its_picture_began_with(pipeline: AnyPipeline) -> None:
    (picture,) = pipeline.generate([Request("an apple", image=SQUARE, strength=0.5)])
    request, without_image = restored(picture.png())
    assert request == replace(request, image=None, strength=None, prompt="an apple")
    assert without_image


@pytest.mark.parametrize(
    "file",
    [b"", b"<script>alert(1)</script>", PICTURE, PICTURE[:60], encode_picture(Image.new("L", (1, 1)), {"oboro": "{"})],
)
def test_files_that_tell_nothing_get_a_sentence(file: bytes) -> None:
    with pytest.raises(ValueError, match=r"^(The|This) [^\n]+$") as caught:
        restored(file)
    for language in WORDS:
        assert "\n" not in mistake(language, str(caught.value))


def test_what_is_painted_becomes_a_mask_and_is_painted_again() -> None:
    canvas = canvas_of(SQUARE, None)
    assert canvas["background"].size == (512, 512)
    assert mask_of([Image.new("RGBA", (512, 512))], SQUARE) is None
    strokes = Image.new("RGBA", (512, 512))
    strokes.paste("red", (0, 0, 256, 512))
    mask = mask_of([strokes], SQUARE)
    assert mask is not None
    (layer,) = canvas_of(SQUARE, mask)["layers"]
    assert layer.getchannel("A").tobytes() == strokes.getchannel("A").tobytes()
    assert mask_of([layer], SQUARE) == mask


# words


def test_both_languages_have_all_words() -> None:
    english, japanese = WORDS["en"], WORDS["ja"]
    assert english.keys() == japanese.keys()
    names = lambda text: sorted(name for _, name, _, _ in string.Formatter().parse(text) if name)
    for word in english:
        assert names(english[word]) == names(japanese[word]), word
        assert any(ord(letter) > 0x3000 for letter in japanese[word]) or word == "restore_file", word


@pytest.mark.parametrize(
    ("accepted", "language"),
    [("ja-JP,ja;q=0.9,en;q=0.8", "ja"), ("ja", "ja"), ("en-US,ja", "en"), ("fr", "en"), (None, "en")],
)
def test_the_browsers_first_language_is_taken(accepted: str | None, language: str) -> None:
    headers = {} if accepted is None else {"accept-language": accepted}
    assert language_of(SimpleNamespace(headers=headers)) == language  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong",
    [
        {"seed": "one"}, {"size": "large"}, {"size": "16x17"}, {"size": "16x4096"},
        {"choice": Choice("euler", "automatic", 5000, 1.0)}, {"image": SQUARE, "strength": 0.05}, {"prompt": "\ud800"},
    ],
)  # fmt: skip
def test_mistakes_of_the_form_are_told_in_japanese(wrong: dict[str, Any], pipeline: AnyPipeline) -> None:
    with pytest.raises(ValueError, match="The ") as caught:
        pipeline.resolve(requests_of(form(**wrong))[0])
    assert mistake("en", str(caught.value)) == str(caught.value)
    assert "The" not in mistake("ja", str(caught.value))
    assert len(MISTAKES) == len({pattern for pattern, _ in MISTAKES})


# markup


class Elements(HTMLParser):
    """The elements of HTML, with their attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.append((name, dict(attributes)))


@pytest.fixture(scope="module")
def made(pipeline: AnyPipeline, tmp_path_factory: pytest.TempPathFactory) -> Job:
    store = Store(tmp_path_factory.mktemp("jobs"))
    (job,) = store.submit([pipeline.resolve(Request("a red apple"))], pipeline.model)
    return replace(job, state="done")


HOSTILE = [
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", '"><svg onload=alert(1)>', "' onmouseover='alert(1)",
    "${alert(1)}", "{{constructor.constructor('alert(1)')()}}", "@children", "`${alert(1)}`", "</textarea><script>",
    "<a href=javascript:alert(1)>x</a>", "&lt;script&gt;", "\u2028<b>",
]  # fmt: skip


@pytest.mark.parametrize("prompt", HOSTILE)
def test_prompts_are_never_markup(prompt: str, made: Job) -> None:
    job = replace(made, request=replace(made.request, prompt=prompt))
    html = views.stage([job], {}, "en") + views.gallery([job], "ja") + views.chips([prompt], prompt)
    found = Elements(html).found
    assert {name for name, _ in found} <= {"div", "figure", "img", "p", "button", "span"}
    assert not any(name.startswith("on") for _, attributes in found for name in attributes)
    assert not set("${}`@") & set(html)
    assert ("button", {"type": "button", "data-pick": prompt}) in found


def test_a_tag_escapes_what_is_not_markup() -> None:
    assert tag("p", "<b>", tag("b", "&"), class_='"') == '<p class="&#34;">&#60;b&#62;<b>&#38;</b></p>'


# the page


def browser(language: str = "en") -> Any:
    return SimpleNamespace(headers={"accept-language": language})


@pytest.fixture
def demo(service: Service) -> Demo:
    pipeline = service.pipeline
    with gr.Blocks():
        page = Page(
            "tiny", defaults_of(pipeline), [*samplers(pipeline).items()], [*schedules(pipeline).items()],
            sizes(pipeline), completes=False,
        )  # fmt: skip
    return Demo(service, page, Controls(service, page, None))


def said(demo: Demo, **values: Any) -> dict[Any, Any]:
    """What the widgets hold when the page is new, but for some by name."""
    held = {widget: getattr(widget, "value", None) for widget in demo.page.read}
    return held | {demo.page.groups: []} | {getattr(demo.page, name): value for name, value in values.items()}


def ran(updates: Any) -> dict[Any, Any]:
    """The last value of each widget, after a handler is through."""

    async def run() -> dict[Any, Any]:
        last: dict[Any, Any] = {}
        async for update in updates:
            last |= update
        return last

    return asyncio.run(run())


def test_build_makes_a_page_of_both_kinds_of_model(service: Service) -> None:
    assert isinstance(build(service), gr.Blocks)


def test_a_picture_is_made_kept_and_found_again(demo: Demo, service: Service) -> None:
    page = demo.page
    last = ran(demo.make(said(demo, prompt="a red apple", seed="7", lock=True), browser()))
    (group,) = last[page.groups]
    (job,) = service.store.jobs(group=group)
    assert (job.state, job.request.prompt, job.request.seed) == ("done", "a red apple", 7)
    assert last[page.shown] == job.id
    assert views.address(job) in last[page.stage]
    assert views.address(job) in last[page.gallery]

    again = ran(demo.arrive({page.groups: [group]}, browser("ja")))
    assert views.address(job) in again[page.stage]
    assert (again[page.prompt], again[page.seed], again[page.count]) == ("a red apple", "7", 1)
    other = ran(demo.arrive({page.groups: ["someone else's"]}, browser()))
    assert views.address(job) not in other[page.stage] + other[page.gallery]


def test_a_job_that_is_not_done_is_found_again(demo: Demo, service: Service) -> None:
    jobs = service.submit([Request("a red apple", steps=40, seed=i) for i in range(2)])
    last = ran(demo.arrive({demo.page.groups: [jobs[0].group]}, browser()))
    assert last[demo.page.stage].count('figure class="done') == 2


def test_a_page_hears_that_the_server_stops(demo: Demo, service: Service) -> None:
    service.stop_soon()
    last = ran(demo.make(said(demo, prompt="a red apple"), browser("ja")))
    assert WORDS["ja"]["server_stops"] in last[demo.page.message]
    assert [job.state for job in service.store.jobs()] == ["queued"]


def test_stop_ends_the_last_group_alone(demo: Demo, service: Service) -> None:
    (other,) = service.submit([Request("a red apple")])
    jobs = service.submit([Request("a blue star", steps=100, seed=i) for i in range(2)])
    demo.stop([jobs[0].group, other.group])
    assert {event.job.state for event in service.watch([job.id for job in jobs])} <= {"running", "queued", "cancelled"}
    assert [service.store.get(job.id).state for job in jobs] == ["cancelled"] * 2
    *_, last = service.watch([other.id])
    assert last.job.state == "done"


def test_without_the_lock_seeds_are_drawn(demo: Demo) -> None:
    seeds = {demo.controls.form(said(demo))[0].seed for _ in range(3)}
    assert len(seeds) == 3


@pytest.mark.parametrize(("language", "start"), [("en", "The size is 'huge'"), ("ja", "大きさ")])
def test_a_mistake_is_one_sentence_on_the_page(demo: Demo, language: str, start: str) -> None:
    last = ran(demo.make(said(demo, size="huge"), browser(language)))
    assert [*last] == [demo.page.message]
    assert f'role="alert">{tag("p", start)[3:-4]}' in last[demo.page.message]


def test_too_much_is_told_with_the_time_to_wait(demo: Demo, service: Service) -> None:
    service.max_queue = 1
    service.submit([Request("a red apple", steps=4)])
    last = ran(demo.make(said(demo, count=1), browser("ja")))
    assert "秒後" in last[demo.page.message]


def test_a_dropped_file_fills_the_form(demo: Demo, pipeline: Pipeline) -> None:
    page = demo.page
    (picture,) = pipeline.generate([Request("りんご", seed=5, sampler="ddim", steps=120, guidance_rescale=0.5)])
    filled = demo.controls.restore(picture.png(), browser())
    assert (filled[page.prompt], filled[page.seed], filled[page.sampler]) == ("りんご", "5", "ddim")
    assert filled[page.steps] == gr.update(value=120, maximum=120)
    assert filled[page.more] == {"guidance_rescale": 0.5}
    assert "mistake" in demo.controls.restore(b"\x89PNG", browser())[page.restored]


def test_a_picture_is_begun_with(demo: Demo, service: Service) -> None:
    page = demo.page
    begun = demo.controls.begin({page.begin_file: PICTURE, page.size: "16x16"}, browser())
    strokes = Image.new("RGBA", (512, 512), "red")
    inputs = said(demo, prompt="a star", image=begun[page.image], editor={"layers": [strokes]}, size="16x16")
    (request,) = requests_of(demo.controls.form(inputs)[0])
    assert request.image == SQUARE
    assert request.mask is not None
    refused = demo.controls.begin({page.begin_file: b"GIF89a", page.size: "16x16"}, browser())
    assert "mistake" in refused[page.begin_said]


def test_prompts_are_completed_and_scored_where_the_model_is_shipped(demo: Demo) -> None:
    demo.controls.prompts = PromptModel.from_folder()
    completions = demo.controls.complete("a red", browser())
    assert completions.count('data-pick="a red') >= 2
    assert WORDS["en"]["known_well"] in demo.controls.score("a red apple", browser())
    assert WORDS["ja"]["known_little"] in demo.controls.score("masterpiece, best quality", browser("ja"))
    assert demo.controls.score("", browser()) == ""
