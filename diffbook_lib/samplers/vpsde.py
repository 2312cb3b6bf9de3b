"""The variance-preserving SDE from noise to data and back, with forward times: 1 is
noise, 0 is data."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from diffbook_lib.diffusion import (
    VPSDE,
    Denoiser,
    VPScore,
    denoiser_from_net,
    expand,
)
from diffbook_lib.samplers import flows
from diffbook_lib.samplers.sigmas import ancestral, ddim, heun
from diffbook_lib.samplers.walks import CountCalls, Noise, Sample, filled, run, steps

Walk = Callable[[Denoiser, Tensor, Tensor], Iterator[Tensor]]  # from x down sigmas


class Likelihood(NamedTuple):
    """log density (batch,) in nats, network calls."""

    log_density: Tensor
    nfe: int


def denoiser(process: VPSDE, score: VPScore) -> Denoiser:
    """The score of x_t as a denoiser of x_t / alpha."""
    return denoiser_from_net(
        lambda x, t, label: score(x, t), process.kernel, predicts="score"
    )


def euler_maruyama(
    process: VPSDE, score: VPScore, x: Tensor, times: Tensor, noise: Noise
) -> Iterator[Tensor]:
    """Euler-Maruyama on the reverse SDE; then a step from the last time to 0 without
    noise, which here needs the score. `noise(i)` is called once a step."""
    for i, (start, end) in enumerate(steps(times)):
        h = start - end
        drift = process.reverse_drift(score, x, filled(start, x))
        x = x + h * drift + (process.beta(start) * h).sqrt() * noise(i)
        yield x
    yield x + end * process.reverse_drift(score, x, filled(end, x))


def time_count(sampler: str, calls: int) -> int:
    """How many times `sample` may be given for at most `calls` network calls: one a
    call, for "heun" one for two calls and one for the last step, to 0."""
    return (calls + 1) // 2 if sampler == "heun" else calls


def sample(
    process: VPSDE,
    score: VPScore,
    times: Tensor,
    start: Tensor,
    noise: Noise,
    sampler: str = "em",
) -> Sample:
    """From standard normal numbers `start` (batch, ...) at times[0] down to the data:
    by Euler-Maruyama, "em", or, at the noise levels of the times and then 0, by
    "ancestral", "ddim" or "heun" of `samplers`.

    `noise(i)` is the noise of step i, as `rng.step_noise` makes it. Raises ValueError
    for another sampler and for times that do not fall.
    """
    counted = CountCalls(score)
    if sampler == "em":
        states = euler_maruyama(process, counted, start, times, noise)
        return Sample(run(states), counted.nfe)
    walks: dict[str, Walk] = {
        "ancestral": partial(ancestral, noise=noise),
        "ddim": ddim,
        "heun": heun,
    }
    if sampler not in walks:
        allowed = ", ".join(["em", *walks])
        raise ValueError(f"sampler is {sampler!r}; allowed: {allowed}")
    sigmas = process.kernel.sigma(times)
    sigmas = torch.cat([sigmas, sigmas.new_zeros(1)])
    x = start / expand(process.kernel.alpha(filled(times[0], start)), start)
    states = walks[sampler](denoiser(process, counted), x, sigmas)
    return Sample(run(states), counted.nfe)


def log_likelihood(
    process: VPSDE,
    score: VPScore,
    x: Tensor,
    probes: Tensor | None = None,
    rtol: float = 1e-5,
    atol: float = 1e-5,
) -> Likelihood:
    """log p(x) of the flow without noise, from the noise level of the loss's smallest
    time to that of t = 1, with `probes` as in `samplers.log_likelihood`."""
    counted = CountCalls(score)
    ends = torch.tensor([process.loss_eps, 1.0], dtype=torch.float64)
    sigma_min, sigma_max = process.kernel.sigma(ends).tolist()
    found, _ = flows.log_likelihood(
        denoiser(process, counted), x, sigma_min, sigma_max, probes, rtol, atol
    )
    return Likelihood(found, counted.nfe)
