"""The Fréchet distance (Heusel et al. 2017, arXiv 1706.08500) on features of one's choice."""

from collections.abc import Callable

import torch
from torch import Tensor

from diffbook_lib.errors import Refused
from diffbook_lib.metrics.inputs import (
    Images,
    check_cloud,
    checked_images,
    in_chunks,
    known_levels,
    real_rows,
    unit_images,
)
from diffbook_lib.metrics.measurement import Measure, Measurement

Features = Callable[[Tensor], Tensor]
ROWS = 4096  # features converted to float64 at a time


class FrechetDistance(Measure):
    """The Fréchet distance to real features (m, d), float; see `frechet_distance`.

    features: images (n, c, h, w) in [-1, 1] -> (n, d).
    shape, levels: what samples must be, as in `unit_images`.
    """

    def __init__(
        self,
        real: Tensor,
        features: Features,
        shape: tuple[int, ...],
        levels: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(seed)
        self.features, self.shape, self.levels = features, shape, levels
        self.real = _check(real)
        self._moments = moments(self.real)

    def figure(self, samples: Tensor) -> Measurement:
        samples = unit_images(samples, self.levels, self.shape)
        fake = _check(in_chunks(self.features, samples), self.real.shape[1])
        details = {"reference": len(self.real), "features": self.real.shape[1]}
        value = bures(moments(fake), self._moments)
        return Measurement(
            "Fréchet distance", value, len(samples), self.seed, details=details
        )

    def floor(self, n: int, draws: int) -> list[float]:
        m = len(self.real)
        return [
            bures(
                moments(self.real, real_rows(m, n, self.seed, draw)),
                moments(
                    self.real, real_rows(m, m, self.seed, draw, "floor/reference")
                ),
            )
            for draw in range(draws)
        ]


def frechet_distance(
    samples: Tensor,
    reference: Images,
    features: Features,
    *,
    levels: int | None = None,
    seed: int = 0,
    floor_draws: int = 10,
) -> Measurement:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) of the means m and covariances C of features.

    samples, reference: images (n, c, h, w) in [-1, 1] or integer levels, or a data set.
    features: images -> (n, d), such as `classifier("digits").features` or `inception()`.
    levels: the number of levels of integer images; by default that of the reference.
    seed: the seed of the samples; it also keys the draws of the floor.

    The value falls with n even for perfect samples: never compare different n. A draw of the
    floor takes both sides from the m real images, n and m of them with replacement, since the
    excess goes with 1/n + 1/m. It is low by a share of about d / 2m at most, which matters
    where that is not small against the floor's own spread (many features, few images).
    Raises Refused for images that are too few or misshapen, Failed where they are not finite.
    """
    levels = known_levels(reference, levels)
    images = checked_images(reference, levels)
    shape = tuple(images.shape[1:] if isinstance(images, Tensor) else images.shape)
    real = in_chunks(features, images)
    return FrechetDistance(real, features, shape, levels, seed)(samples, floor_draws)


Moments = tuple[Tensor, Tensor]


def moments(features: Tensor, rows: Tensor | None = None) -> Moments:
    """Mean (d,) and covariance (d, d), float64, of features (m, d) or of the rows `rows` of
    them, any of which may come several times."""
    if rows is None:
        counts = torch.ones(len(features), dtype=torch.float64)
    else:
        counts = torch.bincount(rows, minlength=len(features)).double()
    n, parts = (
        counts.sum(),
        list(
            zip(torch.split(features, ROWS), torch.split(counts, ROWS), strict=True)
        ),
    )
    mean = torch.stack([c @ f.double() for f, c in parts]).sum(dim=0) / n
    total = torch.zeros(len(mean), len(mean), dtype=torch.float64)
    for f, c in parts:
        centred = (f.double() - mean) * c.sqrt()[:, None]
        total.addmm_(centred.T, centred)
    return mean, total / (n - 1)


def bures(one: Moments, other: Moments) -> float:
    """The squared Fréchet distance of two normal distributions, given by their moments."""
    (a, first), (b, second) = one, other
    values, axes = torch.linalg.eigh(first)
    root = axes * values.clamp(min=0).sqrt() @ axes.T
    cross = torch.linalg.eigvalsh(root @ second @ root).clamp(min=0).sqrt().sum()
    distance = (a - b).square().sum() + first.trace() + second.trace() - 2 * cross
    return max(0.0, float(distance))  # rounding can end below 0


def gaussian_distance(x: Tensor, y: Tensor) -> float:
    """The squared Fréchet distance of the normal distributions fitted to x (n, d), y (m, d)."""
    x = _check(x)
    return bures(moments(x), moments(_check(y, x.shape[1])))


def _check(features: Tensor, count: int | None = None) -> Tensor:
    if features.ndim != 2 or count not in (None, features.shape[1]):
        raise Refused(
            f"features have the shape {tuple(features.shape)}; it must be (n, "
            f"{count or 'features'}): flatten what the feature network returns"
        )
    return check_cloud(features, "features")
