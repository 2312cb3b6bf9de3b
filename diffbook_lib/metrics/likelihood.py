"""From log densities to bits per dimension."""

import math

from torch import Tensor

from diffbook_lib.errors import Refused
from diffbook_lib.metrics.inputs import check_cloud
from diffbook_lib.metrics.measurement import Measurement


def bits(log_density: Tensor, dims: int, levels: int | None = 256) -> Tensor:
    """Bits per dimension (n,) of examples with log p (n,) in nats.

    levels: p is a density of dequantised data in [-1, 1] with that many levels; the integral over
        a bin of width 2 / (levels - 1) makes it the probability of a level (Theis et al. 2016,
        arXiv 1511.01844). None: p is already the probability of discrete data.
    Raises Refused for fewer than 2 levels.
    """
    if levels is not None and levels < 2:
        raise Refused(
            f"levels is {levels}; it must be at least 2, or None for discrete data"
        )
    log_width = 0.0 if levels is None else math.log(2 / (levels - 1))
    return -(log_density.double() / dims + log_width) / math.log(2)


def bits_per_dim(
    log_density: Tensor,
    dims: int,
    levels: int | None = 256,
    *,
    seed: int | None = None,
) -> Measurement:
    """The mean of `bits` over the examples, with its standard error."""
    each = bits(
        check_cloud(log_density[:, None], "log densities")[:, 0], dims, levels
    )
    details = {"standard_error": each.std().item() / math.sqrt(len(each))}
    value, n = each.mean().item(), len(each)
    return Measurement("Bits per dimension", value, n, seed, details=details)
