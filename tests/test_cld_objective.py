"""What a CLD model learns: the kernels, the two objectives and the three weightings."""

import math
from dataclasses import replace

import pytest
import torch
from torch.distributions import MultivariateNormal
from waits import Waits
from worlds import (
    CRITICAL,
    HEAVY,
    close,
    drift_matrix,
    f64,
    fix_draws,
    in_shares,
    probe,
    processes,
    randn,
    square,
    times_drawn,
)

from diffbook_lib import cld, exact, rng
from diffbook_lib.cld import CLD, State

objectives = pytest.mark.parametrize("objective", ["hsm", "dsm"])
weightings = pytest.mark.parametrize("weighting", ["likelihood", "reweightedv1", "reweightedv2"])


def given_start(process, t):
    """The covariance of the process's own kernel as a 2x2 matrix."""
    return square(process.covariance(t, var_v=0.0 if process.objective == "dsm" else None))


# The kernels.


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
        process = CLD(eps_num=eps, objective="hsm" if var_v is None else "dsm")
        ell = 1 / cld.cholesky(process.covariance(f64(t), var_v=var_v)).vv
        assert float(ell) == pytest.approx(expected, rel=4e-4)
        close(process.ell(f64(t)), ell)


@processes
def test_the_target_of_dsm_varies_more(process):
    t = torch.logspace(-5, 0, 11, dtype=torch.float64)
    ratio = replace(process, objective="dsm").ell(t) / process.ell(t)
    assert (ratio > 1 - 1e-9).all() and (ratio[:5] > 1.001).all()


def test_target_variance_of_dsm_is_four_thirds_of_hsm_at_small_times():
    t = f64(1e-9)
    hsm, dsm = CLD(eps_num=0), CLD(eps_num=0, objective="dsm")
    assert float((dsm.ell(t) / hsm.ell(t)) ** 2) == pytest.approx(4 / 3, rel=1e-4)


@processes
@objectives
def test_kernel(process, objective):
    process, t = replace(process, objective=objective), f64(1e-4, 0.2, 1.0)
    F, L, var_v = process.kernel(t)
    for i in range(3):
        flow = torch.linalg.matrix_exp(drift_matrix(process) * process.B(t[i]))
        close(torch.stack([entry[i] for entry in F]).reshape(2, 2), flow)
        factor = torch.linalg.cholesky(given_start(process, t[i]))
        close(square(cld.Cholesky(*(entry[i] for entry in L))), factor, rtol=1e-9)
        close(var_v[i], process.covariance(t[i]).vv)  # of v_t given x_0, whatever the objective


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
def test_perturb_from_a_known_velocity(process):
    """Given v_0 it has the moments of the kernel of denoising score matching; with v_0 averaged
    over, those of hybrid score matching."""
    dsm = replace(process, objective="dsm")
    for time in (1e-4, 0.1, 1.0):
        t = torch.full((5,), time, dtype=torch.float64)
        step = lambda state, noise: dsm.perturb(
            state.x,
            t,  # noqa: B023
            State(noise(0), noise(1)),
            state.v,
        )
        offset, F, L = probe(step, 2)
        close(offset, [0, 0])
        close(F, torch.linalg.matrix_exp(drift_matrix(process) * process.B(t[0])))
        close(L @ L.T, square(process.covariance(t[0], var_v=0.0)))
        spread = process.gamma * process.M * torch.outer(F[:, 1], F[:, 1])
        step = lambda state, noise: process.perturb(state.x, t, State(noise(0), noise(1)))  # noqa: B023
        _, _, averaged = probe(step, 2)
        close(L @ L.T + spread, averaged @ averaged.T)


@processes
@objectives
def test_score_of_the_kernel_is_minus_ell_times_the_velocity_noise(process, objective):
    process = replace(process, objective=objective)
    for time in (1e-3, 0.2, 0.9):
        t, x0, noise = f64(time), randn(1, 3), State(randn(1, 3, seed=1), randn(1, 3, seed=2))
        v0 = randn(1, 3, seed=3) if objective == "dsm" else None
        state = process.perturb(x0, t, noise, v0)
        start = torch.cat([x0, torch.zeros_like(x0) if v0 is None else v0])  # (2, 3)
        centre = square(process.flow(process.B(t))) @ start
        v = state.v.clone().requires_grad_()
        points = torch.stack([state.x[0], v[0]], dim=1)  # (3, 2)
        law = MultivariateNormal(centre.T, given_start(process, t))
        score = torch.autograd.grad(law.log_prob(points).sum(), v)[0]
        close(score, -process.ell(t) * noise.v, rtol=1e-8, atol=1e-8)


@processes
@objectives
def test_exact_score_is_minus_ell_times_the_expected_noise(process, objective):
    """The one dimensional regression target: E[e_v | x, v] for Gaussian data. Both objectives
    have the same minimiser."""
    s2, t = 0.3, f64(0.2)
    data = exact.Gaussian(f64(0), f64([s2]))
    process = replace(process, eps_num=0, objective=objective)
    F, L = square(process.flow(process.B(t))), torch.linalg.cholesky(given_start(process, t))
    joint = torch.cat([s2**0.5 * F[:, :1], L], dim=1)  # (x, v) over the units (x0, e_x, e_v)
    if objective == "dsm":
        joint = torch.cat([joint, (process.gamma * process.M) ** 0.5 * F[:, 1:]], dim=1)
    expected_noise = joint[:, 2] @ torch.linalg.inv(joint @ joint.T)  # times (x, v)
    state = State(randn(4, 1), randn(4, 1, seed=1))
    expected = -process.ell(t) * (torch.cat(state, dim=1) @ expected_noise)[:, None]
    close(process.exact_score(data)(state, t.expand(4)), expected, rtol=1e-8, atol=1e-8)


def test_perturbation_of_images_keeps_shape_type_and_rows():
    x0, t = torch.randn(3, 1, 2, 2), f64(0.1, 0.5, 0.9)
    noise = State(torch.randn(3, 1, 2, 2), torch.randn(3, 1, 2, 2))
    state = CRITICAL.perturb(x0, t, noise)
    assert state.x.shape == x0.shape and state.x.dtype == state.v.dtype == torch.float32
    row = CRITICAL.perturb(x0[1:2], t[1:2], State(noise.x[1:2], noise.v[1:2]))
    torch.testing.assert_close(state.v[1:2], row.v)


# The losses.


def sine_net(u, t, label=None):
    return (u[:, : u.shape[1] // 2] + 2 * u[:, u.shape[1] // 2 :]).sin() + t[:, None]


@processes
@objectives
@weightings
@pytest.mark.parametrize("mixed", [True, False], ids=["mixed", "plain"])
def test_loss_by_hand(process, objective, weighting, mixed, monkeypatch):
    process = replace(process, objective=objective, weighting=weighting, mixed_score=mixed)
    draws = 2 if objective == "hsm" else 3
    u, x0, noise = f64(0.03, 0.9), randn(2, 3), randn(2, draws, 3, seed=1)
    fix_draws(monkeypatch, u, noise)
    for i, loss in enumerate(process.loss(sine_net, x0, rng.generator(0, "loss"))):
        t = 1e-5 + (1 - 1e-5) * u[i]
        v0 = (
            torch.zeros(3)
            if objective == "hsm"
            else (process.gamma * process.M) ** 0.5 * noise[i, 2]
        )
        sigma = given_start(process, t)
        F, L = square(process.flow(process.B(t))), torch.linalg.cholesky(sigma)
        points = F @ torch.stack([x0[i], v0]) + L @ noise[i, :2]
        ell = torch.linalg.inv(L)[1, 1]
        score = -ell * ((points[0] + 2 * points[1] / process.M**0.5).sin() + t)
        if mixed:
            score = score - points[1] / process.covariance(t).vv
        rate = process.friction * (process.beta0 + process.beta1 * t)
        lam = {
            "likelihood": rate,
            "reweightedv1": rate / ell**2,
            "reweightedv2": 1 / ell**2,
        }[weighting]
        close(loss, lam * ((score + ell * noise[i, 1]) ** 2).sum(), rtol=1e-8)


@pytest.mark.parametrize("process, time", [(CRITICAL, 0.1), (HEAVY, 0.5)])
def test_weights_at_one_time(process, time):
    """Gamma beta is 1 times 4, and 2 times 0.5 + 3 / 2."""
    t = f64(time)
    ell = 1 / torch.linalg.cholesky(given_start(process, t))[1, 1]
    expected = {"likelihood": 4 * ell**2, "reweightedv1": 4.0, "reweightedv2": 1.0}
    for weighting, weight in expected.items():
        weighted = replace(process, weighting=weighting)
        close(weighted.weight(t, weighted.kernel(t)), [weight])


@objectives
def test_loss_draws_times_between_loss_eps_and_one(objective):
    t = times_drawn(CLD(loss_eps=0.4, objective=objective), 5000)
    assert 0.4 <= float(t.min()) < 0.41 and 0.99 < float(t.max()) <= 1
    assert t.dtype == torch.float32


@objectives
@weightings
def test_loss_of_shares_is_the_loss_of_the_whole(objective, weighting):
    process = CLD(objective=objective, weighting=weighting)
    whole, shares = in_shares(process, sine_net, randn(6, 2))
    close(shares, whole)


@objectives
def test_loss_of_images_is_float32(objective):
    process, x0 = CLD(objective=objective, weighting="likelihood"), torch.randn(5, 1, 2, 2)
    net = lambda u, t, label: u[:, :1] + label[:, None, None, None]
    loss = process.loss(net, x0, rng.generator(0, "loss"), torch.arange(5))
    assert loss.shape == (5,) and loss.dtype == torch.float32


@objectives
@weightings
def test_loss_is_the_error_at_a_draw(objective, weighting):
    """So that two networks can be compared on one draw; the kernel is computed once."""
    process, x0 = CLD(objective=objective, weighting=weighting, beta1=0.5), randn(6, 2)
    draw = process.draw(x0, rng.generator(0, "loss"))
    loss = process.loss(sine_net, x0, rng.generator(0, "loss"))
    assert torch.equal(process.error(sine_net, draw), loss)
    assert not torch.equal(process.error(lambda u, t, label: u[:, :2], draw), loss)
    for found, expected in zip(draw.kernel.L, process.kernel(draw.t).L, strict=True):
        assert torch.equal(found, expected)


@objectives
@weightings
def test_neither_loss_nor_score_waits_for_the_device(objective, weighting):
    process, x0 = CLD(objective=objective, weighting=weighting, beta1=0.5), torch.randn(6, 2)
    source, t = rng.generator(0, "loss"), torch.rand(6).double()
    with Waits() as waits:
        process.loss(sine_net, x0, source)
        process.score(sine_net)(State(x0, x0), t)
    assert waits.count == 0


@objectives
def test_times_too_small_for_float64_are_refused_when_the_process_is_made(objective):
    given = {"gamma": 1e6, "loss_eps": 1e-14, "objective": objective}
    with pytest.raises(ValueError, match=r"not positive definite.*eps_num 0.0.*larger eps_num"):
        CLD(eps_num=0.0, **given | ({"loss_eps": 1e-120} if objective == "dsm" else {}))
    CLD(eps_num=1e-6, **given | {"gamma": 0.04})


@pytest.mark.parametrize("mixed", [True, False])
@pytest.mark.parametrize("u", [0.05, 0.4])
@objectives
def test_the_exact_score_minimises_the_loss(objective, mixed, u, monkeypatch):
    process, n = CLD(eps_num=0, mixed_score=mixed, objective=objective), 20_000
    data = exact.GaussianMixture.grid(std=0.2)
    x0 = data.sample(n, torch.Generator().manual_seed(0))
    draws = 2 if objective == "hsm" else 3
    fix_draws(monkeypatch, torch.full((n,), u).double(), randn(n, draws, 2, seed=1))
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


def test_the_two_losses_differ_by_a_constant(monkeypatch):
    """Their means differ by what no network can change, so both tell networks apart by the same
    amount: 1.2 times the exact score costs Gamma beta 0.2^2 E[score^2] more than the score."""
    data, u, n = exact.Gaussian(f64(0.4), f64([0.3])), 0.1, 40_000
    x0, gaps = data.sample(n, torch.Generator().manual_seed(0)), []
    for objective, draws in (("hsm", 2), ("dsm", 3)):
        process = CLD(eps_num=0, mixed_score=False, objective=objective, weighting="likelihood")
        fix_draws(monkeypatch, torch.full((n,), u).double(), randn(n, draws, 1, seed=1))
        score = process.exact_score(data)

        def net(scale):
            def net(u, t, label=None):
                state = State(u[:, :1], u[:, 1:] * math.sqrt(process.M))  # noqa: B023
                return -scale * score(state, t) / process.ell(t)[:, None]  # noqa: B023

            return net

        gap = process.loss(net(1.2), x0, None) - process.loss(net(1.0), x0, None)
        gaps.append((gap.mean(), gap.std() / n**0.5))
    t = 1e-5 + (1 - 1e-5) * u
    law = process.marginal(data, t)
    information = torch.linalg.inv(law.covariances[0])[1, 1]  # E score^2
    expected = process.friction * process.beta(t) * 0.2**2 * information
    for mean, error in gaps:
        assert abs(float(mean - expected)) < 4 * float(error) < 0.2 * float(expected)


@processes
@objectives
def test_mixed_score_adds_the_score_of_a_gaussian_velocity(process, objective):
    process = replace(process, objective=objective)
    state, t = State(randn(3, 2), randn(3, 2, seed=1)), f64(0.01, 0.3, 1.0)
    vv, ell = process.covariance(t).vv[:, None], process.ell(t)[:, None]
    out = randn(3, 2, seed=2)
    score = process.score(lambda u, t, label: out)(state, t)
    close(score, -state.v / vv - ell * out, rtol=1e-10)
    silent = process.score(lambda u, t, label: 0 * out)(state, t)
    close(silent, -state.v / vv, rtol=1e-10)
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


# Bad input.


@pytest.mark.parametrize("loss_eps", [1.0, 0.0, -0.1])
def test_a_smallest_time_outside_the_interval_is_refused(loss_eps):
    with pytest.raises(ValueError, match=f"loss_eps is {loss_eps}"):
        CLD(loss_eps=loss_eps)


@pytest.mark.parametrize(
    "fields, named",
    [
        ({"objective": "ssm"}, "objective is ssm; it must be one of .*hsm.*dsm"),
        ({"weighting": "v3"}, "weighting is v3; it must be one of .*likelihood.*reweightedv2"),
        ({"M": -1.0}, "M is -1.0"),
    ],
)
def test_unknown_names_are_refused(fields, named):
    with pytest.raises(ValueError, match=named):
        CLD(**fields)


@pytest.mark.parametrize("objective, v0", [("dsm", None), ("hsm", randn(2, 1))])
def test_a_start_velocity_is_given_where_it_is_known_and_nowhere_else(objective, v0):
    process, noise = CLD(objective=objective), State(randn(2, 1), randn(2, 1, seed=1))
    with pytest.raises(ValueError, match=f"v0, because objective is '{objective}'"):
        process.perturb(randn(2, 1), f64(0.1, 0.2), noise, v0)
