"""The variance-preserving SDE dx = -beta x / 2 dt + sqrt(beta) dw (Song et al. 2021),
trained as CLD is, for comparison: with the weightings and the mixed score of Dockhorn
et al. 2022 (Section 3.2 and Appendix E.1)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from diffbook_lib import rng
from diffbook_lib.diffusion.conversions import Net, expand
from diffbook_lib.diffusion.kernels import VP, perturb

VPScore = Callable[[Tensor, Tensor], Tensor]  # grad log p_t(x), t (batch,)
Weighting = Literal["likelihood", "reweightedv1", "reweightedv2"]
WEIGHTINGS = get_args(Weighting)


class VPDraw(NamedTuple):
    """Noisy images x_t (batch, ...), their times (batch,), float64, and the noise in
    them."""

    x: Tensor
    t: Tensor
    noise: Tensor


@dataclass(frozen=True)
class VPSDE:
    """beta(t) = beta0 + beta1 t on [0, 1]; the kernel is p(x_t | x_0) = N(alpha x_0,
    std^2 I).

    loss_eps: smallest time in training. weighting: lambda(t) of the squared error of
    the score, beta / 2 ("likelihood"), beta std^2 / 2 ("reweightedv1") or std^2
    ("reweightedv2"). mixed_score: the network learns only the departure from the
    score -x of standard normal x_t.
    """

    beta0: float = 0.1
    beta1: float = 19.9
    loss_eps: float = 1e-5
    weighting: Weighting = "reweightedv2"
    mixed_score: bool = True

    def __post_init__(self) -> None:
        rules = {
            "beta0": (self.beta0 > 0, "be positive"),
            "beta1": (self.beta0 + self.beta1 > 0, "keep beta(1) positive"),
            "loss_eps": (0 < self.loss_eps < 1, "lie between 0 and 1"),
            "weighting": (self.weighting in WEIGHTINGS, f"be one of {WEIGHTINGS}"),
        }
        for name, (holds, rule) in rules.items():
            if not holds:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must {rule}")

    @property
    def kernel(self) -> VP:
        """p(x_t | x_0) = N(alpha(t) x_0, std(t)^2 I)."""
        return VP(self.beta0, self.beta0 + self.beta1)

    def beta(self, t: Tensor) -> Tensor:
        """The pace of the process, float64."""
        return self.beta0 + self.beta1 * t.double()

    def alpha(
        self, net: Net, x: Tensor, t: Tensor, label: Tensor | None = None
    ) -> Tensor:
        """The estimate of the noise in x_t (batch, ...)."""
        out = net(x, t.to(x.dtype), label)
        return out + expand(self.kernel.std(t), x) * x if self.mixed_score else out

    def score(self, net: Net, label: Tensor | None = None) -> VPScore:
        """The network as the score of x_t: s(x, t) = -alpha(x, t) / std(t)."""
        return lambda x, t: (
            -self.alpha(net, x, t, label) / expand(self.kernel.std(t), x)
        )

    def draw(self, x0: Tensor, source: rng.Source) -> VPDraw:
        """Noisy versions of clean images x0 (batch, ...), at uniform times above
        loss_eps."""
        u = rng.uniform((len(x0),), source, dtype=torch.float64)
        t = self.loss_eps + (1 - self.loss_eps) * u
        noise = rng.normal(x0.shape, source, x0.dtype)
        return VPDraw(perturb(self.kernel, x0, t, noise), t, noise)

    def error(self, net: Net, draw: VPDraw, label: Tensor | None = None) -> Tensor:
        """Denoising score matching: the weighted squared error of the noise, summed
        over dimensions, (batch,)."""
        x, t, noise = draw
        error = (noise - self.alpha(net, x, t, label)).square().flatten(1).sum(dim=1)
        weight = (
            torch.ones_like(t)
            if self.weighting == "reweightedv2"
            else self.beta(t) / 2
        )
        if self.weighting == "likelihood":
            weight = weight / self.kernel.std(t) ** 2
        return error * weight.to(error.dtype)

    def loss(
        self, net: Net, x0: Tensor, source: rng.Source, label: Tensor | None = None
    ) -> Tensor:
        """`error` at a `draw`."""
        return self.error(net, self.draw(x0, source), label)

    def reverse_drift(self, score: VPScore, x: Tensor, t: Tensor) -> Tensor:
        """Drift of the reverse SDE in reverse time, (x / 2 + score) beta."""
        return expand(self.beta(t), x) * (x / 2 + score(x, t))
