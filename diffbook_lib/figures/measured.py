"""What a run measured, as tables."""

import re
from pathlib import Path
from statistics import fmean, stdev

from diffbook_lib.figures.tables import Cell, Spread, table
from diffbook_lib.runs import crossed, records


def measured(run: Path) -> None:
    """The figures of the record in a run's folder: a table for each measure that was taken over
    the cells of the run's table, and one for all others.

    Raises RecordError where there is no valid record.
    """
    record = records.read_record(run)
    *rows, columns = record.spec.coordinates or ("",)
    cross = {"rows": rows, "columns": columns} if rows else {"rows": [columns]}
    single: list[list[Cell]] = []
    for name in dict.fromkeys(found.name for found in record.results):
        found = record.select(name)
        places = {tuple(m.at.get(c) for c in record.spec.coordinates) for m in found}
        if len(places) > 1:
            parts = crossed(record, name, **cross)._asdict()
            caption = f"{name}, {found[0].samples:,} samples each."
            table(**parts, name=_slug(name), caption=caption)
            continue
        values = [m.value for m in found]
        shown = Spread(fmean(values), stdev(values)) if len(values) > 1 else values[0]
        single.append([name, found[0].samples, shown, found[0].floor])
    if single:
        heads = ["figure", "samples", "ours", "real examples"]
        table(heads, single, name="figures", caption="Measured once a model.")


def _slug(name: str) -> str:
    return re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")
