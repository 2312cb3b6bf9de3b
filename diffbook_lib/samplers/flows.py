"""Flows without noise by an adaptive solver, and the likelihood that they define."""

from collections.abc import Callable

import torch
from torch import Tensor

from diffbook_lib import rng
from diffbook_lib.diffusion import Denoiser, normal_log_density
from diffbook_lib.samplers.sigmas import level


def probability_flow(
    denoiser: Denoiser,
    x: Tensor,
    start: float,
    end: float,
    label: Tensor | None = None,
    rtol: float = 1e-5,
    atol: float = 1e-5,
) -> Tensor:
    """Where the ODE dx/d(ln sigma) = x - D takes x from noise level `start` to `end`,
    both > 0, in either direction, by torchdiffeq's adaptive Runge-Kutta method of
    order 5. The network is called at levels between the two only."""
    from torchdiffeq import odeint

    interval, level_at = _log_interval(start, end, x)

    def slope(log_sigma: Tensor, x: Tensor) -> Tensor:
        return x - denoiser(x, level_at(log_sigma), label)

    within = {"step_t": interval[1:]}  # no step beyond the end
    path: Tensor = odeint(slope, x, interval, rtol=rtol, atol=atol, options=within)
    return path[-1]


def log_likelihood(
    denoiser: Denoiser,
    x: Tensor,
    sigma_min: float,
    sigma_max: float,
    probes: Tensor | None = None,
    rtol: float = 1e-5,
    atol: float = 1e-5,
) -> tuple[Tensor, Tensor]:
    """log p(x) (batch,) in nats of the flow that starts at N(0, sigma_max^2 I), and
    the latent.

    The instantaneous change of variables (Chen et al. 2018): along the flow log p
    changes by the divergence, estimated with `probes` of shape (k, *x.shape) of
    random signs (Hutchinson), or exactly, one backward pass a dimension, with
    probes=None.
    """
    from torchdiffeq import odeint

    interval, level_at = _log_interval(sigma_min, sigma_max, x)

    def slopes(
        log_sigma: Tensor, state: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            x = state[0].detach().requires_grad_()
            slope = x - denoiser(x, level_at(log_sigma))
            change = divergence(slope, x, probes)
        return slope.detach(), change.detach()

    state = (x, x.new_zeros(len(x)))
    within = {"step_t": interval[1:]}  # no step beyond the end
    latents, changes = odeint(
        slopes, state, interval, rtol=rtol, atol=atol, options=within
    )
    latent = latents[-1]
    log_prior = normal_log_density(latent, sigma_max**2)
    return log_prior + changes[-1], latent


def rademacher(probes: int, x: Tensor, source: rng.Source) -> Tensor:
    """Random signs (probes, *x.shape) in the type of x, batch drawn first so that
    shares agree."""
    signs = rng.integers(2, (len(x), probes, *x.shape[1:]), source) * 2 - 1
    return signs.transpose(0, 1).to(x.dtype)


def divergence(slope: Tensor, x: Tensor, probes: Tensor | None) -> Tensor:
    """Trace of d slope / d x for each row (batch,): Hutchinson's estimate with
    `probes` (k, *x.shape), or exactly, one backward pass a dimension, with None."""
    if probes is None:
        flat = slope.flatten(1)
        rows = [
            torch.autograd.grad(flat[:, i].sum(), x, retain_graph=True)[0].flatten(1)[
                :, i
            ]
            for i in range(flat.shape[1])
        ]
        return torch.stack(rows).sum(dim=0)
    estimates = [
        (torch.autograd.grad(slope, x, probe, retain_graph=True)[0] * probe)
        .flatten(1)
        .sum(dim=1)
        for probe in probes
    ]
    return torch.stack(estimates).mean(dim=0)


def _log_interval(
    start: float, end: float, x: Tensor
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """ln sigma at both ends, float64, and its way back: the level for the whole batch
    (batch,), which rounding does not take beyond the ends."""
    if not (start > 0 and end > 0):
        raise ValueError(
            f"the ODE runs between noise levels above 0, got {start} and {end}"
        )
    ends = min(start, end), max(start, end)

    def level_at(log_sigma: Tensor) -> Tensor:
        return level(log_sigma.double().exp().clamp(*ends), x)

    interval = torch.tensor([start, end], dtype=torch.float64, device=x.device).log()
    return interval, level_at
