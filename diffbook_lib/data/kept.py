"""Examples that a module holds, and that a checkpoint brings with it."""

from dataclasses import dataclass, field

from torch import nn

from diffbook_lib.data.batches import Batch
from diffbook_lib.data.datasets import ArrayDataset


@dataclass(eq=False)
class Kept:
    """The buffer `name` of a module as a data set without labels, on the module's device, with
    what was loaded into it last.

    levels: as in `ArrayDataset`.
    """

    module: nn.Module
    name: str
    levels: int | None
    _made: ArrayDataset | None = field(default=None, init=False, repr=False)

    def _dataset(self) -> ArrayDataset:
        examples = self.module.get_buffer(self.name)
        if self._made is None or self._made.examples is not examples:
            self._made = ArrayDataset(examples, levels=self.levels, name=self.name)
        return self._made

    @property
    def shape(self) -> tuple[int, ...]:
        return self._dataset().shape

    @property
    def size(self) -> int:
        return self._dataset().size

    def to(self, device: object) -> "Kept":
        """Itself: its examples move with the module."""
        return self

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
        return self._dataset().batch(seed, step, total, start, stop)
