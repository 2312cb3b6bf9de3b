"""The CLD process: its closed forms, each against another way of computing it."""

import math

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd.functional import jacobian
from torch.distributions import Normal
from worlds import (
    CRITICAL,
    DATA,
    HEAVY,
    close,
    diffusion_matrix,
    drift_matrix,
    f64,
    gaussian_score,
    integrated_covariance,
    probe,
    processes,
    randn,
    square,
    stationary,
)

from diffbook_lib import cld, exact
from diffbook_lib.cld import CLD, Covariance, State
from diffbook_lib.diffusion import VP

B_VALUES = [1e-8, 1e-6, 1e-4, 0.01, 0.1, 0.16, 0.17, 0.5, 1.0, 3.0, 8.0, 20.0]


def precise_flow(process, B, sign=1.0):
    """exp(A B) by mpmath, in its current precision."""
    M, B = mpmath.mpf(process.M), mpmath.mpf(B)
    return mpmath.expm(B * mpmath.matrix([[0, sign / M], [-sign, -process.friction / M]]))


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


def test_cholesky_multiplies_back():
    covariance = Covariance(f64(2.0), f64(-0.7), f64(0.5))
    L = square(cld.cholesky(covariance))
    close(L @ L.T, square(covariance))


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
def test_score_of_gaussian_data_two_ways(process):
    state, t = State(randn(4, 1), randn(4, 1, seed=1)), torch.full((4,), 0.3).double()
    expected = process.exact_score(exact.Gaussian(f64(0.4), f64([0.3])))(state, t)
    close(gaussian_score(process, 0.4, 0.3)(state, t), expected, rtol=1e-9)


def test_score_of_several_gaussian_worlds_at_once():
    state, variances = State(randn(4, 3), randn(4, 3, seed=1)), f64(0.02, 0.3, 2.0)
    t = torch.full((4,), 0.3).double()
    together = gaussian_score(HEAVY, 0.4, variances)(state, t)
    for j, variance in enumerate(variances.tolist()):
        one = State(state.x[:, j : j + 1], state.v[:, j : j + 1])
        close(together[:, j : j + 1], gaussian_score(HEAVY, 0.4, variance)(one, t))


# Going back.


@processes
def test_the_prior_is_stationary(process):
    step = lambda state, noise: process.prior(State(noise(0), noise(1)))
    _, _, L = probe(step, 2)
    A, noise, D = drift_matrix(process), diffusion_matrix(process), stationary(process)
    close(L @ L.T, D)
    close(A @ D + D @ A.T + noise, torch.zeros(2, 2))


@processes
def test_log_density_of_the_prior(process):
    state = State(randn(3, 2, 2), randn(3, 2, 2, seed=1))
    found = process.prior_log_density(state)
    close(found.x, Normal(f64(0), f64(1)).log_prob(state.x).sum(dim=(1, 2)))
    close(found.v, Normal(f64(0), f64(process.M).sqrt()).log_prob(state.v).sum(dim=(1, 2)))


@processes
@pytest.mark.parametrize("t", [0.1, 0.7])
@pytest.mark.parametrize("ode", [False, True], ids=["sde", "ode"])
def test_reverse_drift_takes_the_marginals_back(process, t, ode):
    """With the exact score of Gaussian data, d(mean, Sigma) in reverse time is minus forward."""
    score = process.exact_score(exact.Gaussian(f64(0.4), f64([0.3])))
    times = torch.full((3,), t, dtype=torch.float64)
    step = lambda state, noise: process.reverse_drift(score, state, times, ode=ode)
    offset, matrix, _ = probe(step, 0)
    marginal = process.marginal(exact.Gaussian(f64(0.4), f64([0.3])), t)
    mean, sigma, beta = marginal.means[0], marginal.covariances[0], process.beta(f64(t))
    A, noise = drift_matrix(process), diffusion_matrix(process)
    close(matrix @ mean + offset, -beta * A @ mean, rtol=1e-9, atol=1e-9)
    backward = matrix @ sigma + sigma @ matrix.T + (0 if ode else beta * noise)
    close(backward, -beta * (A @ sigma + sigma @ A.T + noise), rtol=1e-9, atol=1e-9)


def test_reverse_drift_by_hand():
    process, state, t = HEAVY, State(randn(2, 3), randn(2, 3, seed=1)), f64(0.2, 0.9)
    score = lambda state, t: state.x.sin() * t[:, None]
    beta, push = (0.5 + 3.0 * t)[:, None], state.x.sin() * t[:, None]
    for ode, factor in ((False, 2), (True, 1)):
        drift = process.reverse_drift(score, state, t, ode=ode)
        close(drift.x, -beta / 1.7 * state.v)
        close(drift.v, beta * (state.x + 2.0 / 1.7 * state.v + factor * 2.0 * push))


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


@pytest.mark.parametrize("fields", [{"beta1": -9.0}, {"eps_num": -1.0}])
def test_parameters_that_break_the_process_are_refused(fields):
    with pytest.raises(ValueError, match=rf"{next(iter(fields))} is"):
        CLD(**fields)


def test_the_exact_score_takes_one_time():
    state = State(randn(2, 2), randn(2, 2, seed=1))
    with pytest.raises(ValueError, match="one time"):
        CRITICAL.exact_score(DATA)(state, f64(0.1, 0.2))
