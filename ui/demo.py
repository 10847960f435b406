"""The web demo. `mount` puts it into a server; layout.py is its page, controls.py the form, views.py what is shown.

A browser keeps the names of the groups of jobs that it submitted, and the store keeps the jobs: so a gallery and a
picture in the making are found again after the page was reloaded, and nobody is shown what others made. The names are
random; whoever is given the address of a picture can see it.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

import gradio as gr
from fastapi import FastAPI
from PIL import Image

from clip.language import PromptModel
from diffusion.checkpoint import DEFAULT_MODEL
from diffusion.job import ENDED, Job
from ui import views
from ui.controls import QUIETLY, Controls, Updates
from ui.layout import CSS, HEAD, Page, theme
from ui.limits import Overloaded
from ui.service import Service, Stopped
from ui.settings import defaults_of, form_of, requests_of, samplers, schedules, sizes
from ui.words import I18N, language_of, mistake, say

MAX_GROUPS = MAX_PICTURES = 120  # that a browser keeps, and that its gallery shows
WATCHERS = 256  # browsers whose pictures are watched at a time; others wait until one is there
EXAMPLES = {
    "en": ("a red apple", "a glossy icon of a star", "a cat on a blue background", "a flat illustration of a fox"),
    "ja": ("りんごの3Dイラスト", "雪だるま", "赤背景のペンギン", "クジラのフラットなイラスト"),
}
HIDDEN, SHOWN = gr.update(visible=False), gr.update(visible=True)
SCROLL = "() => document.getElementById('stage').scrollIntoView({ behavior: 'smooth', block: 'nearest' })"


def mount(app: FastAPI, service: Service) -> FastAPI:
    """The demo at "/" of a server, which has the pictures at /pictures/."""
    return gr.mount_gradio_app(
        app, build(service), path="/", theme=theme(), css_paths=CSS, head=HEAD, i18n=I18N, footer_links=[],
        run_history=False, show_error=False, enable_monitoring=False, pwa=False, ssr_mode=False,
    )  # fmt: skip


def build(service: Service) -> gr.Blocks:
    pipeline = service.pipeline
    # The prompts that the language model learnt are of what the shipped model draws, and of nothing else.
    prompts = PromptModel.from_folder() if pipeline.model.name == DEFAULT_MODEL else None
    with gr.Blocks(title="oboro 朧", analytics_enabled=False, delete_cache=(3600, 3600)) as blocks:
        page = Page(
            pipeline.model.name, defaults_of(pipeline), [*samplers(pipeline).items()], [*schedules(pipeline).items()],
            sizes(pipeline), completes=prompts is not None,
        )  # fmt: skip
        Demo(service, page, Controls(service, page, prompts)).wire(blocks)
    return blocks.queue(default_concurrency_limit=8)


class Demo:
    """What happens to pictures on the page."""

    def __init__(self, service: Service, page: Page, controls: Controls) -> None:
        self.service = service
        self.page = page
        self.controls = controls

    def wire(self, blocks: gr.Blocks) -> None:
        self.controls.wire()
        page, plain = self.page, QUIETLY
        watching = plain | {"concurrency_id": "watch", "concurrency_limit": WATCHERS}
        looked_at = [page.stage, page.shown, page.deeds, page.download]
        kept = [page.groups, page.gallery, page.clear]
        seen = [*looked_at, *kept, page.make, page.stop, page.message, page.seed]
        blocks.load(self.arrive, {page.groups}, [*seen, *self.controls.all, page.examples], **watching)
        # Whoever asks again before the last update has come through is heard after it.
        asked = [page.make.click, page.prompt.submit]
        gr.on(asked, self.make, page.read, seen, trigger_mode="always_last", **watching)
        page.stop.click(self.stop, page.groups, None, **plain)
        for pictures in (page.gallery, page.stage):
            pictures.select(self.look, None, looked_at, **plain).then(None, js=SCROLL)
        page.clear.click(self.clear, None, kept, **plain)

    async def make(self, said: Updates, request: gr.Request) -> AsyncIterator[Updates]:
        """Submits what the form asks for, and shows it until it is there."""
        page, language = self.page, language_of(request)
        try:
            form, other = self.controls.form(said)
            jobs = await asyncio.to_thread(self.service.submit, requests_of(form, other))
        except Overloaded as busy:
            yield {page.message: views.notice(say(language, "overloaded", seconds=busy.retry_after), "mistake")}
        except ValueError as error:
            yield {page.message: views.notice(mistake(language, str(error)), "mistake")}
        else:
            groups = [jobs[0].group, *names(said[page.groups])][:MAX_GROUPS]
            yield {page.groups: groups, page.seed: str(jobs[0].request.seed), page.message: ""}
            async for updates in self.follow(jobs, groups, language):
                yield updates

    async def follow(self, jobs: Sequence[Job], groups: Sequence[str], language: str) -> AsyncIterator[Updates]:
        """A group, from now until it has ended, or the server stops."""
        page, now, previews = self.page, {job.id: job for job in jobs}, dict[str, Image.Image]()
        yield {page.make: HIDDEN, page.stop: SHOWN, page.deeds: HIDDEN}
        try:
            async for event in self.service.follow(now, previews=True):
                now[event.job.id] = event.job
                if event.preview is not None:
                    previews[event.job.id] = event.preview
                yield {page.stage: views.stage([*now.values()], previews, language)}
        except Stopped:
            yield {page.message: views.notice(say(language, "server_stops"), "mistake")}
        free = {page.make: SHOWN, page.stop: HIDDEN}
        yield free | self.looked_at([*now.values()], language) | self.kept(groups, language)

    async def arrive(self, said: Updates, request: gr.Request) -> AsyncIterator[Updates]:
        """The page was opened: what this browser made, and the form of the last of it, are there again."""
        page, language, groups = self.page, language_of(request), names(said[self.page.groups])
        jobs = self.jobs(groups[0]) if groups else []
        others = [text for name, texts in EXAMPLES.items() if name != language for text in texts[:2]]
        examples = views.chips([*EXAMPLES[language], *others], say(language, "examples"))
        yield {page.examples: examples} | self.looked_at(jobs, language) | self.kept(groups, language)
        if jobs:
            count = len(jobs) // 2 if views.are_compared(jobs) else len(jobs)
            yield self.controls.filled(replace(form_of(jobs[0].request), count=count), language)
        if any(job.state not in ENDED for job in jobs):
            async for updates in self.follow(jobs, groups, language):
                yield updates

    def stop(self, groups: Any) -> None:
        if kept := names(groups):
            self.service.cancel([job.id for job in self.jobs(kept[0])])

    def look(self, event: gr.EventData, request: gr.Request) -> Updates:
        """One picture is looked at, of the gallery or of several that were just made."""
        try:
            jobs = [self.service.store.get(str(event.pick))]
        except KeyError:
            jobs = []
        return self.looked_at(jobs, language_of(request))

    def clear(self, request: gr.Request) -> Updates:
        """The browser forgets its pictures; they stay in the store."""
        return {self.page.groups: [], **self.kept([], language_of(request))}

    def looked_at(self, jobs: Sequence[Job], language: str) -> Updates:
        page, done = self.page, [job for job in jobs if job.state == "done"]
        return {
            page.stage: views.stage(jobs, {}, language),
            page.shown: done[0].id if done else "",
            page.deeds: SHOWN if done else HIDDEN,
            page.download: views.download(done[0], language) if done else "",
        }

    def kept(self, groups: Sequence[str], language: str) -> Updates:
        jobs = [job for group in groups for job in self.jobs(group)][:MAX_PICTURES]
        return {self.page.gallery: views.gallery(jobs, language), self.page.clear: SHOWN if jobs else HIDDEN}

    def jobs(self, group: str) -> list[Job]:
        """In the order in which they were asked for."""
        return self.service.store.jobs(group=group)[::-1]


def names(kept: Any) -> list[str]:
    """What a browser keeps, which may have been changed there."""
    return [name for name in kept if isinstance(name, str)][:MAX_GROUPS] if isinstance(kept, list) else []
