"""The emoji recipe's pictures: emoji art in several styles, each joined to its names in English and Japanese.

    fetch    npm packages, pinned by version and SHA-512; members are streamed, never extracted
    join     by code points: emojibase names a thing, every style draws it
    select   groups and subgroups of emojibase, less an exclusion list
    render   SVG and WebP => RGBA, kept in one safetensors file with its manifest
"""

import base64
import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import resvg_py
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm


@dataclass(frozen=True)
class Package:
    """An npm package, pinned: `integrity` is the base64 SHA-512 of the tarball that `npm pack` leaves."""

    name: str
    version: str
    integrity: str
    licence: str
    attribution: str

    @property
    def file(self) -> str:
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


NAMES = "names"  # the package of labels and tags; the others are named by the style that they draw
PACKAGES = {
    NAMES: Package(
        "emojibase-data", "17.0.0",
        "Yvgb5AWoHViHV/gq1qr5ZAarcBip+B27/ZLRsUJkbgAEaLlZ/fof9g882LTpmEpyhBNEC0m2SEmItljHsTygjA==",
        "MIT", "Emojibase, Miles Johnson",
    ),
    "3d": Package(
        "@lobehub/fluent-emoji-3d", "1.1.0",
        "Wlq2lVStTnr8BDpIJ0pEnTKO4LuDxxqTEhTvRtD1DLRF0me7ogeRQjKoehDHXuVJ2Qaecgl5wRBv60lUAG3h7g==",
        "MIT", "Fluent Emoji, Microsoft Corporation; packaged by LobeHub",
    ),
    "flat": Package(
        "@iconify-json/fluent-emoji-flat", "1.2.6",
        "RY47RgPb47fYUiyrA64sIOL0+UU02s29sXpNBbIQRBUlPlfNFTKUmZDERGuxDs/7yNGWqQYvuaSYM1M4fRXlUw==",
        "MIT", "Fluent Emoji, Microsoft Corporation; packaged by Iconify",
    ),
    "noto": Package(
        "@iconify-json/noto", "1.2.9",
        "DQiuXENbun41ch+XPSV55H9FaWKpHTyz46YIKtSaKYD4fIDDzL1tR6H4np/T38jfrTAeI3rcKF0mqHYeZVAuaw==",
        "Apache-2.0", "Noto Emoji, Google Inc; packaged by Iconify",
    ),
    "twemoji": Package(
        "@iconify-json/twemoji", "1.2.5",
        "uKpuIEV0v6K5BW3Mjdyl+XKFVAbbcPxAgifKvEMtZoUZB5+YiY5zaMm2uNNCxyXzAWU9yNLlj41WU6/mvgALsw==",
        "CC-BY-4.0", "Twemoji, Twitter and contributors; packaged by Iconify",
    ),
}  # fmt: skip
FAMILIES = {"3d": "fluent", "flat": "fluent"}  # styles of one geometry are held out together
MEMBER_LIMIT = 64 * 2**20  # bytes; the largest member read, noto's icons.json, has 15 MB
OVERSAMPLING = 4  # SVGs are drawn this many times larger: Lanczos keeps thin strokes that a renderer blurs
SHARED = 3  # a tag that more of the selected things bear ("animal") means none of them
LAYOUT = 1  # of the cached file: raise it when the pictures would come out otherwise


@dataclass(frozen=True)
class Thing:
    """A concept that emoji draw: normalised code points, and what it is called.

    Tags are those that few of the selected things share, so that one may stand for the thing.
    """

    code: str
    label_en: str
    label_ja: str
    tags_en: tuple[str, ...]
    tags_ja: tuple[str, ...]
    group: str
    subgroup: str


@dataclass(frozen=True)
class EmojiConfig:
    """Which pictures: things of the groups and subgroups in `select`, less `exclude`, drawn in every one of `styles`.

    `exclude` names groups, subgroups or English labels, all in emojibase's words.
    """

    size: int = 64
    styles: tuple[str, ...] = ("3d", "flat")
    select: tuple[str, ...] = ("animals-nature", "food-drink")
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 16 <= self.size <= 256:
            raise ValueError(f"size is {self.size}: emoji are drawn at 16 to 256 pixels a side")
        for style in self.styles:
            if style not in PACKAGES or style == NAMES:
                raise ValueError(f"unknown emoji style {style!r}: choose from {', '.join(s for s in PACKAGES if s != NAMES)}")
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
    """The selected pictures, from `cache` if they are there, else fetched (or read from `fetched`) and rendered.

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


# fetch


def obtain(package: Package, folder: Path, fetched: Path | None) -> Path:
    """The package's tarball: from the folder `fetched` if given, else by `npm pack` into `folder`. Checked either way."""
    if fetched is not None:
        path = fetched / package.file
        if not path.is_file():
            raise ValueError(f"{fetched} has no {package.file}: run `npm pack {package.name}@{package.version}` there")
        check(path, package)
        return path
    path = folder / package.file
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as aside:
            pack(package, Path(aside))
            check(Path(aside) / package.file, package)
            os.replace(Path(aside) / package.file, path)
    check(path, package)
    return path


def pack(package: Package, folder: Path) -> None:
    wanted, npm = f"{package.name}@{package.version}", shutil.which("npm")
    advice = "pass a folder that already holds the packages, as `npm pack` leaves them, with --fetched"
    if npm is None:
        raise ValueError(f"npm was not found, so {wanted} cannot be fetched: install Node.js, or {advice}")
    command = [npm, "pack", wanted, "--ignore-scripts", "--pack-destination", str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if result.returncode != 0 or not (folder / package.file).is_file():
        errors = [line for line in result.stderr.splitlines() if line.startswith("npm error")]
        cause = errors[0].removeprefix("npm error").strip() if errors else f"exit code {result.returncode}"
        raise ValueError(f"npm could not fetch {wanted} ({cause}): check the network, or {advice}")


def check(path: Path, package: Package) -> None:
    with path.open("rb") as file:
        found = base64.b64encode(hashlib.file_digest(file, "sha512").digest()).decode()
    if found != package.integrity:
        raise ValueError(f"{path} is not the {package.name}@{package.version} that is pinned (SHA-512 differs): delete it and fetch it again")


def members(tarball: Path, wanted: set[str] | None = None) -> Iterator[tuple[str, bytes]]:
    """(name, content) of the package's plain files, in the archive's order; `wanted` narrows it. Nothing is extracted."""
    with tarfile.open(tarball, "r|gz") as archive:
        for member in archive:
            name = member.name.removeprefix("package/")
            if not member.isfile() or (wanted is not None and name not in wanted):
                continue
            if member.size > MEMBER_LIMIT:
                raise ValueError(f"{name} in {tarball} has {member.size} bytes, more than the {MEMBER_LIMIT} that are read")
            content = archive.extractfile(member)
            assert content is not None  # a plain file has content
            yield name, content.read()


def read_json(tarball: Path, *names: str) -> list[Any]:
    found = dict(members(tarball, set(names)))
    for name in names:
        if name not in found:
            raise ValueError(f"{tarball} holds no {name}")
    return [json.loads(found[name]) for name in names]


# join


def normalise(code: str) -> str:
    """One spelling of a sequence of code points: upper case, without the presentation selector FE0F."""
    return "-".join(part for part in code.upper().split("-") if part != "FE0F")


def read_things(tarball: Path) -> list[Thing]:
    """Every concept of emojibase that has a group, in its order, with all its tags; skin tones are left out."""
    english, japanese, names = read_json(tarball, "en/data.json", "ja/data.json", "meta/groups.json")
    translated = {entry["hexcode"]: entry for entry in japanese}
    things = []
    for entry in sorted((e for e in english if "group" in e), key=lambda e: e["order"]):
        other = translated.get(entry["hexcode"])
        if other is None:
            continue
        things.append(Thing(
            code=normalise(entry["hexcode"]),
            label_en=entry["label"].replace("’", "'"),
            label_ja=other["label"],
            tags_en=tuple(tag for tag in entry.get("tags", ()) if tag.replace("-", "").isalpha() and len(tag) > 2),
            tags_ja=tuple(tag for tag in other.get("tags", ()) if not tag.isascii()),
            group=names["groups"][str(entry["group"])],
            subgroup=names["subgroups"][str(entry["subgroup"])],
        ))  # fmt: skip
    return things


def select(things: list[Thing], config: EmojiConfig) -> list[Thing]:
    """The things that `config.select` names and `config.exclude` does not; every name must name something."""
    places = {thing.group for thing in things} | {thing.subgroup for thing in things}
    labels = {thing.label_en for thing in things}
    for name in config.select:
        if name not in places:
            raise ValueError(f"select names {name!r}, which is no group or subgroup of emojibase")
    for name in config.exclude:
        if name not in places | labels:
            raise ValueError(f"exclude names {name!r}, which is no group, subgroup or English label of emojibase")
    chosen, refused = set(config.select), set(config.exclude)
    return [
        thing for thing in things
        if chosen & {thing.group, thing.subgroup} and not refused & {thing.group, thing.subgroup, thing.label_en}
    ]  # fmt: skip


def keep_telling_tags(things: list[Thing]) -> list[Thing]:
    english = Counter(word for thing in things for word in {thing.label_en, *thing.tags_en})
    japanese = Counter(word for thing in things for word in {thing.label_ja, *thing.tags_ja})
    return [
        replace(
            thing,
            tags_en=tuple(tag for tag in thing.tags_en if english[tag] <= SHARED and tag != thing.label_en),
            tags_ja=tuple(tag for tag in thing.tags_ja if japanese[tag] <= SHARED and tag != thing.label_ja),
        )
        for thing in things
    ]  # fmt: skip


# render


def draw(config: EmojiConfig, tarballs: Mapping[str, Path]) -> Emoji:
    things = select(read_things(tarballs[NAMES]), config)
    codes = {thing.code for thing in things}
    art = {style: read_art(style, tarballs[style], codes) for style in config.styles}
    things = keep_telling_tags([thing for thing in things if all(thing.code in art[style] for style in config.styles)])
    if not things:
        raise ValueError(f"no selected thing is drawn in every style of {', '.join(config.styles)}: select more groups")
    records = [(i, style) for style in config.styles for i in range(len(things))]
    pictures = torch.empty(len(records), 4, config.size, config.size, dtype=torch.uint8)
    for n, (i, style) in enumerate(tqdm(records, desc="rendering emoji", disable=None)):
        pictures[n] = render(art[style][things[i].code], config.size)
    return Emoji(things, pictures, records)


def read_art(style: str, tarball: Path, codes: set[str]) -> dict[str, bytes | str]:
    """Normalised code points => the picture as its package holds it: WebP bytes, or the text of an SVG."""
    if style == "3d":
        named = ((normalise(Path(name).stem), data) for name, data in members(tarball) if name.endswith(".webp"))
        return {code: data for code, data in named if code in codes}
    icons, names = read_json(tarball, "icons.json", "chars.json")
    wanted = {normalise(code): name for code, name in names.items() if normalise(code) in codes}
    return {code: svg(icons, name) for code, name in wanted.items() if name in icons["icons"]}


def svg(icons: dict[str, Any], name: str) -> str:
    """An icon of Iconify's JSON as a square SVG: the icon's own box wins over the set's, and stays centred."""
    icon = icons["icons"][name]
    left, top, width, height = (
        icon.get(key, icons.get(key, default)) for key, default in (("left", 0), ("top", 0), ("width", 16), ("height", 16))
    )
    side = max(width, height)
    box = f"{left - (side - width) / 2} {top - (side - height) / 2} {side} {side}"
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{box}">{icon["body"]}</svg>'
    )


def render(art: bytes | str, size: int) -> Tensor:
    """WebP bytes or SVG text => uint8 RGBA [4, size, size]."""
    if isinstance(art, str):
        side = OVERSAMPLING * size
        art = bytes(resvg_py.svg_to_bytes(svg_string=art, width=side, height=side, skip_system_fonts=True))
    with Image.open(io.BytesIO(art), formats=["PNG", "WEBP"]) as image:
        small = image.convert("RGBA").resize((size, size), Image.Resampling.LANCZOS)
    return torch.frombuffer(bytearray(small.tobytes()), dtype=torch.uint8).view(size, size, 4).permute(2, 0, 1)


# cache


def write_cache(path: Path, pictures: Tensor, manifest: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(f".{os.getpid()}.part")
    save_file({"pictures": pictures}, aside, metadata={"manifest": json.dumps(manifest, ensure_ascii=False)})
    os.replace(aside, path)


def read_cache(path: Path) -> Emoji:
    with safe_open(path, framework="pt") as file:
        manifest = json.loads(file.metadata()["manifest"])
        pictures = file.get_tensor("pictures")
    things = [Thing(**{k: tuple(v) if isinstance(v, list) else v for k, v in thing.items()}) for thing in manifest["things"]]
    return Emoji(things, pictures, [(i, style) for i, style in manifest["records"]])


# splits


def base_code(code: str) -> str:
    """Code points without skin tone and gender: variants follow their base into a split."""
    parts = [part for part in code.split("-") if not "1F3FB" <= part <= "1F3FF"]
    if parts[-1:] in (["2640"], ["2642"]) and parts[-2:-1] == ["200D"]:
        parts = parts[:-2]
    return "-".join(parts)


def held_out(thing: Thing, style: str) -> bool:
    """Whether (thing, style) belongs to the tenth kept from training: seen in other styles, never in this family."""
    return digest(base_code(thing.code) + FAMILIES.get(style, style)) % 10 == 0


def unseen(thing: Thing) -> bool:
    """Whether the thing belongs to the twentieth that is kept from training in every style."""
    return digest(base_code(thing.code)) % 20 == 0


def digest(text: str) -> int:
    return int(hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest(), 16)
