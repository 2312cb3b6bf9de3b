"""Where a run's numbers come from: the code, the libraries, the machine, and its starts."""

import os
import platform
import subprocess
from collections.abc import Iterable
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

LIBRARIES = (
    "torch",
    "numpy",
    "accelerate",
    "safetensors",
    "torchdiffeq",
    "torch-fidelity",
)


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


class Start(Model):
    """One start of a stage: which code did how much of the work, in how many processes. Samples
    drawn by the same code in as many processes stand together."""

    stage: Literal["training", "sampling"]
    commit: str = Field(description="git commit of the code, or 'unknown'")
    dirty: bool | None = Field(description="whether the code had uncommitted changes")
    processes: int = Field(ge=1)
    seconds: float = Field(ge=0, description="whose work is in the results")


def start(
    stage: Literal["training", "sampling"], processes: int, seconds: float = 0.0
) -> Start:
    """The start of a stage by this process."""
    commit, dirty = _own_code()
    return Start(
        stage=stage, commit=commit, dirty=dirty, processes=processes, seconds=seconds
    )


def together(starts: Iterable[Start]) -> tuple[Start, ...]:
    """Starts of which equal ones are added up, in the order of the first of each."""
    seconds: dict[Start, float] = {}
    for one in starts:
        key = one.model_copy(update={"seconds": 0.0})
        seconds[key] = seconds.get(key, 0.0) + one.seconds
    return tuple(
        key.model_copy(update={"seconds": total}) for key, total in seconds.items()
    )


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


@cache
def _own_code() -> tuple[str, bool | None]:
    """The code as it was when this process first asked."""
    return code_state()
