"""The data sets there are, by name: what is known of each, and how it is loaded."""

import difflib
import inspect
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from diffbook_lib.data import (
    audio,
    builtin,
    cifar,
    latents,
    mnist,
    own,
    pictures,
    text,
)
from diffbook_lib.data.archives import (
    DataError,
    PartialDataWarning,
    Store,
    data_folder,
)
from diffbook_lib.data.batches import Kind
from diffbook_lib.data.datasets import ArrayDataset, SampledDataset
from diffbook_lib.data.description import Description

Options = Mapping[str, Any]


class Entry(NamedTuple):
    """A data set of the catalogue.

    load: load(store, split, **options).
    shape: of one example, or how the options give it.
    classes: their names, or their number where only the files name them.
    """

    load: Callable[..., ArrayDataset | SampledDataset]
    kind: Kind
    shape: tuple[int, ...] | Callable[[Options], tuple[int, ...]]
    levels: int | None = 256
    classes: tuple[str, ...] | int = ()
    splits: tuple[str, ...] = ("train", "test")

    def options(self) -> dict[str, Any]:
        """The options of the loader and their defaults."""
        found = list(inspect.signature(self.load).parameters.values())[2:]
        return {parameter.name: parameter.default for parameter in found}


def _square(options: Options) -> tuple[int, ...]:
    return 3, options["size"], options["size"]


def _long(options: Options) -> tuple[int, ...]:
    return (options["length"] or options["rate"],)


def _chunk(options: Options) -> tuple[int, ...]:
    return (options["length"],)


DIGITS, LETTERS, WORDS = builtin.DIGITS, len(text.ALPHABET), audio.WORDS
OBJECTS = pictures.CIFAR10_CLASSES
THREE = ("train", "valid", "test")

CATALOGUE = {
    "digits": Entry(
        builtin.digits, "images", (1, 8, 8), 17, DIGITS, ("train", "test", "all")
    ),
    "mixture9": Entry(builtin.mixture9, "points", (2,), None),
    "swissroll5": Entry(builtin.swissroll5, "points", (2,), None),
    "corners": Entry(builtin.corners, "points", (2,), None, builtin.CORNERS),
    "pydoc": Entry(text.pydoc, "text", _chunk, LETTERS, splits=text.SPLITS),
    "mnist": Entry(mnist.mnist, "images", (1, 28, 28), classes=mnist.MNIST.classes),
    "fashion-mnist": Entry(
        mnist.fashion_mnist,
        "images",
        (1, 28, 28),
        classes=mnist.FASHION_MNIST.classes,
    ),
    "cifar10": Entry(cifar.cifar10, "images", (3, 32, 32), classes=OBJECTS),
    "cifar100": Entry(cifar.cifar100, "images", (3, 32, 32), classes=100),
    "cifar10-jpeg": Entry(
        pictures.cifar10_jpeg, "images", (3, 32, 32), classes=OBJECTS
    ),
    "tiny-imagenet": Entry(
        pictures.tiny_imagenet, "images", (3, 64, 64), classes=200
    ),
    "text8": Entry(text.text8, "text", _chunk, LETTERS, splits=text.SPLITS),
    "sc09": Entry(audio.sc09, "sound", (16_000,), 2**16, WORDS, THREE),
    "fsdd": Entry(audio.fsdd, "sound", _long, 2**16, WORDS),
    "celeba": Entry(pictures.celeba, "images", _square, classes=2, splits=THREE),
    "celebahq": Entry(pictures.celebahq, "images", _square, splits=("train",)),
    "imagenet": Entry(pictures.imagenet, "images", _square, classes=1000),
    "imagenette": Entry(
        pictures.imagenette, "images", _square, classes=pictures.IMAGENETTE_CLASSES
    ),
    "imagenet-latents": Entry(
        latents.imagenet_latents,
        "images",
        latents.SHAPE,
        None,
        classes=latents.CLASSES,
    ),
    own.NAME: Entry(own.folder, "images", ()),  # described by own.describe
}


def describe(name: str, **options: Any) -> Description:
    """What is known of a data set without loading it.

    options: those of `load`. Of one's own data (name "folder", option path) the names in the
    folder or archive and one picture are read, or the header of an array file. Raises
    DataError for an unknown name or option and for an option below its bound.
    """
    entry = _entry(name, options)
    if name == own.NAME:
        return own.describe(**options)
    resolved = {**entry.options(), **options}
    return Description(
        name=name,
        kind=entry.kind,
        shape=entry.shape(resolved) if callable(entry.shape) else entry.shape,
        levels=entry.levels,
        classes=entry.classes if isinstance(entry.classes, tuple) else (),
        class_count=len(entry.classes)
        if isinstance(entry.classes, tuple)
        else entry.classes,
        splits=entry.splits,
    )


def load(
    name: str,
    split: str = "train",
    *,
    folder: str | Path | None = None,
    allow_partial: bool = False,
    **options: Any,
) -> ArrayDataset | SampledDataset:
    """The data set `name` of the catalogue.

    folder: where files are, instead of the folder DIFFBOOK_DATA names.
    allow_partial: accept a file that is not the published one (a part of a data set); a
        PartialDataWarning then says what is there.
    options: what this data set's own loader takes, such as length for text or size for
        pictures.
    Raises DataError for an unknown name, split or option; its kinds MissingDataError,
    ChecksumError and ArchiveError where files are missing, not the published ones, or
    damaged.
    """
    entry = _entry(name, options)
    _known(f"split of {name}", split, entry.splits)
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


def _entry(name: str, options: Options) -> Entry:
    """The data set of this name, if it takes these options."""
    _known("data set", name, tuple(CATALOGUE))
    entry = CATALOGUE[name]
    for option, value in options.items():
        _known(f"option of {name}", option, tuple(entry.options()))
        least = 2 if option == "levels" else 1
        if isinstance(value, int) and value < least:
            raise DataError(
                f"{option} is {value}; it must be at least {least}, or left out"
            )
    return entry


def _known(what: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        near = difflib.get_close_matches(str(value), allowed, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise DataError(
            f"unknown {what} {value!r}{hint} (known: {', '.join(allowed) or 'none'})"
        )
