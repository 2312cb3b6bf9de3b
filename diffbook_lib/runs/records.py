"""Records: what a run was asked to do, what it measured, on what, with which code."""

import json
import math
import os
import platform
import statistics
import subprocess
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializeAsAny,
    ValidationError,
)

from diffbook_lib import files, specs
from diffbook_lib.errors import Refused
from diffbook_lib.metrics import Measurement
from diffbook_lib.specs import RunSpec

LIBRARIES = (
    "torch",
    "numpy",
    "accelerate",
    "safetensors",
    "torchdiffeq",
    "torch-fidelity",
)


class RecordError(Refused):
    """A record, or the list of published figures, cannot be used."""


class Model(BaseModel):
    """Plain data with finite numbers and no unknown fields."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, from_attributes=True
    )


class Hardware(Model):
    """The machine of a run."""

    cpu: str = Field(description="model name of the processor")
    cores: int = Field(ge=1, description="cores this process may use")
    gpu: str | None = Field(
        None, description="model name and number of the GPUs, if any"
    )

    def __str__(self) -> str:
        return self.gpu or f"{self.cpu}, {self.cores} core" + (
            "s" if self.cores > 1 else ""
        )


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
    processes: int = Field(1, ge=1, description="processes of training and sampling")
    commit: str = Field(description="git commit of the code, or 'unknown'")
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
    file = Path(folder) / "record.json"
    files.atomic_write(file, (record.model_dump_json(indent=1) + "\n").encode())
    return file


def read_record(file: str | Path) -> Record:
    """The record of a run folder or of a record file; RecordError if it is not a valid one."""
    file = Path(file) / "record.json" if Path(file).is_dir() else Path(file)
    if not file.exists():
        raise RecordError(f"there is no record {file}: the run is not complete")
    try:
        return Record.model_validate_json(file.read_text())
    except ValueError as error:
        raise RecordError(f"{file} is not a valid record: {error}") from None


def is_complete(folder: str | Path, spec: RunSpec) -> bool:
    """Whether the folder holds the valid record of exactly this run."""
    if not (Path(folder) / "record.json").exists():
        return False
    return read_record(folder).spec == spec


def code_state() -> tuple[str, bool | None]:
    """The git commit of this library and whether it was changed since; ('unknown', None) where
    the library does not lie in its own checkout."""
    checkout = Path(__file__).resolve().parents[2]

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(checkout), *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) != checkout:
            return "unknown", None
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain"))
    except (OSError, subprocess.CalledProcessError):
        return "unknown", None


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that decide a run's numbers."""
    found = {"python": platform.python_version()}
    for name in ("diffbook_lib", *LIBRARIES):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def hardware() -> Hardware:
    """The processor, the cores this process may use, and the GPUs it sees."""
    import torch

    gpu = None
    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        gpu = torch.cuda.get_device_name(0) + (f" x {count}" if count > 1 else "")
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(
            line.split(":")[1].strip()
            for line in lines
            if line.startswith("model name")
        )
    except (OSError, StopIteration):
        cpu = platform.processor() or platform.machine()
    affinity = getattr(os, "sched_getaffinity", None)
    return Hardware(
        cpu=cpu, cores=len(affinity(0)) if affinity else os.cpu_count() or 1, gpu=gpu
    )
