"""The closed-form CLD kernel against the forward pass of the digits network, batch 512.

Both are timed in turn in one run, so that a busy machine slows both; the ratio of the medians
should stay below 2 %.
"""

import argparse
import os
import time
from statistics import median

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from diffbook_lib.cld import CLD
from diffbook_lib.nets.unet import UNet

BATCH, TARGET = 512, 0.02


def seconds(work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


@torch.no_grad()
def measure(repeats: int) -> tuple[float, float]:
    """Median seconds of the kernel and of the network."""
    process, net = CLD(), UNet(2, 1, 8, log_noise=True).eval()
    t = torch.rand(BATCH, dtype=torch.float64).clamp(min=process.loss_eps)
    u, noise = torch.randn(BATCH, 2, 8, 8), t.float()
    kernel, forward = lambda: process.kernel(t), lambda: net(u, noise)
    pairs = [(seconds(kernel), seconds(forward)) for _ in range(repeats + 3)][3:]
    return tuple(median(times) for times in zip(*pairs, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=30)
    kernel, network = measure(parser.parse_args().repeats)
    print(f"kernel  {1e3 * kernel:8.3f} ms\nnetwork {1e3 * network:8.3f} ms")
    print(f"ratio   {kernel / network:8.2%}   (target below {TARGET:.0%})")
    raise SystemExit(kernel / network >= TARGET)


if __name__ == "__main__":
    main()
