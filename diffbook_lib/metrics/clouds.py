"""Measures of point clouds (n, d): two-dimensional samples, features, flattened images."""

from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor

from diffbook_lib import rng
from diffbook_lib.data import ArrayDataset
from diffbook_lib.errors import Refused
from diffbook_lib.metrics.inputs import (
    CHUNK,
    Images,
    check_cloud,
    known_levels,
    mean_draws,
    real_rows,
    share_draws,
    unit_images,
)
from diffbook_lib.metrics.measurement import Measure, Measurement, share_error

RADIUS = 0.12  # three standard deviations of a mode of `exact.GaussianMixture.grid`


class SlicedWasserstein(Measure):
    """The sliced Wasserstein distance to real points (m, d); see `sliced_wasserstein`."""

    def __init__(self, real: Tensor, projections: int = 128, seed: int = 0) -> None:
        super().__init__(seed)
        real = check_cloud(real).double().cpu()
        shape = (projections, real.shape[1])
        directions = rng.normal(shape, rng.generator(seed, "slices"), real.dtype)
        self.directions = directions / directions.norm(dim=1, keepdim=True)
        self.shape, self.real = tuple(real.shape), self.directions @ real.T

    def figure(self, samples: Tensor) -> Measurement:
        points = check_cloud(samples).double().cpu()
        if points.ndim != 2 or points.shape[1] != self.shape[1]:
            raise Refused(
                f"the clouds have the shapes {tuple(points.shape)} and {self.shape}; they must "
                "be (n, d) and (m, d): flatten images with .flatten(1)"
            )
        value = wasserstein_1d(self.directions @ points.T, self.real).mean().item()
        details = {"projections": len(self.directions), "reference": self.shape[0]}
        name = "Sliced Wasserstein distance"
        return Measurement(name, value, len(points), self.seed, details=details)

    def floor(self, n: int, draws: int) -> list[float]:
        m, found = self.shape[0], []
        for draw in range(draws):
            one = self.real[:, real_rows(m, n, self.seed, draw)]
            other = self.real[:, real_rows(m, m, self.seed, draw, "floor/reference")]
            found.append(wasserstein_1d(one, other).mean().item())
        return found


class PixelDistance(SlicedWasserstein):
    """The same of the pixels of images, for data without features."""

    def __init__(self, dataset: ArrayDataset, seed: int = 0) -> None:
        self.image, self.levels = dataset.shape, dataset.levels
        super().__init__(dataset[:].x.flatten(1), seed=seed)

    def figure(self, samples: Tensor) -> Measurement:
        pixels = unit_images(samples, self.levels, self.image).flatten(1)
        found = super().figure(pixels)
        return replace(found, name="Sliced Wasserstein distance of pixels")


def sliced_wasserstein(
    x: Tensor,
    y: Tensor,
    *,
    projections: int = 128,
    seed: int = 0,
    floor_draws: int = 10,
) -> Measurement:
    """The mean over random directions of the Wasserstein-1 distance of the projected clouds.

    x, y: samples (n, d) and real examples (m, d). The floor are pairs of clouds, n and m examples
    drawn from y with replacement.
    """
    if y.ndim != 2:
        raise Refused(
            f"real points have the shape {tuple(y.shape)}; it must be (m, d)"
        )
    return SlicedWasserstein(y, projections, seed)(x, floor_draws)


def wasserstein_1d(x: Tensor, y: Tensor) -> Tensor:
    """The area between the distribution functions of x (k, n) and y (k, m), for each row."""
    n, m = x.shape[1], y.shape[1]
    jumps = torch.tensor([1 / n] * n + [-1 / m] * m, dtype=torch.float64)
    both, order = torch.cat([x, y], dim=1).sort(dim=1)
    gaps = jumps[order].cumsum(dim=1)[:, :-1].abs()
    return (gaps * both.diff(dim=1)).sum(dim=1)


class InMode(Measure):
    """The share of points near a mode; see `in_mode`."""

    def __init__(
        self, means: Tensor, radius: float, reference: Tensor | None, seed: int = 0
    ) -> None:
        super().__init__(seed)
        self.means, self.radius = means, radius
        self.hits = None if reference is None else self.inside(reference)

    def inside(self, points: Tensor) -> Tensor:
        """Whether each point (n, d) lies within the radius of a mode, bool (n,)."""
        return _distances(points, self.means).amin(dim=1) <= self.radius

    def figure(self, samples: Tensor) -> Measurement:
        n, share = len(samples), self.inside(samples).double().mean().item()
        details = {"standard_error": share_error(share, n), "radius": self.radius}
        name = "Share of samples in a mode"
        return Measurement(
            name, share, n, self.seed, details=details, better="higher"
        )

    def floor(self, n: int, draws: int) -> list[float]:
        return (
            [] if self.hits is None else share_draws(self.hits, n, self.seed, draws)
        )


def in_mode(
    x: Tensor,
    means: Tensor,
    *,
    radius: float = RADIUS,
    reference: Tensor | None = None,
    seed: int = 0,
    floor_draws: int = 10,
) -> Measurement:
    """The share of points x (n, d) within `radius` of a mode of `means` (k, d).

    reference: real points (m, d), without which there is no floor. A draw of it takes n
    points of a population with a share such as these let expect, their own error included.
    """
    return InMode(means, radius, reference, seed)(x, floor_draws)


class ModeWeightError(Measure):
    """The largest error of a mode's weight; see `mode_weight_error`."""

    def __init__(
        self, means: Tensor, weights: Tensor | None = None, seed: int = 0
    ) -> None:
        super().__init__(seed)
        truth = torch.ones(len(means)) if weights is None else weights.cpu()
        self.means, self.truth = means, truth.double() / truth.sum()

    def errors(self, modes: Tensor) -> tuple[Tensor, Tensor]:
        """The shares of the modes (k,) and their errors (k,), for the modes of points (n,)."""
        shares = torch.bincount(modes, minlength=len(self.truth)).double() / len(
            modes
        )
        return shares, (shares - self.truth).abs()

    def figure(self, samples: Tensor) -> Measurement:
        n = len(samples)
        shares, errors = self.errors(_distances(samples, self.means).argmin(dim=1))
        worst = int(errors.argmax())
        error = share_error(shares[worst].item(), n)
        details = {"standard_error": error, "shares": shares.tolist()}
        name = "Largest error of a mode's weight"
        return Measurement(name, errors[worst].item(), n, self.seed, details=details)

    def floor(self, n: int, draws: int) -> list[float]:
        sources = (rng.generator(self.seed, "floor", draw) for draw in range(draws))
        modes = (
            torch.multinomial(self.truth, n, True, generator=source)
            for source in sources
        )
        return [self.errors(drawn)[1].max().item() for drawn in modes]


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
    return ModeWeightError(means, weights, seed)(x, floor_draws)


class NearestDistance(Measure):
    """The mean distance to the nearest training image; see `nearest_distance`."""

    def __init__(
        self,
        train: Images,
        held_out: Images,
        levels: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(seed)
        self.train, self.held_out = train, held_out
        self.levels = known_levels(train, levels)

    @cached_property
    def known(self) -> Tensor:
        """The training images (m, c, h, w), float64."""
        return unit_images(self.train, self.levels).double()

    @cached_property
    def unseen(self) -> Tensor:
        """The distance of each held-out image, float64 (h,)."""
        return self.distances(self.held_out)

    def distances(self, images: Images) -> Tensor:
        """The distance of each image to the nearest known one, float64 (n,)."""
        shape, device = tuple(self.known.shape[1:]), self.known.device
        points = (
            unit_images(images, self.levels, shape).flatten(1).double().to(device)
        )
        known = self.known.flatten(1)
        parts = [
            torch.cdist(part, known).amin(dim=1)
            for part in torch.split(points, CHUNK)
        ]
        return torch.cat(parts).cpu()

    def figure(self, samples: Tensor) -> Measurement:
        distances = self.distances(samples)
        details = {
            "held_out": self.unseen.mean().item(),
            "reference": len(self.unseen),
        }
        value, name = (
            distances.mean().item(),
            "Distance to the nearest training image",
        )
        n = len(distances)
        return Measurement(name, value, n, self.seed, details=details, better="equal")

    def floor(self, n: int, draws: int) -> list[float]:
        return mean_draws(self.unseen, n, self.seed, draws)


def nearest_distance(
    samples: Tensor,
    train: Images,
    held_out: Images,
    *,
    levels: int | None = None,
    seed: int = 0,
    floor_draws: int = 10,
) -> Measurement:
    """The mean distance (L2 over all pixels) from a sample to the nearest training image.

    levels: the number of levels of integer images; by default that of `train`.
    A draw of the floor is the mean of n unseen images as the held-out ones let expect, their
    own error included: samples that lie nearer to the training images begin to copy them.
    """
    return NearestDistance(train, held_out, levels, seed)(samples, floor_draws)


def _distances(points: Tensor, means: Tensor) -> Tensor:
    """Distances (n, k) of checked points from the modes, float64 on the CPU."""
    points = check_cloud(points).double().cpu()
    if points.ndim != 2 or means.ndim != 2 or points.shape[1] != means.shape[1]:
        raise Refused(
            f"points have the shape {tuple(points.shape)} and modes {tuple(means.shape)}; they "
            "must be (n, d) and (k, d)"
        )
    return torch.cdist(points, means.double().cpu())
