"""The book's style, and pixels as an HTML picture that carries its own data and its text."""

import base64
import html
import io
import os
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from cycler import cycler
from matplotlib.figure import Figure
from matplotlib.text import Text
from numpy.typing import NDArray
from PIL import Image
from scipy.spatial.distance import cdist

# One drawing serves both themes: each colour has a contrast of 4.5:1 or more to white and to
# black, which leaves one lightness, and multiples of 3 that webp() keeps.
INK = "#757575"
COLOURS = ("#307bb1", "#c65103", "#188466", "#ab54ab", "#907200", INK)
WIDE, NARROW = 8.4, 3.5  # inches: the width of the text, and of a phone's
CSS_PIXELS_PER_INCH = 100
SMALLEST = 8.0  # points; 11.1 pixels on the page
PALETTE = 255  # colours beside transparent: webp stores a picture of as few in half the bytes
NEAR = 48  # levels of 255 by which a rare colour may move
AREA = 1e-3  # the share of a picture from which on a colour is no edge of a line
PHONE = "(max-width: 600px)"
STYLE: Any = {
    "figure.figsize": (WIDE, 3.4),
    "figure.facecolor": "none",
    "figure.constrained_layout.use": True,
    "savefig.dpi": 144,
    "savefig.transparent": True,
    "font.size": 11,
    "text.color": INK,
    "axes.facecolor": "none",
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": "medium",
    "axes.prop_cycle": cycler(color=COLOURS),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": INK,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
}
NARROW_STYLE: Any = {**STYLE, "font.size": 10, "lines.linewidth": 1.5}


class Drawn(NamedTuple):
    """A drawn picture: its data as webp, its size on the page in CSS pixels, and the size of its
    smallest text there (None without text)."""

    data: bytes
    width: int
    height: int
    text: float | None


def style() -> None:
    """Sets matplotlib's defaults to the book's style; the first cell of a page calls it."""
    plt.rcParams.update(STYLE)


def in_page() -> bool:
    """Whether the code runs for the built page (no kernel later) rather than under a live one."""
    return os.environ.get("DIFFBOOK_PAGE", "") == "1"


def drawn(figure: Figure, data: bytes) -> Drawn:
    """A figure, and data that png() made of it, as they will stand on the page.

    Raises ValueError for a text below 8 points.
    """
    width, height = (
        round(side * CSS_PIXELS_PER_INCH) for side in figure.get_size_inches()
    )
    points = smallest_text(figure)
    text = None if points is None else round(points * CSS_PIXELS_PER_INCH / 72, 1)
    pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGBA"))
    return Drawn(webp(pixels), width, height, text)


def smallest_text(figure: Figure) -> float | None:
    """The size in points of the smallest text of a figure that was drawn; None without text.

    Raises ValueError for a text below 8 points, which nobody could read on a phone.
    """
    texts = [
        text
        for text in figure.findobj(Text)
        if isinstance(text, Text) and text.get_visible() and text.get_text().strip()
    ]
    sizes = {text.get_text(): float(text.get_fontsize()) for text in texts}
    small = [word for word, size in sizes.items() if size < SMALLEST - 0.01]
    if small:
        raise ValueError(
            f"texts below {SMALLEST:g} points: {', '.join(map(repr, small[:5]))}; leave the "
            "size to the style, or write less"
        )
    return min(sizes.values(), default=None)


def png(figure: Figure, style: Any = STYLE) -> bytes:
    """The figure drawn in a style, on a transparent ground. Drawn once: what a layout makes of
    a figure can differ the second time."""
    written = io.BytesIO()
    with plt.rc_context(style):
        figure.savefig(written, format="png")
    return written.getvalue()


def img(
    wide: Drawn, alt: str, narrow: Drawn | None = None, *, hidden: bool = False
) -> str:
    """A picture in HTML that never grows wider than the page; on a phone it is `narrow`.

    data-text-px is the size of the smallest text at the picture's own width.
    Raises ValueError for an empty alternative text.
    """
    if not alt.strip():
        raise ValueError(
            "alt is empty; say in a sentence or two what the picture shows"
        )
    image = (
        f'<img class="diffbook-picture" src="{_uri(wide)}"{_sizes(wide)} '
        f'alt="{html.escape(alt)}" style="max-width:100%;height:auto;background:none"'
        f"{' hidden' if hidden else ''}>"
    )
    if narrow is None:
        return image
    source = f'<source media="{PHONE}" srcset="{_uri(narrow)}"{_sizes(narrow)}>'
    return f"<picture>{source}{image}</picture>"


def _uri(picture: Drawn) -> str:
    return f"data:image/webp;base64,{base64.b64encode(picture.data).decode()}"


def _sizes(picture: Drawn) -> str:
    text = "" if picture.text is None else f' data-text-px="{picture.text}"'
    return f' width="{picture.width}" height="{picture.height}"{text}'


def webp(pixels: NDArray[np.uint8]) -> bytes:
    """Pixels (height, width, 4) as webp, rounded so that there is nothing to see and half of the
    bytes are saved: colours to 3 of 255 levels, which keeps INK, half-transparent ones to 13,
    opacity to 15, at the edges of lines and letters to 51."""
    inked = pixels[..., 3] > 0
    rounded = _rounded(pixels[inked], 15)
    found, places, counts = np.unique(
        _codes(rounded), return_inverse=True, return_counts=True
    )
    colours = _colours(found)
    edge = (counts < AREA * inked.size) & (colours[:, 3] < 255)
    colours[edge] = _rounded(colours[edge], 51)
    out = np.zeros_like(pixels)
    out[inked] = _few(colours, counts)[places]
    packed = io.BytesIO()
    Image.fromarray(out).save(packed, format="webp", lossless=True, method=4)
    return packed.getvalue()


def _rounded(colours: NDArray[np.uint8], opacity: int) -> NDArray[np.uint8]:
    """Colours (n, 4) rounded to 3 levels, half-transparent ones to 13, opacity to `opacity`."""
    values = colours.astype(np.uint16)
    step = np.where(values[:, 3:] == 255, 3, 13).repeat(4, 1)
    step[:, 3] = opacity
    rounded: NDArray[np.int64] = (values + step // 2) // step * step
    return np.minimum(rounded, 255).astype(np.uint8)


def _few(colours: NDArray[np.uint8], counts: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Colours (n, 4), of which some are the same, with all but the 255 most frequent replaced by
    the nearest of these; unchanged where that would move one by more than can be seen, as in a
    photograph."""
    codes, places = np.unique(_codes(colours), return_inverse=True)
    if not PALETTE < len(codes) <= 16 * PALETTE:
        return colours
    often = np.bincount(places, weights=counts)
    kept = np.argsort(-often)[:PALETTE]
    seen = _colours(codes).astype(float)
    seen[:, :3] *= seen[:, 3:] / 255
    away = cdist(seen, seen[kept])
    if away.min(1).max() > NEAR:
        return colours
    return _colours(codes[kept[away.argmin(1)]][places])


def _codes(colours: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """Colours (n, 4) as one number each."""
    return np.ascontiguousarray(colours).view(np.uint32)[:, 0]


def _colours(codes: NDArray[np.uint32]) -> NDArray[np.uint8]:
    """The colours (n, 4) of such numbers."""
    return np.ascontiguousarray(codes).view(np.uint8).reshape(-1, 4).copy()
