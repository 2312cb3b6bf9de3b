"""Samples in, checked: a measure of broken samples would be a number that means nothing."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .. import rng
from ..data import ArrayDataset

CHUNK = 500


def unit_images(images: Tensor | ArrayDataset) -> Tensor:
    """The images of a data set, or a tensor of them, as float32 in [-1, 1]."""
    return images if isinstance(images, Tensor) else images[:].x


def check_images(images: Tensor, shape: tuple[int, ...] | None = None) -> Tensor:
    """Images (n, c, h, w) clipped to [-1, 1], as they are shown.

    Raises ValueError for another shape, fewer than two of them, or values that are not finite.
    """
    if images.ndim != 4 or shape not in (None, tuple(images.shape[1:])):
        wanted = ", ".join(map(str, shape or ("channels", "height", "width")))
        raise ValueError(f"images have the shape {tuple(images.shape)}; it must be (n, {wanted})")
    return check_cloud(images, "images").clamp(-1, 1)


def check_cloud(points: Tensor, what: str = "points") -> Tensor:
    """Two or more finite floating-point examples, or a ValueError that says what is wrong."""
    if not points.is_floating_point():
        raise ValueError(
            f"{what} are of type {points.dtype}; they must be floating-point. Convert levels with "
            "data.to_unit(levels, count)"
        )
    if len(points) < 2:
        raise ValueError(f"there are {len(points)} {what}; at least 2 are needed: draw more")
    bad = int((~points.isfinite()).flatten(1).any(dim=1).sum())
    if bad:
        raise ValueError(
            f"{bad} of {len(points)} {what} hold values that are not finite; the sampler or the "
            "network diverged: look at the training loss, or take more or smaller steps"
        )
    return points


@torch.inference_mode()
def in_chunks(function: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """function(images), float64 on the CPU, evaluated on 500 images at a time."""
    return torch.cat([function(chunk).to("cpu", torch.float64) for chunk in images.split(CHUNK)])


def real_draws(
    size: int, n: int, seed: int, draws: int, purpose: str = "floor"
) -> Iterator[Tensor]:
    """Rows of n examples drawn with replacement from `size` real ones, `draws` times."""
    for draw in range(draws):
        yield rng.integers(size, (n,), rng.generator(seed, purpose, draw))


def real_means(values: Tensor, n: int, seed: int, draws: int) -> list[float]:
    """The means over each of the `real_draws` of a value that each real example has."""
    return [values[rows].mean().item() for rows in real_draws(len(values), n, seed, draws)]
