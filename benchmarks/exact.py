"""What the posterior mean of a whole data set costs: 50,000 points of 3,072 numbers, float32.

Time: `exact.FiniteData.posterior_mean` over the two matrix products that it needs, on the same
chunks, already in the working type; in turn, in processor time, medians over the rounds. Memory:
the peak of a process of its own, interpreter and libraries included. A missed target ends the
script with status 1.
"""

import argparse
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from statistics import median
from time import process_time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor

from diffbook_lib import exact

TARGET_RATIO, TARGET_GIB = 2.0, 2.0
TYPES = {"float64": torch.float64, "float32": torch.float32}


def problem(options: argparse.Namespace) -> tuple[exact.FiniteData, Tensor]:
    """The world and noisy points of it at sigma = 1."""
    source = torch.Generator().manual_seed(0)
    points = torch.rand(options.points, options.dim, generator=source).mul_(2).sub_(1)
    x = points[: options.batch] + torch.randn(options.batch, options.dim, generator=source)
    return exact.FiniteData(points, TYPES[options.dtype]), x


def products(world: exact.FiniteData, x: Tensor) -> float:
    """Seconds of the two products alone."""
    x, total = x.to(world.dtype), 0.0
    rows = max(1, exact.CHUNK // max(world.dim, len(x)))
    for first in range(0, len(world.points), rows):
        points = world.points[first : first + rows].to(world.dtype)
        total += seconds(lambda: (x @ points.T) @ points)  # noqa: B023
    return total


def seconds(work: Callable[[], object]) -> float:
    start = process_time()
    work()
    return process_time() - start


@torch.no_grad()
def measure(options: argparse.Namespace) -> bool:
    """Prints a line; whether a target was missed."""
    world, x = problem(options)
    world.posterior_mean(x, 1.0)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # of KiB
    own, bare = zip(
        *(
            (seconds(lambda: world.posterior_mean(x, 1.0)), products(world, x))
            for _ in range(options.repeats)
        ),
        strict=True,
    )
    ratio = median(a / b for a, b in zip(own, bare, strict=True))
    missed = ratio >= TARGET_RATIO or peak >= TARGET_GIB
    print(
        f"{options.dtype}, {options.batch} points: {median(own):.2f} s, products "
        f"{median(bare):.2f} s, ratio {ratio:.2f} (target below {TARGET_RATIO:.0f}), peak "
        f"{peak:.2f} GiB (target below {TARGET_GIB:.0f}){', missed' if missed else ''}"
    )
    return missed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=50_000)
    parser.add_argument("--dim", type=int, default=3_072)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtype", choices=TYPES, help="one of them, in this process")
    options = parser.parse_args()
    if options.dtype:
        raise SystemExit(measure(options))
    own = [sys.executable, __file__, *sys.argv[1:]]
    raise SystemExit(max(subprocess.call([*own, "--dtype", name]) for name in TYPES))


if __name__ == "__main__":
    main()
