"""From the prior back to data: time grids, Euler-Maruyama, SSCS, the probability-flow
ODE.

Every sampler is a generator of states, as in `diffbook_lib.samplers`; `samplers.run`
walks one to its end. Times are forward times, float64, on the CPU.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from diffbook_lib.cld.process import Covariance, Langevin, Score, State, cholesky
from diffbook_lib.samplers import CountCalls, Noise, Sample, filled, run, steps

Sampler = Callable[[Langevin, Score, State, Tensor, Noise], Iterator[State]]
DATA_VAR = 0.005  # of `sscs2`: for data in sharp modes; 0.1 suits digits


def time_grid(nfe: int, kind: str = "quadratic", eps: float = 1e-3) -> Tensor:
    """Forward times (nfe,) from 1 down to eps for `nfe - 1` steps. "linear" is evenly
    spaced; "quadratic" steps shrink linearly towards the data ("-QS" in the paper's
    tables).

    The released code counts `nfe` calls, the last for a denoising step. That step
    moves x by -v/M beta eps and uses the score for v alone, so the samplers here take
    it without its call: `nfe - 1` calls.
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
    process: Langevin, score: Score, state: State, times: Tensor, noise: Noise
) -> Iterator[State]:
    """Euler-Maruyama on the reverse SDE; then the last position drift, without noise.
    Order 1.

    `noise(i)` gives standard normal numbers of the shape of x, one draw a step."""
    for i, (start, end) in enumerate(steps(times)):
        t, h = filled(start, state.x), start - end
        drift = process.reverse_drift(score, state, t)
        spread = (2 * process.friction * process.beta(start) * h).sqrt()
        state = State(
            state.x + h * drift.x, state.v + h * drift.v + spread * noise(i)
        )
        yield state
    yield _last_drift(process, state, end)


def sscs(
    process: Langevin,
    score: Score,
    state: State,
    times: Tensor,
    noise: Noise,
    released: bool = False,
) -> Iterator[State]:
    """Symmetric splitting CLD sampler (paper Algorithm 1): half a step of the exactly
    solvable linear part, a whole step of the score part, the other half; then the
    last position drift. Order 1.

    Between them the two halves cover the whole interval, also when beta depends on
    time; with `released=True` the first half is used twice, as in the released code,
    to reproduce its numbers. `noise(i)` is called four times a step.
    """
    for i, (start, end) in enumerate(steps(times)):
        middle = (start + end) / 2
        state = half_step(
            process, state, start, middle, State(noise(4 * i), noise(4 * i + 1))
        )
        state = score_step(process, score, state, start, start - end)
        half = (start, middle) if released else (middle, end)
        state = half_step(
            process, state, *half, State(noise(4 * i + 2), noise(4 * i + 3))
        )
        yield state
    yield _last_drift(process, state, end)


def sscs2(
    process: Langevin,
    score: Score,
    state: State,
    times: Tensor,
    noise: Noise,
    data_var: float = DATA_VAR,
) -> Iterator[State]:
    """SSCS of second order, still one network call a step: the score part is solved
    by an exponential midpoint rule (`midpoint_score_step`). `noise(i)` is called four
    times a step."""
    rest = torch.zeros_like(state.v)  # at t = 1 the velocity has its stationary score
    for i, (start, end) in enumerate(steps(times)):
        middle = (start + end) / 2
        state = half_step(
            process, state, start, middle, State(noise(4 * i), noise(4 * i + 1))
        )
        state, rest = midpoint_score_step(
            process, score, state, start, end, rest, data_var
        )
        state = half_step(
            process, state, middle, end, State(noise(4 * i + 2), noise(4 * i + 3))
        )
        yield state
    yield _last_drift(process, state, end)


def half_step(
    process: Langevin,
    state: State,
    start: Tensor,
    end: Tensor,
    noise: State,
    num_stab: float = 0.0,
) -> State:
    """The part A of the splitting, solved exactly from time `start` down to `end`: dx
    = -v/M beta, dv = (x - Gamma v / M) beta + sqrt(2 Gamma beta) dw. It is the
    forward flow with the coupling reversed and leaves N(0, I) x N(0, M I) as it is.
    `num_stab` is added to both variances of the noise, as the released code can."""
    B = process.B(start) - process.B(end)
    F = process.flow(B, sign=-1)
    Q = process.noise_covariance(B, sign=-1, F=F)
    L = cholesky(Covariance(Q.xx + num_stab, Q.xv, Q.vv + num_stab))
    x, v = state
    return State(
        F.xx * x + F.xv * v + L.xx * noise.x,
        F.vx * x + F.vv * v + L.vx * noise.x + L.vv * noise.v,
    )


def score_step(
    process: Langevin, score: Score, state: State, t: Tensor, h: Tensor
) -> State:
    """The part S, dv = 2 Gamma (score + v / M) beta with x at rest, by one Euler
    step. It does nothing where the velocity has its stationary score, -v / M."""
    push = score(state, filled(t, state.x)) + state.v / process.M
    return State(state.x, state.v + 2 * process.friction * process.beta(t) * h * push)


def midpoint_score_step(
    process: Langevin,
    score: Score,
    state: State,
    start: Tensor,
    end: Tensor,
    rest: Tensor,
    data_var: float,
) -> tuple[State, Tensor]:
    """The part S over [end, start] by an exponential midpoint rule.

    In the clock B it reads dv/dB = J v + r(v): J v is its value for Gaussian data of
    variance `data_var`, taken at the middle time and solved exactly, r the rest. The
    velocity halfway is predicted with `rest`, the r of the step before, so that the
    one network call can be made there. Any `data_var` gives order 2; returns the
    state and this step's r.
    """
    middle, b = (start + end) / 2, process.B(start) - process.B(end)
    S = process.covariance(middle, var_x=data_var)
    slope = -S.xx / (S.xx * S.vv - S.xv**2)  # of the v-score of Gaussian data
    pull = 2 * process.friction
    J = pull * (slope + 1 / process.M)
    x, v = state
    halfway = _exponential_step(J, b / 2, v, rest)
    push = pull * (
        score(State(x, halfway), filled(middle, state.x)) + halfway / process.M
    )
    rest = push - J * halfway
    return State(x, _exponential_step(J, b, v, rest)), rest


def _exponential_step(J: Tensor, b: Tensor, v: Tensor, r: Tensor) -> Tensor:
    """v after b of dv/dB = J v + r with r constant."""
    growth = torch.expm1(J * b)
    return v + growth * v + torch.where(J == 0, b, growth / J) * r


def sample(
    process: Langevin,
    score: Score,
    times: Tensor,
    start: State,
    noise: Noise,
    sampler: Sampler = sscs,
) -> Sample:
    """From the prior down to the data. `start`: standard normal numbers for position
    and velocity, as `rng.start_noise` makes them; `noise(i)`: the sampler's draw i,
    as `rng.step_noise` does."""
    counted = CountCalls(score)
    end = run(sampler(process, counted, process.prior(start), times, noise))
    return Sample(end.x, counted.nfe)


def probability_flow(
    process: Langevin,
    score: Score,
    state: State,
    eps: float = 1e-3,
    rtol: float = 1e-5,
    atol: float = 1e-5,
) -> Sample:
    """The probability-flow ODE from the prior's `state` down to time eps by
    torchdiffeq's adaptive Runge-Kutta method of order 5, then the last position
    drift."""
    from torchdiffeq import odeint

    if not 0 < eps < 1:
        raise ValueError(f"eps={eps}: the ODE ends at a time between 0 and 1")
    counted = CountCalls(score)

    def slope(tau: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        t = filled(1 - tau.double(), state[0])
        return process.reverse_drift(counted, State(*state), t, ode=True)

    interval = torch.tensor([0, 1 - eps], dtype=torch.float64, device=state.x.device)
    within = {"step_t": interval[1:]}  # no call beyond the end
    x, v = odeint(slope, tuple(state), interval, rtol=rtol, atol=atol, options=within)
    end = _last_drift(
        process, State(x[-1], v[-1]), torch.tensor(eps, dtype=torch.float64)
    )
    return Sample(end.x, counted.nfe)


def _last_drift(process: Langevin, state: State, t: Tensor) -> State:
    return State(state.x - process.beta(t) * t / process.M * state.v, state.v)
