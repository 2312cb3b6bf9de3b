"""Samples in, checked: a measure of broken samples would be a number that means nothing."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from diffbook_lib import rng
from diffbook_lib.data import ArrayDataset, to_unit
from diffbook_lib.errors import Failed, Refused

CHUNK = 500
Images = Tensor | ArrayDataset


def unit_images(
    images: Images, levels: int | None = None, shape: tuple[int, ...] | None = None
) -> Tensor:
    """Images (n, c, h, w), or those of a data set, as floating-point in [-1, 1].

    Integer levels 0 ... levels-1 are converted; other values are clipped, as they are shown.
    shape: what (c, h, w) must be. `levels` of a data set is its own.
    Raises Refused for another shape, fewer than two images, levels out of range or of unknown
    number, and Failed for values that are not finite.
    """
    if isinstance(images, ArrayDataset):
        levels, images = images.levels, images[:].x
    _check_shape(tuple(images.shape), shape)
    if not images.is_floating_point() and levels is not None and images.numel():
        images = _from_levels(images, levels)
    return check_cloud(images, "images").clamp(-1, 1)


def checked_images(
    images: Images, levels: int | None = None, shape: tuple[int, ...] | None = None
) -> Images:
    """The `unit_images` of a tensor, or the data set itself, to be read in chunks."""
    if isinstance(images, Tensor):
        return unit_images(images, levels, shape)
    _check_shape((len(images), *images.shape), shape)
    return images


def known_levels(images: Images, levels: int | None = None) -> int | None:
    """The number of levels, given or that of a data set; None where neither is known."""
    return (
        images.levels
        if levels is None and isinstance(images, ArrayDataset)
        else levels
    )


def check_cloud(points: Tensor, what: str = "points") -> Tensor:
    """Two or more finite floating-point examples; raises Refused or Failed for anything else."""
    if not points.is_floating_point():
        raise Refused(
            f"{what} are of type {points.dtype}; they must be floating-point, or, for integer "
            "images, their number of levels must be known: pass levels, such as levels=256"
        )
    if len(points) < 2:
        raise Refused(
            f"there are {len(points)} {what}; at least 2 are needed: draw more"
        )
    bad = int((~points.isfinite()).flatten(1).any(dim=1).sum())
    if bad:
        raise Failed(
            f"{bad} of {len(points)} {what} hold values that are not finite; the sampler or the "
            "network diverged: look at the training loss, or take more or smaller steps"
        )
    return points


@torch.inference_mode()
def in_chunks(function: Callable[[Tensor], Tensor], images: Images) -> Tensor:
    """function(images) on the CPU, for checked images or those of a data set, 500 at a time."""
    return torch.cat([function(chunk).cpu() for chunk in unit_chunks(images)])


def unit_chunks(images: Images) -> Iterator[Tensor]:
    """Checked images or those of a data set, in [-1, 1], 500 at a time."""
    for start in range(0, len(images), CHUNK):
        rows = slice(start, start + CHUNK)
        if isinstance(images, Tensor):
            yield images[rows]
        else:
            x = images[rows].x
            yield x if images.levels is None else _from_levels(x, images.levels)


def real_rows(
    size: int, n: int, seed: int, draw: int, purpose: str = "floor"
) -> Tensor:
    """Rows of n examples drawn with replacement from `size` real ones, int64 (n,)."""
    return rng.integers(size, (n,), rng.generator(seed, purpose, draw))


def mean_draws(values: Tensor, n: int, seed: int, draws: int) -> list[float]:
    """Means of n values of a population of which only `values` (m,) are known.

    Each draw takes m of the values for another set of as many, and n of those: its variance
    is that of a mean of n plus that of the mean of the known ones.
    """
    m = len(values)
    known = (
        values[real_rows(m, m, seed, draw, "floor/reference")]
        for draw in range(draws)
    )
    return [
        v[real_rows(m, n, seed, draw)].mean().item() for draw, v in enumerate(known)
    ]


def share_draws(hits: Tensor, n: int, seed: int, draws: int) -> list[float]:
    """Shares of n samples of a population of which only `hits` (m,), true or false, are known.

    Each draw takes a share p of the population from Beta(hits + 1/2, misses + 1/2), what the
    known ones tell of it (Jeffreys' prior), and n samples with it. Resampling the known ones
    would say nothing where all of them hit. The Beta is made of squared normal numbers.
    """
    shares = []
    m, count = len(hits), int(hits.sum())
    for draw in range(draws):
        source = rng.generator(seed, "floor/reference", draw)
        squares = rng.normal((2 * m + 2,), source, torch.float64).square()
        share = squares[: 2 * count + 1].sum() / squares.sum()
        uniform = rng.uniform((n,), rng.generator(seed, "floor", draw), torch.float64)
        shares.append((uniform < share).double().mean().item())
    return shares


def _check_shape(found: tuple[int, ...], shape: tuple[int, ...] | None) -> None:
    if len(found) != 4 or shape not in (None, found[1:]):
        wanted = ", ".join(map(str, shape or ("channels", "height", "width")))
        raise Refused(f"images have the shape {found}; it must be (n, {wanted})")


def _from_levels(x: Tensor, levels: int) -> Tensor:
    """Integer levels in [-1, 1], refused where they are out of range; others as they are."""
    if x.is_floating_point():
        return x
    low, high = int(x.min()), int(x.max())
    if low < 0 or high >= levels:
        raise Refused(
            f"images hold the levels {low} to {high}; with {levels} levels they must lie in "
            f"0 ... {levels - 1}: look at how samples were rounded, or give their true number"
        )
    return to_unit(x, levels)
