"""What CLD costs over the network calls it makes, and how many calls its samplers need.

Works are timed in turn in one run, so that a busy machine slows all alike, in processor time, so
that waiting for the processor does not count; a ratio is the median over the rounds. A missed
target ends the script with status 1. The calls needed for equal error have no target.
"""

import argparse
import math
import os
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from statistics import median
from time import process_time
from typing import NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor

from diffbook_lib import cld, exact, metrics, rng
from diffbook_lib.nets.unet import UNet

WARM_UP = 3
SAMPLERS = {"Euler-Maruyama": cld.euler_maruyama, "SSCS": cld.sscs, "second-order SSCS": cld.sscs2}


class Row(NamedTuple):
    """Seconds of a work and of its reference, round by round; a target for the median of
    `work / reference`, less 1 if it is an overhead."""

    name: str
    work: tuple[float, ...]
    reference: tuple[float, ...]
    target: float | None = None
    overhead: bool = True

    @property
    def ratio(self) -> float:
        return median(a / b for a, b in zip(self.work, self.reference, strict=True)) - self.overhead

    @property
    def missed(self) -> bool:
        return self.target is not None and self.ratio >= self.target


def network() -> UNet:
    """The digits network of the chapter."""
    torch.manual_seed(0)
    return UNet(2, 1, 8, 16, (1, 2), 1, (4,), log_noise=True)


def seconds(work: Callable) -> float:
    start = process_time()
    work()
    return process_time() - start


def in_turn(repeats: int, *works: Callable) -> list[tuple]:
    """What each work returns, round by round, without the warm-up."""
    rounds = [[work() for work in works] for _ in range(WARM_UP + repeats)]
    return list(zip(*rounds[WARM_UP:], strict=True))


class Timed:
    """A network that times itself; its output is cut from the gradient's way, so that `split` can
    take the two parts of a backward pass one by one."""

    def __init__(self, net: UNet) -> None:
        self.net = net

    def __call__(self, u: Tensor, t: Tensor, label: None = None) -> Tensor:
        start = process_time()
        self.out = self.net(u, t)
        self.seconds = process_time() - start
        self.leaf = self.out.detach().requires_grad_()
        return self.leaf

    def split(self, loss: Callable, *arguments) -> tuple[float, float]:
        """Seconds of a loss and its gradient outside the network and inside."""
        outside = seconds(lambda: loss(self, *arguments).mean().backward()) - self.seconds
        return outside, self.seconds + seconds(lambda: self.out.backward(self.leaf.grad))


@torch.no_grad()
def step_overhead(repeats: int, batch: int = 500) -> list[Row]:
    """A sampler's step over the network call it makes, timed within the step: calls a moment apart
    differ by more than the overhead. The same call alone, in turn with them, for comparison.

    The noise is drawn beforehand by torch.randn: a step's draws are not part of it."""
    net, process, shape = network().eval(), cld.CLD(), (batch, 1, 8, 8)
    timed, draws = Timed(net), torch.randn(4, *shape)
    start = process.prior(cld.State(*torch.randn(2, *shape)))
    times, score = cld.time_grid(WARM_UP + repeats + 1), process.score(timed)
    u, t = torch.randn(batch, 2, 8, 8), torch.rand(batch).clamp(min=1e-3)

    def step(walk: Iterator) -> tuple[float, float]:
        return seconds(lambda: next(walk)), timed.seconds

    walks = [s(process, score, start, times, lambda i: draws[i % 4]) for s in SAMPLERS.values()]
    alone = lambda: seconds(lambda: net(u, t))
    *steps, single = in_turn(repeats, *(partial(step, walk) for walk in walks), alone)
    rows = [
        Row(f"{name} step", tuple(a for a, _ in own), tuple(b for _, b in own), 0.05)
        for name, own in zip(SAMPLERS, steps, strict=True)
    ]
    return [*rows, Row("the call alone", single, rows[-1].reference)]


def plain_loss(net: UNet, x0: Tensor) -> Tensor:
    """Denoising score matching without a velocity, in its shortest form, with two channels in."""
    t = torch.rand(len(x0)).clamp(min=1e-5)
    angle = math.pi / 2 * t[:, None, None, None]
    n = torch.randn_like(x0)
    x = angle.cos() * x0 + angle.sin() * n
    return (net(torch.cat([x, x], dim=1), t) - n).square().sum((1, 2, 3))


def loss_overhead(repeats: int, batch: int = 64) -> list[Row]:
    """Loss and its gradient over those of the plain loss. The network's part, the same in all but
    for a scatter larger than the overhead, counts once a round, as timed within the plain loss."""
    timed, x0, source = Timed(network()), torch.rand(batch, 1, 8, 8), rng.generator(0, "benchmark")
    hsm, dsm = (cld.CLD(objective=objective).loss for objective in ("hsm", "dsm"))
    plain, *ours = in_turn(
        repeats,
        lambda: timed.split(plain_loss, x0),
        lambda: timed.split(hsm, x0, source),
        lambda: timed.split(dsm, x0, source),
    )
    a, b = (tuple(o + net for (o, _), (_, net) in zip(own, plain, strict=True)) for own in ours)
    reference = tuple(map(sum, plain))
    return [Row("loss, HSM", a, reference, 0.02), Row("loss, DSM", b, reference)]


@torch.no_grad()
def kernel_share(repeats: int, batch: int = 512) -> list[Row]:
    """The closed-form kernel over the network's forward pass."""
    net, process = network().eval(), cld.CLD()
    t = torch.rand(batch, dtype=torch.float64).clamp(min=process.loss_eps)
    u, noise = torch.randn(batch, 2, 8, 8), t.float()
    kernel, forward = lambda: process.kernel(t), lambda: net(u, noise)
    own, whole = in_turn(repeats, lambda: seconds(kernel), lambda: seconds(forward))
    return [Row("kernel over forward", own, whole, 0.02, overhead=False)]


def print_times(rows: list[Row]) -> None:
    print(f"{'':24}{'ms':>9}{'over ms':>9}{'ratio':>9}")
    for row in rows:
        times = f"{1e3 * median(row.work):9.3f}{1e3 * median(row.reference):9.3f}"
        target = "" if row.target is None else f"   target below {row.target:.0%}"
        print(f"{row.name:24}{times}{row.ratio:9.2%}{target}{': missed' if row.missed else ''}")


@lru_cache(None)
@torch.no_grad()
def variance_error(sampler: cld.samplers.Sampler, calls: int, var_x: float = 0.05) -> float:
    """Relative error of the variance of x at t = 1e-3 for Gaussian data, without Monte Carlo: a
    sampler acts affinely on it, and unit inputs read the coefficients off."""
    process = cld.CLD(eps_num=0)

    def score(state: cld.State, t: Tensor) -> Tensor:
        S = process.covariance(t[0], var_x=var_x)
        return (S.xv * state.x - S.xx * state.v) / (S.xx * S.vv - S.xv**2)

    def unit(i: int) -> Tensor:
        row = torch.zeros(2 + 4 * calls, 1, dtype=torch.float64)  # x, v, four normals a step
        row[i] = 1
        return row

    start, times = cld.State(unit(0), unit(1)), cld.time_grid(calls + 1)
    *_, end, _ = sampler(process, score, start, times, lambda i: unit(2 + i))  # _: the last drift
    a, b, *noise = end.x[:, 0].tolist()
    S = process.covariance(1.0, var_x=var_x)
    variance = a**2 * S.xx + 2 * a * b * S.xv + b**2 * S.vv + sum(c**2 for c in noise)
    return float((variance / process.covariance(1e-3, var_x=var_x).xx - 1).abs())


def calls_needed(sampler: cld.samplers.Sampler, target: float) -> int:
    """Fewest calls with an error below the target, 8 or more; below that the error of SSCS changes
    sign, from there on all errors fall. Bracketed by doubling, then false position in logarithms,
    in which errors are nearly straight lines."""
    error = lambda calls: variance_error(sampler, calls)
    low, high = 8, 16
    while error(high) >= target:
        low, high = high, 2 * high
    while high - low > 1:
        share = math.log(error(low) / target) / math.log(error(low) / error(high))
        guess = min(max(math.ceil(low * (high / low) ** share), low + 1), high - 1)
        low, high = (low, guess) if error(guess) < target else (guess, high)
    return high


def mixture_calls(
    sampler: cld.samplers.Sampler, n: int = 8000, weight: float = 0.02, share: float = 0.01
) -> int | None:
    """Fewest of these calls with the modes' weights and the in-mode share right; None if none.
    Another draw of the noise can move it by one place in the list."""
    process, data = cld.CLD(), exact.GaussianMixture.grid()
    inside = -math.expm1(-(3**2) / 2)  # a radius of 0.12 is three standard deviations
    for calls in (10, 15, 20, 25, 30, 40, 50, 70, 100, 150, 200):
        start = cld.State(*(rng.start_noise(0, range(n), (2,), part) for part in "xv"))
        noise, times = rng.step_noise(0, "nine modes", range(n), (2,)), cld.time_grid(calls + 1)
        x = cld.sample(process, process.exact_score(data), times, start, noise, sampler).x
        found = metrics.in_mode(x, data.means, floor_draws=0).value
        error = metrics.mode_weight_error(x, data.means, floor_draws=0).value
        if error < weight and abs(found - inside) < share:
            return calls
    return None


def print_calls(name: str, counts: list[int | None]) -> None:
    *others, best = counts
    cells = "".join(f"{'not by 200' if c is None else c:>18}" for c in counts)
    ratios = "".join(f"{c / best:8.1f}" if c and best else f"{'-':>8}" for c in others)
    print(f"{name:24}{cells}{ratios}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=30)
    repeats = parser.parse_args().repeats
    rows = [row for part in (step_overhead, loss_overhead, kernel_share) for row in part(repeats)]
    print_times(rows)

    print("\nnetwork calls needed, quadratic grid, and the first two over the last")
    print(" " * 24 + "".join(f"{name:>18}" for name in SAMPLERS) + f"{'ratio':>8}{'ratio':>8}")
    for target in (0.1, 0.03, 0.01, 0.003):
        counts = [calls_needed(sampler, target) for sampler in SAMPLERS.values()]
        print_calls(f"Gaussian, error {target:.1%}", counts)
    print_calls("nine modes", [mixture_calls(sampler) for sampler in SAMPLERS.values()])
    raise SystemExit(any(row.missed for row in rows))


if __name__ == "__main__":
    main()
