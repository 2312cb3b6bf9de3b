"""From noise to images: samplers in sigma, for any denoiser.

Every sampler is a generator that walks down `sigmas` (decreasing, float64, the last may be 0) and
yields the state x after each step; `run` walks to the end. x (batch, ...) starts as
x_0 + sigmas[0] n.
Random samplers take `noise(i)`, standard normal numbers of the shape of x for step i, so that the
caller decides how they are keyed (`rng.image_noise`) and tests can fix them.
"""

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor

from diffbook_lib import rng
from diffbook_lib.diffusion import Denoiser, normal_log_density

Noise = Callable[[int], Tensor]
State = TypeVar("State")


class CountCalls:
    """A denoiser or score that counts its calls: `nfe`, network function evaluations."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self.function = function
        self.nfe = 0

    def __call__(self, *args, **kwargs) -> Tensor:
        self.nfe += 1
        return self.function(*args, **kwargs)


def karras_sigmas(
    steps: int, sigma_min: float, sigma_max: float, rho: float = 7.0, zero: bool = True
) -> Tensor:
    """`steps` noise levels from sigma_max to sigma_min, evenly spaced in sigma^(1/rho), then 0
    unless `zero=False` (Karras et al. 2022, Eq. 5). Raises ValueError for an empty range."""
    if steps < 2 or not 0 < sigma_min < sigma_max:
        raise ValueError(
            f"steps={steps}, sigma_min={sigma_min}, sigma_max={sigma_max}: "
            "need at least 2 steps and 0 < sigma_min < sigma_max"
        )
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    sigmas = torch.linspace(high, low, steps, dtype=torch.float64) ** rho
    return torch.cat([sigmas, sigmas.new_zeros(1)]) if zero else sigmas


def run(states: Iterator[State], steps: int | None = None, progress: bool = False) -> State:
    """The last state; with `progress`, a bar over `steps`."""
    if progress:
        from tqdm.auto import tqdm

        states = iter(tqdm(states, total=steps, desc="sampling", leave=False))
    for state in states:  # noqa: B007
        pass
    return state


def ddim(
    denoiser: Denoiser, x: Tensor, sigmas: Tensor, label: Tensor | None = None
) -> Iterator[Tensor]:
    """DDIM (Song et al. 2021, eta = 0): Euler steps of dx/dsigma = (x - D) / sigma. Order 1,
    one network call a step."""
    for start, end in _pairs(sigmas):
        x = _line(x, denoiser(x, _level(start, x), label), end / start)
        yield x


def heun(
    denoiser: Denoiser, x: Tensor, sigmas: Tensor, label: Tensor | None = None
) -> Iterator[Tensor]:
    """Heun's method on the same ODE (Karras et al. 2022, Algorithm 1): order 2, two network calls
    a step, one in a last step to sigma = 0."""
    for start, end in _pairs(sigmas):
        slope = (x - denoiser(x, _level(start, x), label)) / start
        ahead = x + (end - start) * slope
        if end > 0:
            slope_ahead = (ahead - denoiser(ahead, _level(end, x), label)) / end
            ahead = x + (end - start) * (slope + slope_ahead) / 2
        x = ahead
        yield x


def euler_maruyama(
    denoiser: Denoiser, x: Tensor, sigmas: Tensor, noise: Noise, label: Tensor | None = None
) -> Iterator[Tensor]:
    """Euler-Maruyama on the reverse SDE, which in the variance s = sigma^2 reads
    dx = -score ds + dw (s running down). A step takes twice DDIM's way along the score for small
    steps, and puts noise back. A last step to sigma = 0 is a plain denoising. Weak order 1."""
    for i, (start, end) in enumerate(_pairs(sigmas)):
        drop = start**2 - end**2  # of variance
        x = _line(x, denoiser(x, _level(start, x), label), 1 - drop / start**2)
        if end > 0:
            x = x + math.sqrt(drop) * noise(i)
        yield x


def ancestral(
    denoiser: Denoiser, x: Tensor, sigmas: Tensor, noise: Noise, label: Tensor | None = None
) -> Iterator[Tensor]:
    """DDPM's ancestral sampling (Ho et al. 2020, Eq. 6-7): the next state is drawn from the
    posterior N(D + (end/start)^2 (x - D), end^2 (1 - end^2/start^2)) with D in the place of the
    clean image. Weak order 1; exact for a single data point, however few the steps."""
    for i, (start, end) in enumerate(_pairs(sigmas)):
        shrink = (end / start) ** 2
        x = _line(x, denoiser(x, _level(start, x), label), shrink)
        if end > 0:
            x = x + end * math.sqrt(1 - shrink) * noise(i)
        yield x


def probability_flow(
    denoiser: Denoiser,
    x: Tensor,
    start: float,
    end: float,
    label: Tensor | None = None,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    method: str = "dopri5",
) -> Tensor:
    """Where the ODE dx/d(ln sigma) = x - D takes x from noise level `start` to `end`, both > 0,
    in either direction, by torchdiffeq with error control."""
    from torchdiffeq import odeint

    def slope(log_sigma: Tensor, x: Tensor) -> Tensor:
        return x - denoiser(x, _level(log_sigma.exp(), x), label)

    return odeint(slope, x, _log_interval(start, end, x), rtol=rtol, atol=atol, method=method)[-1]


def log_likelihood(
    denoiser: Denoiser,
    x: Tensor,
    sigma_min: float,
    sigma_max: float,
    probes: Tensor | None = None,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    method: str = "dopri5",
) -> tuple[Tensor, Tensor]:
    """log p(x) (batch,) in nats of the flow that starts at N(0, sigma_max^2 I), and the latent.

    The instantaneous change of variables (Chen et al. 2018): along the flow log p changes by the
    divergence, estimated with `probes` of shape (k, *x.shape) of random signs (Hutchinson), or
    exactly, one backward pass a dimension, with probes=None.
    """
    from torchdiffeq import odeint

    def slopes(log_sigma: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            x = state[0].detach().requires_grad_()
            slope = x - denoiser(x, _level(log_sigma.exp(), x))
            change = divergence(slope, x, probes)
        return slope.detach(), change.detach()

    state = (x, x.new_zeros(len(x)))
    times = _log_interval(sigma_min, sigma_max, x)
    latents, changes = odeint(slopes, state, times, rtol=rtol, atol=atol, method=method)
    latent = latents[-1]
    log_prior = normal_log_density(latent, sigma_max**2)
    return log_prior + changes[-1], latent


def rademacher(probes: int, x: Tensor, source: rng.Source) -> Tensor:
    """Random signs (probes, *x.shape) in the type of x, batch drawn first so that shares agree."""
    signs = rng.integers(2, (len(x), probes, *x.shape[1:]), source) * 2 - 1
    return signs.transpose(0, 1).to(x.dtype)


def divergence(slope: Tensor, x: Tensor, probes: Tensor | None) -> Tensor:
    """Trace of d slope / d x for each row (batch,): Hutchinson's estimate with `probes`
    (k, *x.shape), or exactly, one backward pass a dimension, with None."""
    if probes is None:
        flat = slope.flatten(1)
        rows = [
            torch.autograd.grad(flat[:, i].sum(), x, retain_graph=True)[0].flatten(1)[:, i]
            for i in range(flat.shape[1])
        ]
        return torch.stack(rows).sum(dim=0)
    estimates = [
        (torch.autograd.grad(slope, x, probe, retain_graph=True)[0] * probe).flatten(1).sum(dim=1)
        for probe in probes
    ]
    return torch.stack(estimates).mean(dim=0)


def _pairs(sigmas: Tensor) -> Iterator[tuple[float, float]]:
    levels = sigmas.tolist()
    falls = len(levels) > 1 and all(a > b for a, b in pairwise(levels))
    if not falls or levels[-1] < 0:
        raise ValueError(
            f"sigmas must fall in one step or more and end at 0 or above, got {levels}"
        )
    return pairwise(levels)


def _line(x: Tensor, denoised: Tensor, remaining: float) -> Tensor:
    """The point on the line from D to x that keeps `remaining` of the way."""
    return denoised + remaining * (x - denoised)


def _level(sigma: float | Tensor, x: Tensor) -> Tensor:
    """One noise level for the whole batch (batch,)."""
    return torch.as_tensor(sigma, dtype=x.dtype, device=x.device).expand(len(x))


def _log_interval(start: float, end: float, x: Tensor) -> Tensor:
    if not (start > 0 and end > 0):
        raise ValueError(f"the ODE runs between noise levels above 0, got {start} and {end}")
    return torch.tensor([math.log(start), math.log(end)], dtype=x.dtype, device=x.device)
