"""A lower bound on log p(x_0) through the probability-flow ODE of (x, v)."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from diffbook_lib.cld.process import Langevin, Score, State
from diffbook_lib.diffusion import normal_log_density
from diffbook_lib.samplers import CountCalls, divergence


class Likelihood(NamedTuple):
    """log density (batch,) in nats, the state at t = 1 it was traced to, network
    calls."""

    log_density: Tensor
    state: State
    nfe: int


def log_density(
    process: Langevin,
    score: Score,
    state: State,
    probes: Tensor | None = None,
    eps: float = 1e-5,
    rtol: float = 1e-5,
    atol: float = 1e-5,
) -> Likelihood:
    """log p(x_0, v_0) of the model: along the probability-flow ODE from t = eps to 1
    the log density changes by the drift's divergence.

    The drift of x does not depend on x, so only the velocities contribute. `probes`,
    random signs (k, *v.shape) as `samplers.rademacher` makes them, give Hutchinson's
    estimate; None the exact trace, one backward pass a dimension.
    """
    from torchdiffeq import odeint

    counted = CountCalls(score)

    def slopes(
        t: Tensor, parts: tuple[Tensor, Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        x, v, _ = parts
        t = t.double().expand(len(v))
        with torch.enable_grad():
            v = v.detach().requires_grad_()
            back = process.reverse_drift(counted, State(x, v), t, ode=True)
            change = divergence(-back.v, v, probes)
        return -back.x.detach(), -back.v.detach(), change.detach()

    start = (*state, state.v.new_zeros(len(state.v)))
    interval = torch.tensor([eps, 1.0], dtype=torch.float64, device=state.x.device)
    within = {"step_t": interval[1:]}  # no call beyond the end
    x, v, changes = odeint(
        slopes, start, interval, rtol=rtol, atol=atol, options=within
    )
    end = State(x[-1], v[-1])
    prior = process.prior_log_density(end)
    return Likelihood(prior.x + prior.v + changes[-1], end, counted.nfe)


def position_bound(process: Langevin, joint: Tensor, dims: int) -> Tensor:
    """The released code's bound on log p(x_0) from log p(x_0, v_0) with v_0 ~ N(0,
    gamma M I): log p(x_0) >= E log p(x_0, v_0) + H(v_0), H the entropy of that
    Gaussian in `dims` dimensions.
    """
    return joint + dims / 2 * (1 + math.log(2 * math.pi * process.gamma * process.M))


def log_likelihood_bound(
    process: Langevin,
    score: Score,
    x0: Tensor,
    noise: Tensor,
    probes: Tensor | None = None,
    rtol: float = 1e-5,
    atol: float = 1e-5,
) -> Likelihood:
    """A lower bound on log p(x_0) (batch,), in expectation over v_0, drawn once an
    image from `noise`, standard normal numbers of the shape of x_0.

    The estimate is log p(x_0, v_0) - log N(v_0; 0, gamma M I): its mean is that of
    `position_bound`, without the scatter of the second term, which cancels in the
    first.
    """
    variance = process.gamma * process.M
    start = State(x0, math.sqrt(variance) * noise)
    found = log_density(process, score, start, probes, rtol=rtol, atol=atol)
    bound = found.log_density - normal_log_density(start.v, variance)
    return found._replace(log_density=bound)
