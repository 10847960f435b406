"""The demo's words, in English and Japanese.

    WORDS["ja"]["make"]       a word; those of labels go to the browser, which chooses by its language
    say("ja", "step", ...)    a sentence that is put together here
    mistake("ja", error)      what went wrong, in one sentence

Gradio's own words, of the brush and of the places to drop files at, are in the browser's language, too.
"""

import re

import gradio as gr

WORDS: dict[str, dict[str, str]] = {
    "en": {
        "tagline": "Pictures come out of the haze.",
        # what is asked for
        "prompt": "What should it show?",
        "prompt_hint": "a red apple",
        "make": "Make a picture",
        "stop": "Stop",
        "complete": "Complete it",
        "examples": "Try one of these",
        "completions": "Go on as",
        # settings
        "settings": "Settings",
        "negative": "What should it not show?",
        "negative_hint": "Leads the picture away from these words",
        "size": "Size",
        "size_hint": "Pixels; other sizes can be typed",
        "count": "Pictures",
        "count_hint": "Each with the next seed",
        "seed": "Seed",
        "lock": "Keep this seed",
        "steps": "Steps",
        "steps_hint": "More are finer, and take longer",
        "guidance": "Guidance",
        "guidance_hint": "How closely to follow the words",
        "sampler": "Sampler",
        "schedule": "Schedule",
        "automatic": "Automatic",
        "reset": "Back to the model's own settings",
        # beginning with a picture
        "begin": "Begin with a picture",
        "begin_hint": "It is redrawn as the words say. Paint on a part of it, and only that part changes.",
        "begin_file": "A picture to begin with",
        "brush": "Paint what should change",
        "strength": "Strength",
        "strength_hint": "How far to go from it; 1 is all the way",
        "mask_blur": "Soft edge",
        "mask_blur_hint": "Pixels over which what was painted blends in",
        "clear_image": "Begin with nothing",
        # comparing
        "compare": "Compare two settings",
        "compare_hint": "The same words and the same seed, made twice: A as set above, B as set here.",
        "compare_on": "Make B, too",
        # taking settings from a file
        "restore": "Take settings from a picture",
        "restore_hint": "Every picture made here says in its file how it was made, as those of many programs do.",
        "restore_file": "A PNG, JPEG or WebP",
        "forget": "Leave them out",
        # pictures
        "use": "Use its settings",
        "redraw": "Begin with it",
        "gallery": "Made in this browser",
        "gallery_empty": "What you make stays here, also after you reload the page.",
        "clear": "Clear the list",
        "stage_empty": "Your picture appears here.",
        # what is said while and after
        "waiting": "Waiting for its turn …",
        "step": "Step {at} of {of}",
        "pictures_of": "picture {at} of {of}",
        "done_one": "Done in {seconds} s",
        "done_many": "{count} pictures, done in {seconds} s",
        "stopped": "Stopped.",
        "steps_of": "{value} steps",
        "guidance_of": "guidance {value}",
        "seed_of": "seed {value}",
        "pixels": "{width} × {height} pixels",
        "enlarged": "{width} × {height} pixels, enlarged so that each is seen",
        "download": "Download",
        "show": "Show: {prompt}",
        "picture_alt": "Picture of: {prompt}",
        "untitled": "(no words)",
        "failed": "This picture could not be made.",
        "is_taken": "Settings taken from the picture.",
        "is_taken_without": "Settings taken from the picture; the picture that it began with is not in the file.",
        "also": "Also kept: {what}",
        "known_well": "These words are familiar to the model.",
        "known_partly": "Some of these words are unusual for the model.",
        "known_little": "The model has hardly seen such words: expect a surprise.",
        "bits": "{bits} bits a byte: the fewer, the more expected",
        # mistakes
        "overloaded": "Too many pictures are waiting; try again in {seconds} s.",
        "lost": "This picture is no longer here.",
        "server_stops": "The server stops; what waits is kept, and made after its next start.",
        "cannot": "{reason}",
    },
    "ja": {
        "tagline": "朧の中から、絵があらわれる。",
        "prompt": "何を描きますか？",
        "prompt_hint": "りんごの3Dイラスト",
        "make": "絵をつくる",
        "stop": "止める",
        "complete": "続きを考える",
        "examples": "ためしてみる",
        "completions": "続きの候補",
        "settings": "設定",
        "negative": "描きたくないもの",
        "negative_hint": "この言葉から遠ざけて描きます",
        "size": "大きさ",
        "size_hint": "単位は画素。数値の入力もできます",
        "count": "枚数",
        "count_hint": "シードは一つずつ増えます",
        "seed": "シード",
        "lock": "シードを固定",
        "steps": "ステップ数",
        "steps_hint": "多いほど細やかで、時間がかかります",
        "guidance": "言葉への忠実さ",
        "guidance_hint": "大きいほど言葉に沿います",
        "sampler": "サンプラー",
        "schedule": "スケジュール",
        "automatic": "自動",
        "reset": "モデルの標準に戻す",
        "begin": "絵から始める",
        "begin_hint": "言葉に合わせて描き直します。一部を塗ると、そこだけが変わります。",
        "begin_file": "もとにする絵",
        "brush": "変えたいところを塗る",
        "strength": "変える強さ",
        "strength_hint": "もとの絵からどれだけ離れるか。1 で完全に",
        "mask_blur": "境目のぼかし",
        "mask_blur_hint": "塗ったところをなじませる幅（画素）",
        "clear_image": "もとの絵を使わない",
        "compare": "二つの設定を比べる",
        "compare_hint": "同じ言葉、同じシードで二枚。A は上の設定、B はここの設定です。",
        "compare_on": "B もつくる",
        "restore": "絵から設定を読みとる",
        "restore_hint": "ここでつくった絵には、つくり方が書きこまれています。ほかの多くのソフトの絵も読めます。",
        "restore_file": "PNG・JPEG・WebP",
        "forget": "これらを外す",
        "use": "この設定を使う",
        "redraw": "この絵から始める",
        "gallery": "このブラウザでつくった絵",
        "gallery_empty": "つくった絵はここに残ります。ページを読み直しても消えません。",
        "clear": "一覧を空にする",
        "stage_empty": "ここに絵があらわれます。",
        "waiting": "順番を待っています…",
        "step": "{of} ステップ中 {at}",
        "pictures_of": "{of} 枚中 {at} 枚目",
        "done_one": "{seconds} 秒でできました",
        "done_many": "{count} 枚が {seconds} 秒でできました",
        "stopped": "止めました。",
        "steps_of": "{value} ステップ",
        "guidance_of": "忠実さ {value}",
        "seed_of": "シード {value}",
        "pixels": "{width} × {height} 画素",
        "enlarged": "{width} × {height} 画素（一つ一つが見えるように拡大）",
        "download": "保存",
        "show": "表示：{prompt}",
        "picture_alt": "{prompt} の絵",
        "untitled": "（言葉なし）",
        "failed": "この絵はつくれませんでした。",
        "is_taken": "絵から設定を読みとりました。",
        "is_taken_without": "絵から設定を読みとりました。もとにした絵はファイルに含まれていません。",
        "also": "ほかの設定：{what}",
        "known_well": "モデルがよく知っている言葉です。",
        "known_partly": "モデルには少し珍しい言葉があります。",
        "known_little": "モデルがほとんど見たことのない言葉です。思わぬ絵になるかもしれません。",
        "bits": "1 バイトあたり {bits} ビット：少ないほど、ありふれた言葉です",
        "overloaded": "混み合っています。{seconds} 秒後にもう一度お試しください。",
        "lost": "この絵はもうここにありません。",
        "server_stops": "サーバーが止まります。待っている絵は、次に動きはじめたときにつくられます。",
        "cannot": "受けつけられませんでした：{reason}",
    },
}
# What the form can get wrong, as the checks say it => in Japanese. Other sentences are shown as they are.
MISTAKES: tuple[tuple[str, str], ...] = (
    (
        r"The seed is (.+); expected a whole number from (\d+) to (\d+)\.",
        "シード {0} は使えません。{1} から {2} までの整数にしてください。",
    ),
    (
        r"The size is (.+); expected .+",
        "大きさ {0} は読めません。64x96 のように画素数で書いてください。",
    ),
    (
        r"The (width|height) (\d+) is not a multiple of (\d+), as it must be for this model; try (\d+) or (\d+)\.",
        "このモデルでは大きさは {2} の倍数でなければならず、{1} は使えません。{3} か {4} にしてください。",
    ),
    (
        r"The (width|height) is (.+); expected a whole number from (\d+) to (\d+)\.",
        "大きさ {1} は使えません。{2} から {3} までにしてください。",
    ),
    (
        r"The number of steps is (.+); expected a whole number from (\d+) to (\d+)\.",
        "ステップ数 {0} は使えません。{1} から {2} までの整数にしてください。",
    ),
    (
        r"The strength (.+) of (\d+) steps leaves none; expected at least (.+)\.",
        "強さ {0} では {1} ステップのうち一つも残りません。{2} 以上にしてください。",
    ),
    (
        r"The (?:prompt|negative prompt) .+ is not valid Unicode; .+",
        "言葉の中に正しくない文字があります。打ち直してください。",
    ),
    (
        r"The picture does not say how it was made: .+",
        "この絵には、つくり方が書かれていません。",
    ),
    (
        r"The picture holds a graph of ComfyUI and no `parameters`; .+",
        "この絵は ComfyUI のグラフだけを含んでいます。ComfyUI で開いてください。",
    ),
    (
        r"The picture's (?:parameters|oboro chunk) (?:are|is) broken: .+",
        "この絵に書かれたつくり方は壊れています。",
    ),
    (
        r"(?:This is not a picture that can be read|The picture cannot be used).+",
        "絵として読めないファイルです。PNG・JPEG・WebP を選んでください。",
    ),
    (
        r"(\d+) pictures are asked for at once; at most (\d+) may wait here\.",
        "一度に {0} 枚は多すぎます。{1} 枚までにしてください。",
    ),
    (
        r"This is ([\d.]+) times the work that may wait here; .+",
        "ここで待てる量の {0} 倍です。枚数・ステップ数・大きさのどれかを減らしてください。",
    ),
    (
        r"The memory is too small for it.+",
        "メモリーが足りません。大きさを小さくしてください。",
    ),
)
# Gradio's words for the brush, by its own names: it has them in English alone.
BRUSH = {
    "image_editor.brush": "塗る",
    "image_editor.brush_size": "筆の太さ",
    "image_editor.erase": "消す",
    "image_editor.eraser_size": "消しゴムの太さ",
    "image_editor.zoom_in": "拡大",
    "image_editor.zoom_out": "縮小",
    "image_editor.fit_to_screen": "全体を表示",
    "image_editor.redo": "やり直す",
    "image_editor.clear_canvas": "すべて消す",
}
I18N = gr.I18n(en=WORDS["en"], ja=WORDS["ja"] | BRUSH)


def say(language: str, word: str, **values: object) -> str:
    return WORDS[language][word].format(**values)


def language_of(request: gr.Request) -> str:
    """The browser's own language, which it names first; English unless it is Japanese."""
    return "ja" if request.headers.get("accept-language", "").strip().lower().startswith("ja") else "en"


def mistake(language: str, error: str) -> str:
    """A sentence about what went wrong, in the reader's language where it is a known one."""
    error = " ".join(error.split())
    if language == "ja":
        for pattern, sentence in MISTAKES:
            if match := re.fullmatch(pattern, error):
                return sentence.format(*match.groups())
    return say(language, "cannot", reason=error)
