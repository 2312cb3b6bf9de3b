"""The loss that is constrained: how far a network's estimate of the noise is off."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from diffbook_lib import rng
from diffbook_lib.diffusion import Denoiser, Draw, Levels, Net, expand


@dataclass(frozen=True)
class NoiseLoss:
    """The squared error of the noise that a denoiser finds, averaged over dimensions:
    DDPM's "simple loss" at whatever levels (Ho et al. 2020, Eq. 14).

    levels: distribution of the noise level. denoiser: makes one of a network.
    """

    levels: Levels
    denoiser: Callable[[Net], Denoiser]

    def draw(self, x: Tensor, source: rng.Source) -> Draw:
        """Noisy versions of clean examples x (batch, ...)."""
        sigma = self.levels.draw(len(x), source)
        noise = rng.normal(x.shape, source)
        return Draw(x, x + expand(sigma, x) * noise, sigma)

    def error(self, net: Net, draw: Draw, label: Tensor | None = None) -> Tensor:
        """The error of a network on each example (batch,)."""
        return self.of(self.denoiser(net), draw, label)

    def of(
        self, denoiser: Denoiser, draw: Draw, label: Tensor | None = None
    ) -> Tensor:
        """The same of a denoiser D: |D - x_0|^2 / sigma^2, since the noise it finds is
        (x - D) / sigma."""
        off = denoiser(draw.noisy, draw.sigma, label) - draw.clean
        return (off / expand(draw.sigma, off)).square().flatten(1).mean(dim=1)


def nats(dim: int, sigma_min: float, sigma_max: float) -> float:
    """What a gap of 1 in `NoiseLoss` is worth where the log-SNR is uniform between the two
    levels and `dim` the number of dimensions.

    KL(q|r) = 1/2 ∫ E|n_q - n_r|^2 d log SNR, with |.|^2 summed over dimensions, and the gap
    between the losses of r and of the exact predictor n_q on q is the mean of |n_q - n_r|^2:
    KL is the gap times dim times half the range of the log-SNR, ln(sigma_max / sigma_min).
    Raises ValueError for an empty range.
    """
    if not 0 < sigma_min < sigma_max:
        raise ValueError(
            f"sigma_min is {sigma_min} and sigma_max {sigma_max}; need 0 < sigma_min < sigma_max"
        )
    return dim * math.log(sigma_max / sigma_min)
