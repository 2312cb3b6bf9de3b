"""Run folders and records: what a run was asked to do, what it measured, and where.

A run folder holds `spec.json`, which decides whether a later start continues the run, and in the
end `record.json`.
"""

import json
import os
import platform
import subprocess
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, TextIO

from pydantic import (
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    SerializeAsAny,
    ValidationError,
)

from diffbook_lib import checkpoint, presets
from diffbook_lib.presets import RunSpec

LIBRARIES = ("torch", "numpy", "accelerate", "safetensors", "torchdiffeq", "torchmetrics")
PATIENCE = 5.0  # seconds to wait for a folder: a killed run's kernel lives a moment longer
_locks: dict[Path, TextIO] = {}  # held until this process ends


class SpecMismatch(ValueError):
    """The run folder belongs to a run with other values."""


class RecordError(ValueError):
    """A specification, a record or the list of published figures cannot be used."""


class Model(BaseModel):
    """Plain data with finite numbers and no unknown fields."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, from_attributes=True
    )


class Metric(Model):
    """One measured figure with what is needed to judge it."""

    name: str = Field(description="what was measured")
    value: float
    samples: int | None = Field(None, ge=1, description="how many samples it was measured on")
    seed: int | None = Field(None, description="seed of the samples")
    floor: float | None = Field(
        None, description="the value that real data of the same count reaches"
    )
    details: dict[str, JsonValue] = Field({}, description="anything else worth keeping")


class Hardware(Model):
    """The machine of a run."""

    cpu: str = Field(description="model name of the processor")
    cores: int = Field(ge=1, description="cores this process may use")
    gpu: str | None = Field(None, description="model name and number of the GPUs, if any")

    def __str__(self) -> str:
        return self.gpu or f"{self.cpu}, {self.cores} core" + ("s" if self.cores > 1 else "")


def _read_spec(value: Any) -> Any:
    return presets.spec(str(value.get("method")), value) if isinstance(value, dict) else value


class Record(Model):
    """A finished run."""

    spec: Annotated[SerializeAsAny[RunSpec], BeforeValidator(_read_spec)]
    results: tuple[Metric, ...]
    samples_seen: int = Field(ge=0, description="training samples, steps times batch")
    seconds: float = Field(ge=0, description="wall time of the run")
    samples_per_second: float | None = Field(None, ge=0, description="training speed")
    processes: int = Field(1, ge=1, description="training processes")
    commit: str = Field(description="git commit of the code, or 'unknown'")
    dirty: bool | None = Field(description="whether the code had uncommitted changes")
    versions: dict[str, str] = Field(description="versions of the libraries")
    hardware: Hardware
    date: AwareDatetime


def default_folder(spec: RunSpec) -> Path:
    """Where a run goes that was given no folder: runs/<method>-<preset>."""
    return presets.root() / "runs" / f"{spec.method}-{spec.preset}"


def check_run(folder: str | Path, spec: RunSpec) -> bool:
    """Whether `folder` already holds a run of this specification.

    Raises SpecMismatch if it holds another one and RecordError if that cannot be told.
    """
    file = Path(folder) / "spec.json"
    if not file.exists():
        if any(Path(folder).glob("checkpoints/*")):
            raise RecordError(
                f"{folder} holds checkpoints but no spec.json, so nobody knows what they belong "
                "to; name another folder or remove this one"
            )
        return False
    old, new = _read_json(file), spec.model_dump(mode="json")
    names = [name for name in {**old, **new} if old.get(name, ...) != new.get(name, ...)]
    if names:
        lines = [f"  {name}: {_show(old, name)} -> {_show(new, name)}" for name in names]
        raise SpecMismatch(
            f"{folder} holds a run with other values (there -> now):\n"
            + "\n".join(lines)
            + "\ngive the new run its own folder (out), or remove the old one"
        )
    return True


def start_run(folder: str | Path, spec: RunSpec) -> Path:
    """Make the run folder of this specification, unless it is there; "" is the default one.

    Raises SpecMismatch if the folder belongs to a run with other values, RecordError if another
    process works in it.
    """
    folder = Path(folder).resolve() if str(folder) else default_folder(spec)
    known = check_run(folder, spec)
    folder.mkdir(parents=True, exist_ok=True)
    if folder not in _locks:
        _lock(folder).close()
    if not known:
        text = spec.model_dump_json(indent=1) + "\n"
        checkpoint.atomic_write(folder / "spec.json", text.encode())
    return folder


def open_run(folder: str | Path, spec: RunSpec) -> Path:
    """`start_run`, and keep other processes out of the folder until this one ends."""
    folder = start_run(folder, spec)
    if folder not in _locks:
        _locks[folder] = _lock(folder)
    return folder


def read_spec(folder: str | Path) -> RunSpec:
    """The specification of a run folder."""
    file = Path(folder) / "spec.json"
    if not file.exists():
        raise RecordError(f"{folder} is no run folder: it has no spec.json")
    mapping = _read_json(file)
    return presets.spec(str(mapping.get("method")), mapping)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text())
    except ValueError as error:
        content = error
    if not isinstance(content, dict):
        raise RecordError(
            f"{file} is damaged ({content}); restore it, or remove {file.parent} to start anew"
        )
    return content


def _show(mapping: Mapping[str, Any], name: str) -> str:
    return repr(mapping[name]) if name in mapping else "(absent)"


def _lock(folder: Path) -> TextIO:
    """The locked file .lock of a run folder; closing it gives the folder free."""
    stream = (folder / ".lock").open("a+")
    end = time.monotonic() + PATIENCE
    while not _locked(stream):
        if time.monotonic() > end:
            stream.seek(0)
            raise RecordError(
                f"process {stream.read() or '(unknown)'} works in {folder}; wait until it ends, or "
                "shut down its notebook"
            )
        time.sleep(0.1)
    stream.truncate(0)
    stream.write(str(os.getpid()))
    stream.flush()
    return stream


def _locked(stream: TextIO) -> bool:
    """Whether the lock was to be had; True as well where the system knows no locks."""
    try:
        import fcntl

        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):
        return True
    return True


def lock_descriptors(folder: Path) -> tuple[int, ...]:
    """File descriptors that keep `folder` locked as long as a child process inherits them."""
    return (_locks[folder].fileno(),) if folder in _locks else ()


def write_record(
    folder: str | Path,
    spec: RunSpec,
    results: Iterable[Any],
    seconds: float,
    *,
    samples_per_second: float | None = None,
    processes: int = 1,
) -> Path:
    """Write record.json, which marks the run as complete.

    `results` are `Metric`s or objects or mappings with the same fields; a value that is not
    finite raises RecordError.
    """
    commit, dirty = code_state()
    try:
        record = Record(
            spec=spec,
            results=tuple(Metric.model_validate(result) for result in results),
            samples_seen=spec.steps * spec.batch,
            seconds=seconds,
            samples_per_second=samples_per_second,
            processes=processes,
            commit=commit,
            dirty=dirty,
            versions=versions(),
            hardware=hardware(),
            date=datetime.now(UTC).replace(microsecond=0),
        )
    except ValidationError as error:
        raise RecordError(f"{folder}: these results make no record: {error}") from None
    file = Path(folder) / "record.json"
    checkpoint.atomic_write(file, (record.model_dump_json(indent=1) + "\n").encode())
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
    checkout = Path(__file__).resolve().parents[1]

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(checkout), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

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
        cpu = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        cpu = platform.processor() or platform.machine()
    affinity = getattr(os, "sched_getaffinity", None)
    return Hardware(cpu=cpu, cores=len(affinity(0)) if affinity else os.cpu_count() or 1, gpu=gpu)
