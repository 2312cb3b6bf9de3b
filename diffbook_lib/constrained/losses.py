"""The same problem with the losses that a network is trained on.

loss_i = sum over noise levels of weight E |n - f(x, sigma)|^2, x = x_0 + sigma n, x_0 ~
q_i: for any weights a sum over the data, so that its Lagrangian is Z times the loss on
the mixture, and the best f the mixture's E[n | x]. Only what a threshold means depends on
the weights: with d(log sigma) the loss above its own smallest value is KL(q_i | p).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffbook_lib.constrained.mixtures import grid
from diffbook_lib.constrained.problem import Problem
from diffbook_lib.diffusion import DDPM
from diffbook_lib.exact import GaussianMixture


@dataclass(frozen=True, eq=False)
class NoiseProblem(Problem):
    """min loss_0 subject to loss_i <= b_i, over all functions f(x, sigma).

    level: the weight of each of T noise levels (T,). log_mass: of x under each
    distribution (T, m + 1, n), on a grid of its own at each level. noise: E[n | x] of
    each (T, m + 1, n, d).
    """

    level: Tensor
    log_mass: Tensor
    noise: Tensor

    def __post_init__(self) -> None:
        self._check(self.log_mass.shape[1] - 1)

    @property
    def irreducible(self) -> Tensor:
        """The loss of each distribution with its own best f, (m + 1,): no threshold below
        it can be met."""
        explained = self.noise.square().sum(dim=-1)
        return self._mean(self.noise.shape[-1] - self._under(explained))

    def best(self, weights: Tensor) -> Tensor:
        """E[n | x] of the mixture with these weights (m + 1,), (T, n, d)."""
        share = (self.log_mass + weights.log()[:, None]).softmax(dim=1)
        return (share[..., None] * self.noise).sum(dim=1)

    def losses_of(self, f: Tensor) -> Tensor:
        """The losses (m + 1,) of any function, given by its values on the grid
        (T, n, d)."""
        f = f[:, None]
        error = f.square().sum(dim=-1) - 2 * (f * self.noise).sum(dim=-1)
        return self._mean(self.noise.shape[-1] + self._under(error))

    def losses_at(self, weights: Tensor) -> Tensor:
        return self.losses_of(self.best(weights))

    def _covariance(self, weights: Tensor) -> Tensor:
        """Twice that of q_i / q_mix (E_i[n | x] - f) under q_mix, (m, m)."""
        log_mix = (self.log_mass + weights.log()[:, None]).logsumexp(dim=1)
        apart = self.noise[:, 1:] - self.best(weights)[:, None]  # (T, m, n, d)
        ratio = (
            self.log_mass[:, 1:] - log_mix[:, None] / 2
        ).exp()  # q_i / sqrt(q_mix)
        scaled = apart * ratio[..., None]
        return 2 * torch.einsum("t,tind,tjnd->ij", self.level, scaled, scaled)

    def _under(self, values: Tensor) -> Tensor:
        """The mean of values (T, m + 1, n) under each distribution, (T, m + 1)."""
        return (self.log_mass.exp() * values).sum(dim=-1)

    def _mean(self, by_level: Tensor) -> Tensor:
        return self.level @ by_level


def noise_problem(
    worlds: Sequence[GaussianMixture],
    sigmas: Tensor,
    level: Tensor,
    b: Tensor,
    alpha: float = 0.0,
    points: int | None = None,
) -> NoiseProblem:
    """The problem between these worlds, the objective's first, in one or two dimensions;
    noise levels sigmas and their weights `level` (T,), thresholds b (m,); `points` as in
    `mixtures.grid`."""
    masses, noises = [], []
    for sigma in sigmas.tolist():
        x, cell = grid(worlds, sigma, points)
        density = torch.stack([world.log_density(x, sigma) for world in worlds])
        masses.append(density + torch.tensor(cell, dtype=torch.float64).log())
        noises.append(
            torch.stack([-sigma * world.score(x, sigma) for world in worlds])
        )
    tables = torch.stack(masses), torch.stack(noises)
    return NoiseProblem(level.double(), *tables, b=b.double(), alpha=alpha)


def simple_levels(levels: DDPM) -> tuple[Tensor, Tensor]:
    """Noise levels and weights (T,) of DDPM's simple loss, the mean over its steps."""
    sigmas = levels.sigmas()
    return sigmas, torch.full_like(sigmas, 1 / levels.steps)


def nats_levels(
    sigma_min: float, sigma_max: float, steps: int
) -> tuple[Tensor, Tensor]:
    """Noise levels and weights (steps,) of the integral over log sigma, by the
    trapezoidal rule: losses above the irreducible ones are KL in nats, as far as the range
    holds it. Raises ValueError for an empty range."""
    if not 0 < sigma_min < sigma_max or steps < 2:
        raise ValueError(
            f"{steps} levels from {sigma_min} to {sigma_max}; need 2 or more and 0 < "
            "sigma_min < sigma_max"
        )
    low, high = math.log(sigma_min), math.log(sigma_max)
    log_sigma = torch.linspace(low, high, steps, dtype=torch.float64)
    weight = torch.full_like(log_sigma, (high - low) / (steps - 1))
    weight[[0, -1]] /= 2
    return log_sigma.exp(), weight


def noise_gap(
    q: GaussianMixture, r: GaussianMixture, sigma: float, points: int | None = None
) -> Tensor:
    """E |n_q(x) - n_r(x)|^2 under q at noise level sigma, (), with n = -sigma score:
    integrated over log sigma it is KL(q | r)."""
    x, cell = grid([q, r], sigma, points)
    gap = sigma * (q.score(x, sigma) - r.score(x, sigma))
    return (q.log_density(x, sigma).exp() * gap.square().sum(dim=1)).sum() * cell


def threshold(b: Tensor, irreducible: Tensor, unit: float) -> Tensor:
    """The threshold on a network's loss which asks for KL(q | model) <= b nats, where a
    gap of 1 in the loss is worth `unit` nats. It depends on the distribution, through its
    smallest possible loss `irreducible`: equal thresholds on losses are not equal
    thresholds on KL."""
    return irreducible + b / unit


def nats_a_step(levels: DDPM) -> Tensor:
    """What the excess loss at each step of a discrete schedule is worth in nats, steps
    drawn uniformly: T / 2 |d(log SNR) / dt| by central differences, float64 (T,)."""
    log_snr = -2 * levels.sigmas().log()
    return levels.steps / 2 * torch.gradient(log_snr)[0].abs()
