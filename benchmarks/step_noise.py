"""What the noise of a random sampler's step costs over the network call that it feeds.

The digits network on one core; draws and calls are timed in turn, in processor time, so that a
busy machine slows both alike; a ratio is the median over the rounds. `rng.step_noise` makes some
draws at once where they are small, so that each round times several draws. Beside it the keyed
noise of single images by numpy, `rng.image_noise`, as sampling starts from it, and torch.randn.
A missed target ends the script with status 1.
"""

import argparse
import os
from collections.abc import Callable
from itertools import count
from statistics import median
from time import process_time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from diffbook_lib import rng
from diffbook_lib.nets.unet import UNet

WARM_UP = 3
TARGET = 0.02
DRAWS = 16  # a round: whole groups of draws made at once


def seconds(work: Callable[[], object], times: int) -> float:
    start = process_time()
    for _ in range(times):
        work()
    return (process_time() - start) / times


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--batch", type=int, default=500)
    options = parser.parse_args()
    numbers, shape = range(options.batch), (1, 8, 8)
    torch.manual_seed(0)
    net = UNet(2, 1, 8, 16, (1, 2), 1, (4,), log_noise=True).eval()
    u, t = torch.randn(options.batch, 2, 8, 8), torch.rand(options.batch).clamp(min=1e-3)
    noise, draws = rng.step_noise(0, "sample", numbers, shape), count()

    works: dict[str, tuple[Callable[[], object], int]] = {
        "network call": (lambda: net(u, t), 1),
        "rng.step_noise": (lambda: noise(next(draws)), DRAWS),
        "rng.image_noise": (lambda: rng.image_noise(0, "sample", numbers, shape), 1),
        "torch.randn": (lambda: torch.randn(options.batch, *shape), DRAWS),
    }
    rounds = range(WARM_UP + options.repeats)
    timed = [[seconds(*work) for work in works.values()] for _ in rounds][WARM_UP:]
    call, *_ = columns = list(zip(*timed, strict=True))
    print(f"{options.batch} images of {shape}, one draw each")
    print(f"{'':18}{'ms':>9}{'of a call':>11}{'ns a number':>13}")
    ratios = {}
    for name, own in zip(works, columns, strict=True):
        ratios[name] = median(a / b for a, b in zip(own, call, strict=True))
        each = 1e9 * median(own) / (options.batch * 64)
        print(f"{name:18}{1e3 * median(own):9.3f}{ratios[name]:11.2%}{each:13.1f}")
    missed = ratios["rng.step_noise"] >= TARGET
    print(f"target for rng.step_noise: below {TARGET:.0%}{', missed' if missed else ''}")
    raise SystemExit(missed)


if __name__ == "__main__":
    main()
