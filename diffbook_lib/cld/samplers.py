"""From the prior back to data: time grids, Euler-Maruyama and SSCS.

Every sampler is a generator of states, as in `diffbook_lib.samplers`; `samplers.run` walks one to
its end. Times are forward times, float64, on the CPU.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from torch import Tensor

from diffbook_lib.cld.process import CLD, Score, State, cholesky
from diffbook_lib.samplers import Noise, run

Sampler = Callable[[CLD, Score, State, Tensor, Noise], Iterator[State]]


def time_grid(nfe: int, kind: str = "quadratic", eps: float = 1e-3) -> Tensor:
    """Forward times (nfe,) from 1 down to eps for `nfe - 1` steps. "linear" is evenly spaced;
    "quadratic" steps shrink linearly towards the data ("-QS" in the paper's tables).

    The released code counts `nfe` calls, the last for a denoising step. That step moves x by
    -v/M beta eps and uses the score for v alone, so the samplers here take it without its call:
    `nfe - 1` calls.
    """
    if nfe < 2 or not 0 < eps < 1:
        raise ValueError(f"nfe={nfe}, eps={eps}: need nfe >= 2 and 0 < eps < 1")
    s = torch.linspace(0, 1, nfe, dtype=torch.float64)
    if kind == "quadratic":
        s = 1 - (1 - s) ** 2
    elif kind != "linear":
        raise ValueError(f"kind is {kind!r}; allowed: 'linear', 'quadratic'")
    return 1 - (1 - eps) * s


def euler_maruyama(
    process: CLD, score: Score, state: State, times: Tensor, noise: Noise
) -> Iterator[State]:
    """Euler-Maruyama on the reverse SDE; then the last position drift, without noise. Order 1.

    `noise(i)` gives standard normal numbers of the shape of x, one draw a step."""
    for i, (start, end) in enumerate(_steps(times)):
        t, h = _filled(start, state), start - end
        drift = process.reverse_drift(score, state, t)
        spread = (2 * process.friction * process.beta(start) * h).sqrt()
        state = State(state.x + h * drift.x, state.v + h * drift.v + spread * noise(i))
        yield state
    yield _last_drift(process, state, end)


def sscs(process: CLD, score: Score, state: State, times: Tensor, noise: Noise) -> Iterator[State]:
    """Symmetric splitting CLD sampler (paper Algorithm 1): half a step of the exactly solvable
    linear part, a whole step of the score part, the other half; then the last position drift.

    Between them the two halves cover the whole interval, also when beta depends on time (the
    released code uses the first half twice). `noise(i)` is called four times a step.
    """
    for i, (start, end) in enumerate(_steps(times)):
        middle = (start + end) / 2
        state = half_step(process, state, start, middle, State(noise(4 * i), noise(4 * i + 1)))
        state = score_step(process, score, state, start, start - end)
        state = half_step(process, state, middle, end, State(noise(4 * i + 2), noise(4 * i + 3)))
        yield state
    yield _last_drift(process, state, end)


def sample(
    process: CLD, score: Score, times: Tensor, noise: Noise, sampler: Sampler = sscs
) -> Tensor:
    """Images (batch, ...) from the prior down to the data; `noise` as `rng.step_noise` makes it."""
    start = process.prior(State(noise(0), noise(1)))
    return run(sampler(process, score, start, times, lambda i: noise(i + 2))).x


def half_step(process: CLD, state: State, start: Tensor, end: Tensor, noise: State) -> State:
    """The part A of the splitting, solved exactly from time `start` down to `end`:
    dx = -v/M beta, dv = (x - Gamma v / M) beta + sqrt(2 Gamma beta) dw. It is the forward flow
    with the coupling reversed and leaves N(0, I) x N(0, M I) as it is."""
    B = process.B(start) - process.B(end)
    F, L = process.flow(B, sign=-1), cholesky(process.noise_covariance(B, sign=-1))
    x, v = state
    return State(
        F.xx * x + F.xv * v + L.xx * noise.x,
        F.vx * x + F.vv * v + L.vx * noise.x + L.vv * noise.v,
    )


def score_step(process: CLD, score: Score, state: State, t: Tensor, h: Tensor) -> State:
    """The part S, dv = 2 Gamma (score + v / M) beta with x at rest, by one Euler step. It does
    nothing where the velocity has its stationary score, -v / M."""
    push = score(state, _filled(t, state)) + state.v / process.M
    return State(state.x, state.v + 2 * process.friction * process.beta(t) * h * push)


def _last_drift(process: CLD, state: State, t: Tensor) -> State:
    return State(state.x - process.beta(t) * t / process.M * state.v, state.v)


def _steps(times: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    if len(times) < 2 or not bool((times.diff() < 0).all()):
        raise ValueError(f"times must fall from 1 towards 0 in one step or more, got {times}")
    return pairwise(times)


def _filled(t: Tensor, state: State) -> Tensor:
    return t.expand(len(state.x)).to(state.x.device)
