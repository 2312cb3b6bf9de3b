"""Data sets by name: `load("cifar10", "train")`.

The folder that DIFFBOOK_DATA names (else the user's cache) holds one subfolder a data set with
the files its authors publish. What is there is used after a checksum comparison; what is missing
is downloaded, or the error says how to obtain it.
"""

import difflib
import inspect
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from . import audio, builtin, cifar, mnist, pictures, text
from .archives import (
    ArchiveError,
    ChecksumError,
    DataError,
    MissingDataError,
    PartialDataWarning,
    Store,
    data_folder,
)
from .datasets import ArrayDataset, Batch, Dataset, SampledDataset, to_levels, to_unit
from .pictures import image_folder

__all__ = [
    "CATALOGUE",
    "ArchiveError",
    "ArrayDataset",
    "Batch",
    "ChecksumError",
    "DataError",
    "Dataset",
    "MissingDataError",
    "PartialDataWarning",
    "SampledDataset",
    "image_folder",
    "load",
    "shape",
    "to_levels",
    "to_unit",
]


class Entry(NamedTuple):
    """A data set of the catalogue: load(store, split, **options), the shape of one example when
    no option changes it, and its splits."""

    load: Callable[..., ArrayDataset | SampledDataset]
    shape: tuple[int, ...]
    splits: tuple[str, ...] = ("train", "test")

    @property
    def options(self) -> list[str]:
        return list(inspect.signature(self.load).parameters)[2:]


CATALOGUE = {
    "digits": Entry(builtin.digits, (1, 8, 8), ("train", "test", "all")),
    "mixture9": Entry(builtin.mixture9, (2,)),
    "swissroll5": Entry(builtin.swissroll5, (2,)),
    "pydoc": Entry(text.pydoc, (64,), text.SPLITS),
    "mnist": Entry(mnist.mnist, (1, 28, 28)),
    "fashion-mnist": Entry(mnist.fashion_mnist, (1, 28, 28)),
    "cifar10": Entry(cifar.cifar10, (3, 32, 32)),
    "cifar100": Entry(cifar.cifar100, (3, 32, 32)),
    "cifar10-jpeg": Entry(pictures.cifar10_jpeg, (3, 32, 32)),
    "tiny-imagenet": Entry(pictures.tiny_imagenet, (3, 64, 64)),
    "text8": Entry(text.text8, (250,), text.SPLITS),
    "sc09": Entry(audio.sc09, (16_000,), ("train", "valid", "test")),
    "fsdd": Entry(audio.fsdd, (8_000,)),
    "celeba": Entry(pictures.celeba, (3, 64, 64), ("train", "valid", "test")),
    "celebahq": Entry(pictures.celebahq, (3, 256, 256), ("train",)),
    "imagenet": Entry(pictures.imagenet, (3, 64, 64)),
}


def load(
    name: str,
    split: str = "train",
    *,
    folder: str | Path | None = None,
    allow_partial: bool = False,
    **options,
) -> ArrayDataset | SampledDataset:
    """The data set `name` of the catalogue.

    folder: where files are, instead of the folder DIFFBOOK_DATA names.
    allow_partial: accept a file that is not the published one (a part of a data set); a
        PartialDataWarning then says what is there.
    options: what this data set's own loader takes, such as length for text or size for pictures.
    Raises ValueError for an unknown name, split or option, MissingDataError, ChecksumError or
    ArchiveError where files are missing, not the published ones, or damaged.
    """
    entry = CATALOGUE[_known("data set", name, list(CATALOGUE))]
    _known(f"split of {name}", split, list(entry.splits))
    for option in options:
        _known(f"option of {name}", option, entry.options)
    store = Store(data_folder(folder), allow_partial)
    dataset = entry.load(store, split, **options)
    if store.unofficial:
        warnings.warn(
            f"{dataset.description}. Not the published data ({'; '.join(store.unofficial)}): "
            "figures made with it must not be compared with published ones",
            PartialDataWarning,
            stacklevel=2,
        )
    return dataset


def shape(name: str) -> tuple[int, ...]:
    """The shape of one example of a data set, known without loading it."""
    return CATALOGUE[_known("data set", name, list(CATALOGUE))].shape


def _known(what: str, value: str, allowed: list[str]) -> str:
    if value in allowed:
        return value
    near = difflib.get_close_matches(str(value), allowed, n=1)
    raise ValueError(
        f"unknown {what} {value!r}{f', did you mean {near[0]!r}?' if near else ''} "
        f"Known: {', '.join(allowed) or 'none'}"
    )
