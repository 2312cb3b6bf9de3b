"""What a batch is, and what training asks of a data set: any rows of any batch, by key.

A batch is a function of (seed, step): nothing is carried from one step to the next, any
split of a global batch into shares gives the same rows, and a run resumed at step n sees
what an undisturbed run sees at step n.
"""

from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

Kind = Literal["points", "images", "text", "sound"]
UNITS: dict[Kind, str] = {
    "points": "points",
    "images": "images",
    "text": "chunks",
    "sound": "clips",
}


class Batch(NamedTuple):
    """Examples `x`, float32 in [-1, 1] (or int64 levels), and their classes, int64 (batch,).

    Where a batch holds several groups (`Grouped`): `group`, int64 (batch,), and `weights`,
    float32 (groups,), the rows of the whole batch over those of each group.
    """

    x: Tensor
    label: Tensor | None
    group: Tensor | None = None
    weights: Tensor | None = None

    def by_group(self, values: Tensor) -> Tensor:
        """One number an example, (batch,) -> (groups, batch), whose mean over the whole
        batch, row by row, is the mean over each group:

            by_group(l)[g, i] = (N / n_g) [group_i = g] l_i,
            (1 / N) sum_i by_group(l)[g, i] = (1 / n_g) sum_{i in g} l_i,

        with N rows in the whole batch and n_g of group g. Both counts are those of the
        whole batch, so averaging over shares of any sizes, each by its rows, is exact.
        Raises ValueError for a batch without groups.
        """
        if self.group is None or self.weights is None:
            raise ValueError(
                "this batch has no groups; train on a data.Grouped data set"
            )
        groups = torch.arange(len(self.weights), device=self.group.device)
        mine = self.group == groups[:, None]
        return torch.where(mine, self.weights[:, None] * values, 0)


class Dataset(Protocol):
    """What training asks of a data set."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one example, such as (1, 8, 8)."""

    @property
    def size(self) -> float:
        """The number of examples; math.inf for an endless stream."""

    def batch(
        self,
        seed: int,
        step: int,
        total: int,
        start: int = 0,
        stop: int | None = None,
    ) -> Batch:
        """Rows start..stop (None: to the end) of global batch number `step` of `total`
        examples."""

    def to(self, device: str | torch.device) -> "Dataset":
        """The same data set with its batches on `device`."""


def positions(step: int, total: int, start: int, stop: int | None) -> tuple[int, int]:
    """The stream positions of rows start..stop of a batch, checked."""
    stop = total if stop is None else stop
    if step < 0 or not 0 <= start < stop <= total:
        raise ValueError(
            f"rows {start}..{stop} of batch {step} of {total} examples do not exist: need "
            "step >= 0 and 0 <= start < stop <= total"
        )
    return step * total + start, step * total + stop
