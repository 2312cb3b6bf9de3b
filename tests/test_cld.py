"""The CLD process and its samplers, each formula against another way of computing it.

Everything the process and the samplers do to a Gaussian is affine, so `probe` reads the exact
coefficients off unit inputs: means, covariances and orders come without Monte Carlo error.
"""

import math
from dataclasses import replace

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import solve_ivp
from torch.autograd.functional import jacobian
from torch.distributions import MultivariateNormal

from diffbook_lib import cld, exact, rng
from diffbook_lib.cld import CLD, Covariance, State
from diffbook_lib.diffusion import VP
from diffbook_lib.samplers import CountCalls, run

UNDER, CRITICAL, OVER = CLD(Gamma=0.3), CLD(), CLD(Gamma=5.0)
HEAVY = CLD(M=1.7, Gamma=2.0, beta0=0.5, beta1=3.0, gamma=0.6)
PROCESSES = {
    "under": UNDER,
    "critical": CRITICAL,
    "critical by number": CLD(M=0.3, Gamma=2 * math.sqrt(0.3)),
    "over": OVER,
    "light": CLD(M=0.02, Gamma=2.0),
    "heavy": HEAVY,
    "linear beta": CLD(beta0=0.1, beta1=6.9),
}
processes = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
B_VALUES = [1e-8, 1e-6, 1e-4, 0.01, 0.1, 0.16, 0.17, 0.5, 1.0, 3.0, 8.0, 20.0]


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(actual, expected, rtol=1e-12, atol=1e-12):
    expected = torch.as_tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(actual.broadcast_to(expected.shape), expected, rtol=rtol, atol=atol)


def square(entries):
    """A Flow, Covariance or Cholesky with scalar entries as a 2x2 matrix."""
    if isinstance(entries, Covariance):
        entries = (entries.xx, entries.xv, entries.xv, entries.vv)
    elif isinstance(entries, cld.Cholesky):
        entries = (entries.xx, torch.zeros_like(entries.xx), entries.vx, entries.vv)
    return torch.stack([e.reshape(()) for e in entries]).reshape(2, 2)


def drift_matrix(process, sign=1.0):
    """A, with the coupling of x and v times `sign`."""
    return f64([0, sign / process.M], [-sign, -process.friction / process.M])


def precise_flow(process, B, sign=1.0):
    """exp(A B) by mpmath, in its current precision."""
    M, B = mpmath.mpf(process.M), mpmath.mpf(B)
    return mpmath.expm(B * mpmath.matrix([[0, sign / M], [-sign, -process.friction / M]]))


def diffusion_matrix(process):
    return f64([0, 0], [0, 2 * process.friction])


def stationary(process):
    return f64([1, 0], [0, process.M])


def integrated_covariance(process, start, t, sign=1.0):
    """Sigma at t by integrating dSigma = beta (A Sigma + Sigma A^T + noise) dt."""
    A, noise = drift_matrix(process, sign).numpy(), diffusion_matrix(process).numpy()

    def slope(t, flat):
        sigma = flat.reshape(2, 2)
        beta = process.beta0 + process.beta1 * t
        return (beta * (A @ sigma + sigma @ A.T + noise)).ravel()

    path = solve_ivp(slope, (0, t), start.ravel(), method="DOP853", rtol=1e-12, atol=1e-14)
    return torch.from_numpy(path.y[:, -1].reshape(2, 2))


def probe(step, draws):
    """The affine map `step(state, noise)` of one coordinate, `noise(i)` being draw i < draws:
    (offset (2,), matrix (2, 2), noise matrix (2, draws))."""
    basis = torch.zeros(draws + 3, 1, dtype=torch.float64)
    x, v = basis.clone(), basis.clone()
    x[1], v[2] = 1, 1

    def unit(i):
        noise = basis.clone()
        noise[3 + i] = 1
        return noise

    rows = torch.cat(step(State(x, v), unit), dim=1)
    offset, rest = rows[0], (rows[1:] - rows[0]).T
    return offset, rest[:, :2], rest[:, 2:]


# The linear part.


@processes
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_flow_is_the_matrix_exponential(process, sign):
    for B in B_VALUES:
        expected = torch.linalg.matrix_exp(drift_matrix(process, sign) * B)
        close(square(process.flow(f64(B), sign)), expected)


@settings(deadline=None, derandomize=True)
@given(
    M=st.floats(0.05, 4),
    damping=st.floats(0.05, 20),
    a=st.floats(0, 5),
    b=st.floats(0, 5),
)
def test_flows_compose(M, damping, a, b):
    process = CLD(M=M, Gamma=damping * 2 * math.sqrt(M))
    first, second, both = (square(process.flow(f64(B))) for B in (a, b, a + b))
    close(second @ first, both, rtol=1e-9, atol=1e-9)
    close(square(process.flow(f64(0.0))), torch.eye(2))


@processes
def test_flow_solves_the_forward_sde(process):
    """dF/dB = A F, and the noise covariance grows by A Q + Q A^T + diag(0, 2 Gamma)."""
    A, noise = drift_matrix(process), diffusion_matrix(process)
    for B in f64(0.0, 0.01, 0.8):
        slope = square(jacobian(process.flow, B))
        close(slope, A @ square(process.flow(B)), rtol=1e-10, atol=1e-10)
        Q, slope = process.noise_covariance(B), Covariance(*jacobian(process.noise_covariance, B))
        close(square(slope), A @ square(Q) + square(Q) @ A.T + noise, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("process", [CLD(beta0=0.1, beta1=6.9), HEAVY])
def test_B_is_the_integral_of_beta(process):
    t = torch.linspace(0, 1, 1001, dtype=torch.float64)
    close(process.B(t[-1]), torch.trapezoid(process.beta(t), t))
    assert process.B(t.float()).dtype == torch.float64


@processes
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_noise_covariance_in_high_precision(process, sign):
    """D - F D F^T in 60 digits, where the cancellation at small B does not matter."""
    for B in B_VALUES:
        with mpmath.workdps(60):
            F, D = precise_flow(process, B, sign), mpmath.diag([1, mpmath.mpf(process.M)])
            expected = f64(*(D - F * D * F.T)).reshape(2, 2)
        close(square(process.noise_covariance(f64(B), sign)), expected, rtol=1e-12, atol=1e-15)
        if B < 0.1:  # no absolute slack: the determinant lives on relative accuracy
            close(square(process.noise_covariance(f64(B), sign)), expected, rtol=1e-12, atol=0)


@processes
@pytest.mark.parametrize("var_x, var_v", [(0.0, None), (0.0, 0.0), (0.3, 0.07), (1.0, 2.0)])
def test_covariance_against_integration(process, var_x, var_v):
    var_start = process.gamma * process.M if var_v is None else var_v
    for t in (0.003, 0.1, 1.0):
        expected = integrated_covariance(process, np.diag([var_x, var_start]), t)
        actual = square(process.covariance(f64(t), var_x, var_v))
        close(actual - process.eps_num * torch.eye(2), expected, rtol=1e-9, atol=1e-11)


def test_eps_num_is_added_to_both_variances_only():
    t = f64(1e-5, 0.1, 1.0)
    with_eps, without = CLD(eps_num=1e-3).covariance(t), CLD(eps_num=0).covariance(t)
    close(with_eps.xx - without.xx, [1e-3] * 3)
    close(with_eps.vv - without.vv, [1e-3] * 3)
    assert torch.equal(with_eps.xv, without.xv)


@processes
def test_hybrid_score_matching_is_denoising_with_the_velocity_integrated_out(process):
    """Sigma_HSM = Sigma_DSM + gamma M f f^T with f = F (0, 1)."""
    for t in (1e-6, 0.01, 0.5, 1.0):
        F, var = square(process.flow(process.B(f64(t)))), process.gamma * process.M
        given_v = square(process.covariance(f64(t), var_v=0.0))
        close(square(process.covariance(f64(t))), given_v + var * torch.outer(F[:, 1], F[:, 1]))


TABLE = {  # M=0.25, gamma=0.04, beta=4, from 60-digit arithmetic
    1e-7: (1936, 2236, 9.9997, 1117, 9.999),
    1e-5: (193.7, 223.6, 11.16, 111.8, 9.963),
    1e-4: (61.45, 70.72, 39.21, 42.41, 9.759),
    1e-3: (19.94, 22.41, 19.92, 22.36, 12.80),
    1e-2: (6.914, 7.213, 6.914, 7.213, 6.903),
    0.1: (2.675, 2.686, 2.675, 2.686, 2.675),
    1.0: (2.0000, 2.0000, 2.0000, 2.0000, 2.0000),
}


@pytest.mark.parametrize("t", TABLE)
def test_ell(t):
    columns = [(0, None), (0, 0.0), (1e-9, None), (1e-9, 0.0), (1e-6, None)]
    for expected, (eps, var_v) in zip(TABLE[t], columns, strict=True):
        process = CLD(eps_num=eps)
        ell = 1 / cld.cholesky(process.covariance(f64(t), var_v=var_v)).vv
        assert float(ell) == pytest.approx(expected, rel=4e-4)
        if var_v is None:
            close(process.ell(f64(t)), ell)


def test_target_variance_of_dsm_is_four_thirds_of_hsm_at_small_times():
    process, t = CLD(eps_num=0), f64(1e-9)
    dsm = 1 / cld.cholesky(process.covariance(t, var_v=0.0)).vv
    assert float((dsm / process.ell(t)) ** 2) == pytest.approx(4 / 3, rel=1e-4)


def test_cholesky_multiplies_back_and_refuses_what_is_not_positive():
    covariance = Covariance(f64(2.0), f64(-0.7), f64(0.5))
    L = square(cld.cholesky(covariance))
    close(L @ L.T, square(covariance))
    with pytest.raises(ValueError, match="larger eps_num"):
        cld.cholesky(Covariance(f64(1.0), f64(1.0), f64(0.9)))


@processes
def test_perturb_has_the_moments_of_the_kernel(process):
    for time in (1e-4, 0.1, 1.0):
        t = torch.full((5,), time, dtype=torch.float64)
        step = lambda state, noise: process.perturb(state.x, t, State(noise(0), noise(1)))  # noqa: B023
        offset, matrix, L = probe(step, 2)
        close(offset, [0, 0])
        close(matrix[:, 0], square(process.flow(process.B(t[0])))[:, 0])
        close(L @ L.T, square(process.covariance(t[0])))
        assert L[0, 1] == 0


@processes
def test_score_of_the_kernel_is_minus_ell_times_the_velocity_noise(process):
    for time in (1e-3, 0.2, 0.9):
        t, x0, noise = f64(time), randn(1, 3), State(randn(1, 3, seed=1), randn(1, 3, seed=2))
        state = process.perturb(x0, t, noise)
        mean = process.flow(process.B(t))
        v = state.v.clone().requires_grad_()
        points = torch.stack([state.x[0], v[0]], dim=1)  # (3, 2)
        centre = torch.stack([mean.xx * x0[0], mean.vx * x0[0]], dim=1)
        law = MultivariateNormal(centre, square(process.covariance(t)))
        score = torch.autograd.grad(law.log_prob(points).sum(), v)[0]
        close(score, -process.ell(t) * noise.v, rtol=1e-8, atol=1e-8)


def test_perturbation_of_images_keeps_shape_type_and_rows():
    x0, t = torch.randn(3, 1, 2, 2), f64(0.1, 0.5, 0.9)
    noise = State(torch.randn(3, 1, 2, 2), torch.randn(3, 1, 2, 2))
    state = CRITICAL.perturb(x0, t, noise)
    assert state.x.shape == x0.shape and state.x.dtype == state.v.dtype == torch.float32
    row = CRITICAL.perturb(x0[1:2], t[1:2], State(noise.x[1:2], noise.v[1:2]))
    torch.testing.assert_close(state.v[1:2], row.v)


# Scaling laws.


def test_mass_and_beta_are_redundant():
    """The critical process in v / sqrt(M) depends on M and beta through beta / sqrt(M) alone."""
    t = f64(0.01, 0.2, 1.0)
    a, b = CLD(M=0.25, beta0=4.0, eps_num=0), CLD(M=1.0, beta0=8.0, eps_num=0)
    close(a.covariance(t).xx, b.covariance(t).xx)
    close(a.covariance(t).xv / 0.5, b.covariance(t).xv)
    close(a.covariance(t).vv / 0.25, b.covariance(t).vv)
    close(a.flow(a.B(t)).xx, b.flow(b.B(t)).xx)


def test_the_overdamped_limit_is_the_variance_preserving_process():
    """With beta_VP = 2 beta / Gamma; the difference falls as Gamma^-2."""
    t, gaps = f64(0.4), []
    for friction in (30.0, 100.0, 300.0):
        process = CLD(Gamma=friction, beta0=2 * friction, gamma=1.0, eps_num=0)
        gaps.append(float((process.covariance(t).xx - VP(4.0, 4.0).std(t) ** 2).abs()))
    assert gaps[2] < 1e-6
    assert math.log(gaps[0] / gaps[2]) / math.log(10) == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize("friction", [100.0, 1000.0])
def test_flow_of_a_strongly_damped_process_keeps_its_digits(friction):
    process, B = CLD(Gamma=friction), f64(friction)
    with mpmath.workdps(60):
        expected = f64(*precise_flow(process, friction)).reshape(2, 2)
    close(square(process.flow(B)), expected, rtol=1e-11, atol=1e-14)


# Exact marginals.

DATA = exact.GaussianMixture(
    f64([0.5, -1.0], [1.5, 0.3]),
    0.1 * torch.stack([f64([2, 1], [1, 3]), f64([1, 0], [0, 1])]),
    f64(1, 2),
)


@processes
@pytest.mark.parametrize("t", [0.0, 0.02, 0.3, 1.0])
def test_marginal_by_matrix_exponential_and_integration(process, t):
    marginal = process.marginal(DATA, t)
    F = torch.linalg.matrix_exp(drift_matrix(process) * process.B(f64(t)))
    added = integrated_covariance(process, np.zeros((2, 2)), t)
    flow, added = torch.kron(F, torch.eye(2)), torch.kron(added, torch.eye(2))
    rest = process.gamma * process.M * torch.eye(2).double()
    for k in range(2):
        start = torch.block_diag(DATA.covariances[k], rest)
        close(marginal.means[k], flow @ torch.cat([DATA.means[k], f64(0, 0)]))
        close(marginal.covariances[k], flow @ start @ flow.T + added, rtol=1e-9, atol=1e-11)
    close(marginal.weights, DATA.weights)


@processes
def test_marginal_of_data_points_is_the_mixture_of_kernels(process):
    points = exact.GaussianMixture(f64([0.5], [-1.0]), torch.zeros(2, 1, 1))
    marginal, t = process.marginal(points, 0.3), f64(0.3)
    F, covariance = process.flow(process.B(t)), square(process.covariance(t))
    for k in range(2):
        close(marginal.means[k], torch.cat([F.xx, F.vx]) * points.means[k])
        close(marginal.covariances[k] + process.eps_num * torch.eye(2), covariance)


@processes
def test_marginal_at_the_end_is_the_prior(process):
    far = process.marginal(DATA, 40.0)
    close(far.means, torch.zeros(2, 4), atol=1e-6)
    close(far.covariances, torch.kron(stationary(process), torch.eye(2)).expand(2, 4, 4), atol=1e-6)


@processes
@pytest.mark.parametrize("t", [0.01, 0.5])
def test_exact_score_is_the_gradient_in_v(process, t):
    state = State(randn(6, 2), randn(6, 2, seed=1))
    v = state.v.clone().requires_grad_()
    density = process.marginal(DATA, t).log_density(torch.cat([state.x, v], dim=1))
    score = process.exact_score(DATA)(state, torch.full((6,), t, dtype=torch.float64))
    close(score, torch.autograd.grad(density.sum(), v)[0], rtol=1e-8, atol=1e-8)


@processes
def test_exact_score_is_minus_ell_times_the_expected_noise(process):
    """The one dimensional regression target: E[e_v | x, v] for Gaussian data."""
    s2, t = 0.3, f64(0.2)
    data = exact.Gaussian(f64(0), f64([s2]))
    process = replace(process, eps_num=0)
    F, L = square(process.flow(process.B(t))), square(cld.cholesky(process.covariance(t)))
    joint = torch.cat([s2**0.5 * F[:, :1], L], dim=1)  # (x, v) over the units (x0, e_x, e_v)
    expected_noise = joint[:, 2] @ torch.linalg.inv(joint @ joint.T)  # times (x, v)
    state = State(randn(4, 1), randn(4, 1, seed=1))
    expected = -process.ell(t) * (torch.cat(state, dim=1) @ expected_noise)[:, None]
    close(process.exact_score(data)(state, t.expand(4)), expected, rtol=1e-8, atol=1e-8)


# The learning problem.


def fix_draws(monkeypatch, u, noise):
    """Replaces the draws of the loss: u (batch,) for times, noise (batch, 2, ...)."""
    monkeypatch.setattr(rng, "uniform", lambda shape, source, dtype: u)
    monkeypatch.setattr(rng, "normal", lambda shape, source, dtype: noise)


def sine_net(u, t, label=None):
    return (u[:, : u.shape[1] // 2] + 2 * u[:, u.shape[1] // 2 :]).sin() + t[:, None]


@processes
@pytest.mark.parametrize("mixed", [True, False])
def test_loss_by_hand(process, mixed, monkeypatch):
    process = replace(process, mixed_score=mixed)
    u, x0, noise = f64(0.03, 0.9), randn(2, 3), randn(2, 2, 3, seed=1)
    fix_draws(monkeypatch, u, noise)
    for i, loss in enumerate(process.loss(sine_net, x0, rng.generator(0, "loss"))):
        t = 1e-5 + (1 - 1e-5) * u[i]
        F, sigma = square(process.flow(process.B(t))), square(process.covariance(t))
        points = F[:, :1] * x0[i] + torch.linalg.cholesky(sigma) @ noise[i]
        alpha = (points[0] + 2 * points[1] / process.M**0.5).sin() + t
        if mixed:
            ell = torch.linalg.inv(torch.linalg.cholesky(sigma))[1, 1]
            alpha = alpha + points[1] / (ell * sigma[1, 1])
        close(loss, ((noise[i, 1] - alpha) ** 2).sum(), rtol=1e-10)


def test_loss_draws_times_between_loss_eps_and_one():
    seen = []

    def net(u, t, label):
        seen.append(t)
        return torch.zeros_like(u[:, :1])

    CLD(loss_eps=0.4).loss(net, torch.zeros(5000, 1), rng.generator(0, "loss"))
    assert 0.4 <= float(seen[0].min()) < 0.41 and 0.99 < float(seen[0].max()) <= 1
    assert seen[0].dtype == torch.float32


def test_loss_of_shares_is_the_loss_of_the_whole():
    x0 = randn(6, 2)
    whole = CRITICAL.loss(sine_net, x0, rng.generator(0, "loss"))
    shares = [
        CRITICAL.loss(sine_net, x0[a:b], rng.Share(rng.generator(0, "loss"), a, b, 6))
        for a, b in [(0, 2), (2, 6)]
    ]
    close(torch.cat(shares), whole)


@pytest.mark.parametrize("mixed", [True, False])
@pytest.mark.parametrize("u", [0.05, 0.4])
def test_the_exact_score_minimises_the_loss(mixed, u, monkeypatch):
    process, n = CLD(eps_num=0, mixed_score=mixed), 20_000
    data = exact.GaussianMixture.grid(std=0.2)
    x0 = data.sample(n, torch.Generator().manual_seed(0))
    fix_draws(monkeypatch, torch.full((n,), u).double(), randn(n, 2, 2, seed=1))
    score = process.exact_score(data)

    def net(change):
        def net(u, t, label=None):
            state = State(u[:, :2], u[:, 2:] * math.sqrt(process.M))
            alpha = change(-score(state, t) / process.ell(t)[:, None], state)
            if mixed:
                covariance = process.covariance(t)
                alpha = alpha - state.v / (process.ell(t) * covariance.vv)[:, None]
            return alpha

        return net

    changes = [
        lambda alpha, state: 1.1 * alpha,
        lambda alpha, state: 0.9 * alpha,
        lambda alpha, state: alpha + 0.1,
        lambda alpha, state: alpha + 0.1 * state.x,
        lambda alpha, state: alpha - 0.1 * state.x,
    ]
    best = process.loss(net(lambda alpha, state: alpha), x0, None).mean()
    for change in changes:
        assert process.loss(net(change), x0, None).mean() > best + 1e-3


@processes
def test_mixed_score_adds_the_score_of_a_gaussian_velocity(process):
    state, t = State(randn(3, 2), randn(3, 2, seed=1)), f64(0.01, 0.3, 1.0)
    vv, ell = process.covariance(t).vv[:, None], process.ell(t)[:, None]
    out = randn(3, 2, seed=2)
    score = process.score(lambda u, t, label: out)(state, t)
    close(score, -state.v / vv - ell * out, rtol=1e-10)
    plain = replace(process, mixed_score=False)
    close(plain.score(lambda u, t, label: out)(state, t), -ell * out, rtol=1e-10)


def test_the_network_sees_position_and_scaled_velocity_side_by_side():
    seen = []

    def net(u, t, label):
        seen.append((u, t, label))
        return u[:, :1]

    state, label = State(torch.randn(2, 1, 2, 2), torch.randn(2, 1, 2, 2)), torch.arange(2)
    out = CLD(M=0.16).score(net, label)(state, f64(0.1, 0.5))
    u, t, passed = seen[0]
    torch.testing.assert_close(u, torch.cat([state.x, state.v / 0.4], dim=1))
    assert t.dtype == torch.float32 and passed is label
    assert out.shape == (2, 1, 2, 2) and out.dtype == torch.float32


# Going back.


@processes
def test_the_prior_is_stationary(process):
    step = lambda state, noise: process.prior(State(noise(0), noise(1)))
    _, _, L = probe(step, 2)
    A, noise, D = drift_matrix(process), diffusion_matrix(process), stationary(process)
    close(L @ L.T, D)
    close(A @ D + D @ A.T + noise, torch.zeros(2, 2))


@processes
@pytest.mark.parametrize("t", [0.1, 0.7])
def test_reverse_drift_takes_the_marginals_back(process, t):
    """With the exact score of Gaussian data, d(mean, Sigma) in reverse time is minus forward."""
    score = process.exact_score(exact.Gaussian(f64(0.4), f64([0.3])))
    times = torch.full((3,), t, dtype=torch.float64)
    offset, matrix, _ = probe(lambda state, noise: process.reverse_drift(score, state, times), 0)
    marginal = process.marginal(exact.Gaussian(f64(0.4), f64([0.3])), t)
    mean, sigma, beta = marginal.means[0], marginal.covariances[0], process.beta(f64(t))
    A, noise = drift_matrix(process), diffusion_matrix(process)
    close(matrix @ mean + offset, -beta * A @ mean, rtol=1e-9, atol=1e-9)
    backward = matrix @ sigma + sigma @ matrix.T + beta * noise
    close(backward, -beta * (A @ sigma + sigma @ A.T + noise), rtol=1e-9, atol=1e-9)


def test_reverse_drift_by_hand():
    process, state, t = HEAVY, State(randn(2, 3), randn(2, 3, seed=1)), f64(0.2, 0.9)
    drift = process.reverse_drift(lambda state, t: state.x.sin() * t[:, None], state, t)
    beta = (0.5 + 3.0 * t)[:, None]
    close(drift.x, -beta / 1.7 * state.v)
    score = state.x.sin() * t[:, None]
    close(drift.v, beta * (state.x + 2.0 / 1.7 * state.v + 2 * 2.0 * score))


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
def test_score_step(process):
    state, t, h = State(randn(4, 2), randn(4, 2, seed=1)), f64(0.6)[0], f64(0.1)[0]
    at_rest = cld.score_step(process, lambda s, t: -s.v / process.M, state, t, h)
    close(at_rest.v, state.v)
    moved = cld.score_step(process, lambda s, t: s.x * t[:, None], state, t, h)
    push = 2 * process.friction * (0.6 * state.x + state.v / process.M)
    close(moved.v, state.v + (process.beta0 + 0.6 * process.beta1) * 0.1 * push)
    assert torch.equal(moved.x, state.x)


@processes
def test_the_two_parts_add_up_to_the_reverse_sde(process):
    """A + S: for a small step, one SSCS cycle is the reverse drift."""
    score = lambda state, t: state.x.sin() - 2 * state.v + t[:, None]
    state, t, h = State(randn(4, 2), randn(4, 2, seed=1)), 0.6, 1e-6
    times, silent = f64(t, t - h), lambda i: torch.zeros(4, 2, dtype=torch.float64)
    after = next(cld.sscs(process, score, state, times, silent))
    drift = process.reverse_drift(score, state, torch.full((4,), t, dtype=torch.float64))
    close((after.x - state.x) / h, drift.x, rtol=1e-3, atol=1e-2)
    close((after.v - state.v) / h, drift.v, rtol=1e-3, atol=1e-2)


@processes
def test_sscs_covers_the_whole_interval(process):
    """With the score -v/M, at which S does nothing, a step is one exact solution of A."""
    score = lambda state, t: -state.v / process.M
    step = lambda state, noise: next(cld.sscs(process, score, state, f64(0.9, 0.2), noise))
    _, F, L = probe(step, 4)
    _, F_whole, L_whole = probe(half(process, 0.9, 0.2), 2)
    close(F, F_whole)
    close(L @ L.T, L_whole @ L_whole.T)


# Samplers.


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


SAMPLERS = {cld.euler_maruyama: 1, cld.sscs: 4}  # noise draws a step


def gaussian_score(process, mean, variance):
    """As `process.exact_score` for data N(mean, variance), written out for speed."""
    process = replace(process, eps_num=0)

    def score(state, t):
        F, sigma = process.flow(process.B(t[0])), process.covariance(t[0], var_x=variance)
        pull = sigma.xx * (state.v - F.vx * mean) - sigma.xv * (state.x - F.xx * mean)
        return -pull / (sigma.xx * sigma.vv - sigma.xv**2)

    return score


@processes
def test_score_of_gaussian_data_two_ways(process):
    state, t = State(randn(4, 1), randn(4, 1, seed=1)), torch.full((4,), 0.3).double()
    expected = process.exact_score(exact.Gaussian(f64(0.4), f64([0.3])))(state, t)
    close(gaussian_score(process, 0.4, 0.3)(state, t), expected, rtol=1e-9)


def errors_of_sampling(sampler, process, times):
    """Of mean and covariance before the last drift, from the exact law at the first time on."""
    data, score = exact.Gaussian(f64(0.4), f64([0.3])), gaussian_score(process, 0.4, 0.3)
    first, last = (process.marginal(data, float(t)) for t in times[[0, -1]])
    mean, covariance = first.means[0], first.covariances[0]
    for pair in times.unfold(0, 2, 1):
        step = lambda state, noise: next(sampler(process, score, state, pair, noise))  # noqa: B023
        offset, F, L = probe(step, SAMPLERS[sampler])
        mean, covariance = offset + F @ mean, F @ covariance @ F.T + L @ L.T
    gaps = mean - last.means[0], covariance - last.covariances[0]
    return [float(gap.abs().max()) for gap in gaps]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: s.__name__)
@pytest.mark.parametrize("kind", ["linear", "quadratic"])
@pytest.mark.parametrize("name", ["critical", "under", "linear beta"])
def test_order_of_the_samplers(sampler, kind, name):
    steps = [100, 200, 400]
    grids = [cld.time_grid(n + 1, kind, eps=0.1) for n in steps]
    errors = [errors_of_sampling(sampler, PROCESSES[name], grid) for grid in grids]
    slopes = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert slopes == pytest.approx([1, 1], abs=0.15)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: s.__name__)
def test_the_last_drift_moves_the_position_alone(sampler):
    state, noise = State(randn(4, 2), randn(4, 2, seed=1)), lambda i: randn(4, 2, seed=i)
    times = cld.time_grid(5, eps=0.05)
    states = list(sampler(HEAVY, HEAVY.exact_score(DATA), state, times, noise))
    before, after = states[-2:]
    beta = 0.5 + 3.0 * 0.05
    close(after.x, before.x - beta / 1.7 * 0.05 * before.v)
    assert torch.equal(after.v, before.v) and len(states) == 5


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: s.__name__)
def test_network_calls(sampler):
    score = CountCalls(CRITICAL.exact_score(DATA))
    state, calls = State(randn(4, 2), randn(4, 2, seed=1)), []

    def noise(i):
        calls.append(i)
        return randn(4, 2, seed=i)

    run(sampler(CRITICAL, score, state, cld.time_grid(20), noise))
    assert score.nfe == 19
    assert calls == list(range(19 * SAMPLERS[sampler]))


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: s.__name__)
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


@pytest.mark.parametrize(
    "sampler, kind, nfe", NINE_MODES, ids=lambda value: getattr(value, "__name__", str(value))
)
def test_nine_modes(sampler, kind, nfe):
    data, n = exact.GaussianMixture.grid(), 4000
    noise = lambda i: rng.normal((n, 2), rng.generator(0, "sampler", i), torch.float64)
    start = CRITICAL.prior(State(noise(10**6), noise(10**6 + 1)))
    times = cld.time_grid(nfe, kind)
    end = run(sampler(CRITICAL, CRITICAL.exact_score(data), start, times, noise))
    near = torch.cdist(end.x, data.means).min(dim=1).values < 0.12
    assert float(near.double().mean()) == pytest.approx(NINE_MODES[sampler, kind, nfe], abs=0.02)


# Bad input.


@pytest.mark.parametrize(
    "fields, named",
    [
        ({"M": 0.0}, "M is 0.0"),
        ({"beta0": -4.0}, "beta0 is -4.0"),
        ({"gamma": float("nan")}, "gamma is nan"),
        ({"Gamma": -1.0}, "Gamma is -1.0"),
    ],
)
def test_bad_parameters_are_refused(fields, named):
    with pytest.raises(ValueError, match=named):
        CLD(**fields)


@pytest.mark.parametrize(
    "fields", [{"beta1": -9.0}, {"eps_num": -1.0}, {"loss_eps": 1.0}, {"loss_eps": -0.1}]
)
def test_parameters_that_break_the_process_are_refused(fields):
    with pytest.raises(ValueError, match=rf"{next(iter(fields))} is"):
        CLD(**fields)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: s.__name__)
@pytest.mark.parametrize("times", [(0.5, 1.0), (1.0,)])
def test_times_must_fall(sampler, times):
    state, noise = State(randn(4, 2), randn(4, 2, seed=1)), lambda i: randn(4, 2, seed=i)
    with pytest.raises(ValueError, match="times"):
        run(sampler(CRITICAL, CRITICAL.exact_score(DATA), state, f64(*times), noise))


def test_the_exact_score_takes_one_time():
    state = State(randn(2, 2), randn(2, 2, seed=1))
    with pytest.raises(ValueError, match="one time"):
        CRITICAL.exact_score(DATA)(state, f64(0.1, 0.2))
