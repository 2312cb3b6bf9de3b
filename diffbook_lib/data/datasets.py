"""Data sets that give the rows of any global batch by key.

A batch is a function of (seed, step): nothing is carried from one step to the next, any split of
a global batch into shares gives the same rows, and a run resumed at step n sees what an
undisturbed run sees at step n.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from .. import rng


class Batch(NamedTuple):
    """Examples `x`, float32 in [-1, 1] (or int64 levels), and their classes, int64 (batch,)."""

    x: Tensor
    label: Tensor | None


class Dataset(Protocol):
    """What training asks of a data set."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one example, such as (1, 8, 8)."""

    @property
    def size(self) -> float:
        """The number of examples; math.inf for an endless stream."""

    def batch(
        self, seed: int, step: int, total: int, start: int = 0, stop: int | None = None
    ) -> Batch:
        """Rows start..stop (None: to the end) of global batch number `step` of `total` examples."""

    def to(self, device: str | torch.device) -> "Dataset":
        """The same data set with its batches on `device`."""


def to_unit(levels: Tensor, count: int) -> Tensor:
    """Integer levels 0 ... count-1 as float32 in [-1, 1]."""
    return levels.to(torch.float32) / ((count - 1) / 2) - 1


def to_levels(x: Tensor, count: int) -> Tensor:
    """Values in [-1, 1] as the nearest of the int64 levels 0 ... count-1; clips outside."""
    return ((x + 1) * ((count - 1) / 2)).round().clamp(0, count - 1).to(torch.int64)


@dataclass(frozen=True, eq=False)
class ArrayDataset:
    """A data set held whole on one device, in its stored integer type.

    images: (n, *shape): uint8 levels, int16 sound samples, or floating-point values.
    labels: int64 (n,) or None.
    levels: how many values a number of an example can take (256 for 8-bit images, 17 for the
        digits, 65,536 for 16-bit sound); None for floating-point values, which pass unchanged.
    classes: the names of the classes, in the order of the labels.
    description: what this is, and how much of it, in words a figure's caption can use.
    flip: mirror each example left-right with probability 1/2, drawn anew each epoch.
    discrete: batches hold int64 levels 0 ... levels-1 instead of float32 in [-1, 1].

    The examples form one endless stream: position p = step * total + i lies in epoch p // n,
    whose order is `rng.permutation(n, seed, "order", epoch)`. A batch may straddle epochs.
    """

    images: Tensor = field(repr=False)
    labels: Tensor | None = field(default=None, repr=False)
    levels: int | None = 256
    classes: tuple[str, ...] = ()
    name: str = ""
    description: str = ""
    flip: bool = False
    discrete: bool = False
    _epochs: dict = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if len(self.images) == 0:
            raise ValueError(f"data set {self.name!r} has no examples ({self.description})")
        if self.labels is not None and len(self.labels) != len(self.images):
            raise ValueError(f"{len(self.labels)} labels for {len(self.images)} examples")
        if (self.levels is None) != self.images.is_floating_point():
            raise ValueError(
                f"levels is {self.levels} for data of type {self.images.dtype}; integer data "
                "needs their number, floating-point data None"
            )
        if self.discrete and self.levels is None:
            raise ValueError("floating-point data have no levels, so discrete must be False")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def size(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.images.shape[1:])

    def to(self, device: str | torch.device) -> "ArrayDataset":
        """The same data set on `device`."""
        labels = None if self.labels is None else self.labels.to(device)
        return replace(self, images=self.images.to(device), labels=labels)

    def subset(self, indices: Sequence[int] | Tensor) -> "ArrayDataset":
        """The examples `indices`, in that order, as a data set of their own."""
        rows = torch.as_tensor(indices, dtype=torch.int64, device=self.images.device)
        labels = None if self.labels is None else self.labels[rows]
        return replace(self, images=self.images[rows], labels=labels)

    def as_levels(self) -> "ArrayDataset":
        """The same data set with int64 levels for batches, as discrete models need."""
        return replace(self, discrete=True)

    def __getitem__(self, rows: slice | Sequence[int] | Tensor) -> Batch:
        """Stored examples `rows` in stored order, never mirrored: `dataset[:]` is all of them."""
        label = None if self.labels is None else self.labels[rows]
        return Batch(self._convert(self.images[rows]), label)

    def batch(
        self, seed: int, step: int, total: int, start: int = 0, stop: int | None = None
    ) -> Batch:
        """Rows start..stop (None: to the end) of global batch number `step` of `total` examples.

        Raises ValueError where the rows do not lie in the batch.
        """
        first, last = _positions(step, total, start, stop)
        rows, mirrored = self._stream(seed, first, last)
        stored = self.images[rows]
        if self.flip:
            mirrored = mirrored.view(-1, *[1] * len(self.shape))
            stored = torch.where(mirrored, stored.flip(-1), stored)
        return Batch(self._convert(stored), None if self.labels is None else self.labels[rows])

    def _convert(self, stored: Tensor) -> Tensor:
        """The one place where stored numbers become what networks see."""
        if self.levels is None:
            return stored.to(torch.float32)
        if stored.dtype == torch.int16:
            stored = stored.to(torch.int32) + 2**15
        return stored.to(torch.int64) if self.discrete else to_unit(stored, self.levels)

    def _stream(self, seed: int, first: int, last: int) -> tuple[Tensor, Tensor]:
        """Row numbers and mirror flags of the stream positions first..last."""
        parts = []
        while first < last:
            epoch, offset = divmod(first, len(self))
            part = slice(offset, min(offset + last - first, len(self)))
            order, mirrored = self._epoch(seed, epoch)
            parts.append((order[part], mirrored[part]))
            first += part.stop - part.start
        if len(parts) == 1:
            return parts[0]
        return torch.cat([rows for rows, _ in parts]), torch.cat([flags for _, flags in parts])

    def _epoch(self, seed: int, epoch: int) -> tuple[Tensor, Tensor]:
        """The order and mirror flags of an epoch; the last two epochs asked for are kept."""
        if (seed, epoch) not in self._epochs:
            while len(self._epochs) >= 2:
                self._epochs.pop(next(iter(self._epochs)))
            order = rng.permutation(len(self), seed, "order", epoch)
            coins = rng.generator(seed, "flip", epoch)
            mirrored = rng.uniform((len(self),), coins) < 0.5 if self.flip else order < 0
            device = self.images.device
            self._epochs[seed, epoch] = order.to(device), mirrored.to(device)
        return self._epochs[seed, epoch]


@dataclass(frozen=True, eq=False)
class SampledDataset:
    """An endless stream drawn from a known distribution.

    draw(n, generator) gives n examples, a floating-point tensor (n, *shape) on the CPU. Every
    worker draws the whole global batch from `rng.generator(seed, purpose, step)` and keeps its
    rows.
    """

    draw: Callable[[int, torch.Generator], Tensor]
    shape: tuple[int, ...]
    name: str = ""
    description: str = ""
    purpose: str = "data"
    device: str | torch.device = "cpu"

    @property
    def size(self) -> float:
        return math.inf

    def to(self, device: str | torch.device) -> "SampledDataset":
        """The same stream with its batches on `device`."""
        return replace(self, device=device)

    def batch(
        self, seed: int, step: int, total: int, start: int = 0, stop: int | None = None
    ) -> Batch:
        """Rows start..stop (None: to the end) of global batch number `step` of `total` examples.

        Raises ValueError where the rows do not lie in the batch.
        """
        _positions(step, total, start, stop)
        x = self.draw(total, rng.generator(seed, self.purpose, step))
        return Batch(x[start:stop].to(self.device, torch.float32), None)


def _positions(step: int, total: int, start: int, stop: int | None) -> tuple[int, int]:
    """The stream positions of rows start..stop of a batch, checked."""
    stop = total if stop is None else stop
    if step < 0 or not 0 <= start < stop <= total:
        raise ValueError(
            f"rows {start}..{stop} of batch {step} of {total} examples do not exist: need "
            "step >= 0 and 0 <= start < stop <= total"
        )
    return step * total + start, step * total + stop
