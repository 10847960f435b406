"""What is said of an emoji: its name, style and background in English or Japanese, drawn anew each time."""

import random
import re
from typing import NamedTuple

from train.emoji import Thing


class Colour(NamedTuple):
    en: str
    ja: str
    rgb: tuple[int, int, int]


WHITE = Colour("white", "白", (255, 255, 255))
COLOURS = (  # soft, yet each true to its name
    Colour("black", "黒", (28, 28, 32)),
    Colour("grey", "灰色", (172, 176, 182)),
    Colour("red", "赤", (222, 82, 80)),
    Colour("orange", "オレンジ色", (246, 158, 78)),
    Colour("yellow", "黄色", (252, 220, 96)),
    Colour("green", "緑", (118, 190, 122)),
    Colour("light blue", "水色", (168, 218, 242)),
    Colour("blue", "青", (84, 130, 220)),
    Colour("purple", "紫", (156, 116, 204)),
    Colour("pink", "ピンク", (248, 176, 200)),
    Colour("brown", "茶色", (150, 108, 78)),
)
STYLE_WORDS = {
    "3d": (("3D render", "3D illustration", "glossy icon"), ("3Dイラスト", "立体的なイラスト", "3Dアイコン")),
    "flat": (("flat vector illustration", "flat illustration", "flat icon"),
             ("フラットなイラスト", "平面的なイラスト", "フラットアイコン")),
    "noto": (("detailed illustration", "Noto emoji"), ("細やかなイラスト", "Noto絵文字")),
    "twemoji": (("simple illustration", "Twemoji emoji"), ("シンプルなイラスト", "Twemoji絵文字")),
}  # fmt: skip

ENGLISH = 0.6  # the rest is Japanese
PLAIN = 0.5  # captions without a word on style: a bare name must do for any style

UNCOUNTED = frozenset({
    "bacon", "bread", "broccoli", "butter", "coral", "fire", "food", "garlic", "ice", "meat", "oden", "popcorn",
    "rice", "sake", "salt", "shaved ice", "spaghetti", "sushi", "thread", "wood", "yarn",
})  # fmt: skip
NO_PLURAL = re.compile(r"(ss|us|tennis|lens)$")
SOUNDS_CONSONANT = re.compile(r"(uni|use|uti|eu|ewe|one)", re.IGNORECASE)
SOUNDS_VOWEL = re.compile(r"([aeiou8]|hour|honest|heir|x-)", re.IGNORECASE)


def caption(thing: Thing, style: str, background: Colour | None, rng: random.Random) -> str:
    """A caption of `thing` in `style`; about one in three is the name alone. No background, none mentioned."""
    words = english if rng.random() < ENGLISH else japanese
    return words(thing, style, background, rng)


def english(thing: Thing, style: str, background: Colour | None, rng: random.Random) -> str:
    roll = rng.random()
    full = name = with_article(thing.label_en)
    if thing.tags_en and roll < 0.08:
        full = name = rng.choice(thing.tags_en)
    elif thing.tags_en and roll < 0.16:
        name = f"{thing.label_en}, {rng.choice(thing.tags_en)}"
    elif roll < 0.45:
        name = thing.label_en
    where = ""
    if background is not None:
        where = rng.choice((f" on {with_article(background.en)} background", f", {background.en} background"))
    if rng.random() < PLAIN:
        return name + where
    manner = rng.choice(STYLE_WORDS[style][0])
    return rng.choice((f"{with_article(manner)} of {full}{where}", f"{name}{where}, {manner}"))


def japanese(thing: Thing, style: str, background: Colour | None, rng: random.Random) -> str:
    roll = rng.random()
    name = thing.label_ja
    if thing.tags_ja and roll < 0.3:  # some labels are odd: tags bring the everyday word and other scripts
        name = rng.choice(thing.tags_ja)
    elif thing.tags_ja and roll < 0.45:
        name = f"{thing.label_ja}、{rng.choice(thing.tags_ja)}"
    where = "" if background is None else rng.choice((f"{background.ja}背景の", f"{background.ja}の背景の"))
    if rng.random() < PLAIN:
        return where + name
    manner = rng.choice(STYLE_WORDS[style][1])
    return where + rng.choice((f"{name}の{manner}", f"{name}、{manner}"))


def with_article(noun: str) -> str:
    """The noun with "a" or "an" where English wants one: not before plurals and uncounted stuff."""
    head = re.split(r" (?:with|of|in|on|over|without) ", noun)[0].split()[-1]
    if head in UNCOUNTED or (head.endswith("s") and not NO_PLURAL.search(head)):
        return noun
    return f"{'an' if SOUNDS_VOWEL.match(noun) and not SOUNDS_CONSONANT.match(noun) else 'a'} {noun}"
