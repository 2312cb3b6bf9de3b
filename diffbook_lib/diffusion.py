"""Noise kernels, what a network may predict, and how every prediction becomes a denoiser.

A noisy image is x_t = alpha (x_0 + sigma n), n standard normal. Everything in this book is computed
in the frame x = x_t / alpha = x_0 + sigma n, where only sigma is left: a denoiser is a callable
`denoiser(x, sigma, label=None)` that estimates x_0, sigma of shape (batch,).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from diffbook_lib import rng


class Denoiser(Protocol):
    """Estimates the clean image from x = x_0 + sigma n; sigma (batch,), label int64 (batch,)."""

    def __call__(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor: ...


Net = Callable[..., Tensor]  # net(x, noise, label) with a scalar noise feature (batch,)


def expand(scalar: Tensor, x: Tensor) -> Tensor:
    """scalar (batch,) as (batch, 1, ..., 1) with the dimensions and type of x."""
    return scalar.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))


def normal_log_density(x: Tensor, variance: float) -> Tensor:
    """log N(x; 0, variance I) (batch,)."""
    flat = x.flatten(1)
    constant = flat.shape[1] * math.log(2 * math.pi * variance)
    return -(flat.square().sum(dim=1) / variance + constant) / 2


# Four names for one estimate. x (batch, ...), sigma (batch,).


def score_from_denoised(denoised: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
    """grad log p_sigma(x) = (D(x, sigma) - x) / sigma^2 (Tweedie; Karras et al. 2022, Eq. 3)."""
    return (denoised - x) / expand(sigma, x) ** 2


def denoised_from_score(score: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
    """D = x + sigma^2 score."""
    return x + expand(sigma, x) ** 2 * score


def noise_from_denoised(denoised: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
    """n = (x - D) / sigma."""
    return (x - denoised) / expand(sigma, x)


def denoised_from_noise(noise: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
    """D = x - sigma n."""
    return x - expand(sigma, x) * noise


def v_from_denoised(denoised: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
    """v = a n - b D with a = 1/sqrt(1 + sigma^2), b = sigma a: the velocity on the circle
    a^2 + b^2 = 1 (Salimans and Ho 2022, Section 4)."""
    noise = noise_from_denoised(denoised, x, sigma)
    return (noise - expand(sigma, x) * denoised) / (1 + expand(sigma, x) ** 2).sqrt()


def denoised_from_v(v: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
    """D = a^2 x - b v, since a x = a D + b n and v = a n - b D."""
    a = (1 + expand(sigma, x) ** 2).rsqrt()
    return a**2 * x - expand(sigma, x) * a * v


@dataclass(frozen=True)
class VP:
    """Variance-preserving noise with a linear beta(t) on [0, 1] (Song et al. 2021, Eq. 32-33):
    x_t = alpha(t) x_0 + std(t) n with alpha^2 + std^2 = 1. Times and results are float64."""

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
    """Variance-exploding noise, geometric in t on [0, 1] (Song et al. 2021, Eq. 30-31)."""

    sigma_min: float = 0.02
    sigma_max: float = 100.0

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t, dtype=torch.float64)

    def sigma(self, t: Tensor) -> Tensor:
        return self.sigma_min * (self.sigma_max / self.sigma_min) ** t.double()

    def std(self, t: Tensor) -> Tensor:
        return self.sigma(t)

    def time(self, sigma: Tensor) -> Tensor:
        return (sigma.double() / self.sigma_min).log() / math.log(self.sigma_max / self.sigma_min)


Kernel = VP | VE


def perturb(kernel: Kernel, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """x_t = alpha(t) x + std(t) noise; t (batch,)."""
    return expand(kernel.alpha(t), x) * x + expand(kernel.std(t), x) * noise


def denoiser_from_net(net: Net, kernel: Kernel, predicts: str, time_scale: float = 1.0) -> Denoiser:
    """A network trained elsewhere as a denoiser.

    The network sees x_t and t * time_scale (1000 for models with a thousand steps) and predicts
    "noise", "v", "score" (of the density of x_t) or "clean". Raises ValueError for another word.
    """
    convert = {
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


@dataclass(frozen=True)
class EDM:
    """Preconditioning and training noise of Karras et al. 2022 (EDM), Table 1 and Eq. 7-8."""

    sigma_data: float = 0.5
    P_mean: float = -1.2
    P_std: float = 1.2

    def c_skip(self, sigma: Tensor) -> Tensor:
        return self.sigma_data**2 / (sigma**2 + self.sigma_data**2)

    def c_out(self, sigma: Tensor) -> Tensor:
        return sigma * self.sigma_data / (sigma**2 + self.sigma_data**2).sqrt()

    def c_in(self, sigma: Tensor) -> Tensor:
        return (sigma**2 + self.sigma_data**2).rsqrt()

    def c_noise(self, sigma: Tensor) -> Tensor:
        return sigma.log() / 4

    def weight(self, sigma: Tensor) -> Tensor:
        """1 / c_out^2: every noise level starts with loss one."""
        return 1 / self.c_out(sigma) ** 2

    def denoiser(self, net: Net) -> Denoiser:
        """D(x, sigma) = c_skip x + c_out net(c_in x, c_noise)."""

        def denoiser(x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
            sigma = sigma.to(x.dtype)
            out = net(expand(self.c_in(sigma), x) * x, self.c_noise(sigma), label)
            return expand(self.c_skip(sigma), x) * x + expand(self.c_out(sigma), x) * out

        return denoiser

    def loss(self, net: Net, x: Tensor, source: rng.Source, label: Tensor | None = None) -> Tensor:
        """Weighted denoising error of each image (batch,), averaged over its dimensions, at a
        noise level drawn from ln sigma ~ N(P_mean, P_std^2)."""
        sigma = (self.P_mean + self.P_std * rng.normal((len(x),), source)).exp()
        noise = rng.normal(x.shape, source)
        denoised = self.denoiser(net)(x + expand(sigma, x) * noise, sigma, label)
        return self.weight(sigma) * (denoised - x).square().flatten(1).mean(dim=1)
