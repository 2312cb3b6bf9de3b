"""From noise to images, for any denoiser: samplers that walk down `sigmas`, falling
noise levels, float64, the last of which may be 0. x (batch, ...) starts as x_0 +
sigmas[0] n."""

import math
from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from diffbook_lib.diffusion import Denoiser
from diffbook_lib.samplers.walks import Noise


def karras_sigmas(
    steps: int,
    sigma_min: float,
    sigma_max: float,
    rho: float = 7.0,
    zero: bool = True,
) -> Tensor:
    """`steps` noise levels from sigma_max to sigma_min, evenly spaced in
    sigma^(1/rho), then 0 unless `zero=False` (Karras et al. 2022, Eq. 5). Raises
    ValueError for an empty range."""
    if steps < 2 or not 0 < sigma_min < sigma_max:
        raise ValueError(
            f"steps={steps}, sigma_min={sigma_min}, sigma_max={sigma_max}: "
            "need at least 2 steps and 0 < sigma_min < sigma_max"
        )
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    sigmas = torch.linspace(high, low, steps, dtype=torch.float64) ** rho
    return torch.cat([sigmas, sigmas.new_zeros(1)]) if zero else sigmas


def ddim(
    denoiser: Denoiser, x: Tensor, sigmas: Tensor, label: Tensor | None = None
) -> Iterator[Tensor]:
    """DDIM (Song et al. 2021, eta = 0): Euler steps of dx/dsigma = (x - D) / sigma.
    Order 1, one network call a step."""
    for start, end in _pairs(sigmas):
        x = line(x, denoiser(x, level(start, x), label), end / start)
        yield x


def heun(
    denoiser: Denoiser, x: Tensor, sigmas: Tensor, label: Tensor | None = None
) -> Iterator[Tensor]:
    """Heun's method on the same ODE (Karras et al. 2022, Algorithm 1): order 2, two
    network calls a step, one in a last step to sigma = 0."""
    for start, end in _pairs(sigmas):
        x = heun_step(denoiser, x, start, end, label)
        yield x


def heun_step(
    denoiser: Denoiser,
    x: Tensor,
    start: float,
    end: float,
    label: Tensor | None = None,
) -> Tensor:
    """From noise level `start` to `end` along the mean of the slopes at both."""
    slope = (x - denoiser(x, level(start, x), label)) / start
    ahead = x + (end - start) * slope
    if end == 0:
        return ahead
    slope_ahead = (ahead - denoiser(ahead, level(end, x), label)) / end
    return x + (end - start) * (slope + slope_ahead) / 2


def heun_churn(
    denoiser: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    noise: Noise,
    label: Tensor | None = None,
    S_churn: float = 40.0,
    S_tmin: float = 0.05,
    S_tmax: float = 50.0,
    S_noise: float = 1.003,
) -> Iterator[Tensor]:
    """Heun's method with fresh noise before each step whose level lies in [S_tmin,
    S_tmax] (Karras et al. 2022, Algorithm 2): the level is raised by the factor 1 +
    S_churn / steps, at most sqrt(2), by noise of standard deviation S_noise. Without
    it, S_churn = 0, this is `heun`. The defaults are those of the paper for ImageNet
    64 (Table 5)."""
    pairs = list(_pairs(sigmas))
    churn = min(S_churn / len(pairs), math.sqrt(2) - 1)
    for i, (start, end) in enumerate(pairs):
        if churn > 0 and S_tmin <= start <= S_tmax:
            raised = start * (1 + churn)
            x = x + math.sqrt(raised**2 - start**2) * S_noise * noise(i)
            start = raised
        x = heun_step(denoiser, x, start, end, label)
        yield x


def euler_maruyama(
    denoiser: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    noise: Noise,
    label: Tensor | None = None,
) -> Iterator[Tensor]:
    """Euler-Maruyama on the reverse SDE, which in the variance s = sigma^2 reads dx =
    -score ds + dw (s running down). A step takes twice DDIM's way along the score for
    small steps, and puts noise back. A last step to sigma = 0 is a plain denoising.
    Weak order 1."""
    for i, (start, end) in enumerate(_pairs(sigmas)):
        drop = start**2 - end**2  # of variance
        x = line(x, denoiser(x, level(start, x), label), 1 - drop / start**2)
        if end > 0:
            x = x + math.sqrt(drop) * noise(i)
        yield x


def ancestral(
    denoiser: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    noise: Noise,
    label: Tensor | None = None,
) -> Iterator[Tensor]:
    """DDPM's ancestral sampling (Ho et al. 2020, Eq. 6-7): the next state is drawn
    from the posterior N(D + (end/start)^2 (x - D), end^2 (1 - end^2/start^2)) with D
    in the place of the clean image. Weak order 1; exact for a single data point,
    however few the steps."""
    for i, (start, end) in enumerate(_pairs(sigmas)):
        shrink = (end / start) ** 2
        x = line(x, denoiser(x, level(start, x), label), shrink)
        if end > 0:
            x = x + end * math.sqrt(1 - shrink) * noise(i)
        yield x


def _pairs(sigmas: Tensor) -> Iterator[tuple[float, float]]:
    levels = sigmas.tolist()
    falls = len(levels) > 1 and all(a > b for a, b in pairwise(levels))
    if not falls or levels[-1] < 0:
        raise ValueError(
            f"sigmas must fall in one step or more and end at 0 or above, got {levels}"
        )
    return pairwise(levels)


def line(x: Tensor, denoised: Tensor, remaining: float) -> Tensor:
    """The point on the line from D to x that keeps `remaining` of the way."""
    return denoised + remaining * (x - denoised)


def level(sigma: float | Tensor, x: Tensor) -> Tensor:
    """One noise level for the whole batch (batch,)."""
    return torch.as_tensor(sigma, dtype=x.dtype, device=x.device).expand(len(x))
