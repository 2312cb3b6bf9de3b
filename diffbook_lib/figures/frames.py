"""A figure that moves in one parameter: widgets with a live kernel, plain HTML on the page."""

import html
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from IPython.display import HTML, display
from torch import Tensor

from diffbook_lib.figures import picture
from diffbook_lib.figures.captions import anchor, captioned, framed
from diffbook_lib.figures.picture import WIDE
from diffbook_lib.figures.stills import forms

Frame = Callable[[int], str]  # the HTML of the frame of this index
LIMIT = 600_000  # bytes of one moving figure on the page; a whole page may weigh 3 MB


def moving(
    values: Sequence[Any] | Tensor,
    draw: Callable[[Any, Any], object],
    *,
    name: str,
    label: str,
    alt: str | Callable[[Any], str],
    caption: str,
    fmt: str | Callable[[Any], str] = "",
    start: int = 0,
    size: tuple[float, float] = (WIDE, 3.4),
    panels: tuple[int, int] = (1, 1),
    interval: int = 400,
) -> None:
    """A figure that moves in one parameter: a slider over `values` and a play button.

    draw(ax, value) draws one frame, with a flat list of axes instead of ax where `panels` (rows,
    columns) asks for several, as in show(); let it set the axis limits, so that nothing jumps.
    With a live kernel each move draws anew; on the built page all frames are there, wide and
    narrow, and no kernel is needed.

    name, caption, size: as in show().   label: what the slider changes.
    alt: text for every frame, or a function of the value.   fmt: format spec or function.
    start: index of the value shown first, and alone where scripts are off.
    interval: milliseconds a frame when playing.
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
        value = values[index]
        wide, narrow = forms(lambda axes: draw(axes, value), size, panels)
        hidden = picture.in_page() and index != start
        return picture.img(wide, describe(value), narrow, hidden=hidden)

    if picture.in_page():
        frozen = _frozen(name, label, texts, start, interval, frame)
        display(HTML(framed(name, caption, frozen)))
    else:
        below = captioned(name, caption, "Figure")
        display(_live(label, texts, start, interval, frame, below))


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
    anchor(name, "Figure")


def _live(
    label: str, texts: list[str], start: int, interval: int, frame: Frame, below: str
) -> Any:
    """The face with a live kernel: ipywidgets that ask for the frame they need."""
    import ipywidgets as widgets

    options = [(text, index) for index, text in enumerate(texts)]
    slider = widgets.SelectionSlider(options=options, value=start, description=label)
    slider.style.description_width = "initial"
    play = widgets.Play(min=0, max=len(texts) - 1, value=start, interval=interval)
    widgets.jslink((play, "value"), (slider, "index"))
    view = widgets.HTML(frame(start))
    slider.observe(
        lambda change: setattr(view, "value", frame(change["new"])), names="index"
    )
    return widgets.VBox([view, widgets.HBox([play, slider]), widgets.HTML(below)])


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
    return f"""<div class="diffbook-moving" id="moving-{name}" role="group" aria-label="{label}"
  data-texts="{data}" data-interval="{interval}"><style>{CSS}</style>
<div>{frames}</div>
<div class="diffbook-controls" hidden><button type="button" aria-label="Play">▶</button>
<label for="range-{name}">{label}</label><input type="range" id="range-{name}" min="0"
  max="{len(texts) - 1}" step="1" value="{start}" autocomplete="off" aria-valuetext="{shown}">
<output for="range-{name}" aria-live="off">{shown}</output></div></div>
<script>({SCRIPT})(document.getElementById("moving-{name}"))</script>"""


# The attribute selector outweighs style sheets that give every picture a display of its own.
CSS = """
.diffbook-moving img[hidden], .diffbook-controls[hidden] { display: none !important }
.diffbook-controls { display: flex; align-items: center; gap: .6rem; max-width: 52.5rem }
.diffbook-controls input { flex: 1; min-width: 4rem; accent-color: #307bb1 }
.diffbook-controls button { width: 2.4rem; height: 2.4rem; border: 1px solid #757575;
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
