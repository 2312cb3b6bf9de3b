"""Distributions of the noise level in training: float32 (n,) by `draw`."""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from diffbook_lib import rng


class Levels(Protocol):
    """A distribution of noise levels."""

    def draw(self, n: int, source: rng.Source) -> Tensor:
        """n levels (n,), float32, on the source's device."""


@dataclass(frozen=True)
class LogNormal:
    """ln sigma ~ N(P_mean, P_std^2) (Karras et al. 2022, Table 1)."""

    P_mean: float = -1.2
    P_std: float = 1.2

    def draw(self, n: int, source: rng.Source) -> Tensor:
        return (self.P_mean + self.P_std * rng.normal((n,), source)).exp()


@dataclass(frozen=True)
class UniformLogSNR:
    """The log of the signal-to-noise ratio 1 / sigma^2 uniform between the two ends
    (Kingma et al. 2021, "Variational diffusion models", whose low-discrepancy sampler
    is `stratified`: each of as many equal parts of the range as a batch has rows
    holds one level)."""

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    stratified: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max:
            raise ValueError(
                f"sigma_min={self.sigma_min}, sigma_max={self.sigma_max}: "
                "need 0 < sigma_min < sigma_max"
            )

    def draw(self, n: int, source: rng.Source) -> Tensor:
        if self.stratified:
            u = rng.stratified(n, source)
        else:
            u = rng.uniform((n,), source, dtype=torch.float64)
        low, high = math.log(self.sigma_min), math.log(self.sigma_max)
        return (low + (high - low) * u).exp().float()


@dataclass(frozen=True)
class DDPM:
    """A level of the discrete schedule of Ho et al. 2020, each with the same
    probability: the index i = 0 ... steps - 1 stands for their t = i + 1, with beta
    linear in t."""

    steps: int = 1000
    beta_first: float = 1e-4
    beta_last: float = 0.02

    def __post_init__(self) -> None:
        if self.steps < 2 or not 0 < self.beta_first <= self.beta_last < 1:
            raise ValueError(
                f"steps={self.steps}, beta_first={self.beta_first}, beta_last={self.beta_last}: "
                "need 2 steps or more and 0 < beta_first <= beta_last < 1"
            )

    def alpha_bar(self, device: str | torch.device = "cpu") -> Tensor:
        """The product of 1 - beta up to each step, float64 (steps,), falling."""
        ends = self.beta_first, self.beta_last
        beta = torch.linspace(*ends, self.steps, dtype=torch.float64, device=device)
        return torch.cumprod(1 - beta, dim=0)

    def sigmas(self, device: str | torch.device = "cpu") -> Tensor:
        """The noise level sqrt(1 / alpha_bar - 1) of each step, float64 (steps,),
        rising."""
        return (1 / self.alpha_bar(device) - 1).sqrt()

    def nearest(self, sigma: Tensor) -> Tensor:
        """The index of the step whose noise level is nearest to sigma, int64."""
        sigmas = self.sigmas(sigma.device)
        return torch.bucketize(sigma.double(), (sigmas[1:] + sigmas[:-1]) / 2)

    def draw(self, n: int, source: rng.Source) -> Tensor:
        index = rng.integers(self.steps, (n,), source)
        return self.sigmas(index.device)[index].float()
