"""The ways back: time grids, half steps, the score step and its second-order version, the
samplers and the probability flow. Orders come from exact moments, without Monte Carlo error."""

import functools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.linalg import expm
from waits import Waits
from worlds import (
    CRITICAL,
    DATA,
    HEAVY,
    at_prior,
    close,
    drift_matrix,
    f64,
    gaussian_score,
    integrated_covariance,
    order,
    probe,
    processes,
    randn,
    some_processes,
    square,
    stationary,
)

from diffbook_lib import cld, exact, rng
from diffbook_lib.cld import CLD, State
from diffbook_lib.samplers import CountCalls, run

SAMPLERS = {cld.euler_maruyama: 1, cld.sscs: 4, cld.sscs2: 4}  # noise draws a step
samplers = pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: s.__name__)
data_vars = pytest.mark.parametrize("data_var", [0.0, 0.005, 1.0])


# The linear part of the splitting.


def half(process, start, end):
    return lambda state, noise: cld.half_step(
        process, state, f64(start)[0], f64(end)[0], State(noise(0), noise(1))
    )


@processes
@pytest.mark.parametrize("start, h", [(1.0, 1e-6), (0.3, 1e-3), (1.0, 0.1), (1.0, 0.9)])
def test_half_step_leaves_the_stationary_law(process, start, h):
    offset, F, L = probe(half(process, start, start - h), 2)
    close(offset, [0, 0])
    close(F @ stationary(process) @ F.T + L @ L.T, stationary(process))


@processes
def test_half_step_solves_its_part_of_the_splitting(process):
    """Its own SDE runs down in time: in B it is the forward one with the coupling reversed."""
    start, end = 0.8, 0.5
    B = float(process.B(f64(start)) - process.B(f64(end)))
    _, F, L = probe(half(process, start, end), 2)
    close(F, torch.linalg.matrix_exp(drift_matrix(process, -1.0) * B))
    unit = CLD(process.M, process.Gamma, beta0=1.0)
    added = integrated_covariance(unit, np.zeros((2, 2)), B, sign=-1.0)
    close(L @ L.T, added, rtol=1e-9, atol=1e-11)


@processes
def test_half_steps_compose(process):
    _, F1, L1 = probe(half(process, 0.9, 0.7), 2)
    _, F2, L2 = probe(half(process, 0.7, 0.2), 2)
    _, F, L = probe(half(process, 0.9, 0.2), 2)
    close(F2 @ F1, F)
    close(F2 @ L1 @ L1.T @ F2.T + L2 @ L2.T, L @ L.T)


@processes
def test_num_stab_is_added_to_both_variances_of_the_noise(process):
    def stabilised(state, noise):
        noise = State(noise(0), noise(1))
        start, end = f64(0.8, 0.5)
        return cld.half_step(process, state, start, end, noise, num_stab=1e-3)

    _, F, L = probe(half(process, 0.8, 0.5), 2)
    _, F_stabilised, L_stabilised = probe(stabilised, 2)
    close(F_stabilised, F)
    close(L_stabilised @ L_stabilised.T, L @ L.T + 1e-3 * torch.eye(2).double())


# The score part.


@processes
def test_score_step(process):
    state, t, h = State(randn(4, 2), randn(4, 2, seed=1)), f64(0.6)[0], f64(0.1)[0]
    at_rest = cld.score_step(process, lambda s, t: -s.v / process.M, state, t, h)
    close(at_rest.v, state.v)
    moved = cld.score_step(process, lambda s, t: s.x * t[:, None], state, t, h)
    push = 2 * process.friction * (0.6 * state.x + state.v / process.M)
    close(moved.v, state.v + (process.beta0 + 0.6 * process.beta1) * 0.1 * push)
    assert torch.equal(moved.x, state.x)


def push_matrix(process, t, data_var):
    """The row (c, J) of dv/dB = c x + J v, the score part for Gaussian data of variance data_var
    at the time t (), from the inverse of the covariance."""
    precision = torch.linalg.inv(square(process.covariance(t, var_x=data_var)))
    pull = 2 * process.friction
    return -pull * precision[1, 0], pull * (1 / process.M - precision[1, 1])


@processes
@data_vars
def test_midpoint_score_step_is_exact_for_its_gaussian(process, data_var):
    """With the score of Gaussian data of variance data_var, held at the middle time: the matrix
    exponential, whatever `rest` is (draw 0)."""
    start, end = f64(0.9, 0.4)
    c, J = push_matrix(process, f64(0.65)[0], data_var)
    sigma = square(process.covariance(f64(0.65)[0], var_x=data_var))
    seen = []

    def score(state, t):
        seen.append(t)
        return -(torch.linalg.inv(sigma) @ torch.cat(state, dim=1).T)[1:].T

    step = lambda state, noise: cld.midpoint_score_step(
        process, score, state, start, end, noise(0), data_var
    )[0]
    offset, F, added = probe(step, 1)
    B = float(process.B(start) - process.B(end))
    expected = expm(np.array([[0, 0], [float(c), float(J)]]) * B)
    close(F, expected, rtol=1e-9, atol=1e-9)
    close(offset, [0, 0])
    close(added, torch.zeros(2, 1), atol=1e-9)
    assert len(seen) == 1 and torch.equal(seen[0], f64(0.65).expand(4))


@processes
@data_vars
def test_midpoint_score_step_by_hand(process, data_var):
    """Both halves of the rule as matrix exponentials of dv/dB = J v + r, of (v, 1)."""
    start, end = f64(0.6, 0.5)
    state, rest = State(randn(1, 1), randn(1, 1, seed=1)), randn(1, 1, seed=2)
    score = lambda state, t: (2 * state.v).sin() - state.x * t[:, None]
    _, J = push_matrix(process, f64(0.55)[0], data_var)
    B = float(process.B(start) - process.B(end))

    def advance(b, v, r):
        return (expm(np.array([[float(J), r], [0, 0]]) * b) @ [v, 1])[0]

    x, v = float(state.x), float(state.v)
    halfway = advance(B / 2, v, float(rest))
    push = 2 * process.friction * (math.sin(2 * halfway) - 0.55 * x + halfway / process.M)
    expected = push - float(J) * halfway
    after, rest = cld.midpoint_score_step(process, score, state, start, end, rest, data_var)
    close(rest, [[expected]], rtol=1e-9)
    close(after.v, [[advance(B, v, expected)]], rtol=1e-9)
    assert torch.equal(after.x, state.x)


def test_midpoint_score_step_without_a_pull_of_its_own():
    """J = 0 exactly, where the exponentials are divided by it: the plain midpoint rule."""
    process, (start, end) = CLD(beta0=1e4, eps_num=0), f64(0.9, 0.9 - 1e-5)
    assert push_matrix(process, start, 0.005)[1] == 0
    state, rest = State(randn(4, 1), randn(4, 1, seed=1)), randn(4, 1, seed=2)
    score = lambda state, t: state.v.sin() + state.x
    after, found = cld.midpoint_score_step(process, score, state, start, end, rest, 0.005)
    halfway = state.v + 0.05 * rest
    push = 2 * (halfway.sin() + state.x + 4 * halfway)
    close(found, push, rtol=1e-9)
    close(after.v, state.v + 0.1 * push, rtol=1e-9)


@processes
@data_vars
def test_midpoint_score_step_leaves_the_stationary_velocity(process, data_var):
    """With the prior's score nothing pushes, so r = -J v; given that, the step does nothing."""
    start, end = f64(0.6, 0.5)
    _, J = push_matrix(process, f64(0.55)[0], data_var)
    state = State(randn(4, 2), randn(4, 2, seed=1))
    rest = -J * state.v
    after, found = cld.midpoint_score_step(
        process, at_prior(process), state, start, end, rest, data_var
    )
    close(after.v, state.v, rtol=1e-9)
    close(found, rest, rtol=1e-9)


@some_processes("critical", "heavy")
@data_vars
def test_order_of_the_midpoint_rule_on_a_nonlinear_score(process, data_var):
    """S alone, dv/dB = g(v), over many steps; x and t play no part."""
    score = lambda state, t: (3 * state.v).sin() - state.v / process.M
    B, v0 = float(process.B(1.0) - process.B(0.5)), torch.linspace(-1, 1, 6, dtype=torch.float64)
    g = lambda B, v: 2 * process.friction * np.sin(3 * v)
    exact_v = solve_ivp(g, (0, B), v0.numpy(), method="DOP853", rtol=1e-12, atol=1e-14).y[:, -1]
    steps, errors = [40, 80, 160, 320], []
    for n in steps:
        state, rest = State(torch.zeros(6, 1), v0[:, None]), torch.zeros(6, 1).double()
        for start, end in torch.linspace(1, 0.5, n + 1).double().unfold(0, 2, 1):
            state, rest = cld.midpoint_score_step(process, score, state, start, end, rest, data_var)
        errors.append(float((state.v[:, 0] - torch.from_numpy(exact_v)).abs().max()))
    assert order(steps, errors) == pytest.approx(2, abs=0.1)


# The splitting.


@processes
@pytest.mark.parametrize("sampler", [cld.sscs, cld.sscs2], ids=lambda s: s.__name__)
def test_the_two_parts_add_up_to_the_reverse_sde(process, sampler):
    """A + S: for a small step, one cycle is the reverse drift."""
    score = lambda state, t: state.x.sin() - 2 * state.v + t[:, None]
    state, t, h = State(randn(4, 2), randn(4, 2, seed=1)), 0.6, 1e-6
    times, silent = f64(t, t - h), lambda i: torch.zeros(4, 2, dtype=torch.float64)
    after = next(sampler(process, score, state, times, silent))
    drift = process.reverse_drift(score, state, torch.full((4,), t, dtype=torch.float64))
    close((after.x - state.x) / h, drift.x, rtol=1e-3, atol=1e-2)
    close((after.v - state.v) / h, drift.v, rtol=1e-3, atol=1e-2)


def covers_the_whole_interval(process, sampler):
    """With the score -v/M, at which S does nothing, a step is one exact solution of A."""
    score, times = at_prior(process), f64(0.9, 0.2)
    step = lambda state, noise: next(sampler(process, score, state, times, noise))
    _, F, L = probe(step, 4)
    _, F_whole, L_whole = probe(half(process, 0.9, 0.2), 2)
    close(F, F_whole)
    close(L @ L.T, L_whole @ L_whole.T)


@processes
def test_sscs_covers_the_whole_interval(process):
    covers_the_whole_interval(process, cld.sscs)


@processes
def test_sscs2_covers_the_whole_interval(process):
    """Told that the data are the prior's, it too leaves the velocities to A alone."""
    at_rest = replace(process, gamma=1.0, eps_num=0.0)
    covers_the_whole_interval(at_rest, functools.partial(cld.sscs2, data_var=1.0))


@processes
def test_released_sscs_uses_the_first_half_twice(process):
    score, times = at_prior(process), f64(0.9, 0.2)

    def step(released):
        return lambda state, noise: next(
            cld.sscs(process, score, state, times, noise, released=released)
        )

    _, F, L = probe(step(True), 4)
    _, F_half, L_half = probe(half(process, 0.9, 0.55), 2)
    close(F, F_half @ F_half)
    close(L @ L.T, F_half @ L_half @ L_half.T @ F_half.T + L_half @ L_half.T)
    _, F_right, _ = probe(step(False), 4)
    if process.beta1 == 0:
        close(F, F_right)
    else:
        assert (F - F_right).abs().max() > 1e-3


# Time grids.


@pytest.mark.parametrize("kind", ["linear", "quadratic"])
@pytest.mark.parametrize("nfe, eps", [(2, 1e-3), (9, 1e-3), (50, 1e-5)])
def test_time_grid(kind, nfe, eps):
    i = np.arange(nfe) / (nfe - 1)
    tau = (1 - eps) * (i if kind == "linear" else 1 - (1 - i) ** 2)
    times = cld.time_grid(nfe, kind, eps)
    close(times, 1 - tau)
    assert times.dtype == torch.float64 and times[0] == 1
    if nfe > 3:
        second = times.diff().diff()
        close(second, second[:1].expand_as(second), rtol=1e-9)  # steps shrink by a fixed amount
        assert (second < 1e-15).all() if kind == "linear" else (second > 0).all()


@pytest.mark.parametrize(
    "arguments, named",
    [
        ((1,), "nfe=1"),
        ((5, "linear", 0.0), "eps=0.0"),
        ((5, "linear", 1.0), "eps=1.0"),
        ((5, "cubic"), "'cubic'; allowed: 'linear', 'quadratic'"),
    ],
)
def test_time_grid_refuses(arguments, named):
    with pytest.raises(ValueError, match=named):
        cld.time_grid(*arguments)


# Samplers.

VARIANCES = f64(0.02, 0.3, 2.0)  # of the data, a world in each column


def errors_of_sampling(sampler, process, times):
    """Of mean and covariance before the last drift, from the exact law at the first time on: three
    worlds. The run is probed as a whole, since what `sscs2` does in a step depends on the last."""
    score = gaussian_score(process, 0.4, VARIANCES)
    draws = SAMPLERS[getattr(sampler, "func", sampler)] * (len(times) - 1)
    whole = lambda state, noise: list(sampler(process, score, state, times, noise))[-2]
    offset, F, L = (part.unflatten(0, (2, 3)) for part in probe(whole, draws))
    errors = []
    for j, variance in enumerate(VARIANCES):
        data = exact.Gaussian(f64(0.4), variance.reshape(1, 1))
        first, last = (process.marginal(data, float(t)) for t in times[[0, -1]])
        mean = offset[:, j] + F[:, j] @ first.means[0]
        covariance = F[:, j] @ first.covariances[0] @ F[:, j].T + L[:, j] @ L[:, j].T
        gaps = mean - last.means[0], covariance - last.covariances[0]
        errors += [float(gap.abs().max()) for gap in gaps]
    return errors


def measured_orders(sampler, process, kind):
    steps = [64, 128, 256]
    grids = [cld.time_grid(n + 1, kind, eps=0.3) for n in steps]
    return order(steps, [errors_of_sampling(sampler, process, grid) for grid in grids])


def test_euler_maruyama_by_hand():
    """The score and beta at the start of each step; at the end a drift without noise."""
    score, noise = lambda s, t: s.x.sin() * t[:, None], lambda i: randn(4, 2, seed=10 + i)
    (x, v), times = State(randn(4, 2), randn(4, 2, seed=1)), f64(1.0, 0.6, 0.05)
    states = list(cld.euler_maruyama(HEAVY, score, State(x, v), times, noise))
    for i, (start, end) in enumerate([(1.0, 0.6), (0.6, 0.05)]):
        clock = (start - end) * (0.5 + 3.0 * start)
        push = x + 2.0 / 1.7 * v + 4.0 * x.sin() * start
        x, v = x - clock / 1.7 * v, v + clock * push + (4.0 * clock) ** 0.5 * noise(i)
        close(states[i].x, x)
        close(states[i].v, v)


def test_sscs2_by_its_parts():
    """`rest` starts at 0, the stationary score, and goes from step to step."""
    noise, score = lambda i: randn(4, 2, seed=10 + i), lambda s, t: (s.x + s.v).sin() * t[:, None]
    state, rest = State(randn(4, 2), randn(4, 2, seed=1)), torch.zeros(4, 2)
    times = f64(1.0, 0.7, 0.4, 0.3)
    states = list(cld.sscs2(HEAVY, score, state, times, noise, data_var=0.2))
    for i in range(3):
        start, end = times[i : i + 2]
        middle, z = (start + end) / 2, [noise(4 * i + k) for k in range(4)]
        state = cld.half_step(HEAVY, state, start, middle, State(*z[:2]))
        state, rest = cld.midpoint_score_step(HEAVY, score, state, start, end, rest, 0.2)
        state = cld.half_step(HEAVY, state, middle, end, State(*z[2:]))
        close(states[i].x, state.x)
        close(states[i].v, state.v)


kinds = pytest.mark.parametrize("kind", ["linear", "quadratic"])


@pytest.mark.parametrize("sampler", [cld.euler_maruyama, cld.sscs], ids=lambda s: s.__name__)
@kinds
@some_processes("critical", "under", "linear beta")
def test_order_of_the_samplers(sampler, kind, process):
    assert measured_orders(sampler, process, kind) == pytest.approx([1] * 6, abs=0.15)


@data_vars
@kinds
@some_processes("critical", "under", "linear beta")
def test_order_of_sscs2(data_var, kind, process):
    sampler = functools.partial(cld.sscs2, data_var=data_var)
    assert measured_orders(sampler, process, kind) == pytest.approx([2] * 6, abs=0.15)


@samplers
def test_the_last_drift_moves_the_position_alone(sampler):
    state, noise = State(randn(4, 2), randn(4, 2, seed=1)), lambda i: randn(4, 2, seed=i)
    times = cld.time_grid(5, eps=0.05)
    states = list(sampler(HEAVY, HEAVY.exact_score(DATA), state, times, noise))
    before, after = states[-2:]
    beta = 0.5 + 3.0 * 0.05
    close(after.x, before.x - beta / 1.7 * 0.05 * before.v)
    assert torch.equal(after.v, before.v) and len(states) == 5


@samplers
def test_network_calls(sampler):
    score = CountCalls(CRITICAL.exact_score(DATA))
    state, calls = State(randn(4, 2), randn(4, 2, seed=1)), []

    def noise(i):
        calls.append(i)
        return randn(4, 2, seed=i)

    run(sampler(CRITICAL, score, state, cld.time_grid(20), noise))
    assert score.nfe == 19
    assert calls == list(range(19 * SAMPLERS[sampler]))


@samplers
def test_sample_starts_from_the_prior(sampler):
    score, calls = HEAVY.exact_score(DATA), []

    def noise(i):
        calls.append(i)
        return randn(4, 2, seed=i)

    times = cld.time_grid(8)
    x, v = randn(4, 2, seed=98), randn(4, 2, seed=99)
    found = cld.sample(HEAVY, score, times, State(x, v), noise, sampler)
    start, draws = State(x, math.sqrt(1.7) * v), lambda i: randn(4, 2, seed=i)
    close(found.x, run(sampler(HEAVY, score, start, times, draws)).x)
    assert found.nfe == 7
    assert calls == list(range(7 * SAMPLERS[sampler]))


@samplers
def test_steps_wait_for_no_device(sampler):
    """After the first, at which the times are looked at."""
    x = torch.randn(4, 2)
    score = CRITICAL.score(lambda u, t, label: u[:, :2])
    walk = sampler(CRITICAL, score, State(x, x), cld.time_grid(6), lambda i: x)
    next(walk)
    with Waits() as waits:
        list(walk)
    assert waits.count == 0


@samplers
def test_float32_states_follow_float64(sampler):
    def end(dtype):
        noise = lambda i: randn(50, 2, seed=100 + i).to(dtype)
        start = CRITICAL.prior(State(randn(50, 2).to(dtype), randn(50, 2, seed=1).to(dtype)))
        times = cld.time_grid(300)
        return run(sampler(CRITICAL, CRITICAL.exact_score(DATA), start, times, noise))

    single, double = end(torch.float32), end(torch.float64)
    assert single.x.dtype == single.v.dtype == torch.float32
    torch.testing.assert_close(single.x.double(), double.x, rtol=1e-3, atol=1e-3)


NINE_MODES = {  # sampler, grid, network calls: share of samples within 0.12 of a mode
    (cld.euler_maruyama, "linear", 50): 0.278,
    (cld.euler_maruyama, "quadratic", 20): 0.742,
    (cld.sscs, "linear", 50): 0.585,
    (cld.sscs, "quadratic", 20): 0.970,
}


@functools.cache
def nine_modes(sampler, kind, nfe):
    """The share within 0.12 of a mode, and the probability that sits at the wrong mode."""
    data, n = exact.GaussianMixture.grid(), 4000
    noise = lambda i: rng.normal((n, 2), rng.generator(0, "sampler", i), torch.float64)
    start = CRITICAL.prior(State(noise(10**6), noise(10**6 + 1)))
    times = cld.time_grid(nfe, kind)
    end = run(sampler(CRITICAL, CRITICAL.exact_score(data), start, times, noise))
    distance, mode = torch.cdist(end.x, data.means).min(dim=1)
    shares = torch.bincount(mode, minlength=9) / n
    return float((distance < 0.12).double().mean()), float((shares - 1 / 9).abs().sum() / 2)


@pytest.mark.parametrize(
    "sampler, kind, nfe", NINE_MODES, ids=lambda value: getattr(value, "__name__", str(value))
)
def test_nine_modes(sampler, kind, nfe):
    share, _ = nine_modes(sampler, kind, nfe)
    assert share == pytest.approx(NINE_MODES[sampler, kind, nfe], abs=0.02)


def test_nine_modes_of_sscs2_have_better_weights():
    share, error = nine_modes(cld.sscs, "quadratic", 20)
    share2, error2 = nine_modes(cld.sscs2, "quadratic", 20)
    assert share2 > share - 0.01
    assert error2 < 0.7 * error


# The probability flow.


def exact_transport(process, mean, variance, end):
    """What the probability flow of N(mean, variance) makes of a state at t = 1, at time `end`:
    (matrix, offset), by integrating du/dt = beta (A u + (0, Gamma Sigma^-1 (u - m)))."""
    A, gamma = drift_matrix(process).numpy(), process.gamma
    D, start = np.diag([1.0, process.M]), np.diag([variance, gamma * process.M])

    def slope(t, flat):
        u = flat.reshape(2, 3)  # of the two unit states and of zero
        F = expm(A * (process.beta0 * t + process.beta1 * t**2 / 2))
        sigma, m = D + F @ (start - D) @ F.T, F @ [mean, 0]
        lean = np.zeros((2, 2))
        lean[1] = process.friction * np.linalg.inv(sigma)[1]
        drift = A @ u + lean @ (u - m[:, None])
        return ((process.beta0 + process.beta1 * t) * drift).ravel()

    units = np.array([[1.0, 0, 0], [0, 1.0, 0]])
    path = solve_ivp(slope, (1, end), units.ravel(), method="DOP853", rtol=1e-11, atol=1e-12)
    u = path.y[:, -1].reshape(2, 3)
    return u[:, :2] - u[:, 2:], u[:, 2]


@some_processes("under", "critical", "heavy", "linear beta")
@pytest.mark.parametrize("eps", [1e-3, 0.2])
def test_probability_flow_is_the_exact_transport(process, eps):
    state = State(randn(6, 1), randn(6, 1, seed=1))
    score = gaussian_score(process, 0.4, 0.3)
    found = cld.probability_flow(process, score, state, eps, rtol=1e-9, atol=1e-9)
    matrix, offset = exact_transport(process, 0.4, 0.3, eps)
    x, v = matrix @ torch.cat(state, dim=1).numpy().T + offset[:, None]
    beta = process.beta0 + process.beta1 * eps
    close(found.x[:, 0], x - eps * beta / process.M * v, rtol=1e-6, atol=1e-6)


@processes
def test_probability_flow_with_the_score_of_the_prior_is_a_rotation(process):
    """dx/dB = -v/M and dv/dB = x, with the angle B / sqrt(M)."""
    state, eps, root = State(randn(5, 2), randn(5, 2, seed=1)), 1e-3, math.sqrt(process.M)
    found = cld.probability_flow(process, at_prior(process), state, eps, rtol=1e-9, atol=1e-9)
    angle = (process.B(1.0) - process.B(eps)) / root
    x = state.x * angle.cos() - state.v / root * angle.sin()
    v = state.x * root * angle.sin() + state.v * angle.cos()
    close(found.x, x - eps * process.beta(eps) / process.M * v, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("eps", [1e-3, 1e-5])
def test_probability_flow_stays_above_eps_and_counts_its_calls(eps):
    seen, calls, state = [], [], State(randn(4, 2), randn(4, 2, seed=1))

    def score(state, t):
        seen.append(float(t[0]))
        return state.x.sin() - 5 * state.v

    for tolerance in (1e-3, 1e-5, 1e-7):
        seen.clear()
        found = cld.probability_flow(CRITICAL, score, state, eps, rtol=tolerance, atol=tolerance)
        assert found.nfe == len(seen)
        assert min(seen) == pytest.approx(eps, abs=1e-12) and max(seen) == 1
        calls.append(found.nfe)
    assert calls == sorted(set(calls))  # more with every tolerance


def test_probability_flow_of_images_is_float32():
    score = CRITICAL.score(lambda u, t, label: u[:, :1].tanh() * t[:, None, None, None])
    start = State(randn(3, 1, 2, 2), randn(3, 1, 2, 2, seed=1))
    double = cld.probability_flow(CRITICAL, score, start)
    single = cld.probability_flow(CRITICAL, score, State(start.x.float(), start.v.float()))
    assert single.x.shape == (3, 1, 2, 2) and single.x.dtype == torch.float32
    torch.testing.assert_close(single.x.double(), double.x, rtol=1e-3, atol=1e-3)


# Bad input.


@samplers
@pytest.mark.parametrize("times", [(0.5, 1.0), (1.0,)])
def test_times_must_fall(sampler, times):
    state, noise = State(randn(4, 2), randn(4, 2, seed=1)), lambda i: randn(4, 2, seed=i)
    with pytest.raises(ValueError, match="times"):
        run(sampler(CRITICAL, CRITICAL.exact_score(DATA), state, f64(*times), noise))


@pytest.mark.parametrize("eps", [0.0, 1.0])
def test_probability_flow_refuses(eps):
    state = State(randn(4, 2), randn(4, 2, seed=1))
    with pytest.raises(ValueError, match=f"eps={eps}"):
        cld.probability_flow(CRITICAL, at_prior(CRITICAL), state, eps=eps)
