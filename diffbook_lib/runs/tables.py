"""The figures of a record crossed by two of their coordinates, as figures.table takes them."""

from collections.abc import Callable, Sequence
from math import inf
from typing import Any, NamedTuple

from diffbook_lib.metrics import Measurement
from diffbook_lib.runs.records import Record, RecordError, Spread, spreads

Cell = str | float | Spread | None


class Crossed(NamedTuple):
    """A table but for its name and its caption: figures.table(**crossed(…)._asdict(), name=…)."""

    columns: list[str]
    rows: list[list[Cell]]
    heads: list[tuple[str, int]]
    floor: list[Cell] | None
    better: dict[str, str]


def crossed(
    record: Record,
    *measures: str,
    rows: Sequence[str],
    columns: str | None = None,
    **at: Any,
) -> Crossed:
    """Figures of these names at these coordinates, one row for each value of the coordinates
    `rows`; over the seeds as their spread.

    With `columns` one measure is crossed by that coordinate, such as "nfe"; without, each measure
    is a column. Figures without all of these coordinates are left out. Raises RecordError where
    none is left, or where two figures would share a place.
    """
    if columns is not None and len(measures) != 1:
        raise ValueError(f"{columns!r} crosses one measure, but {measures} are given")
    names = [*rows, *([] if columns is None else [columns])]
    chosen = _chosen(record, measures, names, at)

    def column_of(found: Measurement | Spread) -> str:
        return found.name if columns is None else str(found.at[columns])

    def row_of(found: Measurement | Spread) -> str:
        return ", ".join(str(found.at[name]) for name in rows)

    order = dict.fromkeys(map(row_of, chosen))
    if columns is not None:
        chosen.sort(key=lambda found: _order(found.at[columns]))
    heads = list(dict.fromkeys(map(column_of, chosen)))
    cells = _cells(chosen, lambda found: (row_of(found), column_of(found)))
    return Crossed(
        [", ".join(rows), *heads],
        [[row, *(cells.get((row, head)) for head in heads)] for row in order],
        [] if columns is None else [("", 1), (columns, len(heads))],
        _floor([[f for f in chosen if column_of(f) == head] for head in heads]),
        {
            column_of(found): found.better
            for found in chosen
            if found.better != "equal"
        },
    )


def _chosen(
    record: Record, measures: Sequence[str], names: Sequence[str], at: dict[str, Any]
) -> list[Measurement]:
    """The figures of these names that have these coordinates; RecordError without any."""
    found = [
        figure for measure in measures for figure in record.select(measure, **at)
    ]
    chosen = [figure for figure in found if all(name in figure.at for name in names)]
    if not chosen:
        raise RecordError(
            f"no figure of {', '.join(measures)} at {at} has {', '.join(names)}"
        )
    return chosen


def _cells(
    chosen: Sequence[Measurement],
    place_of: Callable[[Measurement | Spread], tuple[str, str]],
) -> dict[tuple[str, str], Cell]:
    """The figures by row and column; RecordError where two share a place."""
    cells: dict[tuple[str, str], Cell] = {}
    for found in _once(chosen):
        place = place_of(found)
        if place in cells:
            raise RecordError(
                f"two figures at {', '.join(place)}; name more coordinates"
            )
        cells[place] = found if isinstance(found, Spread) else found.value
    return cells


def _order(value: Any) -> tuple[float, str]:
    """Numbers by size, then words."""
    return (inf, value) if isinstance(value, str) else (float(value), "")


def _once(chosen: Sequence[Measurement]) -> list[Measurement | Spread]:
    """Spreads for what was measured for two seeds or more, the figures themselves for the rest."""
    over = spreads(chosen)
    seen = [(spread.name, spread.at) for spread in over]
    alone = [
        found
        for found in chosen
        if (found.name, {k: v for k, v in found.at.items() if k != "seed"})
        not in seen
    ]
    return [*over, *alone]


def _floor(columns: Sequence[Sequence[Measurement]]) -> list[Cell] | None:
    """The row of floors: one a column where all its figures have the same; None without any."""
    floors: list[Cell] = []
    for column in columns:
        found = {figure.floor for figure in column}
        floors.append(found.pop() if len(found) == 1 else None)
    return ["real examples", *floors] if any(f is not None for f in floors) else None
