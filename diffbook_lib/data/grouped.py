"""Several data sets in one batch, for one forward pass."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from diffbook_lib.data.batches import Batch, Dataset, positions
from diffbook_lib.errors import Refused


class Layout(NamedTuple):
    """Where the rows of one share of a batch come from, on the device of the data."""

    takes: list[tuple[int, int, int]]  # (group, first, last row of its own batch)
    group: Tensor  # int64 (rows,)
    back: Tensor  # int64 (rows,): place of each row among the rows group after group
    weights: Tensor  # float32 (groups,)


@dataclass(frozen=True, eq=False)
class Grouped:
    """Data sets side by side: every batch holds the same number of rows of each.

    parts: {group's name: (data set, rows of it in a batch)}; group g is the g-th of them.

    Row j = 0 ... n_g - 1 of group g stands at the place (j + 1/2) / n_g of the batch, the
    groups merged in that order, so that every share of a batch holds about its part of each
    group. Within a group the rows are those that its data set gives in batches of n_g by
    itself, whichever share they fall into. The batch says each row's group and the weights
    N / n_g, N = sum_g n_g, that make means over the batch means over a group: see
    `Batch.by_group`. It has labels where every group has.

    Raises Refused for examples of different shapes or forms and counts below 1; so does
    `batch` for another number of rows than N.
    """

    parts: Mapping[str, tuple[Dataset, int]]
    _group: Tensor = field(init=False, repr=False)
    _layouts: dict[tuple[int, int], Layout] = field(
        default_factory=dict, init=False, repr=False
    )

    def __post_init__(self) -> None:
        if wrong := {
            name: rows for name, (_, rows) in self.parts.items() if rows < 1
        }:
            raise Refused(f"{wrong}: a group needs at least one row in a batch")
        forms = {
            name: (
                part.shape,
                "levels" if getattr(part, "discrete", False) else "values",
            )
            for name, (part, _) in self.parts.items()
        }
        if len(set(forms.values())) != 1:
            raise Refused(
                f"one batch holds examples of one shape and form, not {forms}"
            )
        places = [
            ((j + 0.5) / rows, g)
            for g, (_, rows) in enumerate(self.parts.values())
            for j in range(rows)
        ]
        object.__setattr__(
            self, "_group", torch.tensor([g for _, g in sorted(places)])
        )

    @property
    def groups(self) -> tuple[str, ...]:
        """The names of the groups, in the order of their numbers."""
        return tuple(self.parts)

    @property
    def shape(self) -> tuple[int, ...]:
        return next(part.shape for part, _ in self.parts.values())

    @property
    def size(self) -> float:
        """The number of examples of all groups together."""
        return sum(part.size for part, _ in self.parts.values())

    def to(self, device: str | torch.device) -> "Grouped":
        """The same data sets with their batches on `device`."""
        return Grouped(
            {name: (part.to(device), n) for name, (part, n) in self.parts.items()}
        )

    def batch(
        self,
        seed: int,
        step: int,
        total: int,
        start: int = 0,
        stop: int | None = None,
    ) -> Batch:
        """Rows start..stop (None: to the end) of global batch number `step`."""
        if total != len(self._group):
            sizes = " + ".join(
                f"{rows} of {name}" for name, (_, rows) in self.parts.items()
            )
            raise Refused(
                f"batch is {total}, but its groups are {sizes}: {len(self._group)}"
            )
        first, last = positions(step, total, start, stop)
        rows = first - step * total, last - step * total
        parts = list(self.parts.values())
        takes = (
            self._layouts[rows].takes if rows in self._layouts else self._takes(*rows)
        )
        found = [
            parts[g][0].batch(seed, step, parts[g][1], a, b) for g, a, b in takes
        ]
        x = torch.cat([batch.x for batch in found])
        if rows not in self._layouts:
            self._layouts[rows] = self._layout(takes, *rows, x.device)
        layout = self._layouts[rows]
        label = None
        if all(getattr(part, "labels", None) is not None for part, _ in parts):
            label = torch.cat([b.label for b in found if b.label is not None])[
                layout.back
            ]
        return Batch(x[layout.back], label, layout.group, layout.weights)

    def _takes(self, start: int, stop: int) -> list[tuple[int, int, int]]:
        """The rows of each group's own batch that rows start..stop hold."""
        edges = torch.stack(
            [
                torch.bincount(self._group[:end], minlength=len(self.parts))
                for end in (start, stop)
            ]
        )
        ranges = enumerate(edges.T.tolist())
        return [(g, first, last) for g, (first, last) in ranges if first < last]

    def _layout(
        self,
        takes: list[tuple[int, int, int]],
        start: int,
        stop: int,
        device: torch.device,
    ) -> Layout:
        group = self._group[start:stop]
        back = group.argsort(stable=True).argsort()
        weights = len(self._group) / torch.bincount(self._group)
        return Layout(takes, group.to(device), back.to(device), weights.to(device))
