"""Tables: numbers aligned, with their spread over seeds, the floor set apart, the best marked."""

import html
import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from operator import itemgetter
from typing import Literal, NamedTuple, Protocol

from IPython.display import HTML, display

from diffbook_lib.figures.captions import anchor, captioned

Better = Literal["lower", "higher"]
ARROWS = {"lower": "↓", "higher": "↑"}
NUMBER = re.compile(r"[+−-]?[\d.,]+(e[+−-]?\d+)?( ?± ?[\d.,]+)?( ?%)?")
MISSING = "–"
NOTE = "Bold: the best of its column, and what its ± does not tell apart from it."


class Spread(NamedTuple):
    """Mean and standard deviation (n - 1) of one figure over seeds."""

    mean: float
    std: float


class HasSpread(Protocol):
    """What has a mean and a standard deviation, such as the spread of a record."""

    @property
    def mean(self) -> float: ...

    @property
    def std(self) -> float: ...


Cell = str | float | HasSpread | None


@dataclass(frozen=True)
class Columns:
    """What is the same down each column: name, side, format, which way is better."""

    names: Sequence[str]
    sides: Sequence[str]
    formats: Sequence[str]
    better: Mapping[str, Better]


def spread_of(values: Iterable[float]) -> Spread:
    """Mean and standard deviation (n - 1) of figures, one a seed; ValueError for fewer than two."""
    figures = [float(value) for value in values]
    if len(figures) < 2:
        raise ValueError(f"a spread needs two values or more, got {figures}")
    return Spread(statistics.fmean(figures), statistics.stdev(figures))


def table(
    columns: Sequence[str],
    rows: Sequence[Sequence[Cell]],
    *,
    name: str,
    caption: str,
    heads: Sequence[tuple[str, int]] = (),
    floor: Sequence[Cell] | None = None,
    better: Mapping[str, Better] | None = None,
    fmt: str | Mapping[str, str] = ".3g",
) -> None:
    """A numbered table; the first column holds the heads of the rows.

    rows: texts, numbers, what has a mean and a std, or None where there is nothing.
    heads: (text, columns it spans) over the columns, from the first.
    floor: one more row, set apart: what real examples or a perfect sampler give.
    better: in columns of these names the best figure is bold, and with it those whose
        mean ± standard deviation meets the best's.
    fmt: the format of numbers, or one a column (.3g where none is named); by "g" a deviation
        shows two digits, and the mean as many decimals.
    Raises ValueError for rows or heads of another length, unknown columns, a wrong name, or no
    caption.
    """
    place, above = anchor(name, "Table"), captioned(name, caption, "Table")
    better = dict(better or {})
    _refuse(columns, rows, heads, floor, better)
    cells = list(zip(*rows, strict=True))
    layout = Columns(
        columns,
        ["right" if _is_figures(column) else "left" for column in cells],
        [fmt if isinstance(fmt, str) else fmt.get(name, ".3g") for name in columns],
        better,
    )
    best = [
        _best(*pair) for pair in zip(cells, map(better.get, columns), strict=True)
    ]
    body = "".join(
        _row(row, layout, {i for i, found in enumerate(best) if number in found})
        for number, row in enumerate(rows)
    )
    foot = f"<tfoot>{_row(floor, layout, set())}</tfoot>" if floor is not None else ""
    note = f'<p class="diffbook-note">{NOTE}</p>' if better else ""
    shown = (
        f'<figure class="diffbook-table" id="{place}" style="margin:0">{above}'
        f'<div class="diffbook-scroll" tabindex="0" role="region" style="overflow-x:auto" '
        f'aria-label="{html.escape(caption)}"><table><thead>{_heads(heads)}{_head(layout)}'
        f"</thead><tbody>{body}</tbody>{foot}</table></div>{note}</figure>"
    )
    display(HTML(shown))


def _refuse(
    columns: Sequence[str],
    rows: Sequence[Sequence[Cell]],
    heads: Sequence[tuple[str, int]],
    floor: Sequence[Cell] | None,
    better: Mapping[str, Better],
) -> None:
    """Raises ValueError for what is no table."""
    if not rows or len(columns) < 2:
        raise ValueError("a table needs a row and two columns or more")
    for row in [*rows, *([] if floor is None else [floor])]:
        if len(row) != len(columns):
            raise ValueError(
                f"{len(columns)} columns, but the row {list(row)} has {len(row)}"
            )
    spanned = sum(span for _, span in heads)
    if heads and spanned != len(columns):
        raise ValueError(f"heads span {spanned} columns of {len(columns)}")
    for column, way in better.items():
        if column not in columns[1:]:
            raise ValueError(
                f"better names {column!r}; the columns are {list(columns[1:])}"
            )
        if way not in ARROWS:
            raise ValueError(f"better[{column!r}] is lower or higher, not {way!r}")


def _figure(cell: Cell) -> tuple[float, float | None] | None:
    """A cell as a figure and its deviation, where it has one; None for what is no figure."""
    mean, std = getattr(cell, "mean", None), getattr(cell, "std", None)
    if isinstance(mean, Real) and isinstance(std, Real):
        return float(mean), float(std)
    if cell is None or isinstance(cell, str):
        return None
    return float(cell), None  # type: ignore[arg-type]


def _best(cells: Sequence[Cell], way: Better | None) -> set[int]:
    """The indices of the best figure of a column and of those not told apart from it."""
    figures = {i: found for i, cell in enumerate(cells) if (found := _figure(cell))}
    if way is None or not figures:
        return set()
    best, around = (min if way == "lower" else max)(
        figures.values(), key=itemgetter(0)
    )
    return {
        i
        for i, (mean, std) in figures.items()
        if abs(mean - best) <= (std or 0) + (around or 0)
    }


def _is_figures(cells: Sequence[Cell]) -> bool:
    """Whether a column is of figures, which stand to the right."""
    texts = [
        cell for cell in cells if isinstance(cell, str) and cell not in ("", MISSING)
    ]
    return all(NUMBER.fullmatch(text) for text in texts)


def _written(cell: Cell, fmt: str) -> str:
    """A cell as text; a long number has commas instead of a power of ten."""
    if cell is None or isinstance(cell, str):
        return MISSING if cell is None else cell
    if isinstance(cell, int):
        return f"{cell:,}"
    value, std = _figure(cell) or (math.nan, None)
    if fmt.endswith("g") and std:
        fmt = f",.{max(0, 1 - math.floor(math.log10(std)))}f"
    elif fmt.endswith("g") and abs(value) >= 1000:
        fmt = ",.0f"
    return format(value, fmt) + ("" if std is None else f" ± {std:{fmt}}")


def _row(cells: Sequence[Cell], layout: Columns, bold: set[int]) -> str:
    """One line of the table, its first cell the head of the row."""
    parts = []
    for i, (cell, side) in enumerate(zip(cells, layout.sides, strict=True)):
        text = html.escape(_written(cell, layout.formats[i]))
        if side == "right":
            text = text.replace("-", "−")
        text = f"<strong>{text}</strong>" if i in bold else text
        tag, scope = ("th", ' scope="row"') if i == 0 else ("td", "")
        parts.append(f"<{tag}{scope}{_style(side)}>{text}</{tag}>")
    return f"<tr>{''.join(parts)}</tr>"


def _head(layout: Columns) -> str:
    """The names of the columns; an arrow says which way is better."""
    parts = []
    for name, side in zip(layout.names, layout.sides, strict=True):
        way = layout.better.get(name)
        arrow = f' <span title="{way} is better">{ARROWS[way]}</span>' if way else ""
        parts.append(f'<th scope="col"{_style(side)}>{html.escape(name)}{arrow}</th>')
    return f"<tr>{''.join(parts)}</tr>"


def _heads(heads: Sequence[tuple[str, int]]) -> str:
    """The row of heads over groups of columns."""
    parts = []
    for text, span in heads:
        tag, scope = ("th", ' scope="colgroup"') if text else ("td", "")
        inner = html.escape(text)
        parts.append(
            f'<{tag} colspan="{span}"{scope}{_style("center")}>{inner}</{tag}>'
        )
    return f"<tr>{''.join(parts)}</tr>" if heads else ""


def _style(side: str) -> str:
    return f' style="text-align:{side};font-variant-numeric:tabular-nums"'
