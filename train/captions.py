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
OTHER_NAME = 0.35  # where a thing has one: "car", not "automobile"; りんご, not 赤リンゴ
PLAIN = 0.5  # captions without a word on style: a bare name must do for any style

UNCOUNTED = frozenset({
    "archery", "art", "bacon", "badminton", "bowling", "bread", "broccoli", "butter", "cheese", "cooking",
    "coral", "corn", "curry", "feet", "fire", "food", "garlic", "golf", "hockey", "ice", "luggage", "meat",
    "oden", "ping pong", "popcorn", "ramen", "rice", "sake", "salt", "shaved ice", "soccer", "spaghetti",
    "sushi", "table tennis", "tennis", "thread", "wood", "yarn",
    "rainy", "sunny",  # no nouns, yet names that people give
})  # fmt: skip
SINGULAR = re.compile(r"(ss|us|os|lens)$")
SOUNDS_CONSONANT = re.compile(r"(uni|use|uti|eu|ewe|one)", re.IGNORECASE)
SOUNDS_VOWEL = re.compile(r"([aeiou8]|hour|honest|heir|x-)", re.IGNORECASE)


def caption(thing: Thing, style: str, background: Colour | None, rng: random.Random) -> str:
    """A caption of `thing` in `style`; a `background` of None goes unsaid. One in three is a name alone."""
    words = english if rng.random() < ENGLISH else japanese
    return words(thing, style, background, rng)


def english(thing: Thing, style: str, background: Colour | None, rng: random.Random) -> str:
    noun = rng.choice(thing.names_en) if thing.names_en and rng.random() < OTHER_NAME else thing.label_en
    full, roll = with_article(noun), rng.random()
    name = full if roll < 0.6 else noun
    if thing.tags_en and roll > 0.9:
        name = f"{noun}, {rng.choice(thing.tags_en)}"
    where = ""
    if background is not None:
        where = rng.choice((f" on {with_article(background.en)} background", f", {background.en} background"))
    if rng.random() < PLAIN:
        return name + where
    manner = rng.choice(STYLE_WORDS[style][0])
    return rng.choice((f"{with_article(manner)} of {full}{where}", f"{name}{where}, {manner}"))


def japanese(thing: Thing, style: str, background: Colour | None, rng: random.Random) -> str:
    name, roll = thing.label_ja, rng.random()
    if thing.tags_ja and roll < OTHER_NAME:  # some labels are odd: tags bring everyday words
        name = rng.choice(thing.tags_ja)
    elif thing.tags_ja and roll > 0.85:
        name = f"{thing.label_ja}、{rng.choice(thing.tags_ja)}"
    where = "" if background is None else rng.choice((f"{background.ja}背景の", f"{background.ja}の背景の"))
    if rng.random() < PLAIN:
        return where + name
    manner = rng.choice(STYLE_WORDS[style][1])
    return where + rng.choice((f"{name}の{manner}", f"{name}、{manner}"))


def with_article(noun: str) -> str:
    """The noun with "a" or "an" where English wants one: not before plurals and uncounted stuff."""
    head = re.split(r" (?:with|without|of|in|on|over|tilted) ", noun)[0].split()[-1]
    plural = head.endswith("s") and not SINGULAR.search(head)
    if plural or noun in UNCOUNTED or head in UNCOUNTED:
        return noun
    return f"{'an' if SOUNDS_VOWEL.match(noun) and not SOUNDS_CONSONANT.match(noun) else 'a'} {noun}"
