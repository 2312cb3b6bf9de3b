"""Labelled data sets with other shares of their classes: some left out, thinned or repeated."""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from diffbook_lib.data.datasets import ArrayDataset
from diffbook_lib.errors import Refused


def class_rows(dataset: ArrayDataset) -> list[Tensor]:
    """The rows of each class in stored order. Refused for a data set without labels, and for a
    class without an example."""
    if dataset.labels is None:
        raise Refused(
            f"data set {dataset.name!r} has no labels, so its classes are not known"
        )
    labels, count = dataset.labels, len(dataset.classes)
    return [(labels == c).nonzero().flatten() for c in range(count)]


def of_classes(dataset: ArrayDataset, classes: Collection[int]) -> ArrayDataset:
    """The examples of these classes, in stored order."""
    return thinned(
        dataset, {c: 0 for c in range(len(dataset.classes)) if c not in classes}
    )


def thinned(dataset: ArrayDataset, most: Mapping[int, int]) -> ArrayDataset:
    """The first most[c] examples of each class c that `most` names, all of the others, in
    stored order. Refused for a class that is not there, or that has fewer."""
    rows = class_rows(dataset)
    for c, count in most.items():
        if not 0 <= c < len(rows) or not 0 <= count <= len(rows[c]):
            there = {c: len(found) for c, found in enumerate(rows)}
            raise Refused(
                f"{count} examples of class {c} of {dataset.name} were asked for; the classes "
                f"have {there}"
            )
    kept = torch.cat([found[: most.get(c)] for c, found in enumerate(rows)])
    if not len(kept):
        raise Refused(f"no example of {dataset.name} is left: {dict(most)}")
    return dataset.subset(kept.sort().values)


def balanced(dataset: ArrayDataset) -> ArrayDataset:
    """Every class as often as the most frequent one, by repeating its examples in turn: what
    oversampling with known classes learns from. Classes without an example are left out."""
    rows = [found for found in class_rows(dataset) if len(found)]
    most = max(map(len, rows))
    repeated = [found.repeat(-(-most // len(found)))[:most] for found in rows]
    return dataset.subset(
        torch.cat(repeated), f"{len(rows)} classes repeated to {most:,} each,"
    )
