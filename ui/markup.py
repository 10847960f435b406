"""The parts of the page that are ours and no widget's: HTML in which nothing but what is written here is markup.

Whatever comes from a prompt or a file goes through `tag`, which escapes it.
"""

from collections.abc import Iterable
from typing import Any

# HTML's own, and what the page's templates (JavaScript's, Handlebars', Gradio's "@children") would take for theirs.
ESCAPES = {ord(character): f"&#{ord(character)};" for character in "&<>\"'`${}@"}
VOID = ("img",)


class Markup(str):
    """Text that is markup already."""


def tag(name: str, *inside: str | Markup, **attributes: Any) -> Markup:
    """An element; attributes are written as class_ or data_pick, and left out where they are None."""
    said = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{str(value).translate(ESCAPES)}"'
        for key, value in attributes.items()
        if value is not None
    )
    body = "".join(part if isinstance(part, Markup) else part.translate(ESCAPES) for part in inside)
    return Markup(f"<{name}{said}>" if name in VOID else f"<{name}{said}>{body}</{name}>")


def join(parts: Iterable[Markup]) -> Markup:
    return Markup("".join(parts))
