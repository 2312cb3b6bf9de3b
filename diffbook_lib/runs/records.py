"""Records: what a run was asked to do, what it measured, on what, with which code."""

import hashlib
import json
import math
import statistics
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AwareDatetime,
    BeforeValidator,
    Field,
    SerializeAsAny,
    ValidationError,
)

from diffbook_lib import files, specs
from diffbook_lib.errors import Refused
from diffbook_lib.metrics import Measurement
from diffbook_lib.runs.origin import (
    Hardware,
    Model,
    Start,
    code_state,
    hardware,
    versions,
)
from diffbook_lib.specs import RunSpec


class RecordError(Refused):
    """A record, or the list of published figures, cannot be used."""


class Spread(Model):
    """One figure over the seeds of a run: coordinates without the seed, mean, standard deviation
    (n - 1), lowest and highest value."""

    name: str
    at: dict[str, Any]
    mean: float
    std: float
    low: float
    high: float
    seeds: int = Field(ge=2)


def _read_spec(value: Any) -> Any:
    return (
        specs.make(str(value.get("method")), value)
        if isinstance(value, dict)
        else value
    )


class Record(Model):
    """A finished run, all its members together."""

    spec: Annotated[SerializeAsAny[RunSpec], BeforeValidator(_read_spec)]
    results: tuple[Measurement, ...]
    spreads: tuple[Spread, ...] = Field((), description="each figure over the seeds")
    samples_seen: int = Field(
        ge=0, description="training examples of all members together"
    )
    training_seconds: float = Field(
        ge=0, description="spent in training steps, over all starts"
    )
    sampling_seconds: float = Field(
        ge=0, description="spent drawing samples, in all processes"
    )
    grading_seconds: float = Field(
        ge=0, description="spent measuring, in the last start"
    )
    samples_per_second: float | None = Field(None, ge=0, description="training speed")
    processes: int = Field(1, ge=1, description="processes of the last start")
    starts: tuple[Start, ...] = Field(
        (), description="the starts whose work is in the results, over all members"
    )
    commit: str = Field(description="git commit of the last start, or 'unknown'")
    dirty: bool | None = Field(description="whether the code had uncommitted changes")
    versions: dict[str, str] = Field(description="versions of the libraries")
    hardware: Hardware
    date: AwareDatetime

    def select(self, name: str, **at: Any) -> tuple[Measurement, ...]:
        """The measured figures of this name at these coordinates, in the order of the run;
        RecordError, with the names and coordinates there are, if there is none."""
        named = [found for found in self.results if found.name == name]
        fits = tuple(
            found
            for found in named
            if all(found.at.get(key, ...) == value for key, value in at.items())
        )
        if not fits:
            there = [str(found.at) for found in named] or {
                found.name for found in self.results
            }
            raise RecordError(
                f"{self.spec.method} {self.spec.preset} holds no {name!r} at {at}; it has "
                f"{', '.join(sorted(there))}"
            )
        return fits

    def spread(self, name: str, **at: Any) -> Spread:
        """The figure of this name at these coordinates over all seeds; RecordError unless the
        coordinates single out one."""
        found = [
            spread
            for spread in spreads(self.select(name, **at))
            if all(spread.at.get(key, ...) == value for key, value in at.items())
        ]
        if len(found) != 1:
            there = (
                ", ".join(str(spread.at) for spread in found)
                or "no figure of two seeds"
            )
            raise RecordError(
                f"{name!r} at {at} is not one figure over seeds but {there}"
            )
        return found[0]


def spreads(results: Sequence[Measurement]) -> tuple[Spread, ...]:
    """The figures that were measured for two seeds or more, over these."""
    groups: dict[str, list[Measurement]] = {}
    for found in results:
        at = {name: value for name, value in found.at.items() if name != "seed"}
        if "seed" in found.at:
            groups.setdefault(
                json.dumps([found.name, at], sort_keys=True), []
            ).append(found)
    return tuple(_spread(group) for group in groups.values() if len(group) > 1)


def _spread(group: list[Measurement]) -> Spread:
    values = [found.value for found in group]
    return Spread(
        name=group[0].name,
        at={name: value for name, value in group[0].at.items() if name != "seed"},
        mean=statistics.fmean(values),
        std=statistics.stdev(values),
        low=min(values),
        high=max(values),
        seeds=len(values),
    )


def write_record(
    folder: str | Path,
    spec: RunSpec,
    results: Iterable[Measurement],
    *,
    training_seconds: float,
    sampling_seconds: float,
    grading_seconds: float,
    processes: int = 1,
    starts: Sequence[Start] = (),
) -> Path:
    """Write record.json, which marks the run as complete.

    Raises RecordError for a value that is not finite or for no results at all.
    """
    commit, dirty = code_state()
    results, seen = tuple(results), spec.steps * spec.batch * len(spec.members())
    for found in results:
        for what, number in (("", found.value), ("the floor of ", found.floor)):
            if number is not None and not math.isfinite(number):
                raise RecordError(
                    f"{folder}: {what}{found.name} at {found.at} is {number}"
                )
    if not results:
        raise RecordError(
            f"{folder}: nothing was measured, so there is nothing to record"
        )
    try:
        record = Record(
            spec=spec,
            results=results,
            spreads=spreads(results),
            samples_seen=seen,
            training_seconds=training_seconds,
            sampling_seconds=sampling_seconds,
            grading_seconds=grading_seconds,
            samples_per_second=seen / training_seconds if training_seconds else None,
            processes=processes,
            starts=tuple(starts),
            commit=commit,
            dirty=dirty,
            versions=versions(),
            hardware=hardware(),
            date=datetime.now(UTC).replace(microsecond=0),
        )
    except ValidationError as error:
        raise RecordError(
            f"{folder}: these results make no record: {error}"
        ) from None
    return save_record(record, Path(folder) / "record.json")


def save_record(record: Record, file: Path) -> Path:
    """Write a record, with a SHA-256 of what it says."""
    content = record.model_dump(mode="json")
    content["sha256"] = _digest(content)
    text = json.dumps(content, indent=1, ensure_ascii=False)
    files.atomic_write(file, f"{text}\n".encode())
    return file


def _digest(content: dict[str, Any]) -> str:
    """SHA-256 of what a record says, however it is set out."""
    kept = {name: value for name, value in content.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def read_record(file: str | Path) -> Record:
    """The record of a run folder or of a record file; RecordError if it is not a valid one."""
    file = Path(file)
    if file.is_dir() and file.name != "record.json":
        file = file / "record.json"
    if not file.exists():
        raise RecordError(f"there is no record {file}: the run is not complete")
    try:
        content = json.loads(file.read_bytes())
        if not isinstance(content, dict):
            raise ValueError("it is no mapping")
        stated = content.pop("sha256", None)  # older ones have none
        if stated is not None and stated != _digest(content):
            raise ValueError("its SHA-256 does not match what it says")
        return Record.model_validate_json(json.dumps(content))
    except (OSError, ValueError, RecursionError) as error:
        raise RecordError(
            f"{file} is not a valid record: {_problem(error)}. Restore it from a copy, or "
            "remove it and start its run again: that measures anew and trains nothing twice"
        ) from None


def _problem(error: Exception) -> str:
    """The first thing that is wrong with a record, in a line."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc'])) or 'it'}: {first['msg']}"
    return str(error)


def is_complete(folder: str | Path, spec: RunSpec) -> bool:
    """Whether the folder holds the valid record of exactly this run."""
    if not (Path(folder) / "record.json").exists():
        return False
    return read_record(folder).spec == spec
