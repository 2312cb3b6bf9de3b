"""A figure that moves in one parameter: widgets with a live kernel, plain HTML on the page."""

import html
import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import matplotlib.pyplot as plt
from IPython.display import HTML, display
from matplotlib.figure import Figure
from torch import Tensor

from diffbook_lib.figures.picture import STYLE, img, in_page, png

Frame = Callable[[int], str]  # the HTML of the frame of this index
LIMIT = 600_000  # bytes of one moving figure on the page; a whole page may weigh 3 MB


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

    def describe(value: Any) -> str:
        if callable(alt):
            return alt(value)
        return f"{alt} ({label}: {write(value)})" if alt.strip() else ""

    texts = [write(value) for value in values]
    _refuse(name, texts, start)

    @cache
    def frame(index: int) -> str:
        with plt.rc_context(STYLE):
            figure = Figure(figsize=size)
            draw(figure.subplots(*panels), values[index])
            return img(
                png(figure),
                describe(values[index]),
                hidden=in_page() and index != start,
            )

    if in_page():
        display(HTML(_frozen(name, label, texts, start, interval, frame)))
    else:
        display(_live(label, texts, start, interval, frame))


def _refuse(name: str, texts: list[str], start: int) -> None:
    """Raises ValueError where a reader could not use the figure."""
    if len(texts) < 2 or not 0 <= start < len(texts):
        raise ValueError(
            f"{name}: needs two values or more and start among them, got {texts}"
        )
    if len(set(texts)) < len(texts):
        raise ValueError(
            f"{name}: two values have the same text, choose a finer fmt: {texts}"
        )
    if not re.fullmatch("[a-z0-9-]+", name):
        raise ValueError(
            f"name {name!r} may have lower case letters, digits and hyphens only"
        )


def _live(
    label: str, texts: list[str], start: int, interval: int, frame: Frame
) -> Any:
    """The face with a live kernel: ipywidgets that ask for the frame they need."""
    import ipywidgets as widgets

    options = [(text, index) for index, text in enumerate(texts)]
    slider = widgets.SelectionSlider(options=options, value=start, description=label)
    slider.style.description_width = "initial"
    play = widgets.Play(min=0, max=len(texts) - 1, value=start, interval=interval)
    widgets.jslink((play, "value"), (slider, "index"))
    picture = widgets.HTML(frame(start))
    slider.observe(
        lambda change: setattr(picture, "value", frame(change["new"])), names="index"
    )
    return widgets.VBox([picture, widgets.HBox([play, slider])])


def _frozen(
    name: str, label: str, texts: list[str], start: int, interval: int, frame: Frame
) -> str:
    """The face without a kernel: every frame, a native range input and a few lines of script."""
    frames = "".join(frame(index) for index in range(len(texts)))
    if len(frames) > LIMIT:
        raise ValueError(
            f"{name}: the frames weigh {len(frames) / 1e3:.0f} kB of the {LIMIT / 1e3:.0f} "
            "kB a moving figure may have; use fewer values, fewer points or a smaller size"
        )
    shown, label = html.escape(texts[start]), html.escape(label)
    data = html.escape("|".join(text.replace("|", "/") for text in texts))
    return f"""<figure class="diffbook-moving" id="moving-{name}" role="group" aria-label="{label}"
  data-texts="{data}" data-interval="{interval}" style="margin:0"><style>{CSS}</style>
<div>{frames}</div>
<div class="diffbook-controls" hidden><button type="button" aria-label="Play">▶</button>
<label for="range-{name}">{label}</label><input type="range" id="range-{name}" min="0"
  max="{len(texts) - 1}" step="1" value="{start}" autocomplete="off" aria-valuetext="{shown}">
<output for="range-{name}" aria-live="off">{shown}</output></div></figure>
<script>({SCRIPT})(document.getElementById("moving-{name}"))</script>"""


# The attribute selector outweighs style sheets that give every picture a display of its own.
CSS = """
.diffbook-moving img[hidden], .diffbook-controls[hidden] { display: none !important }
.diffbook-controls { display: flex; align-items: center; gap: .6rem; max-width: 40rem }
.diffbook-controls input { flex: 1; min-width: 4rem; accent-color: #2f86c9 }
.diffbook-controls button { width: 2.4rem; height: 2.4rem; border: 1px solid #7a7a7a;
  border-radius: .4rem; background: none; color: inherit; font: inherit; cursor: pointer }
.diffbook-controls output { min-width: 5ch; font-variant-numeric: tabular-nums }
@media (prefers-reduced-motion: reduce) { .diffbook-controls button { display: none } }
"""

SCRIPT = """figure => {
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
