"""Run folders and records: what a run was asked to do, what it measured, and where.

A run folder holds `spec.json`, which decides whether a later start continues the run, and in the
end `record.json`. Records that the book quotes are kept under `results/<method>/`, beside
`results/published.yaml` with the figures of the papers.
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
from typing import Annotated, Any, Literal, NamedTuple, TextIO

import yaml
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

from diffbook_lib import presets
from diffbook_lib.presets import RunSpec

LIBRARIES = ("torch", "numpy", "accelerate", "safetensors", "torchdiffeq", "torchmetrics")
_open_locks: dict[Path, TextIO] = {}  # held until this process ends


class SpecMismatch(ValueError):
    """The run folder belongs to a run with other values."""


class RecordError(ValueError):
    """A specification, a record or the list of published figures cannot be used."""


class _Model(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, from_attributes=True
    )


class Metric(_Model):
    """One measured figure with what is needed to judge it."""

    name: str = Field(description="what was measured")
    value: float
    samples: int | None = Field(None, ge=1, description="how many samples it was measured on")
    seed: int | None = Field(None, description="seed of the samples")
    floor: float | None = Field(
        None, description="the value that real data of the same count reaches"
    )
    details: dict[str, JsonValue] = Field({}, description="anything else worth keeping")


class Hardware(_Model):
    """The machine of a run."""

    cpu: str = Field(description="model name of the processor")
    cores: int = Field(ge=1, description="cores this process may use")
    gpu: str | None = Field(None, description="model name and number of the GPUs, if any")

    def __str__(self) -> str:
        return self.gpu or f"{self.cpu}, {self.cores} cores"


def _read_spec(value: Any) -> Any:
    return presets.spec(str(value.get("method")), value) if isinstance(value, dict) else value


class Record(_Model):
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


class Published(_Model):
    """A figure from a paper, with the place it was read."""

    method: str
    figure: str
    value: str
    source: str = Field(description="publication and number of the table")
    tag: Literal["paper", "page", "code", "secondary"] = Field(
        description="read in the paper, on the authors' page, in their code, in a later paper"
    )

    def label(self) -> str:
        """The source with its tag."""
        return f"{self.source} [{self.tag}]"


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


def open_run(folder: str | Path, spec: RunSpec) -> Path:
    """Open the run folder of this specification, new or to be continued; "" is the default one.

    The folder stays this process's own until the process ends. Raises SpecMismatch if the folder
    belongs to a run with other values, RecordError if another process works in it.
    """
    folder = Path(folder).resolve() if str(folder) else default_folder(spec)
    known = check_run(folder, spec)
    folder.mkdir(parents=True, exist_ok=True)
    _lock(folder)
    if not known:
        write_text(folder / "spec.json", spec.model_dump_json(indent=1) + "\n")
    return folder


def read_spec(folder: str | Path) -> RunSpec:
    """The specification of a run folder."""
    file = Path(folder) / "spec.json"
    if not file.exists():
        raise RecordError(f"{folder} is no run folder: it has no spec.json")
    mapping = _read_json(file)
    return presets.spec(str(mapping.get("method")), mapping)


def write_text(file: Path, text: str) -> None:
    """Write a file whole or not at all, whatever happens meanwhile."""
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with partial.open("w") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


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


def _lock(folder: Path, patience: float = 5.0) -> None:
    """Keep other processes out of a run folder; a killed run's last process may need a moment."""
    try:
        import fcntl
    except ImportError:  # not a POSIX system: no protection
        return
    if folder in _open_locks:
        return
    stream = (folder / ".lock").open("a+")
    end = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > end:
                stream.seek(0)
                raise RecordError(
                    f"process {stream.read() or '?'} works in {folder}; wait until it ends, or "
                    "shut down its notebook"
                ) from None
            time.sleep(0.1)
        except OSError:  # a file system without locks
            break
    stream.truncate(0)
    stream.write(str(os.getpid()))
    stream.flush()
    _open_locks[folder] = stream


def lock_descriptors(folder: Path) -> tuple[int, ...]:
    """File descriptors that keep `folder` locked as long as a child process inherits them."""
    return (_open_locks[folder].fileno(),) if folder in _open_locks else ()


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
    write_text(file, record.model_dump_json(indent=1) + "\n")
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


def keep(folder: str | Path) -> Path:
    """Copy a run's record to results/<method>/<preset>.json, where the book finds it.

    Raises RecordError if the run was not the preset as it stands now.
    """
    record = read_record(folder)
    spec = record.spec
    preset = presets.resolve(spec.method, spec.preset)
    changed = [
        f"  {name}: preset {getattr(preset, name)!r}, run {value!r}"
        for name, value in spec
        if getattr(preset, name) != value
    ]
    if changed:
        raise RecordError(
            f"{folder} is not a run of the preset {spec.preset} as it stands:\n"
            + "\n".join(changed)
        )
    file = presets.root() / "results" / spec.method / f"{spec.preset}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, record.model_dump_json(indent=1) + "\n")
    return file


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


def published(method: str) -> list[Published]:
    """The published figures of a method; RecordError if the list is not as it must be."""
    file = presets.root() / "results" / "published.yaml"
    if not file.exists():
        return []
    try:
        figures = [Published.model_validate(entry) for entry in yaml.safe_load(file.read_text())]
    except (ValidationError, yaml.YAMLError, TypeError) as error:
        raise RecordError(f"{file}: {error}") from None
    return [figure for figure in figures if figure.method == method]


class Row(NamedTuple):
    """One line of the results table; what does not apply is empty."""

    method: str
    ours: bool
    figure: str
    value: str
    floor: str
    samples: str
    seed: str
    scale: str
    hardware: str
    source: str


def rows(method: str, local: bool = False) -> list[Row]:
    """Kept records of a method, then the published figures; with `local` also what lies in runs/.

    A published figure's source ends in its tag: where it was read.
    """
    home = presets.root()
    files = sorted((home / "results" / method).glob("*.json"))
    if local:
        files += sorted((home / "runs").glob(f"{method}-*/record.json"))
    ours = [row for file in files for row in _rows_of(read_record(file), file.relative_to(home))]
    theirs = [
        Row(method, False, entry.figure, entry.value, "", "", "", "", "", entry.label())
        for entry in published(method)
    ]
    return ours + theirs


def _rows_of(record: Record, file: Path) -> list[Row]:
    spec = record.spec
    scale = f"{spec.dataset}, {spec.steps} steps of {spec.batch}"
    hardware = f"{record.hardware}, {record.seconds:.0f} s"

    def show(value: float | None) -> str:
        return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)

    return [
        Row(
            spec.method,
            True,
            metric.name,
            show(metric.value),
            show(metric.floor),
            show(metric.samples),
            show(metric.seed),
            scale,
            hardware,
            str(file),
        )
        for metric in record.results
    ]


def table(method: str, local: bool = False) -> str:
    """The results table as text: our runs with their scale, then the published figures."""
    found = rows(method, local)
    parts = []
    for ours, title in ((True, "recorded runs"), (False, "published figures")):
        chosen = [row for row in found if row.ours is ours]
        if not chosen:
            parts.append(f"{method}: no {title}")
            continue
        names = [name for name in Row._fields[2:] if any(getattr(row, name) for row in chosen)]
        lines = [names, *([getattr(row, name) for name in names] for row in chosen)]
        widths = [max(len(line[i]) for line in lines) for i in range(len(names))]
        parts.append(
            "\n".join(
                [f"{method}: {title}"]
                + [
                    "  " + "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip()
                    for line in lines
                ]
            )
        )
    return "\n\n".join(parts)
