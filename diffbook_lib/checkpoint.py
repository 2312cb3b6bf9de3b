"""Checkpoints: plain tensors and JSON in safetensors files that are either whole or not there.

A file `<samples seen, 12 digits>.safetensors` holds the tensors and, in its header, the JSON text
`info` and a SHA-256 over both. It is written under a temporary name, flushed to the disk and then
renamed, so a process killed at any moment leaves the checkpoints before it as they were. Nothing
is ever unpickled.
"""

import hashlib
import json
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

KEPT = 2  # the newest checkpoint and the one before


class CheckpointError(ValueError):
    """A checkpoint that cannot be written or read; the message names the file and the reason."""


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds, tensors on the CPU."""

    samples: int
    tensors: dict[str, Tensor]
    info: dict[str, Any]
    path: Path


def atomic_write(path: Path, data: bytes) -> None:
    """Write a file so that at every moment its old or its new content is there, never a part.

    Raises OSError, with the temporary file removed and the old content intact.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def file(folder: Path, samples: int) -> Path:
    """The name of the checkpoint after `samples` samples."""
    return folder / f"{samples:012d}.safetensors"


def save(
    folder: Path, samples: int, tensors: Mapping[str, Tensor], info: Mapping[str, Any]
) -> Path:
    """Write the checkpoint after `samples` samples; keep it and the one before.

    Files left by a killed writer and any of later samples (damaged, since training went on from
    an earlier one) are removed. Raises CheckpointError if the disk refuses, with the earlier
    checkpoints intact.
    """
    from safetensors.torch import save as to_bytes

    path = file(folder, samples)
    plain = {name: _plain(name, tensor) for name, tensor in tensors.items()}
    text = json.dumps(info, allow_nan=False)
    data = to_bytes(plain, {"info": text, "sha256": _digest(text, plain)})
    try:
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write(path, data)
    except OSError as error:
        earlier = ", ".join(kept.name for kept in _files(folder)) or "none"
        raise CheckpointError(
            f"{path} could not be written: {error.strerror}. It needs {len(data) / 1e6:.1f} MB. "
            f"Checkpoints still there: {earlier}. Make room on that disk and start the same run "
            "again; it continues from the newest."
        ) from error
    keep = [kept for kept in _files(folder) if kept <= path][-KEPT:]
    for stale in {*_files(folder), *folder.glob(".*.tmp")} - {*keep}:
        stale.unlink(missing_ok=True)
    return path


def load(path: Path) -> Checkpoint:
    """Read and verify one checkpoint; CheckpointError if anything in it is not as it was saved."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as content:
            header = content.metadata() or {}
            tensors = {name: content.get_tensor(name).clone() for name in content.keys()}  # noqa: SIM118
        if header["sha256"] != _digest(header["info"], tensors):
            raise CheckpointError(f"{path} is damaged: its SHA-256 does not match its content")
        return Checkpoint(int(path.stem), tensors, json.loads(header["info"]), path)
    except (SafetensorError, OSError, KeyError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


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
            warnings.warn(f"{reason}; continuing from {path.name} instead", stacklevel=2)
        return checkpoint
    if reasons:
        raise CheckpointError(
            "no checkpoint of this run can be used:\n"
            + "\n".join(reasons)
            + f"\nRestore one of them from a copy, or remove {folder} to start the run over."
        )
    return None


def _files(folder: Path) -> list[Path]:
    """The checkpoint files of a folder, oldest first."""
    return sorted(folder.glob("[0-9]" * 12 + ".safetensors"))


def _plain(name: str, tensor: Tensor) -> Tensor:
    """A copy on the CPU that shares memory with no other tensor."""
    if not isinstance(tensor, Tensor):
        raise CheckpointError(
            f"{name} is a {type(tensor).__name__}; a checkpoint holds tensors, so let state_dict() "
            "give a flat mapping of tensors"
        )
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


def _digest(info: str, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over the JSON text and every tensor's name, type, shape and bytes."""
    digest = hashlib.sha256(info.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
