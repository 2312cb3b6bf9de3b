"""Measures of point clouds (n, d): two-dimensional samples, features, flattened images."""

import torch
from torch import Tensor

from .. import rng
from ..data import ArrayDataset
from .inputs import CHUNK, check_cloud, check_images, real_draws, real_means, unit_images
from .measurement import Measurement, measured, share_error


def sliced_wasserstein(
    x: Tensor, y: Tensor, *, projections: int = 128, seed: int = 0, floor_draws: int = 10
) -> Measurement:
    """The mean over random directions of the Wasserstein-1 distance of the projected clouds.

    x, y: samples (n, d) and real examples (m, d). The floor are pairs of clouds, n and m examples
    drawn from y with replacement.
    """
    x, y = check_cloud(x).double().cpu(), check_cloud(y).double().cpu()
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(
            f"the clouds have the shapes {tuple(x.shape)} and {tuple(y.shape)}; they must be "
            "(n, d) and (m, d): flatten images with .flatten(1)"
        )
    directions = rng.normal((projections, x.shape[1]), rng.generator(seed, "slices"), x.dtype)
    directions = directions / directions.norm(dim=1, keepdim=True)
    x, y = directions @ x.T, directions @ y.T
    pairs = zip(
        real_draws(y.shape[1], x.shape[1], seed, floor_draws),
        real_draws(y.shape[1], y.shape[1], seed, floor_draws, "floor/reference"),
        strict=True,
    )
    draws = [wasserstein_1d(y[:, a], y[:, b]).mean().item() for a, b in pairs]
    value = wasserstein_1d(x, y).mean().item()
    n, m = x.shape[1], y.shape[1]
    return measured(
        "Sliced Wasserstein distance", value, n, seed, draws, projections=projections, reference=m
    )


def wasserstein_1d(x: Tensor, y: Tensor) -> Tensor:
    """The area between the distribution functions of x (k, n) and y (k, m), for each row."""
    n, m = x.shape[1], y.shape[1]
    jumps = torch.tensor([1 / n] * n + [-1 / m] * m, dtype=torch.float64)
    both, order = torch.cat([x, y], dim=1).sort(dim=1)
    gaps = jumps[order].cumsum(dim=1)[:, :-1].abs()
    return (gaps * both.diff(dim=1)).sum(dim=1)


def in_mode(
    x: Tensor,
    means: Tensor,
    *,
    radius: float = 0.12,
    reference: Tensor | None = None,
    seed: int = 0,
    floor_draws: int = 10,
) -> Measurement:
    """The share of points x (n, d) within `radius` of a mode of `means` (k, d).

    reference: real points (m, d), from which the floor draws n at a time.
    """

    def inside(points: Tensor) -> Tensor:
        return (_distances(points, means).amin(dim=1) <= radius).double()

    share, n = inside(x).mean().item(), len(x)
    draws = []
    if reference is not None:
        draws = real_means(inside(reference), n, seed, floor_draws)
    return measured(
        f"Share of samples within {radius:g} of a mode",
        share,
        n,
        seed,
        draws,
        better="higher",
        standard_error=share_error(share, n),
        radius=radius,
    )


def mode_weight_error(
    x: Tensor,
    means: Tensor,
    *,
    weights: Tensor | None = None,
    seed: int = 0,
    floor_draws: int = 10,
) -> Measurement:
    """The largest error of a mode's weight, each point of x (n, d) belonging to the nearest of
    the `means` (k, d).

    weights: the true ones (k,), by default equal. The floor draws n points with these weights.
    """
    n, k = len(x), len(means)
    truth = torch.full((k,), 1 / k) if weights is None else weights.cpu()
    truth = truth.double() / truth.sum()

    def found(modes: Tensor) -> Tensor:
        return torch.bincount(modes, minlength=k).double() / n

    shares = found(_distances(x, means).argmin(dim=1))
    sources = (rng.generator(seed, "floor", draw) for draw in range(floor_draws))
    rows = (torch.multinomial(truth, n, True, generator=source) for source in sources)
    draws = [(found(modes) - truth).abs().max().item() for modes in rows]
    errors = (shares - truth).abs()
    worst = int(errors.argmax())
    return measured(
        "Largest error of a mode's weight",
        errors[worst].item(),
        n,
        seed,
        draws,
        standard_error=share_error(shares[worst].item(), n),
        shares=shares.tolist(),
    )


def nearest_distance(
    samples: Tensor,
    train: Tensor | ArrayDataset,
    held_out: Tensor | ArrayDataset,
    *,
    seed: int = 0,
    floor_draws: int = 10,
) -> Measurement:
    """The mean distance (L2 over all pixels) from a sample to the nearest training image.

    Its floor is that of n images drawn from `held_out`: samples that lie nearer to the training
    images than unseen real ones do begin to copy them.
    """
    known = check_images(unit_images(train)).flatten(1).double()

    def nearest(images: Tensor) -> Tensor:
        points = images.flatten(1).double().to(known.device)
        return torch.cat([torch.cdist(part, known).amin(dim=1) for part in points.split(CHUNK)])

    distances = nearest(check_images(samples, tuple(unit_images(train).shape[1:])))
    real, n = nearest(check_images(unit_images(held_out))).cpu(), len(samples)
    draws = real_means(real, n, seed, floor_draws)
    return measured(
        "Distance to the nearest training image",
        distances.mean().item(),
        n,
        seed,
        draws,
        better="equal",
        held_out=real.mean().item(),
    )


def _distances(points: Tensor, means: Tensor) -> Tensor:
    """Distances (n, k) of checked points from the modes, float64 on the CPU."""
    points = check_cloud(points).double().cpu()
    if points.ndim != 2 or means.ndim != 2 or points.shape[1] != means.shape[1]:
        raise ValueError(
            f"points have the shape {tuple(points.shape)} and modes {tuple(means.shape)}; they "
            "must be (n, d) and (k, d)"
        )
    return torch.cdist(points, means.double().cpu())
