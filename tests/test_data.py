"""Tiny packages and folders made here; nothing is fetched."""

import base64
import csv
import dataclasses
import hashlib
import io
import json
import random
import re
import sys
import tarfile
from pathlib import Path

import pytest
import torch
from PIL import Image

from train.captions import COLOURS, STYLE_WORDS, WHITE, caption, with_article
from train.data import EmojiDataset, FolderDataset, composite, draws, export, main, open_dataset
from train.emoji import (
    STYLES,
    Emoji,
    EmojiConfig,
    Thing,
    base_code,
    held_out,
    load_emoji,
    normalise,
    read_things,
    render,
    split,
    squash,
    svg,
    unseen,
)
from train.folder import load_folder
from train.packages import NAMES, PACKAGES, Package, members

APPLE, SNOWMAN, FACE = "1F34E", "2603", "1F600"
CIRCLE = '<circle cx="16" cy="16" r="15" fill="#ff0000"/>'
SQUARE = '<rect x="1" y="1" width="30" height="30" fill="#0000ff"/>'
CONFIG = EmojiConfig(size=16, styles=("3d", "flat"), select=("food-drink", "travel-places"))


def pack(folder: Path, key: str, files: dict[str, bytes]) -> Package:
    """A package as `npm pack` leaves it, and its pin."""
    path = folder / PACKAGES[key].file
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    integrity = base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()
    return dataclasses.replace(PACKAGES[key], integrity=integrity)


def entry(code: str, label: str, group: int, tags: list[str]) -> dict[str, object]:
    place = {"group": group, "subgroup": group, "order": -int(code, 16)}
    return {"hexcode": code, "label": label, "tags": tags} | place


def image_bytes(colour: str | tuple[int, ...], size: tuple[int, int] = (32, 32), form: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    mode = "RGBA" if len(colour) == 4 and not isinstance(colour, str) else "RGB"
    Image.new(mode, size, colour).save(file, form, **options)
    return file.getvalue()


@pytest.fixture
def fetched(tmp_path: Path) -> tuple[Path, dict[str, Package]]:
    """A red apple, a snowman (FE0F in one package, not in the other) and a face, drawn in two styles."""
    folder = tmp_path / "fetched"
    folder.mkdir()
    english = [entry(SNOWMAN, "snowman", 5, ["cold"]), entry(APPLE, "red apple", 4, ["ripe", "24"]),
               entry(FACE, "grinning face", 0, [])]  # fmt: skip
    japanese = [entry(FACE, "笑顔", 0, []), entry(APPLE, "赤リンゴ", 4, ["りんご", "tv"]),
                entry(SNOWMAN, "雪だるま", 5, ["雪"])]  # fmt: skip
    groups = {"0": "smileys-emotion", "4": "food-drink", "5": "travel-places"}
    files = {
        "en/data.json": english, "ja/data.json": japanese,
        "meta/groups.json": {"groups": groups, "subgroups": {key: f"{name}-sub" for key, name in groups.items()}},
        "en/shortcodes/emojibase.json": {APPLE: ["red_apple", "apple"], SNOWMAN: "snowman2"},
    } | {f"en/shortcodes/{name}.json": {} for name in ("github", "iamcal", "joypixels")}  # fmt: skip
    icons = {
        "width": 32, "height": 32,
        "icons": {"red-apple": {"body": CIRCLE}, "snowman": {"body": SQUARE}, "grinning": {"body": CIRCLE}},
    }  # fmt: skip
    chars = {"1f34e": "red-apple", "2603": "snowman", "1f600": "grinning"}
    webps = {f"assets/{name}.webp": image_bytes((0, 128, 0, 255), form="WEBP", lossless=True)
             for name in ("1f34e", "2603-fe0f", "1f600")}  # fmt: skip
    return folder, {
        NAMES: pack(folder, NAMES, {name: json.dumps(content).encode() for name, content in files.items()}),
        "3d": pack(folder, "3d", {"package.json": b"{}", **webps}),
        "flat": pack(folder, "flat", {f"{name}.json": json.dumps(content).encode()
                                      for name, content in (("icons", icons), ("chars", chars))}),
    }


@pytest.fixture
def emoji(fetched: tuple[Path, dict[str, Package]], tmp_path: Path) -> Emoji:
    folder, packages = fetched
    return load_emoji(CONFIG, tmp_path / "cache", folder, packages)


# the emoji recipe


def test_emoji_are_joined_by_code_points_in_both_languages(emoji: Emoji) -> None:
    apple, snowman = emoji.things  # in emojibase's order
    words = ("red apple", "赤リンゴ", ("apple",), ("ripe",), ("りんご",))
    assert apple == Thing(APPLE, *words, "food-drink", "food-drink-sub")
    assert (snowman.code, snowman.label_ja, snowman.names_en) == (SNOWMAN, "雪だるま", ())  # "snowman2" is no name
    assert emoji.records == [(0, "3d"), (1, "3d"), (0, "flat"), (1, "flat")]
    assert emoji.pictures.shape == (4, 4, 16, 16)
    assert emoji.pictures.dtype == torch.uint8
    centres = emoji.pictures[:, :, 8, 8].tolist()
    assert centres == [[0, 128, 0, 255], [0, 128, 0, 255], [255, 0, 0, 255], [0, 0, 255, 255]]
    assert emoji.pictures[2, 3, 0, 0] == 0  # outside the circle it is clear


def test_selection_is_the_recipes(fetched: tuple[Path, dict[str, Package]], tmp_path: Path) -> None:
    folder, packages = fetched

    def labels(**changes: object) -> list[str]:
        config = dataclasses.replace(CONFIG, **changes)
        return [thing.label_en for thing in load_emoji(config, tmp_path / "cache", folder, packages).things]

    assert labels(exclude=("red apple",)) == ["snowman"]
    assert labels(exclude=("travel-places-sub",)) == ["red apple"]
    assert labels(select=("grinning face",)) == ["grinning face"]
    with pytest.raises(ValueError, match="'green apple', no group"):
        labels(exclude=("green apple",))
    with pytest.raises(ValueError, match="unknown emoji style 'oil': choose from 3d"):
        labels(styles=("oil",))


def test_rendering_is_cached_and_needs_no_package_again(fetched, emoji: Emoji, tmp_path: Path) -> None:
    _, packages = fetched
    again = load_emoji(CONFIG, tmp_path / "cache", tmp_path / "nowhere", packages)
    assert again.things == emoji.things
    assert again.records == emoji.records
    assert torch.equal(again.pictures, emoji.pictures)


def test_a_package_other_than_the_pinned_one_is_refused(fetched, tmp_path: Path) -> None:
    folder, packages = fetched
    with pytest.raises(ValueError, match=r"emojibase-data-17.0.0.tgz is not emojibase-data@17.0.0 as pinned"):
        load_emoji(CONFIG, tmp_path / "cache", folder)
    with pytest.raises(ValueError, match=r"has no emojibase-data-17.0.0.tgz: run `npm pack emojibase-data@17.0.0`"):
        load_emoji(CONFIG, tmp_path / "cache", tmp_path, packages)
    assert not (tmp_path / "cache").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in for npm is a shell script")
def test_npm_is_asked_once_and_its_failure_is_one_sentence(fetched, tmp_path: Path, monkeypatch) -> None:
    folder, packages = fetched
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match=r"npm was not found and cannot fetch emojibase-data@17\.0\.0: install"):
        load_emoji(CONFIG, tmp_path / "cache", packages=packages)
    npm = tmp_path / "npm"  # npm pack SPEC --ignore-scripts --pack-destination FOLDER
    npm.write_text("#!/bin/sh\necho 'npm error code ENOTFOUND' >&2\nexit 1\n")
    npm.chmod(0o755)
    with pytest.raises(ValueError, match=r"npm could not fetch emojibase-data@17.0.0 \(code ENOTFOUND\)"):
        load_emoji(CONFIG, tmp_path / "cache", packages=packages)
    npm.write_text(f'#!/bin/sh\necho "$2" >> {tmp_path}/asked\n/bin/cp {folder}/*.tgz "$5"\n')
    load_emoji(CONFIG, tmp_path / "cache", packages=packages)
    assert (tmp_path / "asked").read_text().split() == [package.spec for package in packages.values()]
    assert sorted(path.name for path in (tmp_path / "cache" / "packages").iterdir()) == sorted(
        package.file for package in packages.values()
    )


def test_members_are_streamed_and_only_plain_files(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "odd.tgz", "w:gz") as archive:
        link = tarfile.TarInfo("package/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        archive.addfile(link)
        archive.addfile(tarfile.TarInfo("package/empty"))
    assert list(members(tmp_path / "odd.tgz")) == [("empty", b"")]


def test_svg_of_another_shape_is_centred() -> None:
    icons = {"width": 32, "icons": {"wide": {"body": '<rect width="32" height="16" fill="#000"/>', "height": 16}}}
    alpha = render(svg(icons, "wide"), 16)[3]
    assert alpha[4:12].min() > 200  # eight rows of sixteen, softened at the edge
    assert torch.cat((alpha[:3], alpha[13:])).max() < 5


def test_normalised_code_points() -> None:
    assert normalise("1f43b-200d-2744-fe0f") == "1F43B-200D-2744"
    assert base_code("1F3CA-1F3FD-200D-2642") == base_code("1F3CA") == "1F3CA"
    assert squash("T-Rex") == squash("t_rex") == "trex"


def test_every_style_has_words_and_a_package() -> None:
    assert set(STYLES) == set(STYLE_WORDS) == set(PACKAGES) - {NAMES}


def test_splits_follow_the_code_points() -> None:
    apple = Thing(APPLE, "", "", (), (), (), "", "")
    things = [dataclasses.replace(apple, code=f"{0x1F300 + n:X}") for n in range(1000)]
    assert 70 < sum(held_out(thing, "noto") for thing in things) < 130
    assert 30 < sum(unseen(thing) for thing in things) < 70
    assert [held_out(t, "3d") for t in things] == [held_out(t, "flat") for t in things]  # one geometry
    assert [held_out(t, "3d") for t in things] != [held_out(t, "noto") for t in things]
    expected = int(hashlib.sha1(b"1F34Enoto").hexdigest(), 16) % 10 == 0
    assert held_out(apple, "noto") == expected


def test_a_split_shares_no_picture_and_loses_none(emoji: Emoji) -> None:
    things = [dataclasses.replace(emoji.things[0], code=f"1F4{n:02X}") for n in range(100)]
    records = [(n, style) for n in range(100) for style in ("3d", "flat", "noto")]
    numbered = torch.arange(300).to(torch.uint8).view(300, 1, 1, 1)
    parts = split(Emoji(things, numbered, records))
    assert list(parts) == ["seen", "held_out", "unseen"]
    assert sorted(record for part in parts.values() for record in part.records) == sorted(records)
    for name, part in parts.items():
        assert part.pictures.flatten().tolist() == [records.index(record) % 256 for record in part.records]
        for i, style in part.records:
            assert (name == "unseen") == unseen(things[i])
            assert (name == "held_out") == (held_out(things[i], style) and not unseen(things[i]))


# captions


@pytest.mark.parametrize(
    ("noun", "expected"),
    [
        ("red apple", "a red apple"), ("orange", "an orange"), ("cherries", "cherries"), ("grapes", "grapes"),
        ("octopus", "an octopus"), ("dress", "a dress"), ("rhinoceros", "a rhinoceros"), ("glasses", "glasses"),
        ("glass of milk", "a glass of milk"), ("nest with eggs", "a nest with eggs"), ("bread", "bread"),
        ("ice", "ice"), ("ice cream", "an ice cream"), ("shaved ice", "shaved ice"), ("unicorn", "a unicorn"),
        ("ewe", "a ewe"), ("umbrella", "an umbrella"), ("hourglass", "an hourglass"), ("T-Rex", "a T-Rex"),
        ("house", "a house"), ("onion", "an onion"), ("one-piece swimsuit", "a one-piece swimsuit"),
        ("American football", "an American football"), ("fork and knife", "a fork and knife"), ("bus", "a bus"),
    ],
)  # fmt: skip
def test_articles(noun: str, expected: str) -> None:
    assert with_article(noun) == expected


def test_captions_say_what_is_there(emoji: Emoji) -> None:
    apple, rng = emoji.things[0], random.Random(0)
    said = [caption(apple, "flat", None, rng) for _ in range(4000)]
    bare = {"a red apple", "red apple", "an apple", "apple", "赤リンゴ", "りんご"}
    assert bare < set(said)
    assert 0.35 < sum(text in bare for text in said) / len(said) < 0.55
    assert 0.55 < sum(text.isascii() for text in said) / len(said) < 0.65
    for text in ("a flat icon of an apple", "a red apple, flat vector illustration", "りんごのフラットなイラスト"):
        assert text in said
    assert not any(re.search("3D|背景|background", text) for text in said)
    orange = next(colour for colour in COLOURS if colour.en.startswith("orange"))
    framed = [caption(apple, "3d", orange, rng) for _ in range(1000)]
    assert all("orange background" in text or "オレンジ色" in text for text in framed)
    assert "a red apple on an orange background" in framed


# variations


def test_composite_is_exact() -> None:
    rgba = torch.tensor([200, 100, 0, 128], dtype=torch.uint8).view(4, 1, 1)
    assert composite(rgba, (255, 255, 0)).flatten().tolist() == [227, 177, 0]  # (200*128 + 255*127) / 255 = 227.4
    rgba[3] = 0
    assert composite(rgba, (1, 2, 3)).flatten().tolist() == [1, 2, 3]
    rgba[3] = 255
    assert composite(rgba, (1, 2, 3)).flatten().tolist() == [200, 100, 0]


def test_a_variation_is_a_function_of_seed_picture_and_number(emoji: Emoji) -> None:
    one, other = EmojiDataset(emoji), EmojiDataset(emoji)
    backwards = {(i, k): other.variation(i, k, 7) for i in (3, 1) for k in (5, 0)}
    for (i, k), (image, text) in backwards.items():
        again, same = one.variation(i, k, 7)
        assert text == same
        assert torch.equal(image, again)
        assert image.shape == (3, one.size, one.size)
        assert image.dtype == torch.uint8
    assert len({one.variation(0, k, 7)[1] for k in range(20)}) > 5
    assert [one.variation(0, k, 7)[1] for k in range(20)] != [one.variation(0, k, 8)[1] for k in range(20)]


def test_variations_are_pinned(emoji: Emoji) -> None:
    """Python's hash seed differs each time this runs, and prepared latents of an old run must still fit."""
    assert [draws(0, 3, k).randrange(1000) for k in range(4)] == [272, 64, 291, 940]
    dataset = EmojiDataset(emoji)
    said = [dataset.variation(0, k, 0)[1] for k in range(4)]
    assert said == ["りんご", "a glossy icon of an apple", "an apple", "灰色背景のりんご"]


def test_backgrounds_are_mostly_white_and_colours_are_said(emoji: Emoji) -> None:
    dataset = EmojiDataset(emoji)
    colours = {colour.rgb: colour for colour in (WHITE, *COLOURS)}
    white = 0
    for k in range(1000):
        image, text = dataset.variation(2, k, 0)  # its corners are clear
        colour = colours[tuple(image[:, 0, 0].tolist())]
        white += colour is WHITE
        assert colour is WHITE or colour.en in text or colour.ja in text
    assert 0.7 < white / 1000 < 0.8


# folders


def write_images(folder: Path, count: int = 10) -> None:
    folder.mkdir(exist_ok=True)
    for n in range(count):
        (folder / f"{n}.png").write_bytes(image_bytes((n, 0, 0), (24, 16)))


def test_folder_with_metadata_jsonl(tmp_path: Path) -> None:
    write_images(tmp_path, 3)
    rows = [{"file_name": "1.png", "text": ["one", "いち"]}, {"file_name": "0.png", "text": "zero"},
            {"file_name": "0.png", "text": "nought"}]  # fmt: skip
    (tmp_path / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    dataset = FolderDataset(load_folder(tmp_path, 8))
    assert (len(dataset), dataset.size) == (2, 8)
    assert list(dataset.captions()) == ["one", "いち", "zero", "nought"]
    assert {dataset.variation(1, k, 0)[1] for k in range(20)} == {"zero", "nought"}
    assert dataset.variation(0, 0, 0)[0][:, 4, 4].tolist() == [1, 0, 0]


def test_folder_with_metadata_csv(tmp_path: Path) -> None:
    write_images(tmp_path, 2)
    with (tmp_path / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["file_name", "text"], ["0.png", "a, comma"], ["1.png", "two\nlines"]])
    assert load_folder(tmp_path, 8).texts == [("a, comma",), ("two\nlines",)]


def test_folder_with_text_beside_images(tmp_path: Path) -> None:
    write_images(tmp_path / "sub", 2)
    (tmp_path / "sub" / "0.txt").write_text("zero\n\n零\n", encoding="utf-8")
    (tmp_path / "sub" / "1.txt").write_text("one", encoding="utf-8")
    assert load_folder(tmp_path, 8).texts == [("zero", "零"), ("one",)]


def test_pictures_are_upright_centred_and_over_white(tmp_path: Path) -> None:
    wide = Image.new("RGB", (48, 16), "red")
    wide.paste("blue", (16, 0, 32, 16))
    wide.save(tmp_path / "a.png")
    sideways = Image.new("RGB", (16, 32), "lime")  # stored on its side: upright, its left half is blue
    sideways.paste("blue", (0, 16, 16, 32))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees, clockwise
    sideways.save(tmp_path / "b.jpg", exif=exif, quality=100)
    (tmp_path / "c.webp").write_bytes(image_bytes((9, 9, 9, 0), form="WEBP", lossless=True, exact=True))
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text(name)
    centre, upright, clear = load_folder(tmp_path, 8).pictures
    assert (centre[2].min(), centre[:2, :, 2:-2].max()) == (241, 1)  # the red beside it is only felt at the edges
    assert upright[2, 4, 1] > 200 > 50 > upright[2, 4, 6]
    assert clear.unique().tolist() == [255]


def png_header(width: int, height: int) -> bytes:
    """A small file that claims to be large."""
    whole = bytearray(image_bytes("red", (1, 1)))
    whole[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    return bytes(whole)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("bad.png", b"", "no readable"),
        ("bad.png", b"not an image", "no readable"),
        ("bad.png", image_bytes("red", (64, 64))[:-60], "no readable"),
        ("bad.jpg", image_bytes("red", (64, 64), "JPEG")[:-300], "no readable"),
        ("bad.png", image_bytes("red", form="GIF"), "no readable"),
        ("bad.png", png_header(2**30, 2**30), "no readable"),
        ("../outside.png", image_bytes("red"), "outside the folder"),
        ("missing.png", None, "no such file"),
    ],
)
def test_a_bad_sample_is_set_aside_and_named(tmp_path: Path, capsys, name, content, reason) -> None:
    folder = tmp_path / "images"
    write_images(folder, 10)
    if content is not None:
        (folder / name).write_bytes(content)
    rows = [{"file_name": f"{n}.png", "text": "good"} for n in range(10)] + [{"file_name": name, "text": "bad"}]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert len(load_folder(folder, 8).texts) == 10
    message = capsys.readouterr().err
    assert message.startswith(f"set aside {name}: ")
    assert reason in message


def test_a_link_out_of_the_folder_is_set_aside(tmp_path: Path, capsys) -> None:
    write_images(tmp_path / "images", 10)
    (tmp_path / "secret.png").write_bytes(image_bytes("red"))
    (tmp_path / "images" / "link.png").symlink_to(tmp_path / "secret.png")
    for path in (tmp_path / "images").glob("*.png"):
        path.with_suffix(".txt").write_text("text")
    assert len(load_folder(tmp_path / "images", 8).texts) == 10
    assert "link.png: it lies outside the folder" in capsys.readouterr().err


def test_too_many_bad_samples_stop(tmp_path: Path) -> None:
    write_images(tmp_path, 4)
    (tmp_path / "0.txt").write_text("zero")
    with pytest.raises(ValueError, match=r"3 of 4 samples in .* are bad \(1.png: it has no caption\)"):
        load_folder(tmp_path, 8)


def test_a_folder_without_captions_says_what_it_wants(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"add metadata.jsonl or .txt files"):
        load_folder(tmp_path, 8)
    with pytest.raises(ValueError, match="is no folder"):
        load_folder(tmp_path / "nothing", 8)


def test_metadata_rows_without_a_name_are_named_by_number(tmp_path: Path, capsys) -> None:
    write_images(tmp_path, 20)
    rows = [json.dumps({"file_name": f"{n}.png", "text": "good"}) for n in range(20)]
    (tmp_path / "metadata.jsonl").write_text("\n".join([*rows, "{broken", '["a list"]']))
    assert len(load_folder(tmp_path, 8).texts) == 20
    assert "metadata.jsonl, row 21: it has no file_name" in capsys.readouterr().err


# opening, exporting, the command


def test_open_dataset_reads_the_recipes_table(tmp_path: Path) -> None:
    write_images(tmp_path / "images", 1)
    (tmp_path / "images" / "0.txt").write_text("zero")
    path = str(tmp_path / "images")
    assert list(open_dataset({"source": "folder", "path": path}, 8, tmp_path).captions()) == ["zero"]
    with pytest.raises(ValueError, match="takes one more setting, path"):
        open_dataset({"source": "folder"}, 8, tmp_path)
    with pytest.raises(ValueError, match="source = 'web'"):
        open_dataset({"source": "web"}, 8, tmp_path)
    with pytest.raises(ValueError, match=r"\[data\] has no setting 'style'"):
        open_dataset({"source": "emoji", "style": ["3d"]}, 64, tmp_path)


def test_an_export_is_a_folder_that_reads_back(emoji: Emoji, tmp_path: Path) -> None:
    dataset = EmojiDataset(emoji)
    export(dataset, tmp_path / "out")
    again = FolderDataset(load_folder(tmp_path / "out", dataset.size))
    for i in range(len(dataset)):
        (image, text), (image_again, text_again) = dataset.variation(i, 0, seed=0), again.variation(i, 0, seed=0)
        assert torch.equal(image, image_again)
        assert text == text_again
    with pytest.raises(ValueError, match="is not empty"):
        export(dataset, tmp_path / "out")


def test_the_command(tmp_path: Path, capsys) -> None:
    write_images(tmp_path / "images", 5)
    for n in range(5):
        (tmp_path / "images" / f"{n}.txt").write_text(f"number {n}")
    out = ["--out", str(tmp_path / "run")]
    assert main(["emoji-64", *out, "--dry-run"]) == 0
    assert "@lobehub/fluent-emoji-3d@1.1.0, MIT: Fluent Emoji, Microsoft" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()
    assert main(["emoji-64", *out, "--folder", str(tmp_path / "images"), "--export", str(tmp_path / "copy")]) == 0
    assert "5 pictures, 64 pixels a side" in capsys.readouterr().out
    with Image.open(tmp_path / "run" / "data" / "sheet.png") as sheet:
        assert sheet.size == (3 * 64, 2 * 64)
    assert len(list((tmp_path / "copy").glob("*.png"))) == 5
    assert main(["emoji-64", *out, "--folder", str(tmp_path / "nothing")]) == 2
    assert "expected a folder of images with captions" in capsys.readouterr().err


def test_real_packages_are_read_by_the_same_names(fetched) -> None:
    """The pins are whole: a base64 SHA-512 each, and file names as npm makes them."""
    for package in PACKAGES.values():
        assert len(base64.b64decode(package.integrity)) == 64
    assert PACKAGES["3d"].file == "lobehub-fluent-emoji-3d-1.1.0.tgz"
    folder, packages = fetched
    assert len(read_things(folder / packages[NAMES].file)) == 3
