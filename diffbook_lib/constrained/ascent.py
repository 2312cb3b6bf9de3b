"""Projected ascent of the multipliers, and the certificate that every run of it carries."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

ROUNDING = 1e-9  # of sums of float64, relative


class Multipliers(NamedTuple):
    """Multipliers lam (m,) of m constraints after some dual steps, and what certifies
    them; float64.

    start: lam before the first step. pushed: sum of eta times violation. withheld: what
    a cap took away and a controller moved, in units of lam. rate: sum of eta, ().
    """

    lam: Tensor
    start: Tensor
    pushed: Tensor
    withheld: Tensor
    rate: Tensor

    @classmethod
    def at(cls, lam: Tensor) -> "Multipliers":
        """Before the first step. Raises ValueError for a multiplier below 0."""
        lam = lam.detach().double().clone()
        if lam.ndim != 1 or not bool((lam >= 0).all()):
            raise ValueError(
                f"multipliers are {lam.tolist()}; need a list of numbers >= 0"
            )
        zero = torch.zeros_like(lam)
        return cls(lam, lam.clone(), zero, zero.clone(), lam.new_zeros(()))

    def mean_violation(self) -> Tensor:
        """The violation averaged over the steps, each weighted by its eta, (m,); 0 before
        the first. With alpha, the violation of the relaxed constraint."""
        return self.pushed / self.rate.clamp(min=torch.finfo(torch.float64).tiny)

    def bound(self) -> Tensor:
        """(lam_end - lam_start) / (eta H), plus what was withheld: no mean violation is
        above it, whatever was trained, since projection only raises lam."""
        risen = self.lam - self.start + self.withheld
        return risen / self.rate.clamp(min=torch.finfo(torch.float64).tiny)

    def certified(self) -> bool:
        """Whether `mean_violation` is below `bound`, up to the rounding of sums. False
        says that lam was changed by something else than the steps."""
        room = self.lam - self.start + self.withheld - self.pushed
        size = 1 + self.lam.abs() + self.pushed.abs() + self.withheld.abs()
        return bool((room >= -ROUNDING * size).all())


@dataclass(frozen=True)
class Ascent:
    """lam <- [lam + eta (violation - 2 alpha lam + gain change)]_+, at most cap.

    eta: the dual step. alpha: the relaxation, larger is softer; ascent on g(lam) - alpha
    |lam|^2, whose constraints are loosened by r = 2 alpha lam at the cost r^2 / (4 alpha).
    gain: of the change of the violation against that of its sum, a PI controller
    (Sohrabi et al. 2024, "On PI controllers for updating Lagrange multipliers", their
    kappa_p / kappa_i).
    """

    eta: float
    alpha: float = 0.0
    cap: float = math.inf
    gain: float = 0.0

    def __post_init__(self) -> None:
        rules = {
            "eta": (0 < self.eta < math.inf, "be positive"),
            "alpha": (0 <= self.alpha < math.inf, "be 0 or more"),
            "cap": (self.cap > 0, "be positive"),
            "gain": (0 <= self.gain < math.inf, "be 0 or more"),
        }
        for name, (holds, rule) in rules.items():
            if not holds:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must {rule}")

    def step(
        self,
        at: Multipliers,
        violation: Tensor,
        change: Tensor | float = 0.0,
        scale: float = 1.0,
    ) -> Multipliers:
        """One dual step for these violations (m,): loss or KL less its threshold.

        change: how much the violation, or its running average, has grown since the
        step before; `gain` weighs it. scale: of eta, where it follows a schedule.
        """
        eta = scale * self.eta
        relaxed = violation.double() - 2 * self.alpha * at.lam
        nudge = torch.as_tensor(eta * self.gain * change, dtype=torch.float64)
        wanted = at.lam + eta * relaxed + nudge
        return Multipliers(
            lam=wanted.clamp(0.0, self.cap),
            start=at.start,
            pushed=at.pushed + eta * relaxed,
            withheld=at.withheld + (wanted - self.cap).clamp(min=0) - nudge,
            rate=at.rate + eta,
        )


def running_mean(mean: Tensor, value: Tensor, n: int | Tensor) -> Tensor:
    """The mean of n values from that of the first n - 1 and the last: of lam over the
    end of a run, where lam itself may swing around the optimum."""
    return mean + (value - mean) / n
