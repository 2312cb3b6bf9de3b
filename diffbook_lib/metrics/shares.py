"""How often each class comes among samples, beside how often it should."""

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from diffbook_lib import rng
from diffbook_lib.errors import Refused
from diffbook_lib.metrics.measurement import Measurement, share_error


def class_shares(
    counts: Tensor,
    names: Sequence[str],
    *,
    earlier: Collection[int] = (),
    seed: int | None = None,
    floor_draws: int = 10,
    **details: Any,
) -> list[Measurement]:
    """The share of each class at {"class": its name}, the total variation between these
    shares and equal ones, half the sum of their differences, and the share of the classes
    `earlier` together.

    counts: how many samples fell into each class, int64 (classes,), such as
        `class_histogram` gives. The floors are samples of classes that are equally likely.
    details: what else is to be said of each figure, such as the accuracy of the classifier.
    """
    if counts.shape != (len(names),) or not int(counts.sum()):
        raise Refused(
            f"counts are {counts.tolist()}; they must be those of {len(names)} classes, and of "
            "one sample or more"
        )
    n, k = int(counts.sum()), len(names)
    shares = counts.double().cpu() / n
    draws = torch.stack(
        [_equal(k, n, seed or 0, draw) for draw in range(floor_draws)]
    )

    def share(name: str, which: list[int], **at: str) -> Measurement:
        value = shares[which].sum().item()
        about = {**details, "standard_error": share_error(value, n)}
        found = Measurement(name, value, n, seed, None, at, about, "equal")
        return found.with_floor(draws[:, which].sum(dim=1).tolist())

    found = [
        share("Share of a class", [c], **{"class": name})
        for c, name in enumerate(names)
    ]
    if earlier:
        found.append(share("Share of the earlier classes", sorted(earlier)))
    distances = [((row - 1 / k).abs().sum() / 2).item() for row in (shares, *draws)]
    name = "Distance of the classes from equal shares"
    whole = Measurement(name, distances[0], n, seed, details=details)
    return [*found, whole.with_floor(distances[1:])]


def _equal(k: int, n: int, seed: int, draw: int) -> Tensor:
    """The shares of k equally likely classes among n samples, float64 (k,)."""
    classes = rng.integers(k, (n,), rng.generator(seed, "floor", draw))
    return torch.bincount(classes, minlength=k).double() / n
