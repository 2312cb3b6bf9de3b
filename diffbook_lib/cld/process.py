"""Critically-damped Langevin diffusion (Dockhorn, Vahdat and Kreis, ICLR 2022).

The state is a pair (x, v): position, the data, and velocity, one number per
coordinate. Noise enters v only and reaches x through the coupling. With B(t) the
integral of beta, the forward process is

    dx =  v / M beta dt
    dv = -x beta dt - Gamma / M v beta dt + sqrt(2 Gamma beta) dw

which is one and the same 2x2 linear problem for every coordinate. Time runs from 0
(data) to 1 (prior). Coefficients are float64; only what meets a network is cast to
the type of the images.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffbook_lib import exact
from diffbook_lib.diffusion import expand, normal_log_density


class State(NamedTuple):
    """Position and velocity, each (batch, ...)."""

    x: Tensor
    v: Tensor


class Flow(NamedTuple):
    """The four entries of the 2x2 flow matrix, each of the shape of B."""

    xx: Tensor
    xv: Tensor
    vx: Tensor
    vv: Tensor


class Covariance(NamedTuple):
    """The three entries of a 2x2 covariance of (x, v)."""

    xx: Tensor
    xv: Tensor
    vv: Tensor


class Cholesky(NamedTuple):
    """The lower-triangular factor of a Covariance."""

    xx: Tensor
    vx: Tensor
    vv: Tensor


Time = float | Tensor
Score = Callable[[State, Tensor], Tensor]  # grad_v log p_t(x, v), t (batch,)

# Ten-point Gauss-Legendre quadrature on [0, 1], for `Langevin.noise_covariance`.
_points, _weights = np.polynomial.legendre.leggauss(10)
_NODES, _WEIGHTS = torch.from_numpy(_points + 1) / 2, torch.from_numpy(_weights) / 2


@dataclass(frozen=True)
class Langevin:
    """The process for any damping; the fields carry the paper's symbols.

    M: mass. Gamma: friction, None for critical damping, 2 sqrt(M). beta(t) = beta0 +
    beta1 t. gamma: Var(v_0) / M. eps_num: added to both variances of the perturbation
    kernel.
    """

    M: float = 0.25
    Gamma: float | None = None
    beta0: float = 4.0
    beta1: float = 0.0
    gamma: float = 0.04
    eps_num: float = 1e-6

    def __post_init__(self) -> None:
        self._require("M", "must be positive", self.M > 0)
        self._require(
            "Gamma", "must be positive, or None", self.Gamma is None or self.Gamma > 0
        )
        self._require("beta0", "must be positive", self.beta0 > 0)
        self._require(
            "beta1", "must keep beta(1) positive", self.beta0 + self.beta1 > 0
        )
        self._require("gamma", "must be positive", self.gamma > 0)
        self._require("eps_num", "must be 0 or more", self.eps_num >= 0)

    def _require(self, name: str, what: str, holds: bool) -> None:
        if not holds:
            raise ValueError(f"{name} is {getattr(self, name)}; it {what}")

    @property
    def friction(self) -> float:
        """Gamma, with the critical value filled in."""
        return 2 * math.sqrt(self.M) if self.Gamma is None else self.Gamma

    def beta(self, t: Time) -> Tensor:
        """The pace of the process, float64 like every coefficient."""
        return self.beta0 + self.beta1 * torch.as_tensor(t, dtype=torch.float64)

    def B(self, t: Time) -> Tensor:
        """Integral of beta from 0 to t."""
        t = torch.as_tensor(t, dtype=torch.float64)
        return t * (self.beta0 + self.beta1 / 2 * t)

    # The linear part: flow and covariance.

    def flow(self, B: Tensor, sign: float = 1.0) -> Flow:
        """exp(A B) with A = [[0, 1/M], [-1, -Gamma/M]] for any damping (paper
        Appendix B.1 for the critical case). `sign=-1` reverses the coupling of x and
        v, as the sampler needs.

        With m = -Gamma/(2M) and d = m^2 - 1/M the eigenvalues are m +- sqrt(d), and
        exp(A B) = c I + s (A - m I), where c and s are e^(mB) times cosh(sqrt(d) B)
        and sinh(sqrt(d) B) / sqrt(d): cosine and sine when d < 0, 1 and B when d = 0.
        """
        m = -self.friction / (2 * self.M)
        d = 0.0 if self.Gamma is None else m**2 - 1 / self.M
        root = math.sqrt(abs(d))
        if (
            d > 0
        ):  # two real rates, product 1/M: the slower one from the faster, not by subtraction
            slow, gap = torch.exp(B / (self.M * (m - root))), -2 * root * B
            c, s = (
                slow * (1 + torch.exp(gap)) / 2,
                -slow * torch.expm1(gap) / (2 * root),
            )
        else:
            c = torch.exp(m * B)
            s = c * B
            if d < 0:
                c, s = c * torch.cos(root * B), s * torch.sinc(root * B / math.pi)
        slope = m * s
        return Flow(c - slope, sign / self.M * s, -sign * s, c + slope)

    def noise_covariance(
        self, B: Tensor, sign: float = 1.0, F: Flow | None = None
    ) -> Covariance:
        """What the noise alone has added after B: the integral over s in [0, B] of
        2 Gamma f(s) f(s)^T, f the second column of the flow.

        For large B it is S - F S F^T with S = diag(1, M) the stationary covariance.
        For small B that difference cancels (the x variance is of order B^3), so there
        we integrate: a sum of positive terms, right to the last digits. F: the flow
        over B, if it is at hand.
        """
        F = F or self.flow(B, sign)
        rates = self.friction / self.M + 1 / math.sqrt(self.M)
        s = B[..., None] * _NODES.to(B.device)
        f = self.flow(s, sign)
        w = 2 * self.friction * B[..., None] * _WEIGHTS.to(B.device)
        small = B * rates < 1
        return Covariance(
            torch.where(small, (w * f.xv**2).sum(-1), 1 - F.xx**2 - self.M * F.xv**2),
            torch.where(
                small, (w * f.xv * f.vv).sum(-1), -F.xx * F.vx - self.M * F.xv * F.vv
            ),
            torch.where(
                small, (w * f.vv**2).sum(-1), self.M - F.vx**2 - self.M * F.vv**2
            ),
        )

    def covariance(
        self, t: Time, var_x: float = 0.0, var_v: float | None = None
    ) -> Covariance:
        """Sigma_t (paper Appendix B.1) when the state starts with variances var_x and
        var_v.

        The defaults, 0 and gamma M, give the kernel of hybrid score matching, p(x_t,
        v_t | x_0). eps_num is included. t (batch,), entries float64 (batch,).
        """
        var_v = self.gamma * self.M if var_v is None else var_v
        B = self.B(t)
        F = self.flow(B)
        Q = self.noise_covariance(B, F=F)
        Q = Covariance(
            Q.xx + var_x * F.xx**2, Q.xv + var_x * F.xx * F.vx, Q.vv + var_x * F.vx**2
        )
        return self._started(Q, F, var_v)

    def _started(self, Q: Covariance, F: Flow, var_v: float) -> Covariance:
        """Q, what a v_0 of variance var_v has become, and eps_num."""
        return Covariance(
            Q.xx + var_v * F.xv**2 + self.eps_num,
            Q.xv + var_v * F.xv * F.vv,
            Q.vv + var_v * F.vv**2 + self.eps_num,
        )

    # Going back.

    def prior(self, noise: State) -> State:
        """A draw of the stationary law N(0, I) x N(0, M I) from standard normal
        numbers."""
        return State(noise.x, math.sqrt(self.M) * noise.v)

    def prior_log_density(self, state: State) -> State:
        """Its log density, of positions and of velocities, each (batch,)."""
        return State(
            normal_log_density(state.x, 1.0), normal_log_density(state.v, self.M)
        )

    def marginal(
        self, data: exact.GaussianMixture, t: float
    ) -> exact.GaussianMixture:
        """The exact law of (x_t, v_t), without eps_num: again a mixture, over 2d
        dimensions, x first."""
        B = self.B(t)
        flow, added = (
            torch.stack([*self.flow(B)]).reshape(2, 2),
            self.noise_covariance(B),
        )
        noise = torch.stack([added.xx, added.xv, added.xv, added.vv]).reshape(2, 2)
        eye = torch.eye(data.dim, dtype=torch.float64)
        flow, noise = torch.kron(flow, eye), torch.kron(noise, eye)
        start = torch.zeros(
            len(data.means), 2 * data.dim, 2 * data.dim, dtype=torch.float64
        )
        start[:, : data.dim, : data.dim] = data.covariances
        start[:, data.dim :, data.dim :] = self.gamma * self.M * eye
        means = torch.cat([data.means, torch.zeros_like(data.means)], dim=1) @ flow.T
        covariances = flow @ start @ flow.T + noise
        return exact.GaussianMixture(means, covariances, data.weights)

    def exact_score(self, data: exact.GaussianMixture) -> Score:
        """The true grad_v log p_t for mixture data, one time for the whole batch."""

        def score(state: State, t: Tensor) -> Tensor:
            if not bool((t == t[0]).all()):
                raise ValueError("exact_score takes one time for the whole batch")
            u = torch.cat(state, dim=1)
            return (
                self.marginal(data, float(t[0]))
                .score(u)[:, data.dim :]
                .to(state.v.dtype)
            )

        return score

    def reverse_drift(
        self, score: Score, state: State, t: Tensor, ode: bool = False
    ) -> State:
        """Drift of the reverse SDE in reverse time: dx = -v/M beta, dv = (x + Gamma v
        / M + 2 Gamma score) beta. The probability-flow ODE has the same marginals
        with half the score and no noise."""
        beta, x, v = expand(self.beta(t), state.x), state.x, state.v
        pull = self.friction if ode else 2 * self.friction
        push = x + self.friction / self.M * v + pull * score(state, t)
        return State(-beta * v / self.M, beta * push)


def cholesky(covariance: Covariance) -> Cholesky:
    """The lower-triangular factor; its last entry is 0 or NaN where the covariance is
    not positive, which `CLD` excludes for its own times when it is made."""
    xx = covariance.xx.sqrt()
    vx = covariance.xv / xx
    return Cholesky(xx, vx, (covariance.vv - vx**2).sqrt())
