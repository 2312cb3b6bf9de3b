"""The learning rate of weights that do not grow: it must fall by itself."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class InverseSqrt:
    """lr min(seen / warmup_images, 1) / sqrt(max(seen / reference, 1)) with `seen`, the
    images before the step, and reference = reference_steps batch (Karras et al. 2024,
    configuration E); 0 switches either factor off.

    epoch: images after which the rate changes, and not between, as in the
    re-implementation for CIFAR and Tiny-ImageNet: `seen` is that of the last whole epoch
    and one epoch more in the warm-up, which ends before the fall begins. 0: the rate
    changes with every step.
    """

    lr: float
    batch: int
    warmup_images: int = 0
    reference_steps: int = 0
    epoch: int = 0

    def __call__(self, step: int) -> float:
        """The rate of step number `step` = 1, 2, ..."""
        return self.at((step - 1) * self.batch)

    def at(self, seen: int) -> float:
        """The rate after `seen` images."""
        warmup, reference = self.warmup_images, self.reference_steps * self.batch
        rate = self.lr
        if self.epoch:
            seen = seen // self.epoch * self.epoch
            if seen < warmup:
                return rate * (seen + self.epoch) / warmup
        elif seen < warmup:
            rate *= seen / warmup
        return rate / math.sqrt(max(seen / reference, 1)) if reference else rate
