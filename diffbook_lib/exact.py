"""Small worlds with known answers, in float64: the oracles of all chapters.

Each world holds a density p on R^d. Noise of standard deviation sigma turns it into
p_sigma = p * N(0, sigma^2 I); density, score and posterior mean of the clean point
are closed forms. A world is itself a denoiser: `world(x, sigma)` is the posterior
mean in the shape and type of x, so a sampler takes a world wherever it takes a
network.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

Level = float | Tensor
CHUNK = 2**21  # numbers of `FiniteData` in the working type at once


class World:
    """What Gaussian mixtures and finite data sets have in common."""

    dim: int

    def posterior_mean(self, x: Tensor, sigma: Level) -> Tensor:
        """E[clean point | noisy point x] (n, d)."""
        raise NotImplementedError

    def cdf(self, x: Tensor, sigma: Level, side: Level = 1.0) -> Tensor:
        """P(noisy point <= x) of a one-dimensional world, x (n, 1); P(noisy point >=
        x) where `side` is -1. Small values are right to the last digits."""
        raise NotImplementedError

    def __call__(
        self, x: Tensor, sigma: Level, label: Tensor | None = None
    ) -> Tensor:
        mean: Tensor = self.posterior_mean(x.reshape(len(x), -1), sigma)
        return mean.reshape(x.shape).to(x.dtype)

    def score(self, x: Tensor, sigma: Level) -> Tensor:
        """grad log p_sigma(x) (n, d), through the posterior mean (Tweedie)."""
        x = x.double()
        return (self.posterior_mean(x, sigma) - x) / _column(sigma, x) ** 2

    def flow(self, x: Tensor, start: float, end: float) -> Tensor:
        """Where the probability-flow ODE takes x (n, 1) from noise level `start` to
        `end`.

        In one dimension the flow cannot change the order of points, so it matches
        quantiles: P_end(flow(x)) = P_start(x). Solved by bisection to float64
        accuracy. Raises ValueError in more dimensions, where no closed form is known.
        """
        if self.dim != 1:
            raise ValueError(
                f"the flow has a closed form only for d = 1 here, this world has d = {self.dim}"
            )
        x = x.double()
        side = torch.where(
            self.cdf(x, start) <= 0.5, 1.0, -1.0
        )  # measure from the nearer end
        tail = self.cdf(x, start, side)
        reach = float(x.abs().max()) + 10 * (1 + start + end)
        low, high = torch.full_like(x, -reach), torch.full_like(x, reach)
        for _ in range(80):
            middle = (low + high) / 2
            below = (self.cdf(middle, end, side) < tail) == (side > 0)
            low, high = (
                torch.where(below, middle, low),
                torch.where(below, high, middle),
            )
        return (low + high) / 2


class GaussianMixture(World):
    """A mixture of K Gaussians in R^d.

    means (K, d), covariances (K, d, d) positive semi-definite, weights (K,) or equal.
    """

    def __init__(
        self, means: Tensor, covariances: Tensor, weights: Tensor | None = None
    ) -> None:
        self.means = means.double()
        modes, self.dim = self.means.shape
        if covariances.shape != (modes, self.dim, self.dim):
            raise ValueError(
                f"covariances have shape {tuple(covariances.shape)}; "
                f"{modes} modes in {self.dim} dimensions need {(modes, self.dim, self.dim)}"
            )
        self.covariances = covariances.double()
        weights = torch.ones(modes) if weights is None else weights
        self.weights = weights.double() / weights.double().sum()
        variances, self._axes = torch.linalg.eigh(
            self.covariances
        )  # (K, d), (K, d, d)
        if variances.min() < -1e-9 * variances.max() or self.weights.min() < 0:
            raise ValueError(
                "covariances must be positive semi-definite and weights 0 or more"
            )
        self._variances = variances.clamp(min=0)

    @classmethod
    def isotropic(
        cls, means: Tensor, std: float, weights: Tensor | None = None
    ) -> "GaussianMixture":
        """All modes with covariance std^2 I."""
        modes, dim = means.shape
        return cls(
            means, std**2 * torch.eye(dim).expand(modes, dim, dim).double(), weights
        )

    @classmethod
    def grid(cls, std: float = 0.04) -> "GaussianMixture":
        """The nine modes of the CLD paper's toy: a 3×3 grid turned by 45 degrees, its
        corners at distance 0.71 from the middle."""
        a = math.sqrt(0.5)
        steps = torch.cartesian_prod(
            torch.arange(-1, 2), torch.arange(-1, 2)
        ).double()
        turned = torch.stack(
            [steps[:, 0] + steps[:, 1], steps[:, 0] - steps[:, 1]], dim=1
        )
        return cls.isotropic(turned * a / 2, std)

    @classmethod
    def corners(
        cls, std: float = 0.2, weights: Tensor | None = None
    ) -> "GaussianMixture":
        """Four modes at (±1, ±1), the last at (1, 1)."""
        ends = torch.tensor([-1.0, 1.0])
        return cls.isotropic(torch.cartesian_prod(ends, ends), std, weights)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """n points (n, d)."""
        mode = torch.multinomial(
            self.weights, n, replacement=True, generator=generator
        )
        noise = torch.randn(n, self.dim, generator=generator, dtype=torch.float64)
        scaled = self._variances[mode].sqrt() * noise
        return self.means[mode] + torch.einsum("nij,nj->ni", self._axes[mode], scaled)

    def log_density(self, x: Tensor, sigma: Level = 0.0) -> Tensor:
        """log p_sigma(x) (n,)."""
        return self._log_joint(*self._coordinates(x, sigma)).logsumexp(dim=1)

    def score(self, x: Tensor, sigma: Level = 0.0) -> Tensor:
        """grad log p_sigma(x) (n, d): also at sigma = 0, where the posterior mean
        says nothing."""
        along, variance = self._coordinates(x, sigma)
        share = self._log_joint(along, variance).softmax(dim=1)  # P(mode | x), (n, K)
        return -torch.einsum("nk,kij,nkj->ni", share, self._axes, along / variance)

    def posterior_mean(self, x: Tensor, sigma: Level) -> Tensor:
        along, variance = self._coordinates(x, sigma)
        share = self._log_joint(along, variance).softmax(dim=1)
        shrunk = torch.einsum(
            "kij,nkj->nki", self._axes, along * self._variances / variance
        )
        return torch.einsum("nk,nki->ni", share, self.means + shrunk)

    def __call__(
        self, x: Tensor, sigma: Level, label: Tensor | None = None
    ) -> Tensor:
        """The posterior mean; with a label int64 (n,), where the clean point is known to
        come from the mode of that number."""
        if label is None:
            return super().__call__(x, sigma)
        along, variance = self._coordinates(x, sigma)
        shrunk = along * self._variances / variance  # (n, K, d)
        row = torch.arange(len(x), device=x.device)
        own = torch.einsum("nij,nj->ni", self._axes[label], shrunk[row, label])
        return (self.means[label] + own).to(x.dtype)

    def cdf(self, x: Tensor, sigma: Level, side: Level = 1.0) -> Tensor:
        std = (self._variances[:, 0] + _column(sigma, x) ** 2).sqrt()
        return (_normal_cdf(side * (x - self.means[:, 0]) / std) * self.weights).sum(
            -1, True
        )

    def flow(self, x: Tensor, start: float, end: float) -> Tensor:
        """As `World.flow`; with a single mode in any dimension, where each principal
        axis is scaled by the ratio of its standard deviations."""
        if len(self.means) > 1:
            return super().flow(x, start, end)
        ratio = (
            (self._variances[0] + end**2) / (self._variances[0] + start**2)
        ).sqrt()
        axes = self._axes[0]
        moved: Tensor = (x.double() - self.means) @ axes * ratio @ axes.T
        return self.means + moved

    def _coordinates(self, x: Tensor, sigma: Level) -> tuple[Tensor, Tensor]:
        """x seen from each mode along its principal axes, and the variances there:
        (n, K, d)."""
        x = x.double()
        along = torch.einsum("nki,kij->nkj", x[:, None] - self.means, self._axes)
        return along, self._variances + _column(sigma, x)[:, :, None] ** 2

    def _log_joint(self, along: Tensor, variance: Tensor) -> Tensor:
        """log of weight times density of each mode (n, K)."""
        exponent = (along**2 / variance + (2 * math.pi * variance).log()).sum(dim=2)
        return self.weights.log() - exponent / 2


class Gaussian(GaussianMixture):
    """A single Gaussian: mean (d,), covariance (d, d)."""

    def __init__(self, mean: Tensor, covariance: Tensor) -> None:
        super().__init__(mean[None], covariance[None])


class FiniteData(World):
    """The empirical distribution of N points (N, ...), equal weights: what a network
    that fits its training set perfectly would learn.

    The points stay as they are, also in type and device; what is needed of them goes
    to the device of x in chunks. dtype: of the products in `posterior_mean`, whose
    exponents are right to about eps |x| |point| / sigma^2, eps the rounding of dtype.
    """

    def __init__(self, points: Tensor, dtype: torch.dtype = torch.float64) -> None:
        self.points, self.dtype = points.reshape(len(points), -1), dtype
        self.dim = self.points.shape[1]
        self._half_norms = torch.empty(
            len(points), dtype=torch.float64, device=points.device
        )
        rest = self._half_norms
        for part in self._chunks(torch.float64, points.device, 1):
            torch.sum(part.square() / 2, dim=1, out=rest[: len(part)])
            rest = rest[len(part) :]

    def _chunks(
        self, dtype: torch.dtype, device: torch.device, n: int
    ) -> Iterator[Tensor]:
        """The points in chunks (c, d) that have no more than `CHUNK` numbers, nor
        pairs with n others."""
        rows = max(1, CHUNK // max(self.dim, n))
        for first in range(0, len(self.points), rows):
            yield self.points[first : first + rows].to(device, dtype)

    def log_density(self, x: Tensor, sigma: Level) -> Tensor:
        """log p_sigma(x) (n,), sigma > 0. From differences, not products: for small
        sigma too."""
        x = x.double()
        variance = _column(sigma, x) ** 2  # (n, 1) or (1, 1)
        found = torch.tensor(-math.inf, dtype=torch.float64, device=x.device)
        for points in self._chunks(x.dtype, x.device, len(x)):
            squared = (
                torch.cdist(x, points, compute_mode="donot_use_mm_for_euclid_dist")
                ** 2
            )
            found = torch.logaddexp(
                found, (-squared / (2 * variance)).logsumexp(dim=1)
            )
        normaliser = self.dim / 2 * (2 * math.pi * variance[:, 0]).log()
        return found - normaliser - math.log(len(self.points))

    def posterior_mean(self, x: Tensor, sigma: Level) -> Tensor:
        """Each data point weighted by its probability given x. The term |x|^2, equal
        for all data points, is left out: what remains is a matrix product. The
        largest exponent so far is taken out of the sums, which shrink when a chunk
        has a larger one."""
        x, variance = x.to(self.dtype), (_column(sigma, x) ** 2).to(self.dtype)
        top = torch.full((len(x), 1), -math.inf, dtype=self.dtype, device=x.device)
        total, mean = torch.zeros_like(top), torch.zeros_like(x)
        half_norms = self._half_norms.to(x)
        for points in self._chunks(self.dtype, x.device, len(x)):
            own, half_norms = half_norms[: len(points)], half_norms[len(points) :]
            logits = torch.addmm(own, x, points.T, beta=-1) / variance  # (n, c)
            highest = torch.maximum(top, logits.detach().amax(dim=1, keepdim=True))
            shrink, weight = (top - highest).exp(), (logits - highest).exp()
            total = shrink * total + weight.sum(dim=1, keepdim=True)
            mean = torch.addmm(shrink * mean, weight, points)
            top = highest
        return mean / total

    def cdf(self, x: Tensor, sigma: Level, side: Level = 1.0) -> Tensor:
        sigma = _column(sigma, x)
        distance = side * (x - self.points[:, 0].to(sigma))  # (n, N)
        below = torch.where(
            sigma > 0,
            _normal_cdf(distance / sigma.clamp(min=1e-300)),
            (distance >= 0).double(),
        )
        return below.mean(dim=-1, keepdim=True)


def _normal_cdf(z: Tensor) -> Tensor:
    """The standard normal distribution function, with the relative accuracy in the
    lower tail that torch.special.ndtr lacks."""
    log_tail: Tensor = torch.special.log_ndtr(z)
    return log_tail.exp()


def _column(sigma: Level, x: Tensor) -> Tensor:
    """sigma as float64 (n, 1), or (1, 1) when it is one number."""
    level: Tensor = torch.as_tensor(sigma, dtype=torch.float64, device=x.device)
    return level.reshape(-1, 1)
