"""The judge on tiny pictures, and the whole command over tiny packages and a tiny model."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from networks import randomize
from PIL import Image
from test_data import entry, image_bytes, pack
from torch import Tensor

from clip.text import TextConfig, TextEncoder
from clip.tokenizer import Tokenizer
from diffusion.checkpoint import load_model, save_model
from train.augment import turn
from train.data import composite
from train.emoji import STYLES, Emoji, EmojiConfig, held_out, load_emoji
from train.evaluate import FORMS, Row, arguments, main, prompts_of, table
from train.judge import DRAWS, Judge, RealPictures, augment, load_real, ranks, train_judge
from train.loop import LoopConfig
from train.packages import NAMES, PACKAGES

FRUIT = ("red apple", "pear", "orange", "lemon", "banana", "melon", "grapes", "peach", "cherry", "mango", "kiwi", "fig")
CODES = [f"1F3{n:02X}" for n in range(len(FRUIT))]
CONFIG = EmojiConfig(size=16, styles=("3d", "flat"), select=("food-drink",))
TRAINING = LoopConfig(steps=40, batch=8, learning_rate=3e-3, warmup=2, average=0.8, precision="no", seed=1)
RECIPE = """
name = "tiny"
size = 16
[data]
source = "emoji"
styles = ["3d", "flat"]
select = ["food-drink"]
[tokenizer]
[autoencoder]
[contrastive]
[denoiser]
[defaults]
[judge.training]
steps = 3
batch = 4
warmup = 1
seed = 1
precision = "no"
checkpoint_every = 2
"""


@pytest.fixture
def fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Twelve fruit, bars of their own lengths, in four styles, of their own colours; the last one only in three."""
    folder = tmp_path / "fetched"
    folder.mkdir()
    named = enumerate(zip(CODES, FRUIT, strict=True))
    names = {
        "en/data.json": [entry(code, label, 4, []) | {"order": n} for n, (code, label) in named],
        "ja/data.json": [entry(code, f"果物{n}", 4, []) for n, code in enumerate(CODES)],
        "meta/groups.json": {"groups": {"4": "food-drink"}, "subgroups": {"4": "food-fruit"}},
    } | {f"en/shortcodes/{name}.json": {} for name in ("emojibase", "github", "iamcal", "joypixels")}
    files = {NAMES: {name: json.dumps(content).encode() for name, content in names.items()}, "3d": {}}
    for n, code in enumerate(CODES):
        files["3d"][f"assets/{code.lower()}.webp"] = image_bytes((20 * n, 90, 0, 255), form="WEBP", lossless=True)
    for style, colour in (("flat", "red"), ("noto", "blue"), ("twemoji", "green")):
        drawn = {code.lower(): n for n, code in enumerate(CODES) if (style, n) != ("twemoji", len(CODES) - 1)}
        bars = {name: {"body": f'<rect width="{2 * n + 4}" height="32" fill="{colour}"/>'} for name, n in drawn.items()}
        icons = {"width": 32, "height": 32, "icons": bars}
        chars = {name: name for name in drawn}
        files[style] = {"icons.json": json.dumps(icons).encode(), "chars.json": json.dumps(chars).encode()}
    for key, content in files.items():
        monkeypatch.setitem(PACKAGES, key, pack(folder, key, content))
    return folder


@pytest.fixture
def emoji(fetched: Path, tmp_path: Path) -> Emoji:
    return load_emoji(CONFIG, tmp_path / "cache", fetched)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="session")
def patient_model(tiny_model: Path) -> Path:
    """The tiny model with a text encoder that reads longer prompts."""
    model, folder = load_model(tiny_model), tiny_model.with_name("patient")
    tokenizer = Tokenizer.train(FRUIT, vocab_size=560, length=64)
    torch.manual_seed(0)
    sizes = TextConfig(tokenizer.vocab_size, 64, width=32, layers=1, heads=2, mlp_width=64, eos_token_id=tokenizer.end)
    text_encoder = TextEncoder(sizes)
    save_model(folder, (tokenizer,), (text_encoder,), model.unet, model.autoencoder, model.noise, model.defaults)
    return folder


def two_things() -> RealPictures:
    """A disc and a frame, each in four colours, the last of which is held out."""
    rows, columns = torch.meshgrid(torch.arange(16) - 7.5, torch.arange(16) - 7.5, indexing="ij")
    shapes = [rows.square() + columns.square() < 36, torch.maximum(rows.abs(), columns.abs()).sub(5).abs() < 1]
    colours = [(220, 30, 30), (30, 160, 40), (40, 60, 220), (120, 20, 120)]
    rgba = torch.zeros(8, 4, 16, 16, dtype=torch.uint8)
    for n in range(8):
        rgba[n, :3] = torch.tensor(colours[n // 2], dtype=torch.uint8).view(3, 1, 1)
        rgba[n, 3] = shapes[n % 2] * 255
    return RealPictures(rgba, torch.arange(8) % 2, torch.arange(8) >= 6)


def over_white(rgba: Tensor) -> Tensor:
    return torch.stack([composite(one, (255, 255, 255)) for one in rgba]) / 127.5 - 1


# the judge


def test_a_judge_learns_two_things_and_knows_them_in_a_colour_held_out(tmp_path: Path) -> None:
    real = two_things()
    judge = train_judge(real, 2, TRAINING, tmp_path / "judge")
    assert ranks(judge, over_white(real.rgba), real.labels).tolist() == [0] * 8
    assert ranks(judge, over_white(real.rgba), 1 - real.labels).tolist() == [1] * 8


def test_what_is_held_out_never_reaches_the_judge(tmp_path: Path) -> None:
    real, training = two_things(), dataclasses.replace(TRAINING, steps=3)
    spoilt = dataclasses.replace(real, rgba=real.rgba.clone(), labels=real.labels.clone())
    spoilt.rgba[real.held_out] = 99
    spoilt.labels[real.held_out] = 7  # no such thing: learning it would raise
    one, other = (train_judge(r, 2, training, tmp_path / name) for name, r in (("one", real), ("other", spoilt)))
    assert set(real.seen.tolist()) == set(range(6))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_real_pictures_are_of_every_style_and_held_out_by_family(fetched: Path, emoji: Emoji, tmp_path: Path) -> None:
    real = load_real(emoji.things, CONFIG, tmp_path / "cache", fetched)
    drawn = [(n, style) for style in STYLES for n in range(12) if (style, n) != ("twemoji", 11)]
    assert real.labels.tolist() == [n for n, _ in drawn]
    assert real.held_out.tolist() == [held_out(emoji.things[n], style) for n, style in drawn]
    assert 0 < int(real.held_out.sum()) < 10
    assert not set(real.seen.tolist()) & set(torch.nonzero(real.held_out)[:, 0].tolist())
    assert torch.equal(real.rgba[:24], emoji.pictures)
    assert real.rgba[24, :, 8, 0].tolist() == [0, 0, 255, 255]  # noto's first, after twelve 3d and twelve flat
    lonely = [thing for thing in emoji.things if not any(held_out(thing, style) for style in STYLES)][:1]
    with pytest.raises(ValueError, match="Of 4 pictures 0 are held out"):
        load_real(lonely, CONFIG, tmp_path / "cache", fetched)


def test_the_judges_scores_are_pinned() -> None:
    judge = Judge(5)
    randomize(judge)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    scores = judge(images)
    assert scores.shape == (2, 5)
    expected = [0.13273, -0.08774, 0.11997, -0.10840, 0.11160]
    torch.testing.assert_close(scores[0].detach(), torch.tensor(expected), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(judge(images[:1]), scores[:1])  # judged by itself


def test_a_judge_that_cannot_tell_is_never_right() -> None:
    judge = Judge(3)
    for parameter in judge.scores.parameters():
        torch.nn.init.zeros_(parameter)
    assert ranks(judge, torch.zeros(3, 3, 16, 16), torch.tensor([0, 1, 2])).tolist() == [2, 2, 2]


def test_augmentation_by_hand() -> None:
    rgba, behind = two_things().rgba[:1], torch.tensor([0.2, 0.4, 0.6])
    still = torch.tensor([[0.9, 2 / 3, 0.5, 0.5, 0.5, 0.5, 0.0, *behind]])  # scale 1, no shift, over white
    assert still.shape[1] == DRAWS
    torch.testing.assert_close(augment(rgba, still), over_white(rgba), atol=1e-5, rtol=0)
    coloured, mirrored = still.clone(), still.clone()
    coloured[0, 6], mirrored[0, 0] = 0.9, 0.1
    torch.testing.assert_close(augment(rgba, coloured)[0, :, 0, 0], 2 * behind - 1)
    torch.testing.assert_close(augment(rgba, mirrored), over_white(rgba).flip(-1), atol=1e-5, rtol=0)
    moved = still.clone()
    moved[0, 2] = 0.5 + 0.125 / 0.3  # an eighth of half a side: one pixel of sixteen to the right
    torch.testing.assert_close(augment(rgba, moved)[..., 1:], over_white(rgba)[..., :-1], atol=1e-5, rtol=0)
    wild = augment(two_things().rgba, torch.rand(8, DRAWS, generator=torch.Generator().manual_seed(0)))
    assert wild.shape == (8, 3, 16, 16)
    assert -1 <= wild.min() < wild.max() <= 1


def test_a_third_of_a_turn_exchanges_the_primaries() -> None:
    colours = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(turn(colours, torch.tensor(2 * math.pi / 3)), colours.roll(1, dims=1))
    torch.testing.assert_close(turn(colours, torch.tensor(0.0)), colours)


# prompts


def test_prompts_take_forms_styles_and_things_by_turns(emoji: Emoji) -> None:
    prompts = prompts_of(emoji, 12)
    assert [prompt.text for prompt in prompts] == [
        "a red apple",
        "果物1",
        "an orange, 3D render",
        "果物3、3Dイラスト",
        "a banana on a black background",
        "a melon",
        "果物6",
        "a peach, flat vector illustration",
        "果物8、フラットなイラスト",
        "a mango on a grey background",
        "a kiwi",
        "果物11",
    ]
    assert [prompt.form for prompt in prompts] == ([*FORMS] * 3)[:12]
    assert [prompt.thing for prompt in prompts_of(emoji, 4)] == [0, 3, 6, 9]
    assert [prompt.background for prompt in prompts[3:5]] == [(255, 255, 255), (28, 28, 32)]
    assert {prompt.thing for prompt in prompts_of(emoji, 100)} == set(range(12))


# the command


def test_the_whole_evaluation_and_that_it_goes_on(fetched, recipe, patient_model, tmp_path, capsys) -> None:
    out = tmp_path / "run"
    argv = [str(recipe), "--out", str(out), "--model", str(patient_model), "--fetched", str(fetched), "--prompts", "7"]
    assert main(argv) == 0
    printed = capsys.readouterr().out
    evaluation = json.loads((out / "judge/evaluation.json").read_text())
    rows = {row["pictures"]: row for row in evaluation["rows"]}
    expected = ["chance", "generated", *(f"generated: {form}" for form in FORMS), "real, through the autoencoder",
                "real, as they are", "real, held out from the judge"]  # fmt: skip
    assert list(rows) == expected
    assert [rows[name]["n"] for name in expected[:-1]] == [None, 7, 2, 2, 1, 1, 1, 7, 7]
    assert (rows["chance"]["top1"], rows["chance"]["top5"]) == (1 / 12, 5 / 12)
    assert all(0 <= row["top1"] <= row["top5"] <= 1 for row in rows.values())
    assert "| chance |  | 8.3% | 41.7% |" in printed
    assert f"PSNR of {evaluation['autoencoder_psnr']:.2f} dB" in printed
    assert json.loads((out / "judge/prompts.json").read_text())[0]["thing"] == "red apple"
    with Image.open(out / "judge/pictures.png") as sheet:
        assert sheet.size == (20 * 18, 18)

    lines, pictures = (out / "judge/metrics.jsonl").read_bytes(), sorted((out / "judge/pictures").iterdir())
    assert len(pictures) == 7
    times = [path.stat().st_mtime_ns for path in pictures[1:]]
    pictures[0].unlink()
    assert main(argv) == 0
    assert capsys.readouterr().out == printed
    assert (out / "judge/metrics.jsonl").read_bytes() == lines
    assert [path.stat().st_mtime_ns for path in pictures[1:]] == times  # only the lost one was made again
    assert json.loads((out / "judge/evaluation.json").read_text()) == evaluation


def test_the_pixels_of_a_model_without_autoencoder_come_back_as_they_are(
    fetched, recipe, pixel_model, tmp_path, capsys
) -> None:
    argv = [str(recipe), "--out", str(tmp_path / "run"), "--model", str(pixel_model), "--fetched", str(fetched)]
    assert main([*argv, "--prompts", "1", "--steps", "1"]) == 0
    assert "PSNR of inf dB" in capsys.readouterr().out


def test_the_table_is_in_percent() -> None:
    assert table([Row("chance", None, 0.25, 1.0), Row("real", 3, 2 / 3, 1.0)]).splitlines() == [
        "| pictures | n | top-1 | top-5 |",
        "| :-- | --: | --: | --: |",
        "| chance |  | 25.0% | 100.0% |",
        "| real | 3 | 66.7% | 100.0% |",
    ]


def test_dry_run_writes_nothing(recipe: Path, tiny_model: Path, tmp_path: Path, capsys) -> None:
    argv = [str(recipe), "--out", str(tmp_path / "run"), "--model", str(tiny_model), "--dry-run"]
    assert main(argv) == 0
    said = capsys.readouterr().out
    assert "200 pictures" in said
    assert "steps=3" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("before", "after", "options", "said"),
    [
        ('source = "emoji"', 'source = "folder"', [], "has no judge"),
        ("[judge.training]", "[judge.other]", [], "has no judge"),
        ("batch = 4", "bach = 4", [], "'bach'"),
        ("", "", ["--prompts", "0"], "--prompts is 0; expected 1 or more"),
        ("", "", ["--model", "nowhere"], "no model 'nowhere'"),
    ],
)
def test_mistakes_are_one_sentence(recipe, fetched, tiny_model, tmp_path, capsys, before, after, options, said) -> None:
    recipe.write_text(recipe.read_text().replace(before, after, 1))
    argv = [str(recipe), "--out", str(tmp_path / "run"), "--model", str(tiny_model), "--fetched", str(fetched)]
    assert main([*argv, *options]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("python -m train.evaluate: ")
    assert said in error
    assert not (tmp_path / "run" / "judge").exists()


def test_the_help_has_examples() -> None:
    assert "python -m train.evaluate emoji-64 --model runs/emoji-64/model" in arguments().format_help()
