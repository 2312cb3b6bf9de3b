"""Figures that stand still: drawn wide and narrow, with number, caption and alternative text."""

import html
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from IPython.display import HTML, display
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogFormatterMathtext, NullFormatter
from torch import Tensor

from diffbook_lib.figures import picture
from diffbook_lib.figures.captions import framed
from diffbook_lib.figures.picture import NARROW, NARROW_STYLE, STYLE, WIDE, Drawn
from diffbook_lib.figures.plots import grid_of
from diffbook_lib.files import atomic_write

Draw = Callable[[Any], object]
LOWEST, HIGHEST = 2.2, 3.2  # inches of a panel on a phone
FINE = 1600  # pixels across a gallery, at least


def show(
    draw: Draw,
    *,
    name: str,
    alt: str,
    caption: str,
    size: tuple[float, float] = (WIDE, 3.4),
    panels: tuple[int, int] = (1, 1),
) -> None:
    """A numbered figure, drawn twice: wide, and narrow with the panels one below the other.

    draw(ax) draws it, or draw(axes) with a flat list of axes where `panels` (rows, columns)
    asks for several. It sets no size and no text below 8 points.

    name: unique on its page (lower case, digits, hyphens), the figure's anchor.
    alt: what the picture shows, for those who cannot see it.   caption: what to look for.
    size: inches of the wide form; 8.4 is the width of the text.
    Raises ValueError for empty or small texts and for a wrong name.
    """
    wide, narrow = forms(draw, size, panels)
    display(HTML(framed(name, caption, picture.img(wide, alt, narrow))))


def gallery(
    rows: Tensor | Mapping[str, Tensor],
    *,
    ncol: int = 20,
    name: str,
    alt: str,
    caption: str,
) -> None:
    """A numbered figure of images (n, 1 or 3, height, width) in [-1, 1], `ncol` in a row and half
    as many on a phone; with names, one grid below its name each.

    Raises Refused for integer levels, ValueError for another shape or empty texts.
    """
    grids = rows if isinstance(rows, Mapping) else {"": rows}
    parts: list[str] = []
    for title, images in grids.items():
        text = alt if not parts else f"{title}, a part of the same figure"
        above = f'<p class="diffbook-title">{html.escape(title)}</p>' if title else ""
        wide, narrow = (_pixels(images, n) for n in (ncol, max(1, ncol // 2)))
        parts.append(above + picture.img(wide, text, narrow))
    display(HTML(framed(name, caption, "".join(parts))))


def save(figure: Figure, path: Path, alt: str) -> None:
    """Writes a figure as PNG, making the folder, displays that picture and closes the figure.

    ValueError without an alternative text, and then nothing is written.
    """
    data = picture.png(figure)
    shown = picture.img(picture.drawn(figure, data), alt)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, data)
    plt.close(figure)
    display(
        HTML(f'<figure class="diffbook-figure" style="margin:0">{shown}</figure>')
    )


def forms(
    draw: Draw, size: tuple[float, float], panels: tuple[int, int]
) -> tuple[Drawn, Drawn | None]:
    """The wide and the narrow form; with a live kernel, which no phone has, only the wide one."""
    wide = _drawn(draw, size, panels, STYLE)
    if not picture.in_page():
        return wide, None
    rows, columns = panels
    height = NARROW * (size[1] / rows) / (size[0] / columns)
    return wide, _drawn(draw, (NARROW, height), (rows * columns, 1), NARROW_STYLE)


def _drawn(
    draw: Draw,
    size: tuple[float, float],
    panels: tuple[int, int],
    style: Any,
) -> Drawn:
    """One form. For the narrow one `size` is of one panel: pictures keep their proportions,
    axes get a height that their labels leave room in."""
    with plt.rc_context(style):
        figure = Figure(figsize=size)
        axes = list(figure.subplots(*panels, squeeze=False).flat)
        draw(axes[0] if len(axes) == 1 else axes)
        _write_logarithms(axes)
        if size[0] == NARROW:
            room = any(ax.axison for ax in axes)
            height = min(max(size[1], LOWEST), HIGHEST) if room else size[1]
            figure.set_size_inches(NARROW, panels[0] * height)
        return picture.drawn(figure, picture.png(figure, style))


def _write_logarithms(axes: list[Axes]) -> None:
    """Ticks of logarithmic axes as 0.001 or 1e-06: an exponent would be too small to read."""
    for axis in (axis for ax in axes for axis in (ax.xaxis, ax.yaxis)):
        if isinstance(axis.get_major_formatter(), LogFormatterMathtext):
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_formatter(NullFormatter())


def _pixels(images: Tensor, ncol: int) -> Drawn:
    """A grid of images, each of their pixels as a square of several, to stay sharp."""
    grid = (grid_of(images, ncol) * 255).round().byte().numpy()
    times = -(-FINE // grid.shape[1])
    sharp = grid.repeat(times, 0).repeat(times, 1)
    width = round(WIDE * picture.CSS_PIXELS_PER_INCH)
    height = round(width * grid.shape[0] / grid.shape[1])
    return Drawn(picture.webp(sharp), width, height, None)
