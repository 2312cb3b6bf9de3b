"""Noise kernels p(x_t | x_0), and networks trained in their frame as denoisers."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from diffbook_lib.diffusion.conversions import (
    Denoiser,
    Net,
    denoised_from_noise,
    denoised_from_score,
    denoised_from_v,
    expand,
)


@dataclass(frozen=True)
class VP:
    """Variance-preserving noise with a linear beta(t) on [0, 1] (Song et al. 2021,
    Eq. 32-33): x_t = alpha(t) x_0 + std(t) n with alpha^2 + std^2 = 1. Times and
    results are float64."""

    beta_min: float = 0.1
    beta_max: float = 20.0

    def _integral(self, t: Tensor) -> Tensor:
        """Integral of beta from 0 to t."""
        t = t.double()
        return self.beta_min * t + (self.beta_max - self.beta_min) * t**2 / 2

    def alpha(self, t: Tensor) -> Tensor:
        return (-self._integral(t) / 2).exp()

    def std(self, t: Tensor) -> Tensor:
        return (-torch.expm1(-self._integral(t))).sqrt()

    def sigma(self, t: Tensor) -> Tensor:
        """std / alpha."""
        return torch.expm1(self._integral(t)).sqrt()

    def time(self, sigma: Tensor) -> Tensor:
        """The t at which the noise level is sigma: a quadratic equation in t."""
        integral = torch.log1p(sigma.double() ** 2)
        slope = self.beta_max - self.beta_min
        root = (self.beta_min**2 + 2 * slope * integral).sqrt()
        return 2 * integral / (self.beta_min + root)


@dataclass(frozen=True)
class VE:
    """Variance-exploding noise, geometric in t on [0, 1] (Song et al. 2021, Eq.
    30-31)."""

    sigma_min: float = 0.02
    sigma_max: float = 100.0

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t, dtype=torch.float64)

    def sigma(self, t: Tensor) -> Tensor:
        return self.sigma_min * (self.sigma_max / self.sigma_min) ** t.double()

    def std(self, t: Tensor) -> Tensor:
        return self.sigma(t)

    def time(self, sigma: Tensor) -> Tensor:
        return (sigma.double() / self.sigma_min).log() / math.log(
            self.sigma_max / self.sigma_min
        )


def perturb(kernel: VP | VE, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """x_t = alpha(t) x + std(t) noise; t (batch,)."""
    return expand(kernel.alpha(t), x) * x + expand(kernel.std(t), x) * noise


def denoiser_from_net(
    net: Net, kernel: VP | VE, predicts: str, time_scale: float = 1.0
) -> Denoiser:
    """A network trained elsewhere as a denoiser.

    The network sees x_t and t * time_scale (1000 for models with a thousand steps)
    and predicts "noise", "v", "score" (of the density of x_t) or "clean". Raises
    ValueError for another word.
    """
    convert: dict[str, Callable[..., Tensor]] = {
        "noise": denoised_from_noise,
        "v": denoised_from_v,
        "score": denoised_from_score,
        "clean": lambda out, x, sigma: out,
    }
    if predicts not in convert:
        raise ValueError(f"predicts is {predicts!r}; allowed: {', '.join(convert)}")

    def denoiser(x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        t = kernel.time(sigma)
        alpha = expand(kernel.alpha(t), x)
        out = net(alpha * x, (t * time_scale).to(x.dtype), label)
        if predicts == "score":
            out = alpha * out  # grad with respect to x = x_t / alpha
        return convert[predicts](out, x, sigma)

    return denoiser
