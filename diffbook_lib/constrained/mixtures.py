"""Constrained problems between Gaussian mixtures in one or two dimensions: densities on a
grid wide and fine enough for float64."""

from collections.abc import Sequence

import torch
from torch import Tensor

from diffbook_lib.constrained.problem import KLProblem
from diffbook_lib.exact import GaussianMixture

REACH = 10.0  # standard deviations beyond the outermost means
POINTS = {1: 8001, 2: 401}  # by default, along an axis


def grid(
    worlds: Sequence[GaussianMixture], sigma: float = 0.0, points: int | None = None
) -> tuple[Tensor, float]:
    """Points x (n, d) that cover the densities of all worlds at noise level sigma, and
    the length, area of the cell around each.

    points: along an axis. Sums over the grid are integrals by the trapezoidal rule, right
    to rounding where the cells are small beside the narrowest mode. Raises ValueError in
    more than two dimensions.
    """
    dim = worlds[0].dim
    if any(world.dim != dim for world in worlds) or dim not in POINTS:
        dims = [world.dim for world in worlds]
        raise ValueError(f"the worlds have dimensions {dims}; need all 1 or all 2")
    n = points or POINTS[dim]
    axes, cell = [], 1.0
    for d in range(dim):
        means = torch.cat([world.means[:, d] for world in worlds])
        variances = torch.cat([world.covariances[:, d, d] for world in worlds])
        reach = REACH * (variances + sigma**2).sqrt()
        low, high = float((means - reach).min()), float((means + reach).max())
        axes.append(torch.linspace(low, high, n, dtype=torch.float64))
        cell *= (high - low) / (n - 1)
    return torch.cartesian_prod(*axes).reshape(-1, dim), cell


def kl_problem(
    q0: GaussianMixture,
    q: Sequence[GaussianMixture],
    b: Tensor,
    alpha: float = 0.0,
    points: int | None = None,
) -> KLProblem:
    """The constrained problem between these worlds, thresholds b (m,) in nats; `points`
    as in `grid`."""
    worlds = [q0, *q]
    x, cell = grid(worlds, points=points)
    density = torch.stack([world.log_density(x) for world in worlds])
    mass = density + torch.tensor(cell, dtype=torch.float64).log()
    return KLProblem(mass, b=b.double(), alpha=alpha)


def mix(worlds: Sequence[GaussianMixture], weights: Tensor) -> GaussianMixture:
    """The mixture of the worlds with these weights, as a world: the constrained optimum
    for `mixture_weights(lam)`, with its samples, score and denoiser."""
    shares = [w * world.weights for w, world in zip(weights, worlds, strict=True)]
    return GaussianMixture(
        torch.cat([world.means for world in worlds]),
        torch.cat([world.covariances for world in worlds]),
        torch.cat(shares),
    )
