"""Two sides of a record compared over their seeds."""

import statistics
from collections.abc import Iterable
from typing import Any, Literal

from diffbook_lib.runs.records import Record

Outcome = Literal["first", "second", "open"]


def values(record: Record, measure: str, **at: Any) -> list[float]:
    """The figures of the seeds at these coordinates; RecordError without any."""
    return [found.value for found in record.select(measure, **at)]


def places(record: Record, measure: str, key: str) -> list[Any]:
    """The values of a coordinate at which this was measured, in order; RecordError without any."""
    return list(dict.fromkeys(found.at[key] for found in record.select(measure)))


def apart(
    first: Iterable[float], second: Iterable[float], *, lower: bool = True
) -> Outcome:
    """Which side's mean is better by more than the two standard deviations (n - 1) together.

    first, second: one figure a seed, at least two. lower: whether less is better. "open" where
    the gap is not larger than that. Raises statistics.StatisticsError for fewer figures.
    """
    a, b = [float(v) for v in first], [float(v) for v in second]
    gap = statistics.fmean(b) - statistics.fmean(a)
    if abs(gap) <= statistics.stdev(a) + statistics.stdev(b):
        return "open"
    return "first" if (gap > 0) == lower else "second"
