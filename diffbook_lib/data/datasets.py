"""Data sets held in memory and endless streams: the two forms of `batches.Dataset`."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from diffbook_lib import rng
from diffbook_lib.data.batches import UNITS, Batch, Kind, positions
from diffbook_lib.data.levels import dequantise, stored, to_levels, to_unit
from diffbook_lib.errors import Refused


@dataclass(frozen=True, eq=False)
class ArrayDataset:
    """A data set held whole on one device, in its stored integer type.

    examples: (n, *shape): uint8 or int32 levels, int16 sound samples, or floating-point
        values.
    labels: int64 (n,) or None.
    levels: how many values a number of an example can take (256 for 8-bit images, 17 for
        the digits, 65,536 for 16-bit sound); None for floating-point values, which pass
        unchanged.
    classes: the names of the classes, in the order of the labels.
    description: what this is, and how much of it, in words a figure's caption can use.
    kind: what an example is; None: images where its shape is (channel, height, width), else
        points.
    flip: mirror each example left-right with probability 1/2, drawn anew each epoch.
    dequantise: spread the levels of a batch evenly over their bins (`levels.dequantise`),
        with noise keyed by (seed, "dequantise", step).
    discrete: batches hold int64 levels 0 ... levels-1 instead of float32 in [-1, 1].

    The examples form one endless stream: position p = step * total + i lies in epoch p // n,
    whose order is `rng.permutation(n, seed, "order", epoch)`. A batch may straddle epochs,
    and may be larger than the data set.
    """

    examples: Tensor = field(repr=False)
    labels: Tensor | None = field(default=None, repr=False)
    levels: int | None = 256
    classes: tuple[str, ...] = ()
    name: str = ""
    description: str = ""
    kind: Kind | None = None
    flip: bool = False
    dequantise: bool = False
    discrete: bool = False
    _epochs: dict[tuple[int, int], tuple[Tensor, Tensor]] = field(
        default_factory=dict, init=False, repr=False
    )

    def __post_init__(self) -> None:
        if len(self.examples) == 0:
            raise ValueError(
                f"data set {self.name!r} has no examples ({self.description})"
            )
        if self.labels is not None and len(self.labels) != len(self.examples):
            raise ValueError(
                f"{len(self.labels)} labels for {len(self.examples)} examples"
            )
        if (self.levels is None) != self.examples.is_floating_point():
            raise ValueError(
                f"levels is {self.levels} for data of type {self.examples.dtype}; integer "
                "data needs their number, floating-point data None"
            )
        if self.discrete and self.levels is None:
            raise ValueError(
                "floating-point data have no levels, so discrete must be False"
            )
        if self.dequantise and (self.levels is None or self.discrete):
            raise ValueError(
                "only levels that become values in [-1, 1] can be dequantised"
            )
        if self.kind is None:
            inferred = "images" if len(self.shape) == 3 else "points"
            object.__setattr__(self, "kind", inferred)
        if self.flip and self.kind != "images":
            raise ValueError(
                f"{self.kind} have no left and right, so flip must be False"
            )

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def size(self) -> int:
        return len(self.examples)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.examples.shape[1:])

    @property
    def unit(self) -> str:
        """What its examples are called, in the plural: images, clips, chunks, points."""
        return UNITS[self.kind or "points"]

    def to(self, device: str | torch.device) -> "ArrayDataset":
        """The same data set on `device`."""
        labels = None if self.labels is None else self.labels.to(device)
        return replace(self, examples=self.examples.to(device), labels=labels)

    def subset(
        self, indices: Sequence[int] | Tensor, which: str = ""
    ) -> "ArrayDataset":
        """The examples `indices`, in that order, as a data set of their own.

        which: how the description calls them, such as "the first 256"; their number unless
            told.
        """
        rows = torch.as_tensor(
            indices, dtype=torch.int64, device=self.examples.device
        )
        return replace(
            self,
            examples=self.examples[rows],
            labels=None if self.labels is None else self.labels[rows],
            description=f"{which or f'{len(rows):,}'} of {self.size:,} {self.unit} of "
            f"{self.description or self.name or 'a data set'}",
        )

    def first(self, n: int) -> "ArrayDataset":
        """The first n examples in stored order. Refused where there are fewer."""
        if not 1 <= n <= self.size:
            raise Refused(
                f"the first {n:,} {self.unit} of {self.name or 'a data set'} were asked "
                f"for; it has {self.size:,}: take between 1 and {self.size:,}"
            )
        return self.subset(torch.arange(n), f"the first {n:,}")

    def halves(self, seed: int) -> tuple["ArrayDataset", "ArrayDataset"]:
        """Two disjoint halves, a random division keyed by the seed, each in stored order.

        Where the number of examples is odd the second holds one more.
        """
        if self.size < 2:
            raise Refused(f"{self.name or 'a data set'} of one example has no halves")
        order = rng.permutation(self.size, seed, "halves")
        rows = order[: self.size // 2], order[self.size // 2 :]
        one, other = (
            self.subset(
                part.sort().values, f"random half {i} (seed {seed}): {len(part):,}"
            )
            for i, part in enumerate(rows, 1)
        )
        return one, other

    def as_levels(self) -> "ArrayDataset":
        """The same data set with int64 levels for batches, as discrete models need."""
        return replace(self, discrete=True, dequantise=False)

    def __getitem__(self, rows: slice | Sequence[int] | Tensor) -> Batch:
        """Stored examples `rows` in stored order, never mirrored or dequantised:
        `dataset[:]` is all of them."""
        label = None if self.labels is None else self.labels[rows]
        return Batch(self._convert(self.examples[rows]), label)

    def batch(
        self,
        seed: int,
        step: int,
        total: int,
        start: int = 0,
        stop: int | None = None,
    ) -> Batch:
        """Rows start..stop (None: to the end) of global batch number `step` of `total`
        examples.

        Raises ValueError where the rows do not lie in the batch.
        """
        first, last = positions(step, total, start, stop)
        rows, mirrored = self._stream(seed, first, last)
        chosen = self.examples[rows]
        if self.flip:
            mirrored = mirrored.view(-1, *[1] * len(self.shape))
            chosen = torch.where(mirrored, chosen.flip(-1), chosen)
        noise = None
        if self.dequantise:
            keyed = rng.generator(seed, "dequantise", step, self.examples.device)
            noise = rng.Share(keyed, first - step * total, last - step * total, total)
        label = None if self.labels is None else self.labels[rows]
        return Batch(self._convert(chosen, noise), label)

    def _convert(self, chosen: Tensor, noise: rng.Source | None = None) -> Tensor:
        """The one place where stored numbers become what networks see."""
        if self.levels is None:
            return chosen.to(torch.float32)
        if chosen.dtype == torch.int16:
            chosen = chosen.to(torch.int32) + 2**15
        if self.discrete:
            return chosen.to(torch.int64)
        if noise is not None:
            return dequantise(chosen, noise, self.levels)
        return to_unit(chosen, self.levels)

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
        return torch.cat([rows for rows, _ in parts]), torch.cat(
            [flags for _, flags in parts]
        )

    def _epoch(self, seed: int, epoch: int) -> tuple[Tensor, Tensor]:
        """The order and mirror flags of an epoch; the last two epochs asked for are kept."""
        if (seed, epoch) not in self._epochs:
            while len(self._epochs) >= 2:
                self._epochs.pop(next(iter(self._epochs)))
            order = rng.permutation(len(self), seed, "order", epoch)
            coins = rng.generator(seed, "flip", epoch)
            mirrored = (
                rng.uniform((len(self),), coins) < 0.5 if self.flip else order < 0
            )
            device = self.examples.device
            self._epochs[seed, epoch] = order.to(device), mirrored.to(device)
        return self._epochs[seed, epoch]


@dataclass(frozen=True, eq=False)
class SampledDataset:
    """An endless stream drawn from a known distribution.

    draw(n, generator) gives n examples, a floating-point tensor (n, *shape) on the CPU.
    Every worker draws the whole global batch from `rng.generator(seed, purpose, step)` and
    keeps its rows.
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
        self,
        seed: int,
        step: int,
        total: int,
        start: int = 0,
        stop: int | None = None,
    ) -> Batch:
        """Rows start..stop (None: to the end) of global batch number `step` of `total`
        examples.

        Raises ValueError where the rows do not lie in the batch.
        """
        positions(step, total, start, stop)
        x = self.draw(total, rng.generator(seed, self.purpose, step))
        return Batch(x[start:stop].to(self.device, torch.float32), None)


def from_tensor(
    x: Tensor,
    levels: int | None,
    name: str,
    description: str,
    labels: Tensor | None = None,
) -> ArrayDataset:
    """Examples at hand, (n, *shape), such as a run's samples, as a data set.

    levels: their number; values in [-1, 1] are rounded to them, integers are taken as they
        are. None: floating-point values pass unchanged.
    """
    if levels is not None:
        x = stored(to_levels(x, levels) if x.is_floating_point() else x, levels)
    return ArrayDataset(x, labels, levels=levels, name=name, description=description)
