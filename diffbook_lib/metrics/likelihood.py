"""From log densities to bits per dimension."""

import math

from torch import Tensor

from .. import rng
from ..data import to_unit
from .inputs import check_cloud
from .measurement import Measurement, measured


def dequantise(images: Tensor, source: rng.Source, levels: int = 256) -> Tensor:
    """Integer levels (n, *shape) -> float32 values spread evenly over each level's bin.

    The bins have the width 2 / (levels - 1) and are centred at `to_unit(images, levels)`, so the
    outermost reach half a bin beyond [-1, 1].
    """
    if images.is_floating_point():
        raise ValueError(f"images are of type {images.dtype}; dequantise takes integer levels")
    noise = rng.uniform(images.shape, source) - 0.5
    return to_unit(images + noise, levels)


def bits(log_density: Tensor, dims: int, levels: int | None = 256) -> Tensor:
    """Bits per dimension (n,) of examples with log p (n,) in nats.

    levels: p is a density of dequantised data in [-1, 1] with that many levels; the integral over
        a bin of width 2 / (levels - 1) makes it the probability of a level (Theis et al. 2016,
        arXiv 1511.01844). None: p is already the probability of discrete data.
    """
    if levels is not None and levels < 2:
        raise ValueError(f"levels is {levels}; it must be at least 2, or None for discrete data")
    log_width = 0.0 if levels is None else math.log(2 / (levels - 1))
    return -(log_density.double() / dims + log_width) / math.log(2)


def bits_per_dim(
    log_density: Tensor, dims: int, levels: int | None = 256, *, seed: int | None = None
) -> Measurement:
    """The mean of `bits` over the examples, with its standard error."""
    each = bits(check_cloud(log_density[:, None], "log densities")[:, 0], dims, levels)
    error = each.std().item() / math.sqrt(len(each))
    return measured("Bits per dimension", each.mean().item(), len(each), seed, standard_error=error)
