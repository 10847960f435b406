"""The demo's page: its widgets, where they stand, and its colours. What they do is in demo.py.

A moon seen through haze: paper and ink by day, night and moonlight by night; the fonts are the reader's own.
"""

from pathlib import Path

import gradio as gr

from ui.settings import BRUSH, MAX_COUNT, Form
from ui.words import I18N

CSS = Path(__file__).parent / "demo.css"
SANS = ("-apple-system", "Segoe UI", "Roboto", "Hiragino Sans", "Noto Sans CJK JP", "Noto Sans", "sans-serif")
MOON = (
    "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 32 32'><rect width='32' height='32' rx='7' fill='%23171d2b'/>"
    "<circle cx='16' cy='16' r='8' fill='%23f3e7bd'/></svg>"
)
MAX_STEPS, MAX_GUIDANCE = 100, 20  # of the sliders; a picture that tells more makes them longer
HEAD = f"""<link rel="icon" href="data:image/svg+xml,{MOON}">
<meta name="color-scheme" content="light dark">
<script>document.documentElement.lang = navigator.language.startsWith("ja") ? "ja" : "en";</script>"""
# Whatever is clicked in HTML of ours says what it stands for.
PICK = """element.addEventListener("click", (event) => {
  const picked = event.target.closest("[data-pick]");
  if (picked) trigger("select", { pick: picked.dataset.pick });
});"""


def theme() -> gr.themes.Base:
    """Of Gradio's own variables, those that differ; the rest of the page's looks is in demo.css."""
    paper, ink, haze, night, moon = "#f4f3ef", "#1f2636", "#d9d8d2", "#121722", "#f3e7bd"
    return gr.themes.Base(
        font=SANS, font_mono=("ui-monospace", "Menlo", "Consolas", "monospace"), radius_size="md", text_size="md"
    ).set(
        body_background_fill=paper, body_background_fill_dark=night,
        body_text_color=ink, body_text_color_dark="#e6e9f0",
        body_text_color_subdued="#5c6475", body_text_color_subdued_dark="#9aa4b8",
        background_fill_primary="#fbfaf8", background_fill_primary_dark="#1a2130",
        background_fill_secondary=paper, background_fill_secondary_dark=night,
        border_color_primary=haze, border_color_primary_dark="#2c3548",
        color_accent="#5b6a8e", color_accent_soft="#e7e8ea", color_accent_soft_dark="#263046",
        block_background_fill="transparent", block_background_fill_dark="transparent",
        block_border_width="0px", block_shadow="none", block_padding="0px",
        block_label_background_fill="transparent", block_label_background_fill_dark="transparent",
        block_title_text_color="#3d4659", block_title_text_color_dark="#c3cad8",
        block_title_text_size="13px", block_title_text_weight="500",
        block_info_text_color="#5c6475", block_info_text_color_dark="#9aa4b8", block_info_text_size="12px",
        input_background_fill="#ffffff", input_background_fill_dark="#1a2130",
        input_border_color="#c9c8c2", input_border_color_dark="#37425a", input_border_width="1px",
        input_border_color_focus="#5b6a8e", input_border_color_focus_dark=moon,
        input_placeholder_color="#767d8b", input_placeholder_color_dark="#8893a9",
        button_primary_background_fill=ink, button_primary_background_fill_dark=moon,
        button_primary_background_fill_hover="#34405a", button_primary_background_fill_hover_dark="#fff6d6",
        button_primary_text_color="#fdfcf8", button_primary_text_color_dark="#1d1a10",
        button_secondary_background_fill="transparent", button_secondary_background_fill_dark="transparent",
        button_secondary_background_fill_hover="#e9e8e3", button_secondary_background_fill_hover_dark="#263046",
        button_secondary_border_color="#c9c8c2", button_secondary_border_color_dark="#37425a",
        button_secondary_text_color=ink, button_secondary_text_color_dark="#e6e9f0",
        button_border_width="1px", button_primary_border_color="transparent",
        button_primary_border_color_dark="transparent", button_primary_border_color_hover="transparent",
        button_primary_border_color_hover_dark="transparent",
        slider_color="#5b6a8e", slider_color_dark="#d9cfa8",
        checkbox_background_color_selected="#5b6a8e", checkbox_background_color_selected_dark="#b3a97f",
        checkbox_label_background_fill="transparent", checkbox_label_background_fill_dark="transparent",
    )  # fmt: skip


class Page:
    """The widgets; made inside of a gr.Blocks."""

    def __init__(self, model: str, defaults: Form, samplers: list[tuple[str, str]], schedules: list[tuple[str, str]],
                 sizes: list[str], completes: bool) -> None:  # fmt: skip
        # The others are proper names.
        schedules = [(str(I18N(name)) if name == "automatic" else shown, name) for shown, name in schedules]
        # What a browser keeps: the groups of jobs that it submitted, the newest first. Its key is no secret.
        self.groups = gr.BrowserState([], storage_key="oboro-groups", secret="oboro")
        self.shown = gr.State("")  # the job that is looked at
        self.more = gr.State({})  # settings that came with a picture, and that there is no control for
        self.image = gr.State(None)  # bytes of what to begin with

        with gr.Row(elem_id="masthead"):
            gr.HTML('<h1><span lang="ja">朧</span> oboro</h1>', js_on_load=None)
            gr.Markdown(I18N("tagline"), elem_id="tagline")
            gr.HTML(f"<p>{model}</p>", js_on_load=None, elem_id="model")
        with gr.Row(elem_id="page"):
            with gr.Column(elem_id="ask"):
                self._ask(completes)
            with gr.Column(elem_id="see"):
                self.stage = gr.HTML("", elem_id="stage", js_on_load=PICK)
                with gr.Row(elem_id="deeds", visible=False) as self.deeds:
                    self.use = gr.Button(I18N("use"), size="sm")
                    self.redraw = gr.Button(I18N("redraw"), size="sm")
                    self.download = gr.HTML("", js_on_load=None)
                gr.Markdown(I18N("gallery"), elem_classes="heading")
                self.gallery = gr.HTML("", elem_id="gallery", js_on_load=PICK)
                self.clear = gr.Button(I18N("clear"), size="sm", elem_classes="quiet", visible=False)
            with gr.Column(elem_id="set"):
                self._settings(defaults, samplers, schedules, sizes)
                self._begin(defaults)
                self._compare(defaults, samplers, schedules)
                self._restore()

    def _ask(self, completes: bool) -> None:
        self.prompt = gr.Textbox(label=I18N("prompt"), placeholder=I18N("prompt_hint"), lines=1, max_lines=5,
                                 max_length=2000, elem_id="prompt")  # fmt: skip
        self.familiarity = gr.HTML("", js_on_load=None, elem_id="familiarity")
        with gr.Row(elem_id="go"):
            self.make = gr.Button(I18N("make"), variant="primary", elem_id="make")
            self.stop = gr.Button(I18N("stop"), variant="primary", elem_id="stop", visible=False)
            self.complete = gr.Button(I18N("complete"), elem_id="complete", visible=completes)
        self.message = gr.HTML("", js_on_load=None, elem_id="message")
        self.completions = gr.HTML("", js_on_load=PICK, elem_id="completions")
        self.examples = gr.HTML("", js_on_load=PICK, elem_id="examples")

    def _settings(self, defaults: Form, samplers: list[tuple[str, str]], schedules: list[tuple[str, str]],
                  sizes: list[str]) -> None:  # fmt: skip
        choice = defaults.choice
        with gr.Accordion(I18N("settings"), open=False, elem_id="settings"):
            self.negative = gr.Textbox(label=I18N("negative"), placeholder=I18N("negative_hint"), max_lines=3)
            with gr.Row():
                self.count = gr.Slider(1, MAX_COUNT, 1, step=1, label=I18N("count"), info=I18N("count_hint"),
                                       buttons=[])  # fmt: skip
                self.size = gr.Dropdown(sizes, value=defaults.size, label=I18N("size"), info=I18N("size_hint"),
                                        allow_custom_value=True)  # fmt: skip
            with gr.Row():
                self.seed = gr.Textbox("0", label=I18N("seed"), max_lines=1, max_length=20)
                self.lock = gr.Checkbox(label=I18N("lock"), elem_classes="beside")
            with gr.Row():
                self.steps = gr.Slider(1, MAX_STEPS, choice.steps, step=1, label=I18N("steps"),
                                       info=I18N("steps_hint"), buttons=[])  # fmt: skip
                self.guidance = gr.Slider(0, MAX_GUIDANCE, choice.guidance, step=0.1, label=I18N("guidance"),
                                          info=I18N("guidance_hint"), buttons=[])  # fmt: skip
            with gr.Row():
                self.sampler = gr.Dropdown(samplers, value=choice.sampler, label=I18N("sampler"))
                self.schedule = gr.Dropdown(schedules, value=choice.schedule, label=I18N("schedule"),
                                            allow_custom_value=True)  # fmt: skip
            self.reset = gr.Button(I18N("reset"), size="sm", elem_classes="quiet")

    def _begin(self, defaults: Form) -> None:
        with gr.Accordion(I18N("begin"), open=False, elem_id="begin") as self.begin:
            gr.Markdown(I18N("begin_hint"), elem_classes="hint")
            self.begin_file = gr.File(label=I18N("begin_file"), type="binary", height=64, elem_classes="drop",
                                      file_types=[".png", ".jpg", ".jpeg", ".webp"])  # fmt: skip
            self.begin_said = gr.HTML("", js_on_load=None)
            with gr.Column(visible=False) as self.begun:
                self.editor = gr.ImageEditor(
                    label=I18N("brush"), show_label=False, type="pil", sources=[], transforms=[], layers=False,
                    buttons=[], height=440, elem_id="brush",
                    canvas_size=(512, 512), format="png", brush=gr.Brush(60, [BRUSH], color_mode="fixed"),
                )  # fmt: skip
                with gr.Row():
                    self.strength = gr.Slider(0.05, 1, defaults.strength, step=0.05, label=I18N("strength"),
                                              info=I18N("strength_hint"), buttons=[])  # fmt: skip
                    self.mask_blur = gr.Slider(0, 16, defaults.mask_blur, step=0.5, label=I18N("mask_blur"),
                                               info=I18N("mask_blur_hint"), buttons=[])  # fmt: skip
                self.clear_image = gr.Button(I18N("clear_image"), size="sm", elem_classes="quiet")

    def _compare(self, defaults: Form, samplers: list[tuple[str, str]], schedules: list[tuple[str, str]]) -> None:
        choice = defaults.choice
        with gr.Accordion(I18N("compare"), open=False, elem_id="compare"):
            gr.Markdown(I18N("compare_hint"), elem_classes="hint")
            self.compared = gr.Checkbox(label=I18N("compare_on"))
            with gr.Row():
                self.other_steps = gr.Slider(1, MAX_STEPS, choice.steps, step=1, label=I18N("steps"), buttons=[])
                self.other_guidance = gr.Slider(0, MAX_GUIDANCE, choice.guidance, step=0.1, label=I18N("guidance"),
                                                buttons=[])  # fmt: skip
            with gr.Row():
                self.other_sampler = gr.Dropdown(samplers, value=choice.sampler, label=I18N("sampler"))
                self.other_schedule = gr.Dropdown(schedules, value=choice.schedule, label=I18N("schedule"))

    def _restore(self) -> None:
        with gr.Accordion(I18N("restore"), open=False, elem_id="restore"):
            gr.Markdown(I18N("restore_hint"), elem_classes="hint")
            self.restore_file = gr.File(label=I18N("restore_file"), type="binary", height=64, elem_classes="drop",
                                        file_types=[".png", ".jpg", ".jpeg", ".webp"])  # fmt: skip
            self.restored = gr.HTML("", js_on_load=None)
            self.also = gr.HTML("", js_on_load=None)
            self.forget = gr.Button(I18N("forget"), size="sm", elem_classes="quiet", visible=False)

    @property
    def read(self) -> set[gr.components.Component]:
        """What is read when a picture is asked for."""
        return {
            self.prompt, self.negative, self.size, self.count, self.seed, self.lock, self.sampler, self.schedule,
            self.steps, self.guidance, self.strength, self.mask_blur, self.image, self.editor, self.more, self.compared,
            self.other_sampler, self.other_schedule, self.other_steps, self.other_guidance, self.groups,
        }  # fmt: skip
