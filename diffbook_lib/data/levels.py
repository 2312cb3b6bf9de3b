"""Integer levels and the interval [-1, 1] that networks see."""

import torch
from torch import Tensor

from diffbook_lib import rng


def to_unit(levels: Tensor, count: int) -> Tensor:
    """Integer levels 0 ... count-1 as float32 in [-1, 1]."""
    return levels.to(torch.float32) / ((count - 1) / 2) - 1


def to_levels(x: Tensor, count: int) -> Tensor:
    """Values in [-1, 1] as the nearest of the int64 levels 0 ... count-1; clips outside."""
    return ((x + 1) * ((count - 1) / 2)).round().clamp(0, count - 1).to(torch.int64)


def dequantise(examples: Tensor, source: rng.Source, levels: int = 256) -> Tensor:
    """Integer levels (n, *shape) -> float32 values spread evenly over each level's bin.

    The bins have the width 2 / (levels - 1) and are centred at
    `to_unit(examples, levels)`, so the outermost reach half a bin beyond [-1, 1]
    (Theis et al. 2016, arXiv 1511.01844). The source is on the device of the examples.
    Raises ValueError for floating-point examples.
    """
    if examples.is_floating_point():
        raise ValueError(
            f"examples are of type {examples.dtype}; dequantise takes integer levels"
        )
    noise = rng.uniform(examples.shape, source) - 0.5
    return to_unit(examples + noise, levels)


def stored(levels: Tensor, count: int) -> Tensor:
    """Levels 0 ... count-1 in the smallest integer type the library keeps them in."""
    return levels.to(torch.uint8 if count <= 256 else torch.int32)
