"""Checkpoints: plain tensors and JSON in safetensors files that are either whole or not there.

A file `<samples seen, 12 digits>.safetensors` holds the tensors and, in its header, the JSON text
`info` and a SHA-256 over both. It is written under a temporary name, flushed to the disk and then
renamed, so a process killed at any moment leaves the checkpoints before it as they were. Nothing
is ever unpickled.
"""

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from diffbook_lib import ema, files
from diffbook_lib.errors import Failed, Refused

if TYPE_CHECKING:
    from diffbook_lib.runs.progress import Progress

KEPT = 2  # the newest checkpoint and the one before
MOMENTS = {"step", "exp_avg", "exp_avg_sq"}  # of a weight that Adam has moved


class CheckpointError(Failed):
    """A checkpoint that cannot be written or read; the message names the file and the reason."""


class PartsDiffer(Refused):
    """A checkpoint was saved by a task with other parts than the one that is to take it up."""


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds, tensors on the CPU."""

    samples: int
    tensors: dict[str, Tensor]
    info: dict[str, Any]
    path: Path


def file(folder: Path, samples: int) -> Path:
    """The name of the checkpoint after `samples` samples."""
    return folder / f"{samples:012d}.safetensors"


def save(
    folder: Path, samples: int, tensors: Mapping[str, Tensor], info: Mapping[str, Any]
) -> Path:
    """Write the checkpoint after `samples` samples; keep it and the one before.

    Files left by a killed writer and damaged ones of later samples are removed. Raises
    CheckpointError if the disk refuses or a whole later checkpoint is there, with all that were
    there intact.
    """
    path = file(folder, samples)
    later = [found for found in _files(folder) if found > path]
    for found in later:
        if _is_whole(found):
            raise CheckpointError(
                f"{path} is not written: {found} is newer and whole, so another process has "
                "trained this run further. Start the run again; it continues from there"
            )
    write(path, tensors, info)
    keep = [kept for kept in _files(folder) if kept <= path][-KEPT:]
    for stale in {*_files(folder), *folder.glob(".*.tmp")} - {*keep}:
        stale.unlink(missing_ok=True)
    return path


def write(path: Path, tensors: Mapping[str, Tensor], info: Mapping[str, Any]) -> None:
    """Write one file, whole or not at all; CheckpointError if the disk refuses. What a killed
    writer of this file has left is removed."""
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise CheckpointError(
                f"{name} is a {type(tensor).__name__}; a checkpoint holds tensors, so let "
                "state_dict() give a flat mapping of tensors"
            )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(f".{path.name}.*.tmp"):
            left.unlink(missing_ok=True)
        files.write_tensors(path, tensors, info)
    except OSError as error:
        earlier = ", ".join(kept.name for kept in _files(path.parent)) or "none"
        size = sum(tensor.nbytes for tensor in tensors.values())
        raise CheckpointError(
            f"{path} could not be written: {error.strerror}. It needs {size / 1e6:.1f} MB. "
            f"Files still there: {earlier}. Make room on that disk and start the same run "
            "again; it continues from the newest."
        ) from error


def save_run(
    run: Path,
    samples: int,
    parts: Mapping[str, Any],
    moments: Iterable[Mapping[str, Tensor]],
    progress: "Progress | None",
) -> None:
    """The checkpoint of a run: the state of its parts by name, and the optimiser's moments of
    each weight in order."""
    states = {name: part.state_dict() for name, part in parts.items()}
    optimizer = list(moments)
    states |= {f"optimizer/{i}": moment for i, moment in enumerate(optimizer)}
    tensors = {
        f"{owner}/{name}": value
        for owner, values in states.items()
        for name, value in values.items()
    }
    info = {
        "parts": sorted(parts),
        "idle": [i for i, moment in enumerate(optimizer) if not moment],
        "progress": progress.saved() if progress else None,
    }
    save(run / "checkpoints", samples, tensors, info)


def load_run(
    found: Checkpoint, parts: Mapping[str, Any], weights: Iterable[nn.Parameter]
) -> dict[Tensor, dict[str, Tensor]]:
    """Give each part its state, and return the optimiser's moments of each weight.

    Raises PartsDiffer unless the checkpoint holds exactly these parts and moments.
    """
    if lacking := {"parts", "progress"} - found.info.keys():
        raise _of_another_version(
            found, f"it does not say its {', '.join(sorted(lacking))}"
        )
    if (saved := found.info["parts"]) != sorted(parts):
        raise PartsDiffer(
            f"{found.path} holds {', '.join(saved)}, but this task has {', '.join(sorted(parts))}; "
            "give the task the parts it was saved with, or start another run"
        )
    for name, module in parts.items():
        try:
            module.load_state_dict(part(found, name))
        except (RuntimeError, ValueError) as error:
            raise PartsDiffer(
                f"{found.path}: {name} does not fit this task: {error}"
            ) from None
    weights = list(weights)
    _check_moments(found, weights)
    return {
        p: {
            key: torch.empty_like(p, dtype=value.dtype).copy_(value)
            if value.shape == p.shape
            else value.to(p.device)
            for key, value in part(found, f"optimizer/{i}").items()
        }
        for i, p in enumerate(weights)
    }


def _check_moments(found: Checkpoint, weights: list[nn.Parameter]) -> None:
    """Raise PartsDiffer unless every weight that Adam has moved has all its moments."""
    begun, idle = found.info["progress"], found.info.get("idle", ())
    for i, weight in enumerate(weights):
        moments = part(found, f"optimizer/{i}")
        wanted = MOMENTS if begun and i not in idle else set()
        if moments.keys() != wanted:
            raise _of_another_version(
                found,
                f"the moments of weight {i} are {sorted(moments)}, not {sorted(wanted)}",
            )
        for name in moments.keys() - {"step"}:
            if (shape := moments[name].shape) != weight.shape:
                raise _of_another_version(
                    found,
                    f"{name} of weight {i} has shape {tuple(shape)}, not {tuple(weight.shape)}",
                )


def _of_another_version(found: Checkpoint, difference: str) -> PartsDiffer:
    return PartsDiffer(
        f"{found.path} is of another version: {difference}; continue the run with the code that "
        "wrote it, or start another"
    )


def part(found: Checkpoint, owner: str) -> dict[str, Tensor]:
    """The tensors of one owner in a checkpoint, under their own names."""
    prefix = f"{owner}/"
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in found.tensors.items()
        if name.startswith(prefix)
    }


def snapshot(
    run: Path,
    samples: int,
    averages: Mapping[str, ema.EMA],
    precision: str,
) -> None:
    """Keep averages by profile in `snapshots/`, one file a profile, which no pruning touches:
    the weights in this precision, buffers as they are."""
    dtype = {"fp32": torch.float32, "fp16": torch.float16}[precision]
    for profile, average in averages.items():
        weights = {n: p.to(dtype) for n, p in average.parameters.items()}
        tensors = {**average.state_dict(), **weights}
        path = run / "snapshots" / f"{samples:012d}-{profile}.safetensors"
        write(path, tensors, {"profile": profile, "precision": precision})


def snapshots(run: Path) -> list[ema.Snapshot]:
    """The snapshots of a run's power averages, oldest first; times in images seen."""
    found = []
    for path in sorted((run / "snapshots").glob("[0-9]*-power-*.safetensors")):
        samples, name = path.stem.split("-", maxsplit=1)
        sigma_rel = float(name.removeprefix("power-"))
        read = partial(_tensors, path)
        found.append(ema.Snapshot(int(samples), sigma_rel, read))
    return found


def _tensors(path: Path) -> dict[str, Tensor]:
    return load(path).tensors


def load(path: Path) -> Checkpoint:
    """Read and verify one checkpoint; CheckpointError if anything in it is not as it was saved."""
    try:
        tensors, info = files.read_tensors(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    samples = int(path.stem.split("-")[0])  # a snapshot's name ends in its profile
    return Checkpoint(samples, tensors, info, path)


def newest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint of a folder that is whole, or None if there never was one.

    A damaged one is reported as a warning and the one before is used. Raises CheckpointError if
    all are damaged: starting over silently would throw the run away.
    """
    reasons = []
    for path in reversed(_files(folder)):
        try:
            checkpoint = load(path)
        except CheckpointError as error:
            reasons.append(str(error))
            continue
        for reason in reasons:
            warnings.warn(
                f"{reason}; continuing from {path.name} instead", stacklevel=2
            )
        return checkpoint
    if reasons:
        raise CheckpointError(
            "no checkpoint of this run can be used:\n"
            + "\n".join(reasons)
            + f"\nRestore one of them from a copy, or remove {folder} to start the run over."
        )
    return None


def newest_file(folder: Path) -> Path:
    """The file of the newest checkpoint; CheckpointError if there is none."""
    if not (found := _files(folder)):
        raise CheckpointError(
            f"{folder} holds no checkpoint yet; train the run first"
        )
    return found[-1]


def _is_whole(path: Path) -> bool:
    try:
        load(path)
    except CheckpointError:
        return False
    return True


def _files(folder: Path) -> list[Path]:
    """The checkpoint files of a folder, oldest first."""
    return sorted(folder.glob("[0-9]" * 12 + ".safetensors"))
