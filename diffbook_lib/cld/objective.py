"""What the network of a CLD model learns: the velocity's noise (paper Sections 3.1
and 3.2)."""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from diffbook_lib import rng
from diffbook_lib.cld.process import (
    Cholesky,
    Flow,
    Langevin,
    Score,
    State,
    Time,
    cholesky,
)
from diffbook_lib.diffusion import WEIGHTINGS, Net, Weighting, expand

Objective = Literal["hsm", "dsm"]
OBJECTIVES = get_args(Objective)


class Kernel(NamedTuple):
    """The Gaussian p(x_t, v_t | start) at times (batch,): the mean is F applied to
    the start, L the Cholesky factor of the covariance, var_v the variance of v_t
    given x_0 alone."""

    F: Flow
    L: Cholesky
    var_v: Tensor


class CLDDraw(NamedTuple):
    """Noisy states (batch, ...), their times (batch,), float64, the velocity's noise
    in them, and the kernel they were drawn from."""

    state: State
    t: Tensor
    noise: Tensor
    kernel: Kernel


@dataclass(frozen=True)
class CLD(Langevin):
    """The process with its learning problem.

    loss_eps: smallest time in training. objective: "hsm" conditions on x_0 and
    averages over v_0 by hand, "dsm" conditions on both. weighting: lambda(t) of the
    squared error of the score, Gamma beta ("likelihood"), Gamma beta / ell^2
    ("reweightedv1") or 1 / ell^2 ("reweightedv2"); the names are the released code's.
    mixed_score: the network learns only the departure from the score of a Gaussian
    velocity (paper Section 3.2).
    """

    loss_eps: float = 1e-5
    objective: Objective = "hsm"
    weighting: Weighting = "reweightedv2"
    mixed_score: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("loss_eps", "must lie between 0 and 1", 0 < self.loss_eps < 1)
        for name, allowed in (("objective", OBJECTIVES), ("weighting", WEIGHTINGS)):
            self._require(
                name, f"must be one of {allowed}", getattr(self, name) in allowed
            )
        times = torch.logspace(
            math.log10(self.loss_eps), 0, 32, dtype=torch.float64, device="cpu"
        )
        if not bool((self.kernel(times).L.vv > 0).all()):
            raise ValueError(
                f"the covariance of (x, v) is not positive definite in float64 with eps_num "
                f"{self.eps_num} and loss_eps {self.loss_eps}; use a larger eps_num (the paper "
                "uses 1e-9 to 1e-6) or a larger loss_eps"
            )

    def kernel(self, t: Time) -> Kernel:
        """Everything about p(x_t, v_t | x_0), with "dsm" p(x_t, v_t | x_0, v_0), at t
        (batch,)."""
        B, start = self.B(t), self.gamma * self.M
        F = self.flow(B)
        Q = self.noise_covariance(B, F=F)
        if self.objective == "hsm":
            S = self._started(Q, F, start)
            return Kernel(F, cholesky(S), S.vv)
        S = self._started(Q, F, 0.0)
        return Kernel(F, cholesky(S), S.vv + start * F.vv**2)

    def ell(self, t: Time) -> Tensor:
        """ell_t = 1 / L_vv: the score of the kernel in v is -ell_t times the velocity
        noise (paper Appendix B.3)."""
        return 1 / self.kernel(t).L.vv

    def perturb(
        self, x0: Tensor, t: Tensor, noise: State, v0: Tensor | None = None
    ) -> State:
        """A sample of the kernel, mean F (x_0, v_0) plus L noise. "dsm" needs v_0;
        "hsm" has averaged over it, its mean is 0. Raises ValueError for a v_0 too
        many or too few."""
        if (v0 is None) != (self.objective == "hsm"):
            told = "takes no v0" if self.objective == "hsm" else "needs v0"
            raise ValueError(
                f"perturb {told}, because objective is {self.objective!r}"
            )
        return _sample(self.kernel(t), x0, noise, v0)

    def alpha(
        self,
        net: Net,
        state: State,
        t: Tensor,
        kernel: Kernel,
        label: Tensor | None = None,
    ) -> Tensor:
        """The estimate of the velocity noise; the network sees x and v / sqrt(M) side
        by side."""
        u = torch.cat([state.x, state.v / math.sqrt(self.M)], dim=1)
        out = net(u, t.to(u.dtype), label)
        if not self.mixed_score:
            return out
        return out + expand(kernel.L.vv / kernel.var_v, out) * state.v

    def score(self, net: Net, label: Tensor | None = None) -> Score:
        """The network as the score in v: s(x, v, t) = -ell_t alpha(x, v, t)."""

        def score(state: State, t: Tensor) -> Tensor:
            kernel = self.kernel(t)
            return -self.alpha(net, state, t, kernel, label) / expand(
                kernel.L.vv, state.v
            )

        return score

    def weight(self, t: Tensor, kernel: Kernel) -> Tensor:
        """lambda ell^2, the weight of the squared error of the velocity noise
        (batch,)."""
        if self.weighting == "reweightedv2":
            return torch.ones_like(kernel.L.vv)
        rate = self.friction * self.beta(t)
        return rate / kernel.L.vv**2 if self.weighting == "likelihood" else rate

    def draw(self, x0: Tensor, source: rng.Source) -> CLDDraw:
        """Noisy states of clean images x0 (batch, ...), at uniform times above
        loss_eps."""
        u = rng.uniform((len(x0),), source, dtype=torch.float64)
        t = self.loss_eps + (1 - self.loss_eps) * u
        draws = 2 if self.objective == "hsm" else 3
        x, v, *start = rng.normal(
            (len(x0), draws, *x0.shape[1:]), source, x0.dtype
        ).unbind(1)
        v0 = math.sqrt(self.gamma * self.M) * start[0] if start else None
        kernel = self.kernel(t)
        return CLDDraw(_sample(kernel, x0, State(x, v), v0), t, v, kernel)

    def error(self, net: Net, draw: CLDDraw, label: Tensor | None = None) -> Tensor:
        """The weighted squared error of the velocity noise, summed over dimensions,
        (batch,)."""
        state, t, noise, kernel = draw
        error = (
            (noise - self.alpha(net, state, t, kernel, label))
            .square()
            .flatten(1)
            .sum(dim=1)
        )
        if self.weighting == "reweightedv2":
            return error  # of weight 1
        return error * self.weight(t, kernel).to(error.dtype)

    def loss(
        self, net: Net, x0: Tensor, source: rng.Source, label: Tensor | None = None
    ) -> Tensor:
        """`error` at a `draw`."""
        return self.error(net, self.draw(x0, source), label)


def _sample(kernel: Kernel, x0: Tensor, noise: State, v0: Tensor | None) -> State:
    F, L, _ = kernel
    x = expand(F.xx, x0) * x0 + expand(L.xx, x0) * noise.x
    v = (
        expand(F.vx, x0) * x0
        + expand(L.vx, x0) * noise.x
        + expand(L.vv, x0) * noise.v
    )
    if v0 is None:
        return State(x, v)
    return State(x + expand(F.xv, x0) * v0, v + expand(F.vv, x0) * v0)
