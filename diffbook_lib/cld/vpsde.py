"""The diffusion without a velocity, trained the same way: what CLD is compared with.

The variance-preserving SDE dx = -beta x / 2 dt + sqrt(beta) dw (Song et al. 2021), with the
weightings and the mixed score of the CLD paper (its Section 3.2 and Appendix E.1).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from diffbook_lib import diffusion, rng
from diffbook_lib.cld.objective import WEIGHTINGS, Weighting
from diffbook_lib.cld.samplers import Sample, filled, steps
from diffbook_lib.diffusion import Net, expand
from diffbook_lib.samplers import CountCalls, Noise, run

Score = Callable[[Tensor, Tensor], Tensor]  # grad log p_t(x), t (batch,)


@dataclass(frozen=True)
class VPSDE:
    """beta(t) = beta0 + beta1 t on [0, 1]; the other fields mean what they mean in `CLD`, with
    beta / 2 in the place of Gamma beta and 1 / std in that of ell."""

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
    def kernel(self) -> diffusion.VP:
        """p(x_t | x_0) = N(alpha(t) x_0, std(t)^2 I)."""
        return diffusion.VP(self.beta0, self.beta0 + self.beta1)

    def beta(self, t: Tensor) -> Tensor:
        """The pace of the process, float64."""
        return self.beta0 + self.beta1 * t.double()

    def alpha(self, net: Net, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """The estimate of the noise in x_t (batch, ...)."""
        out = net(x, t.to(x.dtype), label)
        return out + expand(self.kernel.std(t), x) * x if self.mixed_score else out

    def score(self, net: Net, label: Tensor | None = None) -> Score:
        """The network as the score of x_t: s(x, t) = -alpha(x, t) / std(t)."""
        return lambda x, t: -self.alpha(net, x, t, label) / expand(self.kernel.std(t), x)

    def loss(self, net: Net, x0: Tensor, source: rng.Source, label: Tensor | None = None) -> Tensor:
        """Denoising score matching: the weighted squared error of the noise at a uniform time,
        summed over dimensions, (batch,)."""
        u = rng.uniform((len(x0),), source, dtype=torch.float64)
        t = self.loss_eps + (1 - self.loss_eps) * u
        noise = rng.normal(x0.shape, source, x0.dtype)
        x = diffusion.perturb(self.kernel, x0, t, noise)
        error = (noise - self.alpha(net, x, t, label)).square().flatten(1).sum(dim=1)
        weight = torch.ones_like(t) if self.weighting == "reweightedv2" else self.beta(t) / 2
        if self.weighting == "likelihood":
            weight = weight / self.kernel.std(t) ** 2
        return error * weight.to(error.dtype)

    def reverse_drift(self, score: Score, x: Tensor, t: Tensor) -> Tensor:
        """Drift of the reverse SDE in reverse time, (x / 2 + score) beta."""
        return expand(self.beta(t), x) * (x / 2 + score(x, t))


def euler_maruyama(
    process: VPSDE, score: Score, x: Tensor, times: Tensor, noise: Noise
) -> Iterator[Tensor]:
    """Euler-Maruyama on the reverse SDE; then a step from the last time to 0 without noise,
    which here needs the score. `noise(i)` is called once a step."""
    for i, (start, end) in enumerate(steps(times)):
        h = start - end
        drift = process.reverse_drift(score, x, filled(start, x))
        x = x + h * drift + (process.beta(start) * h).sqrt() * noise(i)
        yield x
    yield x + end * process.reverse_drift(score, x, filled(end, x))


def sample(process: VPSDE, score: Score, times: Tensor, noise: Noise) -> Sample:
    """From noise down to the data by Euler-Maruyama."""
    counted = CountCalls(score)
    x = run(euler_maruyama(process, counted, noise(0), times, lambda i: noise(i + 1)))
    return Sample(x, counted.nfe)
