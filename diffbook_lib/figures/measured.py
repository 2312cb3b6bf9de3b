"""What a run measured, as tables."""

import re
from collections.abc import Sequence
from pathlib import Path

from diffbook_lib.figures.tables import Cell, spread_of, table
from diffbook_lib.metrics import Measurement
from diffbook_lib.runs import crossed, records


def measured(run: Path) -> None:
    """The figures of the record in a run's folder: a table for each measure that was taken at
    several places, and one for all others.

    Raises RecordError where there is no valid record.
    """
    record = records.read_record(run)
    single: list[list[Cell]] = []
    for name in dict.fromkeys(found.name for found in record.results):
        found = record.select(name)
        if ways := _ways(found):
            *rows, columns = ways
            cross = (
                {"rows": rows, "columns": columns} if rows else {"rows": [columns]}
            )
            parts = crossed(record, name, **cross)._asdict()
            caption = f"{name}, {found[0].samples:,} samples each."
            table(**parts, name=_slug(name), caption=caption)
            continue
        values = [m.value for m in found]
        shown = spread_of(values) if len(values) > 1 else values[0]
        single.append([name, found[0].samples, shown, found[0].floor])
    if single:
        heads = ["figure", "samples", "ours", "real examples"]
        table(heads, single, name="figures", caption="Measured once a model.")


def _ways(found: Sequence[Measurement]) -> list[str]:
    """The coordinates, beside the seed, of which these figures have several values."""
    names = dict.fromkeys(name for figure in found for name in figure.at)
    values = {name: {figure.at.get(name) for figure in found} for name in names}
    return [n for n in names if n != "seed" and len(values[n]) > 1]


def _slug(name: str) -> str:
    return re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")
