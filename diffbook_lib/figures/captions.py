"""The name, the number and the caption of a figure or a table."""

import html
import re
from typing import Literal

Kind = Literal["Figure", "Table"]


def framed(name: str, caption: str, content: str) -> str:
    """Content in HTML as a figure with its anchor, its caption and a place for its number.

    Raises ValueError for a wrong name or an empty caption.
    """
    return (
        f'<figure class="diffbook-figure" id="{anchor(name, "Figure")}" style="margin:0">'
        f"{content}{captioned(name, caption, 'Figure')}</figure>"
    )


def anchor(name: str, kind: Kind) -> str:
    """The id on the page, fig-NAME or tab-NAME; ValueError for a name that makes none."""
    if not re.fullmatch("[a-z0-9-]+", name):
        raise ValueError(
            f"name {name!r} may have lower case letters, digits and hyphens only"
        )
    return f"{kind[:3].lower()}-{name}"


def captioned(name: str, caption: str, kind: Kind) -> str:
    """The caption in HTML; the build writes its number. ValueError if it is empty."""
    if not caption.strip():
        raise ValueError(f"{name}: the caption is empty; say what to look for")
    number = (
        f'<span class="diffbook-number" data-kind="{kind}" data-name="{name}"></span>'
    )
    return f"<figcaption>{number}{html.escape(caption)}</figcaption>"
