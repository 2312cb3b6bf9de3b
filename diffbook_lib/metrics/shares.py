"""How often each class comes among samples, beside how often it should."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from diffbook_lib import rng
from diffbook_lib.errors import Refused
from diffbook_lib.metrics.measurement import Measurement, share_error


def class_shares(
    counts: Tensor,
    names: Sequence[str],
    wanted: Tensor | None = None,
    *,
    seed: int | None = None,
    floor_draws: int = 10,
    **details: Any,
) -> list[Measurement]:
    """The share of each class at {"class": its name}, and the total variation between these
    shares and those wanted, half the sum of their differences.

    counts: how many samples fell into each class, int64 (classes,), such as
        `class_histogram` gives. wanted: their true shares (classes,), by default equal.
    The floors are samples that are drawn with the wanted shares. details: what else is to be
    said of each figure, such as the accuracy of the classifier.
    """
    if counts.shape != (len(names),) or not int(counts.sum()):
        raise Refused(
            f"counts are {counts.tolist()}; they must be those of {len(names)} classes, and of "
            "one sample or more"
        )
    equal = torch.ones(len(names), dtype=torch.float64)
    truth = (equal if wanted is None else wanted.double()).cpu()
    truth, n = truth / truth.sum(), int(counts.sum())
    shares = counts.double().cpu() / n
    draws = torch.stack(
        [_drawn(truth, n, seed or 0, draw) for draw in range(floor_draws)]
    )
    found = []
    for c, name in enumerate(names):
        share = shares[c].item()
        about = {**details, "standard_error": share_error(share, n)}
        at = {"class": name}
        one = Measurement(
            "Share of a class", share, n, seed, at=at, details=about, better="equal"
        )
        found.append(one.with_floor(draws[:, c].tolist()))
    distances = (draws - truth).abs().sum(dim=1) / 2
    value = ((shares - truth).abs().sum() / 2).item()
    whole = Measurement(
        "Distance of the classes' shares", value, n, seed, details=details
    )
    return [*found, whole.with_floor(distances.tolist())]


def _drawn(truth: Tensor, n: int, seed: int, draw: int) -> Tensor:
    """The shares among n samples of a perfect sampler, float64 (classes,)."""
    source = rng.generator(seed, "floor", draw)
    classes = torch.multinomial(truth, n, replacement=True, generator=source)
    return torch.bincount(classes, minlength=len(truth)).double() / n
