"""The data that a run's specification names."""

from dataclasses import replace
from typing import Any

from diffbook_lib.data import own
from diffbook_lib.data.archives import DataError
from diffbook_lib.data.catalogue import CATALOGUE, describe, load
from diffbook_lib.data.datasets import ArrayDataset, SampledDataset
from diffbook_lib.data.description import Description

OPTIONS = (
    "path",
    "size",
    "length",
    "levels",
    "splits",
    "attribute",
    "rate",
    "data_hash",
)


def training(spec: Any) -> ArrayDataset | SampledDataset:
    """The training part of the data set that a specification names, as it says.

    Read are `dataset` and, of those the specification has, `allow_partial`, `flip`,
    `dequantise` and the options of `data.load` (`OPTIONS`), where 0, "" and None mean not
    set. Raises what `check` and `data.load` raise, and ChecksumError where one's own data
    are no longer those of `data_hash`.
    """
    check(spec)
    dataset = _load(spec, "train")
    if not isinstance(dataset, ArrayDataset):
        return dataset
    return replace(
        dataset,
        flip=bool(getattr(spec, "flip", False)),
        dequantise=bool(getattr(spec, "dequantise", False)),
    )


def held_out(spec: Any) -> ArrayDataset | SampledDataset:
    """The test part of the same data set, never mirrored nor dequantised."""
    check(spec)
    if "test" not in (splits := CATALOGUE[spec.dataset].splits):
        raise DataError(
            f"{spec.dataset} has no test part; it has {', '.join(splits)}"
        )
    return _load(spec, "test")


def check(spec: Any) -> Description:
    """Refuse what this data set cannot do, without loading it; else what is known of it.

    A parameter that would do nothing is refused: a size for MNIST, a path for a data set of
    the catalogue, mirrored text, dequantised points. Raises DataError with what to change.
    """
    options = _options(spec)
    if spec.dataset in CATALOGUE:
        taken = CATALOGUE[spec.dataset].options()
        for name, value in options.items():
            if name not in taken:
                raise DataError(
                    f"{name} is {value!r}, but the data set {spec.dataset} takes no {name} "
                    f"(it takes: {', '.join(taken) or 'none'}); leave it out"
                )
    about = describe(spec.dataset, **options)
    if getattr(spec, "flip", False) and about.kind != "images":
        raise DataError(
            f"flip is True, but it mirrors images, and {spec.dataset} holds {about.kind}; set "
            "flip = False"
        )
    if getattr(spec, "dequantise", False):
        why = "symbols, between which no value lies" if about.discrete else ""
        why = (
            "continuous values, which have no levels to spread"
            if about.levels is None
            else why
        )
        if why:
            raise DataError(
                f"dequantise is True, but {spec.dataset} holds {why}; set dequantise = False"
            )
    return about


def fingerprint(spec: Any) -> str:
    """SHA-256 of the content of one's own data, 64 hexadecimal digits; "" for data of the
    catalogue, whose files have published checksums."""
    return own.content_hash(spec.path) if spec.dataset == own.NAME else ""


def _options(spec: Any) -> dict[str, Any]:
    """The options of `data.load` that a specification sets."""
    found = {name: getattr(spec, name, None) for name in OPTIONS}
    return {
        name: value for name, value in found.items() if value not in (None, "", 0, ())
    }


def _load(spec: Any, split: str) -> ArrayDataset | SampledDataset:
    partial = bool(getattr(spec, "allow_partial", False))
    return load(spec.dataset, split, allow_partial=partial, **_options(spec))
