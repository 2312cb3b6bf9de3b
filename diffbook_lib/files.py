"""Files that are either whole or not there, tensors in them, and the folder of what can be made
again. Nothing is ever unpickled."""

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffbook_lib.errors import Failed


class WriteFailed(Failed, OSError):
    """The disk refuses a file; the message names it, what it needs and what to do."""

    def __init__(self, path: Path, size: int, cause: OSError) -> None:
        super().__init__()
        self.strerror = cause.strerror
        self.message = (
            f"{path} could not be written: {cause.strerror}. It needs {size / 1e6:.1f} MB. Make "
            "room on that disk and start the same again; what was there before is as it was"
        )

    def __str__(self) -> str:
        return self.message


def atomic_write(path: Path, data: bytes) -> None:
    """Write a file so that at every moment its old or its new content is there, never a part.

    Raises WriteFailed, with the temporary file removed and the old content intact.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise WriteFailed(path, len(data), error) from error
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def cache_folder() -> Path:
    """The folder DIFFBOOK_CACHE names, else the user's, such as ~/.cache/diffbook: downloads,
    decoded pictures, trained classifiers, reference features."""
    import pooch

    return Path(
        os.environ.get("DIFFBOOK_CACHE") or pooch.os_cache("diffbook")
    ).expanduser()


def cached_tensors(
    name: str,
    build: Callable[[], dict[str, Tensor]],
    needed: Collection[str] = (),
) -> dict[str, Tensor]:
    """Tensors that are slow to build, kept in `cache_folder()` under `name`, such as
    "decoded/celeba-64".

    The file appears under its name only when complete. A damaged one, and one that lacks a
    `needed` tensor, is reported and built anew; a disk that refuses costs the next start some
    time, nothing more.
    """
    path = cache_folder() / f"{name}.safetensors"
    if path.exists():
        try:
            found = read_tensors(path)[0]
            if lacking := {*needed} - {*found}:
                raise ValueError(f"it lacks {', '.join(sorted(lacking))}")
            return found
        except (OSError, ValueError) as error:
            warnings.warn(
                f"{path} is damaged ({error}); it is made anew", stacklevel=2
            )
    tensors = build()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(path, tensors, {})
    except OSError as error:
        warnings.warn(f"{path} is not kept for the next start: {error}", stacklevel=2)
    return tensors


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], info: Mapping[str, Any]
) -> None:
    """Write tensors and `info`, as JSON, to a safetensors file, whole or not at all, with a
    SHA-256 over both. Tensors may share memory. Raises OSError if the disk refuses."""
    from safetensors.torch import save

    text = json.dumps(info, allow_nan=False)
    plain = {
        name: tensor.detach().to(
            "cpu", copy=True, memory_format=torch.contiguous_format
        )
        for name, tensor in tensors.items()
    }
    atomic_write(path, save(plain, {"info": text, "sha256": _digest(text, plain)}))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and `info` of a file that `write_tensors` wrote, on the CPU.

    Raises ValueError if anything in it is not as it was written, OSError if it cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as content:
            header = content.metadata() or {}
            names = list(content.keys())
            tensors = {name: content.get_tensor(name).clone() for name in names}
        if header["sha256"] != _digest(header["info"], tensors):
            raise ValueError(
                f"{path} is damaged: its SHA-256 does not match its content"
            )
        info = json.loads(header["info"])
        if not isinstance(info, dict):
            raise ValueError(
                f"{path} cannot be read: its info is no mapping but {info!r}"
            )
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    return tensors, info


def stated_digest(path: Path) -> str:
    """The SHA-256 that a file of `write_tensors` states for its content."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as content:
        return str((content.metadata() or {}).get("sha256", ""))


def _digest(info: str, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over the JSON text and every tensor's name, type, shape and bytes."""
    digest = hashlib.sha256(info.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
