"""The pictures that chapters share: grids of images, point clouds, paths."""

import math
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from numpy.typing import ArrayLike
from torch import Tensor

from diffbook_lib.errors import Refused
from diffbook_lib.figures.picture import COLOURS, INK, WIDE


def image_grid(
    x: Tensor, ncol: int = 10, *, ax: Axes | None = None, width: float = WIDE
) -> Figure:
    """Images (n, 1 or 3, height, width) in [-1, 1] as one picture, row by row, `ncol` in a row.

    Draws into `ax`, or into a new figure of `width` inches. Raises as grid_of does.
    """
    grid = grid_of(x, ncol)
    if ax is None:
        height = width * grid.shape[0] / grid.shape[1]
        layout = ConstrainedLayoutEngine(w_pad=0, h_pad=0)
        ax = plt.subplots(figsize=(width, height), layout=layout)[1]
    ax.imshow(grid.numpy(), interpolation="nearest")
    ax.set_axis_off()
    return _figure_of(ax)


def grid_of(x: Tensor, ncol: int) -> Tensor:
    """Images (n, 1 or 3, height, width) in [-1, 1] as the pixels (rows, columns, 4) in [0, 1] of
    one picture, with transparent gaps.

    Values outside [-1, 1] are clipped. Raises ValueError for another shape and Refused for integer
    levels.
    """
    if not x.is_floating_point():
        raise Refused(
            f"images are of type {x.dtype}; a grid shows values in [-1, 1]: convert the levels, "
            "such as data.to_unit(x, 256)"
        )
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        raise ValueError(
            f"images are (n, 1 or 3, height, width), got {tuple(x.shape)}"
        )
    n, _, h, w = x.shape
    nrow, gap = math.ceil(n / ncol), max(1, h // 16)
    grid = torch.zeros(nrow * (h + gap) - gap, ncol * (w + gap) - gap, 4)
    pixels = ((x.detach().float().cpu().clamp(-1, 1) + 1) / 2).expand(-1, 3, -1, -1)
    for index, image in enumerate(pixels.permute(0, 2, 3, 1)):
        top, left = index // ncol * (h + gap), index % ncol * (w + gap)
        grid[top : top + h, left : left + w] = torch.cat(
            [image, torch.ones(h, w, 1)], dim=-1
        )
    return grid


def scatter(
    clouds: Mapping[str, Tensor],
    *,
    lim: float | None = None,
    ncol: int = 4,
    width: float = WIDE,
    axes: Sequence[Axes] | None = None,
) -> Figure:
    """Two-dimensional point clouds (n, 2) side by side, one panel a name, all on one scale.

    lim: the axes run from -lim to lim (default: the largest of all finite coordinates).
    axes: where to draw, one panel a cloud or more (default: a new figure of `width` inches with
    `ncol` panels in a row). Raises ValueError for too few of them.
    """
    points = {name: cloud.detach().double().cpu() for name, cloud in clouds.items()}
    if lim is None:
        every = torch.cat([cloud.flatten() for cloud in points.values()])
        lim = 1.05 * float(every[every.isfinite()].abs().max())
    if axes is None:
        axes = _panels(len(points), ncol, width)
    if len(axes) < len(points):
        raise ValueError(f"{len(points)} clouds need as many axes, got {len(axes)}")
    for ax in axes[len(points) :]:
        ax.set_axis_off()
    for ax, (name, cloud) in zip(axes, points.items(), strict=False):
        spot = min(8.0, max(1.0, 2500 / max(len(cloud), 1)))
        ax.scatter(cloud[:, 0], cloud[:, 1], s=spot, alpha=0.6, linewidths=0)
        ax.set(title=name, xlim=(-lim, lim), ylim=(-lim, lim), aspect="equal")
        ax.label_outer()
    return _figure_of(axes[0])


def _panels(count: int, ncol: int, width: float) -> list[Axes]:
    """Square panels for `count` clouds in a new figure, and those that fill its last row."""
    ncol = min(ncol, count)
    nrow = math.ceil(count / ncol)
    size = (width, nrow * (width / ncol + 0.25))
    return list(plt.subplots(nrow, ncol, figsize=size, squeeze=False)[1].flat)


def trajectories(
    paths: Tensor,
    times: Tensor | None = None,
    *,
    ax: Axes | None = None,
    colour: str = COLOURS[0],
) -> Figure:
    """The way of each sample: paths (steps, n, 2) in the plane, or (steps, n) over `times`.

    A hollow circle marks the start, a full one the end.
    """
    if paths.ndim not in (2, 3) or (paths.ndim == 3 and paths.shape[-1] != 2):
        raise ValueError(
            f"paths are (steps, n, 2) or (steps, n), got {tuple(paths.shape)}"
        )
    paths = paths.detach().double().cpu()
    if paths.ndim == 3:
        across, up = paths.unbind(-1)
    else:
        clock = torch.arange(len(paths)) if times is None else times.detach().cpu()
        across, up = clock[:, None].expand_as(paths), paths
    ax = plt.subplots()[1] if ax is None else ax
    ax.plot(across, up, color=colour, alpha=0.9, linewidth=1)
    ax.scatter(across[0], up[0], s=12, facecolors="none", edgecolors=INK, zorder=3)
    ax.scatter(across[-1], up[-1], s=12, color=colour, zorder=3)
    if paths.ndim == 3:
        ax.set_aspect("equal")
    return _figure_of(ax)


def _figure_of(ax: Axes) -> Figure:
    figure = ax.get_figure(root=True)
    assert figure is not None
    return figure


def band(
    ax: Axes,
    x: Sequence[float],
    values: ArrayLike,
    color: str,
    label: str | None = None,
    style: str = "-",
) -> None:
    """The mean over seeds as a line, and one standard deviation (n - 1) about it as a band.

    x: (places,); values: (places, seeds).
    """
    found = np.asarray(values)
    mean, std = found.mean(axis=1), found.std(axis=1, ddof=1)
    ax.fill_between(x, mean - std, mean + std, color=color, alpha=0.25, lw=0)
    ax.plot(x, mean, style, color=color, label=label, markersize=4)
