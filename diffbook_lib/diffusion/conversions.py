"""What a network may predict: four names for one estimate, x (batch, ...), sigma
(batch,)."""

import math
from collections.abc import Callable
from typing import Protocol

from torch import Tensor


class Denoiser(Protocol):
    """Estimates the clean image from x = x_0 + sigma n; sigma (batch,), label int64
    (batch,)."""

    def __call__(
        self, x: Tensor, sigma: Tensor, label: Tensor | None = None
    ) -> Tensor: ...


Net = Callable[
    ..., Tensor
]  # net(x, noise, label) with a scalar noise feature (batch,)


def expand(scalar: Tensor, x: Tensor) -> Tensor:
    """scalar (batch,) as (batch, 1, ..., 1) with the dimensions and type of x."""
    return scalar.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))


def normal_log_density(x: Tensor, variance: float) -> Tensor:
    """log N(x; 0, variance I) (batch,)."""
    flat = x.flatten(1)
    constant = flat.shape[1] * math.log(2 * math.pi * variance)
    return -(flat.square().sum(dim=1) / variance + constant) / 2


def score_from_denoised(denoised: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
    """grad log p_sigma(x) = (D(x, sigma) - x) / sigma^2 (Tweedie; Karras et al. 2022,
    Eq. 3)."""
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
    """v = a n - b D with a = 1/sqrt(1 + sigma^2), b = sigma a: the velocity on the
    circle a^2 + b^2 = 1 (Salimans and Ho 2022, Section 4)."""
    noise = noise_from_denoised(denoised, x, sigma)
    return (noise - expand(sigma, x) * denoised) / (1 + expand(sigma, x) ** 2).sqrt()


def denoised_from_v(v: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
    """D = a^2 x - b v, since a x = a D + b n and v = a n - b D."""
    a = (1 + expand(sigma, x) ** 2).rsqrt()
    return a**2 * x - expand(sigma, x) * a * v
