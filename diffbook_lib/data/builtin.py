"""Data sets that need no file: scikit-learn's digits and two-dimensional toys."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from diffbook_lib import exact, rng
from diffbook_lib.data.archives import Store
from diffbook_lib.data.datasets import ArrayDataset, SampledDataset

DIGITS = tuple("0123456789")
DIGITS_TRAIN = 1500
CORNERS = ("lower left", "upper left", "lower right", "upper right")
PER_CORNER = 8000
Draw = Callable[[int, torch.Generator], Tensor]


def digits(store: Store, split: str) -> ArrayDataset:
    """scikit-learn's 8x8 digits, 17 grey levels: 1,500 to train and 297 to test of 1,797.

    Which image belongs to which part is a fixed random choice.
    """
    from sklearn.datasets import load_digits

    pixels, target = load_digits(return_X_y=True)
    order = rng.permutation(len(pixels), 0, "digits")
    rows = {
        "train": order[:DIGITS_TRAIN],
        "test": order[DIGITS_TRAIN:],
        "all": order,
    }[split]
    images = torch.as_tensor(pixels).to(torch.uint8).view(-1, 1, 8, 8)
    return ArrayDataset(
        images[rows],
        torch.as_tensor(target, dtype=torch.int64)[rows],
        levels=17,
        classes=DIGITS,
        name="digits",
        description=f"8x8 digits of scikit-learn, {split}: {len(rows):,} of {len(pixels):,} images",
    )


def mixture9(store: Store, split: str) -> SampledDataset:
    """The nine modes of `exact.GaussianMixture.grid` (the CLD paper's toy)."""
    world = exact.GaussianMixture.grid()

    def draw(n: int, generator: torch.Generator) -> Tensor:
        return world.sample(n, generator).float()

    return _stream(
        "mixture9", split, draw, "mixture of nine normal modes in the plane"
    )


def swissroll5(store: Store, split: str) -> SampledDataset:
    """Five swiss rolls (noise 0.2, scale 0.01) at the origin and at (±0.8, ±0.8)."""
    centres = torch.tensor(
        [(0.0, 0.0), (0.8, 0.8), (0.8, -0.8), (-0.8, 0.8), (-0.8, -0.8)]
    )

    def draw(n: int, generator: torch.Generator) -> Tensor:
        angle = 1.5 * math.pi * (1 + 2 * rng.uniform((n,), generator))
        roll = torch.stack([angle * angle.cos(), angle * angle.sin()], dim=1)
        roll = roll + 0.2 * rng.normal((n, 2), generator)
        return centres[rng.integers(5, (n,), generator)] + 0.01 * roll

    return _stream("swissroll5", split, draw, "five swiss rolls in the plane")


def corners(store: Store, split: str) -> ArrayDataset:
    """8,000 points of each of the four modes of `exact.GaussianMixture.corners`, labelled."""
    world = exact.GaussianMixture.corners()
    label = torch.arange(len(CORNERS)).repeat_interleave(PER_CORNER)
    noise = rng.normal((len(label), 2), rng.generator(0, f"corners/{split}"))
    std = world.covariances[0, 0, 0].sqrt().float()
    return ArrayDataset(
        world.means.float()[label] + std * noise,
        label,
        levels=None,
        classes=CORNERS,
        name="corners",
        description=f"four normal modes in the plane, {split}: {len(label):,} points",
    )


def _stream(name: str, split: str, draw: Draw, description: str) -> SampledDataset:
    purpose = "data" if split == "train" else f"data/{split}"
    return SampledDataset(
        draw, (2,), name, f"{description}, {split}: drawn anew", purpose
    )
