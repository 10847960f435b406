"""The demo's controls: what is read from them; and what is put into them from pictures, files, the language model."""

import secrets
from typing import Any

import gradio as gr

from clip.language import PromptModel
from clip.language_model import Sampling
from diffusion.request import DRAWN
from ui import views
from ui.layout import MAX_GUIDANCE, MAX_STEPS, Page
from ui.service import Service
from ui.settings import Choice, Form, begin_with, canvas_of, defaults_of, form_of, mask_of, restored
from ui.words import language_of, mistake, say

COMPLETIONS, DRAWS = 4, 10  # shown at most, of so many that are drawn
LONGER = 16  # tokens that a completion adds at most
SCORED = 400  # characters of a prompt
# Of what happens: no veil over the widgets that it changes, and no address for programs, which have their own.
QUIETLY: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
Updates = dict[Any, Any]  # new values, or properties, of widgets


class Controls:
    def __init__(self, service: Service, page: Page, prompts: PromptModel | None) -> None:
        self.service = service
        self.page = page
        self.prompts = prompts
        self.defaults = defaults_of(service.pipeline)
        self.of_image = [page.image, page.editor, page.begun]
        self.all = [page.prompt, page.negative, page.size, page.seed, page.count, page.sampler, page.schedule,
                    page.steps, page.guidance, page.strength, page.mask_blur, page.more, page.also, page.forget,
                    *self.of_image]  # fmt: skip

    def wire(self) -> None:
        page, plain = self.page, QUIETLY
        page.examples.select(self.pick, None, page.prompt, **plain)
        page.completions.select(self.pick, None, page.prompt, **plain)
        page.use.click(self.use, page.shown, [*self.all, page.message], **plain)
        page.redraw.click(self.redraw, {page.shown, page.size}, [*self.of_image, page.begin, page.message], **plain)
        page.begin_file.upload(
            self.begin, {page.begin_file, page.size}, [*self.of_image, page.begin_file, page.begin_said], **plain
        )
        page.clear_image.click(lambda: self.with_image(None), None, self.of_image, **plain)
        page.restore_file.upload(
            self.restore, page.restore_file, [*self.all, page.lock, page.restore_file, page.restored], **plain
        )
        page.forget.click(lambda: self.with_more({}, "en"), None, [page.more, page.also, page.forget], **plain)
        page.reset.click(self.reset, page.prompt, self.all, **plain)
        if self.prompts is not None:
            page.complete.click(self.complete, page.prompt, page.completions, **plain)
            page.prompt.change(self.score, page.prompt, page.familiarity, trigger_mode="always_last", **plain)

    # read from them

    def form(self, said: Updates) -> tuple[Form, Choice | None]:
        """What they hold, and the choice that it is compared with."""
        page, image, strokes = self.page, said[self.page.image], said[self.page.editor] or {}
        form = Form(
            prompt=said[page.prompt] or "",
            negative=said[page.negative] or "",
            choice=Choice(said[page.sampler], said[page.schedule], said[page.steps], said[page.guidance]),
            size=said[page.size],
            seed=said[page.seed] if said[page.lock] else str(secrets.randbelow(DRAWN)),
            count=said[page.count],
            image=image,
            mask=mask_of(strokes.get("layers") or [], image) if image else None,
            strength=said[page.strength],
            mask_blur=said[page.mask_blur],
            more=said[page.more],
        )
        if not said[page.compared]:
            return form, None
        other = page.other_sampler, page.other_schedule, page.other_steps, page.other_guidance
        return form, Choice(*(said[widget] for widget in other))

    # put into them

    def filled(self, form: Form, language: str) -> Updates:
        page, choice = self.page, form.choice
        return {
            page.prompt: form.prompt,
            page.negative: form.negative,
            page.size: form.size,
            page.seed: form.seed,
            page.count: form.count,
            page.sampler: choice.sampler,
            page.schedule: choice.schedule,
            page.steps: gr.update(value=choice.steps, maximum=max(choice.steps, MAX_STEPS)),
            page.guidance: gr.update(value=choice.guidance, maximum=max(choice.guidance, MAX_GUIDANCE)),
            page.strength: form.strength,
            page.mask_blur: form.mask_blur,
            **self.with_more(dict(form.more), language),
            **self.with_image(form.image, form.mask),
        }

    def with_more(self, more: dict[str, Any], language: str) -> Updates:
        """Settings that there is no control for: they are named, and can be left out."""
        what = ", ".join(f"{name} {value}" for name, value in more.items())
        return {
            self.page.more: more,
            self.page.also: views.notice(say(language, "also", what=what) if more else ""),
            self.page.forget: gr.update(visible=bool(more)),
        }

    def with_image(self, image: bytes | None, mask: bytes | None = None) -> Updates:
        canvas = None if image is None else canvas_of(image, mask)
        return {self.page.image: image, self.page.editor: canvas, self.page.begun: gr.update(visible=image is not None)}

    def pick(self, event: gr.EventData) -> str:
        return str(event.pick)

    def use(self, shown: str, request: gr.Request) -> Updates:
        """The settings of the picture that is looked at."""
        language = language_of(request)
        try:
            return self.filled(form_of(self.service.store.get(shown).request), language)
        except KeyError:
            return {self.page.message: views.notice(say(language, "lost"), "mistake")}

    def redraw(self, said: Updates, request: gr.Request) -> Updates:
        """The picture that is looked at becomes what the next one begins with."""
        try:
            image = begin_with(self.service.picture(said[self.page.shown]), said[self.page.size])
        except (KeyError, OSError):
            return {self.page.message: views.notice(say(language_of(request), "lost"), "mistake")}
        except ValueError as error:
            return {self.page.message: views.notice(mistake(language_of(request), str(error)), "mistake")}
        return self.with_image(image) | {self.page.begin: gr.update(open=True)}

    def begin(self, said: Updates, request: gr.Request) -> Updates:
        """A file becomes what the next picture begins with."""
        emptied: Updates = {self.page.begin_file: None, self.page.begin_said: ""}
        try:
            return emptied | self.with_image(begin_with(said[self.page.begin_file], said[self.page.size]))
        except ValueError as error:
            return emptied | {self.page.begin_said: views.notice(mistake(language_of(request), str(error)), "mistake")}

    def restore(self, file: bytes, request: gr.Request) -> Updates:
        """The settings that a picture's file tells."""
        page, language, emptied = self.page, language_of(request), {self.page.restore_file: None}
        try:
            found = restored(file)
            form = form_of(self.service.pipeline.resolve(found.request))
        except ValueError as error:
            return emptied | {page.restored: views.notice(mistake(language, str(error)), "mistake")}
        told = say(language, "is_taken_without" if found.without_image else "is_taken")
        return emptied | self.filled(form, language) | {page.restored: views.notice(told), page.lock: True}

    def reset(self, prompt: str, request: gr.Request) -> Updates:
        """All but the words as the model would have it."""
        return self.filled(self.defaults, language_of(request)) | {self.page.prompt: prompt}

    # the language model

    def complete(self, prompt: str, request: gr.Request) -> str:
        assert self.prompts is not None
        start, sampling = (prompt or "")[:SCORED], Sampling(temperature=0.8)
        drawn = (self.prompts.complete(start, sampling, seed, LONGER).strip() for seed in range(DRAWS))
        texts = dict.fromkeys(text for text in drawn if text and text != start.strip())
        return views.chips([*texts][:COMPLETIONS], say(language_of(request), "completions"))

    def score(self, prompt: str, request: gr.Request) -> str:
        assert self.prompts is not None
        text = (prompt or "").strip()[:SCORED]
        return views.familiarity(self.prompts.bits_per_byte(text), language_of(request)) if text else ""
