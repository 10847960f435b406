"""The emoji recipe's pictures: emoji art in several styles, each joined to its names in English and Japanese.

    join     by code points: emojibase names a thing, every style draws it
    select   groups and subgroups of emojibase, less an exclusion list
    render   SVG and WebP => RGBA, kept in one safetensors file with its manifest
"""

import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import resvg_py
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm

from clip.durable import write_atomically
from train.packages import NAMES, PACKAGES, Package, members, obtain, read_json

STYLES = tuple(key for key in PACKAGES if key != NAMES)
FAMILIES = {"3d": "fluent", "flat": "fluent"}  # styles of one geometry are held out together
OVERSAMPLING = 4  # SVGs are drawn this many times larger: Lanczos keeps thin strokes that a renderer blurs
SHORTCODES = ("emojibase", "github", "iamcal", "joypixels")
SHARED = 3  # a word that more of the selected things bear ("animal") means none of them
LAYOUT = 3  # of the cached file: raise it when the pictures would come out otherwise


@dataclass(frozen=True)
class Thing:
    """A concept that emoji draw: its normalised code points, and what it is called.

    Names are what else people call it ("car" for an automobile), tags what it has to do with; of both, only
    those are here that few of the selected things share.
    """

    code: str
    label_en: str
    label_ja: str
    names_en: tuple[str, ...]
    tags_en: tuple[str, ...]
    tags_ja: tuple[str, ...]
    group: str
    subgroup: str


@dataclass(frozen=True)
class EmojiConfig:
    """Which pictures: the things that `select` names and `exclude` does not, if all `styles` draw them.

    Both name groups, subgroups or English labels, in emojibase's words; `size` is in pixels a side.
    """

    size: int = 64
    styles: tuple[str, ...] = ("3d", "flat")
    select: tuple[str, ...] = ("animals-nature", "food-drink")
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 16 <= self.size <= 256:
            raise ValueError(f"size is {self.size}: emoji are drawn at 16 to 256 pixels a side")
        for style in self.styles:
            if style not in STYLES:
                raise ValueError(f"unknown emoji style {style!r}: choose from {', '.join(STYLES)}")
        if not self.styles or not self.select:
            raise ValueError("the emoji recipe needs at least one entry in each of `styles` and `select`")


@dataclass(frozen=True)
class Emoji:
    """`pictures[n]`, uint8 RGBA [4, S, S], shows `things[i]` in `style`, where `(i, style) = records[n]`."""

    things: list[Thing]
    pictures: Tensor  # [N, 4, S, S]
    records: list[tuple[int, str]]


def load_emoji(
    config: EmojiConfig, cache: Path, fetched: Path | None = None, packages: Mapping[str, Package] = PACKAGES
) -> Emoji:
    """The selected pictures: out of `cache`, or fetched (or found in `fetched`), rendered and put there.

    Raises ValueError where a package cannot be had or is not the pinned one, or the selection names nothing.
    """
    used = {key: packages[key] for key in (NAMES, *config.styles)}
    recipe = {"layout": LAYOUT, "config": asdict(config), "packages": {k: asdict(p) for k, p in used.items()}}
    key = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()
    path = cache / f"emoji-{config.size}-{key[:12]}.safetensors"
    if not path.exists():
        tarballs = {name: obtain(package, cache / "packages", fetched) for name, package in used.items()}
        emoji = draw(config, tarballs)
        manifest = recipe | {"things": [asdict(thing) for thing in emoji.things], "records": emoji.records}
        write_cache(path, emoji.pictures, manifest)
    return read_cache(path)


# join


def normalise(code: str) -> str:
    """One spelling of a sequence of code points: upper case, without the presentation selector FE0F."""
    return "-".join(part for part in code.upper().split("-") if part != "FE0F")


def read_things(tarball: Path) -> list[Thing]:
    """Every concept of emojibase that has a group, in its order, with all names and tags; one skin only."""
    english, japanese, places = read_json(tarball, "en/data.json", "ja/data.json", "meta/groups.json")
    shortcodes = read_json(tarball, *(f"en/shortcodes/{name}.json" for name in SHORTCODES))
    names = [{normalise(code): given for code, given in table.items()} for table in shortcodes]
    translated = {entry["hexcode"]: entry for entry in japanese}
    things = []
    for entry in sorted((entry for entry in english if "group" in entry), key=lambda entry: entry["order"]):
        code, other = normalise(entry["hexcode"]), translated.get(entry["hexcode"])
        if other is not None:
            things.append(Thing(
                code=code,
                label_en=entry["label"].replace("’", "'"),
                label_ja=other["label"],
                names_en=plain_names(entry["label"], [table[code] for table in names if code in table]),
                tags_en=tuple(tag for tag in entry.get("tags", ()) if re.fullmatch("[a-zA-Z-]{3,}", tag)),
                tags_ja=tuple(tag for tag in other.get("tags", ()) if not tag.isascii()),
                group=places["groups"][str(entry["group"])],
                subgroup=places["subgroups"][str(entry["subgroup"])],
            ))  # fmt: skip
    return things


def plain_names(label: str, given: list[str | list[str]]) -> tuple[str, ...]:
    """Shortcodes as words, each once, if they say more than the label ("hotdog", "dog2")."""
    names: dict[str, str] = {}
    for codes in given:
        for code in [codes] if isinstance(codes, str) else codes:
            if re.fullmatch("[a-z_-]+", code):
                names.setdefault(squash(code), code.replace("_", " "))
    names.pop(squash(label), None)
    return tuple(names.values())


def squash(text: str) -> str:
    return re.sub("[^a-z]", "", text.lower())


def select(things: list[Thing], config: EmojiConfig) -> list[Thing]:
    known = set().union(*map(listed_as, things))
    for name in (*config.select, *config.exclude):
        if name not in known:
            raise ValueError(f"[data] names {name!r}, no group, subgroup or English label of emojibase")
    chosen, refused = set(config.select), set(config.exclude)
    return [thing for thing in things if chosen & listed_as(thing) and not refused & listed_as(thing)]


def listed_as(thing: Thing) -> set[str]:
    return {thing.group, thing.subgroup, thing.label_en}


def telling(things: list[Thing]) -> list[Thing]:
    """The things without the names and tags that too many of them share, which would name none of them."""
    names = Counter(word for thing in things for word in {thing.label_en, *thing.names_en})
    words = Counter(word for thing in things for word in words_of(thing))
    return [
        replace(
            thing,
            names_en=tuple(name for name in thing.names_en if names[name] <= SHARED),
            tags_en=tuple(tag for tag in thing.tags_en if words[tag] <= SHARED),
            tags_ja=tuple(tag for tag in thing.tags_ja if words[tag] <= SHARED and tag != thing.label_ja),
        )
        for thing in things
    ]  # fmt: skip


def words_of(thing: Thing) -> set[str]:
    return {thing.label_en, *thing.names_en, *thing.tags_en, thing.label_ja, *thing.tags_ja}


# render


def draw(config: EmojiConfig, tarballs: Mapping[str, Path]) -> Emoji:
    things = select(read_things(tarballs[NAMES]), config)
    codes = {thing.code for thing in things}
    art = {style: read_art(style, tarballs[style], codes) for style in config.styles}
    things = telling([thing for thing in things if all(thing.code in drawn for drawn in art.values())])
    if not things:
        raise ValueError(f"nothing in [data] is drawn in all of {', '.join(config.styles)}: select more")
    records = [(i, style) for style in config.styles for i in range(len(things))]
    pictures = torch.empty(len(records), 4, config.size, config.size, dtype=torch.uint8)
    for n, (i, style) in enumerate(tqdm(records, desc="rendering emoji", disable=None)):
        pictures[n] = render(art[style][things[i].code], config.size)
    return Emoji(things, pictures, records)


def read_art(style: str, tarball: Path, codes: set[str]) -> dict[str, bytes | str]:
    """Normalised code points => the picture as its package holds it: WebP bytes, or the text of an SVG."""
    if style == "3d":
        pictures = ((normalise(PurePosixPath(name).stem), content) for name, content in members(tarball))
        return {code: content for code, content in pictures if code in codes}
    icons, names = read_json(tarball, "icons.json", "chars.json")
    wanted = {normalise(code): name for code, name in names.items() if normalise(code) in codes}
    return {code: svg(icons, name) for code, name in wanted.items() if name in icons["icons"]}


def svg(icons: dict[str, Any], name: str) -> str:
    """An icon of Iconify's JSON as a square SVG; the icon's own box wins over the set's, and is centred."""
    box = {"left": 0, "top": 0, "width": 16, "height": 16} | icons | icons["icons"][name]
    left, top, width, height = (box[key] for key in ("left", "top", "width", "height"))
    side = max(width, height)
    view = f"{left - (side - width) / 2} {top - (side - height) / 2} {side} {side}"
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg {spaces} viewBox="{view}">{box["body"]}</svg>'


def render(art: bytes | str, size: int) -> Tensor:
    """WebP bytes or SVG text => uint8 RGBA [4, size, size]."""
    if isinstance(art, str):
        side = OVERSAMPLING * size
        art = bytes(resvg_py.svg_to_bytes(svg_string=art, width=side, height=side, skip_system_fonts=True))
    with Image.open(io.BytesIO(art), formats=["PNG", "WEBP"]) as image:
        small = image.convert("RGBA").resize((size, size), Image.Resampling.LANCZOS)
    pixels = torch.frombuffer(bytearray(small.tobytes()), dtype=torch.uint8)
    return pixels.view(size, size, 4).permute(2, 0, 1)


# cache


def write_cache(path: Path, pictures: Tensor, manifest: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(manifest, ensure_ascii=False)
    write_atomically(path, save({"pictures": pictures}, {"manifest": text}))


def read_cache(path: Path) -> Emoji:
    with safe_open(path, framework="pt") as file:
        manifest = json.loads(file.metadata()["manifest"])
        pictures = file.get_tensor("pictures")
    things = []
    for entry in manifest["things"]:
        words: dict[str, Any] = {key: tuple(value) for key, value in entry.items() if isinstance(value, list)}
        things.append(Thing(**entry | words))
    return Emoji(things, pictures, [(i, style) for i, style in manifest["records"]])


# splits


def base_code(code: str) -> str:
    """Code points without skin tone and gender: variants follow their base into a split."""
    parts = [part for part in code.split("-") if not "1F3FB" <= part <= "1F3FF"]
    if parts[-1:] in (["2640"], ["2642"]) and parts[-2:-1] == ["200D"]:
        parts = parts[:-2]
    return "-".join(parts)


def held_out(thing: Thing, style: str) -> bool:
    """Whether this thing in this style is of the tenth that a training which generalises must not see."""
    return digest(base_code(thing.code) + FAMILIES.get(style, style)) % 10 == 0


def unseen(thing: Thing) -> bool:
    """Whether the thing is of the twentieth that such a training must not see in any style."""
    return digest(base_code(thing.code)) % 20 == 0


def split(emoji: Emoji) -> dict[str, Emoji]:
    """The pictures to learn from, `seen`, and those to be tried on: `held_out` ones, and of `unseen` things."""

    def part(thing: Thing, style: str) -> str:
        return "unseen" if unseen(thing) else "held_out" if held_out(thing, style) else "seen"

    parts = [part(emoji.things[i], style) for i, style in emoji.records]
    numbers = {name: [n for n, other in enumerate(parts) if other == name] for name in ("seen", "held_out", "unseen")}
    return {
        name: replace(emoji, pictures=emoji.pictures[chosen], records=[emoji.records[n] for n in chosen])
        for name, chosen in numbers.items()
    }


def digest(text: str) -> int:
    return int(hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest(), 16)
