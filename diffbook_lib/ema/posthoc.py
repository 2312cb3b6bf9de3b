"""Averages with profiles that nobody tracked, from snapshots of tracked ones (Karras et
al. 2024, arXiv:2312.02696, Section 3).

A snapshot at time T of the average sigma_rel is the weights' integral against
p(t) = (gamma + 1) t^gamma / T^(gamma + 1) on [0, T]. A sum of snapshots is an average
with the sum of their profiles, so the wanted profile is fitted by least squares, in
float64. Times are counted in images seen, or in any one unit.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from diffbook_lib.ema.profiles import power_exponent, precise


@dataclass(frozen=True)
class Snapshot:
    """The average sigma_rel at one time; `read` gives its tensors under their names in
    the network, when they are needed."""

    time: float
    sigma_rel: float
    read: Callable[[], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Solution:
    """The sum of snapshots that comes nearest to a profile.

    coefficients: one a snapshot, float64 (n,), with sum 1. condition: of the matrix of
    inner products; times 1e-16 it is what rounding does to the coefficients. error: the
    L2 distance between the two profiles over the norm of the wanted one.
    """

    coefficients: Tensor
    condition: float
    error: float

    @property
    def amplification(self) -> float:
        """The sum of the coefficients' sizes: how much rounding errors of the snapshots
        grow at most."""
        return float(self.coefficients.abs().sum())


def inner_products(
    times_a: Tensor, sigmas_a: Tensor, times_b: Tensor, sigmas_b: Tensor
) -> Tensor:
    """The integrals of p_a(t) p_b(t), float64 (a, b), of profiles given by their times
    and sigma_rel (Eq. 151). The power is that of a ratio below 1, which does not
    overflow."""
    t_a, gamma_a = times_a.double()[:, None], _exponents(sigmas_a)[:, None]
    t_b, gamma_b = times_b.double(), _exponents(sigmas_b)
    power = torch.where(t_a < t_b, gamma_b, -gamma_a)
    scale = (gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1)
    return scale * (t_a / t_b) ** power / torch.maximum(t_a, t_b)


def least_squares(
    times: Tensor, sigmas: Tensor, at: float, sigma_rel: float
) -> Tensor:
    """Coefficients, float64 (n,), of the sum of the profiles (times, sigmas) nearest to
    that of sigma_rel at time `at` (Algorithm 3). Their sum is not quite 1.

    Raises ValueError for a profile later than `at`, for none at `at`, and for one that
    comes twice.
    """
    matrix, right, _ = _system(times, sigmas, at, sigma_rel)
    x: Tensor = torch.linalg.solve(matrix, right)
    return x


def coefficients(
    times: Tensor, sigmas: Tensor, at: float, sigma_rel: float
) -> Solution:
    """The `least_squares` sum, scaled to the sum 1 as in the released code: the average
    of weights that never change must be these weights."""
    x = least_squares(times, sigmas, at, sigma_rel)
    x = x / x.sum()
    matrix, right, square = _system(times, sigmas, at, sigma_rel)
    distance = (x @ matrix @ x - 2 * (x @ right) + square).clamp(min=0)
    condition = float(torch.linalg.cond(matrix))
    return Solution(x, condition, float((distance / square).sqrt()))


@torch.no_grad()
def reconstruct(
    net: nn.Module,
    snapshots: Iterable[Snapshot],
    sigma_rel: float,
    at: float | None = None,
) -> Solution:
    """Give the network the average sigma_rel that its weights had at time `at`, by
    default that of the last snapshot; its buffers become those of the last snapshot
    used. Later snapshots are left out; the others are read one after the other.

    Raises ValueError where there is no snapshot at `at`.
    """
    found = sorted(
        snapshots, key=lambda snapshot: (snapshot.time, snapshot.sigma_rel)
    )
    if not found:
        raise ValueError("there are no snapshots to make an average of")
    at = found[-1].time if at is None else at
    used = [snapshot for snapshot in found if snapshot.time <= at]
    times = torch.tensor([snapshot.time for snapshot in used], dtype=torch.float64)
    sigmas = torch.tensor([s.sigma_rel for s in used], dtype=torch.float64)
    solution = coefficients(times, sigmas, at, sigma_rel)
    averages = {
        name: torch.zeros_like(p, dtype=precise(p))
        for name, p in net.named_parameters()
    }
    for snapshot, share in zip(used, solution.coefficients.tolist(), strict=True):
        kept = snapshot.read()
        for name, average in averages.items():
            average.add_(kept[name].to(average), alpha=share)
    for name, p in net.named_parameters():
        p.copy_(averages[name])
    for name, b in net.named_buffers():
        b.copy_(kept[name])
    return solution


def _system(
    times: Tensor, sigmas: Tensor, at: float, sigma_rel: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The inner products of the profiles with one another (n, n) and with the wanted one
    (n,), and that one's with itself."""
    pairs = list(zip(times.tolist(), sigmas.tolist(), strict=True))
    if late := [time for time, _ in pairs if time > at]:
        raise ValueError(
            f"a snapshot at {max(late):g} says nothing of an average at {at:g}; leave out "
            "what is later"
        )
    if at not in times.tolist():
        raise ValueError(
            f"there is no snapshot at {at:g}, only at {sorted({t for t, _ in pairs})}; the "
            "weights of the last steps would be missing"
        )
    if len(set(pairs)) < len(pairs):
        raise ValueError(
            "a snapshot comes twice, so the system has no single solution"
        )
    wanted = times.new_tensor([at]).double(), times.new_tensor([sigma_rel]).double()
    return (
        inner_products(times, sigmas, times, sigmas),
        inner_products(times, sigmas, *wanted)[:, 0],
        inner_products(*wanted, *wanted)[0, 0],
    )


def _exponents(sigmas: Tensor) -> Tensor:
    gammas = [power_exponent(sigma) for sigma in sigmas.tolist()]
    return torch.tensor(gammas, dtype=torch.float64, device=sigmas.device)
