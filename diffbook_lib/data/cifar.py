"""CIFAR-10 and CIFAR-100: pickles of Python 2 in a tar archive, read without executing them."""

import io
import pickle
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from diffbook_lib.data.archives import ArchiveError, Published, Store
from diffbook_lib.data.datasets import ArrayDataset
from diffbook_lib.data.unpacking import members

_HOST = "https://www.cs.toronto.edu/~kriz/"


class Batches(NamedTuple):
    """How one of the two archives is laid out."""

    name: str
    title: str
    file: Published
    parts: dict[str, tuple[str, ...]]
    labels: str
    meta: str
    class_names: str


CIFAR10 = Batches(
    "cifar10",
    "CIFAR-10",
    Published(
        "cifar-10-python.tar.gz",
        "md5:c58f30108f718f92721af3b95e74349a",
        (_HOST + "cifar-10-python.tar.gz",),
    ),
    {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)},
    "labels",
    "batches.meta",
    "label_names",
)
CIFAR100 = Batches(
    "cifar100",
    "CIFAR-100",
    Published(
        "cifar-100-python.tar.gz",
        "md5:eb9058c3a382ffc7106e4002c42a8d85",
        (_HOST + "cifar-100-python.tar.gz",),
    ),
    {"train": ("train",), "test": ("test",)},
    "fine_labels",
    "meta",
    "fine_label_names",
)


def cifar10(store: Store, split: str) -> ArrayDataset:
    """Small photographs of ten classes (Krizhevsky 2009): 32x32 colour, 50,000 and 10,000."""
    return _load(CIFAR10, store, split)


def cifar100(store: Store, split: str) -> ArrayDataset:
    """Small photographs of a hundred classes, the fine labels: 32x32 colour, 50,000 and 10,000."""
    return _load(CIFAR100, store, split)


def _load(source: Batches, store: Store, split: str) -> ArrayDataset:
    path = store.get(source.name, source.file).path
    wanted = (*source.parts[split], source.meta)
    content = {
        PurePosixPath(name).name: plain_pickle(data, f"{path}: {name}")
        for name, data in members(
            path, lambda name: PurePosixPath(name).name in wanted
        )
    }
    if missing := set(wanted) - set(content):
        raise ArchiveError(f"{path} lacks {', '.join(sorted(missing))}")
    classes = _classes(content[source.meta].get(source.class_names), path)
    parts = [
        _part(content[name], source.labels, len(classes), path)
        for name in wanted[:-1]
    ]
    images = np.concatenate([pixels for pixels, _ in parts])
    labels = np.concatenate([numbers for _, numbers in parts])
    official = {"train": 50_000, "test": 10_000}[split]
    return ArrayDataset(
        torch.from_numpy(images).view(-1, 3, 32, 32),
        torch.from_numpy(labels),
        classes=classes,
        name=source.name,
        description=f"{source.title}, {split}: {len(images):,} of {official:,} images",
    )


def _classes(names: Any, path: Path) -> tuple[str, ...]:
    if isinstance(names, list) and all(isinstance(n, bytes | str) for n in names):
        return tuple(map(_text, names))
    raise ArchiveError(f"{path} holds no list of the names of classes")


def _part(
    content: Mapping[str, Any], labels: str, classes: int, path: Path
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Pixels uint8 (n, 3072), red plane first, and labels int64 (n,) of one batch file."""
    pixels, numbers = content.get("data"), content.get(labels)
    if not (
        isinstance(pixels, np.ndarray)
        and isinstance(numbers, list)
        and pixels.dtype == np.uint8
        and pixels.shape == (len(numbers), 3072)
        and all(
            isinstance(number, int) and 0 <= number < classes for number in numbers
        )
    ):
        raise ArchiveError(
            f"{path} does not hold what CIFAR archives hold: `data`, uint8 (n, 3072), and "
            f"`{labels}`, n numbers below {classes}"
        )
    return pixels, np.asarray(numbers, dtype=np.int64)


class _Array:
    """Stands in for a NumPy array while a pickle is read: keeps what it is told, and does
    nothing with it."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments, self.state = arguments, ()

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def array(self) -> npt.NDArray[np.uint8]:
        """The bytes (n, k) that this was told to be; ValueError if it was told other things."""
        match self.state:
            case (
                1,
                (int(n), int(k)),
                _Type(arguments=(name, *_)),
                _,
                bytes(content),
            ):
                whole = min(n, k) >= 0 and n * k == len(content)
                if whole and _text(name) == "u1":
                    return np.frombuffer(bytearray(content), np.uint8).reshape(n, k)
        raise ValueError("it holds an array that is not one of bytes (n, k)")


class _Type(_Array):
    """Stands in for the type of an array's numbers."""


class _Kind:
    """Stands in for the class of arrays."""


_STAND_INS = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy", "ndarray"): _Kind,
    ("numpy", "dtype"): _Type,
}


class _PlainUnpickler(pickle._Unpickler):
    """Allows numbers, text, containers and NumPy arrays: nothing a pickle names is called. In
    Python, because the one in C asks for as much memory as a pickle says."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _STAND_INS:
            raise pickle.UnpicklingError(
                f"it asks for {module}.{name}, which is not allowed"
            )
        return _STAND_INS[module, name]


def plain_pickle(data: bytes, origin: str) -> dict[str, Any]:
    """A pickled dict of plain values and arrays of bytes (n, k), Python 2's text keys decoded.

    Raises ArchiveError, naming `origin`, for a damaged pickle and for one that asks for
    anything else.
    """
    try:
        content = _PlainUnpickler(io.BytesIO(data), encoding="bytes").load()
        return {
            _text(key): value.array() if isinstance(value, _Array) else value
            for key, value in content.items()
        }
    except Exception as error:
        raise ArchiveError(
            f"{origin} is not a plain pickle: {error}; it was not read"
        ) from error


def _text(value: bytes | str) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
