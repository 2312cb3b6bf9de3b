"""The book's style, and a figure as one HTML picture that carries its data and its text."""

import base64
import html
import io
import os
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from cycler import cycler
from IPython.display import HTML, display
from matplotlib.figure import Figure
from PIL import Image

from diffbook_lib.files import atomic_write

INK = "#7a7a7a"
# Blue, vermilion, green, purple, ochre, grey: contrast at least 3 to white and to the dark page,
# told apart with any common colour blindness.
COLOURS = ("#2f86c9", "#d9600f", "#159a76", "#b265b3", "#a88408", INK)
STYLE: Any = {
    "figure.figsize": (6.4, 3.6),
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
    "axes.titlesize": 11,
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
CSS_PIXELS_PER_INCH = 100


def style() -> None:
    """Sets matplotlib's defaults to the book's style; the first cell of a page calls it."""
    plt.rcParams.update(STYLE)


def in_page() -> bool:
    """Whether the code runs for the built page (no kernel later) rather than under a live one."""
    return os.environ.get("DIFFBOOK_PAGE", "") == "1"


def show(figure: Figure | None = None, *, alt: str, caption: str = "") -> None:
    """Displays a figure (default: the current one) and closes it.

    alt says what the picture shows, for those who cannot see it; ValueError without it.
    """
    figure = plt.gcf() if figure is None else figure
    below = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    _display(figure, img(png(figure), alt) + below)


def save(figure: Figure, path: Path, alt: str) -> None:
    """Writes a figure as PNG, making the folder, displays that picture and closes the figure.

    ValueError without an alternative text, and then nothing is written.
    """
    drawn = png(figure)
    shown = img(drawn, alt)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, drawn)
    _display(figure, shown)


def _display(figure: Figure, content: str) -> None:
    plt.close(figure)
    display(
        HTML(f'<figure class="diffbook-figure" style="margin:0">{content}</figure>')
    )


def png(figure: Figure) -> bytes:
    """The figure drawn in the book's style, on a transparent ground. Drawn once: what a layout
    makes of a figure can differ the second time."""
    drawn = io.BytesIO()
    with plt.rc_context(STYLE):
        figure.savefig(drawn, format="png")
    return drawn.getvalue()


def img(drawn: bytes, alt: str, *, hidden: bool = False) -> str:
    """A drawn figure as an <img> that carries its own data and never grows wider than the page.

    Raises ValueError for an empty alternative text.
    """
    if not alt.strip():
        raise ValueError(
            "alt is empty; say in a sentence or two what the picture shows"
        )
    data = base64.b64encode(webp(drawn)).decode()
    inches = Image.open(io.BytesIO(drawn)).width / STYLE["savefig.dpi"]
    return (
        f'<img class="diffbook-picture" src="data:image/webp;base64,{data}" '
        f'width="{round(inches * CSS_PIXELS_PER_INCH)}" '
        f'alt="{html.escape(alt)}" style="max-width:100%;height:auto;background:none"'
        f"{' hidden' if hidden else ''}>"
    )


def webp(drawn: bytes) -> bytes:
    """A drawn figure with colours rounded to 4 of 255 levels and half-transparent ones to 16:
    nothing to see, a third to a half of the bytes."""
    pixels = np.asarray(Image.open(io.BytesIO(drawn)).convert("RGBA")).astype(int)
    step = np.where(pixels[..., 3:] == 255, 4, 16)
    rounded = np.minimum((pixels + step // 2) // step * step, 255).astype(np.uint8)
    packed = io.BytesIO()
    Image.fromarray(rounded).save(packed, format="webp", lossless=True, method=4)
    return packed.getvalue()
