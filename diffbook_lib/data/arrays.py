"""Examples in array files: .npy, .npz and .safetensors, never unpickled.

A file with several arrays holds `examples` (or one array of any name) and may hold `labels`.
Examples are (n, d), (n, h, w), (n, channel, h, w) or (n, h, w, channel).
"""

import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from diffbook_lib.data.archives import ArchiveError
from diffbook_lib.data.batches import Kind
from diffbook_lib.data.levels import stored

SUFFIXES = (".npy", ".npz", ".safetensors")
MEMORY_LIMIT = 16 * 2**30


class Form(NamedTuple):
    """What an array file holds, known from its header and its labels."""

    kind: Kind
    shape: tuple[int, ...]
    levels: int | None
    class_count: int


def form(path: Path, levels: int = 0) -> Form:
    """What `read` would give, without reading the examples.

    levels: of integers; 0: 256 for bytes, and floating-point values have none. Raises
    ArchiveError for a damaged file and for one whose arrays are not as the module says.
    """
    with _open(path) as file:
        key = _key(path, file.names)
        outline = file.outline(key)
        labels = _labels(path, file, outline.shape[0] if outline.ndim else 0)
    outline = _channels_first(path, outline)
    if outline.numel() * outline.element_size() > MEMORY_LIMIT:
        raise ArchiveError(
            f"{path} holds more than 16 GiB of examples; give a part of them"
        )
    kind: Kind = "images" if outline.ndim == 4 else "points"
    if kind == "points" and not outline.is_floating_point():
        kind = "text"
    count = 0 if labels is None else int(labels.max()) + 1
    return Form(kind, tuple(outline.shape[1:]), _levels(path, outline, levels), count)


def read(path: Path, levels: int = 0) -> tuple[Tensor, Tensor | None]:
    """Examples (n, *shape), levels or float32 in [-1, 1], and labels int64 (n,) or None.

    Raises ArchiveError as `form` does, and for values outside [-1, 1] or of the levels.
    """
    count = form(path, levels).levels
    with _open(path) as file:
        examples = _channels_first(path, file.tensor(_key(path, file.names)))
        labels = _labels(path, file, len(examples))
    low, high = examples.min().item(), examples.max().item()
    if count is None:
        if not -1 - 1e-6 <= low <= high <= 1 + 1e-6:
            raise ArchiveError(
                f"{path} holds values from {low} to {high}; scale to [-1, 1]"
            )
        return examples.to(torch.float32), labels
    if low < 0 or high >= count:
        raise ArchiveError(
            f"{path} holds integers from {low} to {high}, but {count} levels are 0 to "
            f"{count - 1}; set levels"
        )
    return stored(examples, count), labels


class _File(NamedTuple):
    """An open array file: the names in it, an array's outline (a tensor without values, on
    the meta device), and the array."""

    names: list[str]
    outline: Callable[[str], Tensor]
    tensor: Callable[[str], Tensor]


@contextmanager
def _open(path: Path) -> Iterator[_File]:
    from safetensors import SafetensorError

    opener = {".npy": _npy, ".npz": _npz, ".safetensors": _safetensors}[
        path.suffix.lower()
    ]
    broken = (
        OSError,
        EOFError,
        ValueError,
        zipfile.BadZipFile,
        zlib.error,
        SafetensorError,
    )
    try:
        with opener(path) as file:
            yield file
    except ArchiveError:
        raise
    except broken as error:
        raise ArchiveError(f"{path} is not a readable array file: {error}") from error


@contextmanager
def _npy(path: Path) -> Iterator[_File]:
    with path.open("rb") as stream:
        outline = _header(stream, path)
    yield _File(
        [""], lambda _: outline, lambda _: _plain(np.load(path, allow_pickle=False))
    )


@contextmanager
def _npz(path: Path) -> Iterator[_File]:
    with (
        zipfile.ZipFile(path) as archive,
        np.load(path, allow_pickle=False) as arrays,
    ):

        def outline(name: str) -> Tensor:
            with archive.open(f"{name}.npy") as stream:
                return _header(cast(BinaryIO, stream), path)

        yield _File(list(arrays.files), outline, lambda name: _plain(arrays[name]))


@contextmanager
def _safetensors(path: Path) -> Iterator[_File]:
    from safetensors import safe_open

    with safe_open(path, "pt") as arrays:

        def outline(name: str) -> Tensor:
            part = arrays.get_slice(name)
            some: Tensor = part[:0] if part.get_shape() else arrays.get_tensor(name)
            return some.new_empty(part.get_shape(), device="meta")

        yield _File(list(arrays.keys()), outline, arrays.get_tensor)


def _header(stream: BinaryIO, path: Path) -> Tensor:
    """The outline of the NumPy array whose file begins here."""
    version = np.lib.format.read_magic(stream)
    readers: dict[Any, Any] = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in readers:
        raise ArchiveError(
            f"{path} is of NumPy's format {version}; save plain numbers"
        )
    shape, _, dtype = readers[version](stream)
    return _plain(np.empty(0, dtype)).new_empty(shape, device="meta")


def _plain(array: np.ndarray[Any, np.dtype[Any]]) -> Tensor:
    """A tensor of a NumPy array of any byte order: uint8, int64 or floating-point."""
    if array.dtype.kind == "f":
        return torch.from_numpy(np.ascontiguousarray(array, np.float32))
    if array.dtype.kind not in "iu":
        raise ValueError(
            f"its numbers are of type {array.dtype}, neither integer nor float"
        )
    kept = np.uint8 if array.dtype == np.uint8 else np.int64
    return torch.from_numpy(np.ascontiguousarray(array, kept))


def _key(path: Path, names: list[str]) -> str:
    """The name of the examples among the arrays of a file."""
    others = [name for name in names if name != "labels"]
    if "examples" in names or len(others) == 1:
        return "examples" if "examples" in names else others[0]
    raise ArchiveError(
        f"{path} holds the arrays {', '.join(names) or '(none)'}; name one of them examples"
    )


def _labels(path: Path, file: _File, count: int) -> Tensor | None:
    if "labels" not in file.names:
        return None
    labels = file.tensor("labels")
    if labels.shape != (count,) or labels.is_floating_point() or (labels < 0).any():
        raise ArchiveError(
            f"{path}: labels are {labels.dtype} of the shape {tuple(labels.shape)}; they must "
            f"be {count} integers from 0 on, one an example"
        )
    return labels.to(torch.int64)


def _channels_first(path: Path, examples: Tensor) -> Tensor:
    """(n, d), or (n, channel, h, w) from that, (n, h, w) or (n, h, w, channel)."""
    shape = tuple(examples.shape)
    if examples.ndim not in (2, 3, 4) or 0 in shape:
        raise ArchiveError(
            f"{path} holds examples of the shape {shape}; they must be (n, d), (n, h, w), "
            "(n, channel, h, w) or (n, h, w, channel), and there must be some"
        )
    if examples.ndim == 3:
        return examples[:, None]
    if examples.ndim == 4 and shape[-1] in (1, 3) and shape[1] not in (1, 3):
        return examples.permute(0, 3, 1, 2).contiguous()
    return examples


def _levels(path: Path, examples: Tensor, levels: int) -> int | None:
    if examples.is_floating_point():
        if levels:
            raise ArchiveError(
                f"{path} holds floating-point values, which have no levels"
            )
        return None
    if examples.dtype != torch.uint8 and not levels:
        raise ArchiveError(
            f"{path} holds {examples.dtype}; set levels, the number of values"
        )
    return levels or 256
