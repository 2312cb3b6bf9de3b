"""Figures for the pages: still, moving, and the library's own source.

A picture is drawn once, on a transparent ground in mid-tone colours that carry on white and on
black, and shown as HTML with its alternative text, so JupyterLab and the built page show the same.
"""

import ast
import base64
import html
import inspect
import io
import math
import os
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from cycler import cycler
from IPython.display import HTML, Markdown, display
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

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
    "font.size": 10,
    "text.color": INK,
    "axes.facecolor": "none",
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 10,
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
MOVING_LIMIT = 600_000  # bytes of one moving figure on the page; a whole page may weigh 3 MB


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
    if not alt.strip():
        raise ValueError("alt is empty; say in a sentence or two what the picture shows")
    figure = plt.gcf() if figure is None else figure
    below = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    block = f'<figure class="diffbook-figure" style="margin:0">{_img(figure, alt)}{below}'
    plt.close(figure)
    display(HTML(block + "</figure>"))


def _img(figure: Figure, alt: str, *, hidden: bool = False) -> str:
    """The figure as an <img> that carries its own data and never grows wider than the page."""
    data = base64.b64encode(_webp(figure)).decode()
    width = round(figure.get_figwidth() * CSS_PIXELS_PER_INCH)
    return (
        f'<img class="diffbook-picture" src="data:image/webp;base64,{data}" width="{width}" '
        f'alt="{html.escape(alt)}" style="max-width:100%;height:auto;background:none"'
        f"{' hidden' if hidden else ''}>"
    )


def _webp(figure: Figure) -> bytes:
    """The figure's pixels, colours rounded to 4 of 255 levels and half-transparent ones to 16:
    nothing to see, a third to a half of the bytes."""
    drawn, packed = io.BytesIO(), io.BytesIO()
    with plt.rc_context(STYLE):
        figure.savefig(drawn, format="png")
    pixels = np.asarray(Image.open(drawn).convert("RGBA")).astype(int)
    step = np.where(pixels[..., 3:] == 255, 4, 16)
    rounded = np.minimum((pixels + step // 2) // step * step, 255).astype(np.uint8)
    Image.fromarray(rounded).save(packed, format="webp", lossless=True, method=4)
    return packed.getvalue()


def moving(
    values: Sequence[Any] | Tensor,
    draw: Callable[[Any, Any], object],
    *,
    name: str,
    label: str,
    alt: str | Callable[[Any], str],
    fmt: str | Callable[[Any], str] = "",
    start: int = 0,
    size: tuple[float, float] = (6.4, 3.6),
    panels: tuple[int, int] = (1, 1),
    interval: int = 400,
) -> None:
    """A figure that moves in one parameter: a slider over `values` and a play button.

    draw(ax, value) draws one frame, with the array of axes instead of ax when `panels` (rows,
    columns) asks for several; let it set the axis limits, so that nothing jumps. With a live
    kernel each move draws anew; on the built page all frames are there and no kernel is needed.

    name: unique on its page (lower case, digits, hyphens).   label: what the slider changes.
    alt: text for every frame, or a function of the value.    fmt: format spec or function.
    start: index of the value shown first, and alone where scripts are off.
    interval: milliseconds a frame when playing.   size: inches; 6.4 is the width of the text.
    Raises ValueError for too few values, texts that are empty or alike, or too heavy frames.
    """
    values = values.tolist() if isinstance(values, Tensor) else list(values)
    write = fmt if callable(fmt) else lambda value: format(value, fmt)
    describe = alt if callable(alt) else lambda value: f"{alt} ({label}: {write(value)})"
    texts = [write(value) for value in values]
    if len(values) < 2 or not 0 <= start < len(values):
        raise ValueError(f"{name}: needs two values or more and start among them, got {texts}")
    if len(set(texts)) < len(texts):
        raise ValueError(f"{name}: two values have the same text, choose a finer fmt: {texts}")
    if not re.fullmatch("[a-z0-9-]+", name):
        raise ValueError(f"name {name!r} may have lower case letters, digits and hyphens only")
    if not (alt if isinstance(alt, str) else describe(values[start])).strip():
        raise ValueError(f"{name}: alt is empty; say what the picture shows")

    @cache
    def frame(index: int) -> str:
        with plt.rc_context(STYLE):
            figure = Figure(figsize=size)
            draw(figure.subplots(*panels), values[index])
            return _img(figure, describe(values[index]), hidden=in_page() and index != start)

    if in_page():
        display(HTML(_frozen(name, label, texts, start, interval, frame)))
    else:
        display(_live(label, texts, start, interval, frame))


def _live(label: str, texts: list[str], start: int, interval: int, frame) -> Any:
    """The face with a live kernel: ipywidgets that ask for the frame they need."""
    import ipywidgets as widgets

    options = [(text, index) for index, text in enumerate(texts)]
    slider = widgets.SelectionSlider(options=options, value=start, description=label)
    slider.style.description_width = "initial"
    play = widgets.Play(min=0, max=len(texts) - 1, value=start, interval=interval)
    widgets.jslink((play, "value"), (slider, "index"))
    picture = widgets.HTML(frame(start))
    slider.observe(lambda change: setattr(picture, "value", frame(change["new"])), names="index")
    return widgets.VBox([picture, widgets.HBox([play, slider])])


def _frozen(name: str, label: str, texts: list[str], start: int, interval: int, frame) -> str:
    """The face without a kernel: every frame, a native range input and a few lines of script."""
    frames = "".join(frame(index) for index in range(len(texts)))
    if len(frames) > MOVING_LIMIT:
        raise ValueError(
            f"{name}: the frames weigh {len(frames) / 1e3:.0f} kB of the {MOVING_LIMIT / 1e3:.0f} "
            "kB a moving figure may have; use fewer values, fewer points or a smaller size"
        )
    shown, label = html.escape(texts[start]), html.escape(label)
    data = html.escape("|".join(text.replace("|", "/") for text in texts))
    return f"""<figure class="diffbook-moving" id="moving-{name}" role="group" aria-label="{label}"
  data-texts="{data}" data-interval="{interval}" style="margin:0"><style>{_MOVING_CSS}</style>
<div>{frames}</div>
<div class="diffbook-controls" hidden><button type="button" aria-label="Play">▶</button>
<label for="range-{name}">{label}</label><input type="range" id="range-{name}" min="0"
  max="{len(texts) - 1}" step="1" value="{start}" autocomplete="off" aria-valuetext="{shown}">
<output for="range-{name}" aria-live="off">{shown}</output></div></figure>
<script>({_MOVING_SCRIPT})(document.getElementById("moving-{name}"))</script>"""


# The attribute selector outweighs style sheets that give every picture a display of its own.
_MOVING_CSS = """
.diffbook-moving img[hidden], .diffbook-controls[hidden] { display: none !important }
.diffbook-controls { display: flex; align-items: center; gap: .6rem; max-width: 40rem }
.diffbook-controls input { flex: 1; min-width: 4rem; accent-color: #2f86c9 }
.diffbook-controls button { width: 2.4rem; height: 2.4rem; border: 1px solid #7a7a7a;
  border-radius: .4rem; background: none; color: inherit; font: inherit; cursor: pointer }
.diffbook-controls output { min-width: 5ch; font-variant-numeric: tabular-nums }
@media (prefers-reduced-motion: reduce) { .diffbook-controls button { display: none } }
"""

_MOVING_SCRIPT = """figure => {
  const frames = figure.querySelectorAll("img"), range = figure.querySelector("input");
  const button = figure.querySelector("button"), output = figure.querySelector("output");
  const texts = figure.dataset.texts.split("|");
  let timer = null;
  const turn = to => {
    range.value = to;
    frames.forEach((frame, index) => { frame.hidden = index !== Number(to); });
    output.value = texts[to];
    range.setAttribute("aria-valuetext", texts[to]);
  };
  const stop = () => {
    clearInterval(timer); timer = null;
    button.textContent = "▶"; button.setAttribute("aria-label", "Play");
  };
  const step = () => {
    if (Number(range.value) < frames.length - 1) turn(Number(range.value) + 1); else stop();
  };
  button.onclick = () => {
    if (timer !== null) return stop();
    if (Number(range.value) === frames.length - 1) turn(0);
    timer = setInterval(step, Number(figure.dataset.interval));
    button.textContent = "❚❚"; button.setAttribute("aria-label", "Pause");
  };
  range.oninput = () => { stop(); turn(range.value); };
  figure.querySelector(".diffbook-controls").hidden = false;
}"""


def image_grid(x: Tensor, ncol: int = 10, *, ax: Axes | None = None, width: float = 6.4) -> Figure:
    """Images (n, 1 or 3, height, width) in [-1, 1] as one picture, row by row, `ncol` in a row.

    Draws into `ax`, or into a new figure of `width` inches.
    """
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        raise ValueError(f"images are (n, 1 or 3, height, width), got {tuple(x.shape)}")
    n, _, h, w = x.shape
    nrow, gap = math.ceil(n / ncol), max(1, h // 16)
    grid = torch.zeros(nrow * (h + gap) - gap, ncol * (w + gap) - gap, 4)
    pixels = ((x.detach().float().cpu().clamp(-1, 1) + 1) / 2).expand(-1, 3, -1, -1)
    for index, image in enumerate(pixels.permute(0, 2, 3, 1)):
        top, left = index // ncol * (h + gap), index % ncol * (w + gap)
        grid[top : top + h, left : left + w] = torch.cat([image, torch.ones(h, w, 1)], dim=-1)
    if ax is None:
        height = width * grid.shape[0] / grid.shape[1]
        ax = plt.figure(figsize=(width, height), layout="none").add_axes((0, 0, 1, 1))
    ax.imshow(grid.numpy(), interpolation="nearest")
    ax.set_axis_off()
    return _figure_of(ax)


def scatter(
    clouds: Mapping[str, Tensor], *, lim: float | None = None, ncol: int = 4, width: float = 6.4
) -> Figure:
    """Two-dimensional point clouds (n, 2) side by side, one panel a name, all on one scale.

    lim: the axes run from -lim to lim (default: the largest of all finite coordinates).
    """
    ncol = min(ncol, len(clouds))
    nrow = math.ceil(len(clouds) / ncol)
    points = {name: cloud.detach().double().cpu() for name, cloud in clouds.items()}
    if lim is None:
        every = torch.cat([cloud.flatten() for cloud in points.values()])
        lim = 1.05 * float(every[every.isfinite()].abs().max())
    figure, axes = plt.subplots(
        nrow, ncol, figsize=(width, nrow * (width / ncol + 0.25)), squeeze=False
    )
    for ax in axes.flat[len(points) :]:
        ax.set_axis_off()
    for ax, (name, cloud) in zip(axes.flat, points.items(), strict=False):
        size = min(8.0, max(1.0, 2500 / max(len(cloud), 1)))
        ax.scatter(*cloud.T, s=size, alpha=0.6, linewidths=0)
        ax.set(title=name, xlim=(-lim, lim), ylim=(-lim, lim), aspect="equal")
        ax.label_outer()
    return figure


def trajectories(
    paths: Tensor, times: Tensor | None = None, *, ax: Axes | None = None, colour: str = COLOURS[0]
) -> Figure:
    """The way of each sample: paths (steps, n, 2) in the plane, or (steps, n) over `times`.

    A hollow circle marks the start, a full one the end.
    """
    if paths.ndim not in (2, 3) or (paths.ndim == 3 and paths.shape[-1] != 2):
        raise ValueError(f"paths are (steps, n, 2) or (steps, n), got {tuple(paths.shape)}")
    paths = paths.detach().double().cpu()
    if paths.ndim == 3:
        across, up = paths.unbind(-1)
    else:
        clock = torch.arange(len(paths)) if times is None else times.detach().cpu()
        across, up = clock[:, None].expand_as(paths), paths
    ax = plt.subplots()[1] if ax is None else ax
    ax.plot(across, up, color=colour, alpha=0.5, linewidth=0.9)
    ax.scatter(across[0], up[0], s=12, facecolors="none", edgecolors=INK, zorder=3)
    ax.scatter(across[-1], up[-1], s=12, color=colour, zorder=3)
    if paths.ndim == 3:
        ax.set_aspect("equal")
    return _figure_of(ax)


def _figure_of(ax: Axes) -> Figure:
    figure = ax.get_figure(root=True)
    assert figure is not None
    return figure


def show_source(*objects: Any, docstring: bool = False) -> None:
    """Puts the library's own source of functions, classes or methods on the page."""
    for thing in objects:
        lines, first = inspect.getsourcelines(thing)
        source = textwrap.dedent("".join(lines)).rstrip()
        path = Path(inspect.getsourcefile(thing) or "").parts
        place = "/".join(path[path.index("diffbook_lib") :]) if "diffbook_lib" in path else path[-1]
        shown = source if docstring else _without_docstring(source)
        title = f"`{thing.__module__}.{thing.__qualname__}` ({place}, line {first})"
        display(Markdown(f"{title}\n\n```python\n{shown}\n```"))


def _without_docstring(source: str) -> str:
    """The source without the docstring of the function or class itself."""
    body = ast.parse(source).body[0].body  # type: ignore[attr-defined]
    if not (isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant)):
        return source
    if len(body) == 1 or not isinstance(body[0].value.value, str):
        return source
    lines = source.splitlines()
    after = lines[body[0].end_lineno :]
    while after and not after[0].strip():
        after = after[1:]
    return "\n".join(lines[: body[0].lineno - 1] + after)
