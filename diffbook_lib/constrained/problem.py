"""min loss_0 subject to loss_i <= b_i, for losses of which a mixture is the minimiser.

The Lagrangian loss_0 + sum_i lam_i (loss_i - b_i) is, up to constants, Z = 1 + sum lam
times the loss on data drawn from the mixture q_mix = (q_0 + sum_i lam_i q_i) / Z: the
model that minimises it is the one of that mixture (Khalafi et al. 2024, Theorem 2).
Row 0 stands for the objective throughout; lam, b and violations have m entries.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


class Infeasible(ValueError):
    """No model satisfies the thresholds: by `margin` the best of all fails."""

    def __init__(self, margin: float) -> None:
        self.margin = margin
        super().__init__(
            f"the thresholds cannot be met: the best model violates one by {margin:.4g}, "
            "and multipliers would grow forever; raise every b by more than that, or "
            "relax the constraints with alpha > 0"
        )


def mixture_weights(lam: Tensor) -> Tensor:
    """The share of each distribution in q_mix, (1, lam) / Z, (m + 1,)."""
    weights = torch.cat([lam.new_ones(1), lam])
    return weights / weights.sum()


@dataclass(frozen=True, eq=False, kw_only=True)
class Problem:
    """What the constrained problems of this chapter share: the dual, from the losses.

    b: thresholds (m,), in the unit of the losses. alpha: cost of relaxation; the
    constraints become loss_i - b_i <= r_i at the cost sum r_i^2 / (4 alpha), the dual
    loses alpha |lam|^2, and r_i = 2 alpha lam_i. Larger is softer, 0 is hard.
    """

    b: Tensor
    alpha: float = 0.0

    def losses_at(self, weights: Tensor) -> Tensor:
        """The losses (m + 1,) of the model of the mixture with these weights (m + 1,),
        which sum to 1."""
        raise NotImplementedError

    def _covariance(self, weights: Tensor) -> Tensor:
        """Minus the derivative of the constraints' losses (m, m) by the weights."""
        raise NotImplementedError

    def losses(self, lam: Tensor) -> Tensor:
        """The losses (m + 1,) of the model that minimises the Lagrangian at lam (m,)."""
        return self.losses_at(mixture_weights(lam))

    def violation(self, lam: Tensor) -> Tensor:
        """loss_i - b_i of that model (m,): the gradient of g, for alpha = 0."""
        return self.losses(lam)[1:] - self.b

    def gradient(self, lam: Tensor) -> Tensor:
        """The gradient (m,) of `dual`: the violation, less the relaxation allowed."""
        return self.violation(lam) - 2 * self.alpha * lam

    def dual(self, lam: Tensor) -> Tensor:
        """g(lam) - alpha |lam|^2, concave; () in the unit of the losses. No feasible
        model has a smaller objective."""
        loss = self.losses(lam)
        priced = torch.where(lam > 0, lam * (loss[1:] - self.b), 0.0)
        return loss[0] + priced.sum() - self.alpha * lam.square().sum()

    def curvature(self, lam: Tensor) -> Tensor:
        """The Hessian of `dual` (m, m), negative semi-definite."""
        relaxation = 2 * self.alpha * torch.eye(len(lam), dtype=torch.float64)
        return -self._covariance(mixture_weights(lam)) / (1 + lam.sum()) - relaxation

    def safe_step(self, lam: Tensor) -> float:
        """The dual step below which ascent near lam does not oscillate out: 2 over the
        largest curvature."""
        return 2 / float(torch.linalg.eigvalsh(-self.curvature(lam)).max())

    def _check(self, constraints: int) -> None:
        if self.b.shape != (constraints,) or not bool(self.b.isfinite().all()):
            raise ValueError(
                f"b is {self.b.tolist()}; {constraints} constraints need as many "
                "finite thresholds"
            )
        if not 0 <= self.alpha < float("inf"):
            raise ValueError(f"alpha is {self.alpha!r}; it must be 0 or more")


@dataclass(frozen=True, eq=False)
class KLProblem(Problem):
    """min KL(q_0 | p) subject to KL(q_i | p) <= b_i, over all distributions p on n
    points, in nats. A density on a grid is one such: its masses at the points.

    log_q: the log of the probabilities, float64 (m + 1, n), -inf where they are 0.
    """

    log_q: Tensor

    def __post_init__(self) -> None:
        self._check(len(self.log_q) - 1)

    @classmethod
    def discrete(
        cls, q0: Tensor, q: Tensor, b: Tensor, alpha: float = 0.0
    ) -> "KLProblem":
        """From the probabilities q0 (n,) and q (m, n) of a finite alphabet. Raises
        ValueError where they are none."""
        rows = torch.cat([q0[None], q]).double()
        for i, row in enumerate(rows):
            if bool((row < 0).any()) or abs(float(row.sum()) - 1) > 1e-6:
                raise ValueError(
                    f"distribution {i} (0 is the objective) is {row.tolist()}; need "
                    "numbers >= 0 that sum to 1"
                )
        return cls(rows.log(), b=b.double(), alpha=alpha)

    def log_mixture(self, weights: Tensor) -> Tensor:
        """The log of the mixture with these weights (m + 1,), (n,)."""
        return (self.log_q + weights.log()[:, None]).logsumexp(dim=0)

    def optimum(self, lam: Tensor) -> Tensor:
        """q_mix (n,), the distribution p that minimises the Lagrangian at lam."""
        return self.log_mixture(mixture_weights(lam)).exp()

    def losses_at(self, weights: Tensor) -> Tensor:
        return kl(self.log_q, self.log_mixture(weights))

    def lagrangian(self, log_p: Tensor, lam: Tensor) -> Tensor:
        """KL(q_0 | p) + sum_i lam_i (KL(q_i | p) - b_i) of any p, (), without
        relaxation; equal to Z KL(q_mix | p) + g(lam)."""
        loss = kl(self.log_q, log_p)
        return loss[0] + lam @ (loss[1:] - self.b)

    def _covariance(self, weights: Tensor) -> Tensor:
        """Of the ratios q_i / q_mix under q_mix, (m, m)."""
        log_mix = self.log_mixture(weights)
        inside = log_mix > -torch.inf
        ratio = (self.log_q[1:, inside] - log_mix[inside]).exp() - 1
        return (ratio * log_mix[inside].exp()) @ ratio.T


def kl(log_q: Tensor, log_p: Tensor) -> Tensor:
    """KL(q | p) in nats over the last dimension; inf where p is 0 and q is not."""
    terms = log_q.exp() * (log_q - log_p)
    return torch.where(log_q > -torch.inf, terms, 0.0).sum(dim=-1)


def entropy(log_q: Tensor) -> Tensor:
    """-sum q log q in nats over the last dimension."""
    return -torch.where(log_q > -torch.inf, log_q.exp() * log_q, 0.0).sum(dim=-1)
