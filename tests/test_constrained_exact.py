"""Exact dual problems: what the chapter says of them, against independent ways to compute it."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch.autograd.functional import jacobian

from diffbook_lib import constrained
from diffbook_lib.constrained import (
    Ascent,
    Infeasible,
    KLProblem,
    ascend,
    class_balance,
    dual_frames,
    feasibility,
    mixture_weights,
    solve,
)
from diffbook_lib.diffusion import DDPM
from diffbook_lib.exact import GaussianMixture


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


Q0, Q1 = f64(0.4, 0.3, 0.15, 0.1, 0.05), f64(0.05, 0.1, 0.15, 0.3, 0.4)
Q = torch.stack([Q1, f64(0.1, 0.6, 0.1, 0.1, 0.1)])
MARGIN = 0.18036467  # of b = 0 for Q, the largest mean divergence of a mixture
LAM = f64(0.7, 1.3)


def letters(b=(0.3, 0.25), alpha=0.0):
    return KLProblem.discrete(Q0, Q, f64(*b), alpha)


def line(*modes):
    weights, means, stds = f64(*modes).T
    return GaussianMixture(means[:, None], stds[:, None, None] ** 2, weights)


MAJOR, MINOR = line((0.95, -1.0, 0.3), (0.05, 1.0, 0.3)), line((1.0, 1.0, 0.3))
OTHER = line((1.0, 0.0, 0.4))
WORLDS = [MAJOR, MINOR, OTHER]


def noisy(alpha=0.0):
    """Thresholds in nats, above the smallest losses."""
    levels = constrained.nats_levels(0.05, 20.0, 40)
    problem = constrained.noise_problem(WORLDS, *levels, f64(0.0, 0.0), alpha, points=801)
    return replace(problem, b=problem.irreducible[1:] + f64(0.9, 0.7))


PROBLEMS = {
    "letters": letters,
    "line": lambda **more: constrained.kl_problem(
        MAJOR, [MINOR, OTHER], f64(0.9, 0.7), points=1001, **more
    ),
    "noise": noisy,
}
each_problem = pytest.mark.parametrize("name", PROBLEMS)


# Lagrangian, mixture and dual


def random_distribution(generator, n=5):
    return torch.rand(n, generator=generator).double().log_softmax(dim=0)


@given(st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_the_lagrangian_is_the_mixtures_divergence_and_the_dual(seed):
    generator = torch.Generator().manual_seed(seed)
    problem, log_p = letters(), random_distribution(generator)
    lam = 3 * torch.rand(2, generator=generator).double()
    apart = (1 + lam.sum()) * constrained.kl(problem.optimum(lam).log(), log_p)
    torch.testing.assert_close(problem.lagrangian(log_p, lam), apart + problem.dual(lam))


def test_the_dual_is_a_difference_of_entropies():
    problem, entropy = letters(), constrained.entropy
    of_data = entropy(problem.log_q)
    mixed = (1 + LAM.sum()) * entropy(problem.optimum(LAM).log())
    expected = mixed - of_data[0] - LAM @ (of_data[1:] + problem.b)
    torch.testing.assert_close(problem.dual(LAM), expected)


def test_no_distribution_has_a_smaller_lagrangian_than_the_mixture():
    """By a general optimiser over the logits of p."""
    problem = letters()

    def value_and_slope(logits):
        logits = torch.tensor(logits, requires_grad=True)
        value = problem.lagrangian(logits.log_softmax(dim=0), LAM)
        value.backward()
        return value.item(), logits.grad.numpy()

    found = minimize(value_and_slope, torch.zeros(5).double().numpy(), jac=True, tol=1e-12)
    p = torch.tensor(found.x).softmax(dim=0)
    torch.testing.assert_close(p, problem.optimum(LAM), rtol=0, atol=1e-6)
    assert found.fun == pytest.approx(problem.dual(LAM).item(), abs=1e-12)


@each_problem
@pytest.mark.parametrize("alpha", [0.0, 0.2])
def test_gradient_and_curvature_are_those_of_the_dual(name, alpha):
    """Against automatic differentiation."""
    problem = PROBLEMS[name](alpha=alpha)
    torch.testing.assert_close(problem.gradient(LAM), jacobian(problem.dual, LAM))
    torch.testing.assert_close(problem.curvature(LAM), jacobian(problem.gradient, LAM))


@each_problem
def test_the_dual_is_below_the_optimum_everywhere_and_reaches_it(name):
    problem = PROBLEMS[name]()
    found = solve(problem)
    assert found.dual == pytest.approx(found.primal, abs=1e-12)
    for lam in torch.cartesian_prod(f64(0, 0.2, 1, 5), f64(0, 0.2, 1, 5)):
        assert float(problem.dual(lam)) <= found.primal + 1e-12


@each_problem
def test_a_multiplier_is_the_price_of_its_threshold(name):
    problem, h = PROBLEMS[name](), 1e-4
    found = solve(problem)
    assert found.active == [0, 1]
    for i in range(2):
        by = h * torch.eye(2, dtype=torch.float64)[i]
        up, down = (solve(replace(problem, b=problem.b + s * by)).primal for s in (1, -1))
        assert (down - up) / (2 * h) == pytest.approx(found.lam[i].item(), rel=1e-5)


# The solver


def test_the_optimum_is_that_of_a_general_solver():
    """Over distributions, without a dual."""
    problem = letters()
    losses = lambda p: constrained.kl(problem.log_q, torch.tensor(p).log())
    constraints = [
        {"type": "ineq", "fun": lambda p: (problem.b - losses(p)[1:]).numpy()},
        {"type": "eq", "fun": lambda p: p.sum() - 1},
    ]
    start, limits = torch.full((5,), 0.2).double().numpy(), [(1e-6, 1)] * 5
    found = minimize(
        lambda p: losses(p)[0].item(),
        *(start,),
        **{"method": "SLSQP", "bounds": limits, "constraints": constraints, "tol": 1e-12},
    )
    ours = solve(problem)
    torch.testing.assert_close(torch.tensor(found.x), problem.optimum(ours.lam), rtol=0, atol=1e-5)
    assert ours.primal == pytest.approx(found.fun, abs=1e-8)


@given(st.integers(0, 2**31), st.integers(1, 4), st.floats(1e-3, 2.0))
@settings(max_examples=60, deadline=None)
def test_every_solvable_problem_is_solved(seed, m, room):
    """Optimality: no constraint violated, no price of slack, no gap."""
    generator = torch.Generator().manual_seed(seed)
    rows = (4 * torch.randn(m + 1, 6, generator=generator).double()).softmax(dim=1)
    free = KLProblem.discrete(rows[0], rows[1:], torch.zeros(m))
    problem = replace(free, b=torch.full((m,), feasibility(free).margin + room).double())
    found = solve(problem)
    assert (found.lam >= 0).all() and (found.slack > -1e-9).all()
    assert (found.lam * found.slack).abs().max() < 1e-8
    assert found.dual == pytest.approx(found.primal, abs=1e-8)


def test_an_inactive_constraint_has_the_multiplier_zero():
    found = solve(letters(b=(0.15, 0.6)))
    assert found.active == [0] and found.lam[1] == 0
    assert found.slack[0].abs() < 1e-12 < found.slack[1]


def test_a_constraint_that_the_data_satisfy_by_themselves_costs_nothing():
    """The dual is straight along it: its curvature vanishes."""
    found = solve(KLProblem.discrete(Q0, torch.stack([Q0, Q1]), f64(0.3, 0.2)))
    alone = solve(KLProblem.discrete(Q0, Q1[None], f64(0.2)))
    assert found.active == [1] and found.lam[0] == 0
    torch.testing.assert_close(found.lam[1], alone.lam[0])
    only = solve(KLProblem.discrete(Q0, Q0[None], f64(0.3)))
    assert only.active == [] and only.primal == 0


def test_disjoint_supports_are_no_obstacle():
    """At lam = 0 the violation is infinite there."""
    q0, q = f64(0.0, 0.0, 0.5, 0.5), f64(0.5, 0.5, 0.0, 0.0)[None]
    problem = KLProblem.discrete(q0, q, f64(-math.log(0.75)))
    assert problem.violation(f64(0.0)).item() == math.inf
    assert problem.dual(f64(0.0)).item() == 0
    found = solve(problem)
    torch.testing.assert_close(found.lam, f64(3.0))
    torch.testing.assert_close(problem.optimum(found.lam), f64(0.375, 0.375, 0.125, 0.125))


def test_relaxation_is_paid_for_and_small_alpha_is_the_hard_problem():
    hard = solve(letters())
    soft = solve(letters(alpha=0.3))
    torch.testing.assert_close(soft.relaxation, 0.6 * soft.lam)
    torch.testing.assert_close(soft.slack + soft.relaxation, torch.zeros(2).double())
    price = soft.relaxation.square().sum() / (4 * 0.3)
    assert soft.primal == pytest.approx(float(soft.losses[0] + price), abs=1e-12)
    assert soft.dual == pytest.approx(soft.primal, abs=1e-12)
    assert float(soft.lam.max()) < float(hard.lam.max())
    almost = solve(letters(alpha=1e-8)).lam
    torch.testing.assert_close(almost, hard.lam, rtol=0, atol=1e-5)


def test_thresholds_that_cannot_be_met_are_refused_with_their_margin():
    with pytest.raises(Infeasible, match=r"violates one by 0\.1304") as caught:
        solve(letters(b=(0.05, 0.05)))
    assert caught.value.margin == pytest.approx(MARGIN - 0.05, abs=1e-6)
    relaxed = solve(letters(b=(0.05, 0.05), alpha=0.1))
    assert relaxed.dual == pytest.approx(relaxed.primal, abs=1e-12)


def test_the_margin_decides_what_can_be_solved():
    free = letters(b=(0.0, 0.0))
    found = feasibility(free)
    assert found.margin == pytest.approx(MARGIN, abs=1e-6) and found.gap < 1e-9
    for room in (1e-3, 0.1):
        at = lambda sign, room=room: letters(b=(found.margin + sign * room,) * 2)
        assert (solve(at(1)).slack > -1e-9).all()
        with pytest.raises(Infeasible):
            solve(at(-1))


def test_the_margin_of_noise_losses_is_that_of_their_divergence():
    """With all noise levels and every loss above its smallest."""
    problem = constrained.noise_problem(
        WORLDS, *constrained.nats_levels(1e-4, 1e3, 120), f64(0.0, 0.0), points=1001
    )
    excess = replace(problem, b=problem.irreducible[1:])
    exact = constrained.kl_problem(MAJOR, [MINOR, OTHER], f64(0.0, 0.0))
    ours, theirs = feasibility(excess, tol=1e-8), feasibility(exact)
    assert ours.margin == pytest.approx(theirs.margin, abs=1e-5)
    torch.testing.assert_close(ours.weights, theirs.weights, rtol=0, atol=1e-5)


# Dual ascent


def test_ascent_arrives_at_the_optimum_with_its_certificate():
    problem = letters()
    path = ascend(problem, Ascent(eta=0.5), 2000)
    torch.testing.assert_close(path.lam[-1], solve(problem).lam, rtol=1e-6, atol=1e-6)
    assert path.end.certified()
    assert (path.dual[1:] >= path.dual[:-1] - 1e-12).all()
    mean = (path.losses[:-1, 1:] - problem.b).mean(dim=0)
    torch.testing.assert_close(path.end.mean_violation(), mean)
    torch.testing.assert_close(path.losses[7], problem.losses(path.lam[7]))


def test_infeasible_multipliers_grow_forever_and_the_margin_is_their_pace():
    problem, eta = letters(b=(0.05, 0.05)), 0.5
    path = ascend(problem, Ascent(eta), 3000)
    pace = (path.lam[-1] - path.lam[-1001]) / (1000 * eta)
    margin = feasibility(problem).margin
    assert pace.tolist() == pytest.approx([margin, margin], rel=0.03)


def test_steps_beyond_the_safe_one_oscillate():
    problem = KLProblem.discrete(Q0, Q[:1], f64(0.2))
    best = solve(problem).lam
    for factor, settles in ((0.9, True), (1.1, False)):
        rule = Ascent(factor * problem.safe_step(best))
        path = ascend(problem, rule, 200, best + 1e-3)
        assert (float((path.lam[-1] - best).abs()) < 1e-6) == settles


def test_the_rules_relaxation_must_be_the_problems():
    with pytest.raises(ValueError, match=r"alpha is 0\.1, the problem's 0\.0"):
        ascend(letters(), Ascent(0.1, alpha=0.1), 3)


# Classes

PI = f64(*[4.0] * 7, *[1.0] * 3) / 31


@given(
    st.lists(st.floats(0.5, 9.0), min_size=3, max_size=3),
    st.lists(st.floats(0.02, 1.0), min_size=6, max_size=6),
)
@settings(max_examples=50, deadline=None)
def test_the_closed_form_for_classes_is_the_solvers(b, pi):
    pi, minority = f64(*pi) / sum(pi), [1, 4, 5]
    q = torch.eye(6, dtype=torch.float64)[minority]
    problem = KLProblem.discrete(pi, q, f64(*b))
    if sum(math.exp(-value) for value in b) > 0.99:
        return
    ours, theirs = class_balance(pi, minority, f64(*b)), solve(problem)
    torch.testing.assert_close(ours.lam, theirs.lam, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(ours.frequencies, problem.optimum(theirs.lam), rtol=0, atol=1e-7)
    assert ours.value == pytest.approx(theirs.primal, abs=1e-8)


def test_the_logarithm_of_the_number_of_classes_asks_for_equal_shares():
    found = class_balance(PI, [7, 8, 9], torch.full((3,), math.log(10)))
    torch.testing.assert_close(found.frequencies, torch.full((10,), 0.1).double())
    torch.testing.assert_close(found.lam, torch.full((3,), 6 / 62).double(), rtol=1e-6, atol=0)


def test_fine_tuning_keeps_the_share_it_is_asked_to_keep():
    found = class_balance(f64(1.0, 0.0), [1], f64(-math.log(0.75)))
    torch.testing.assert_close(found.lam, f64(3.0))
    torch.testing.assert_close(found.frequencies, f64(0.25, 0.75))


def test_classes_that_ask_for_everything_are_refused_with_the_margin_of_the_general_case():
    b = f64(0.3, 0.4)
    with pytest.raises(Infeasible) as caught:
        class_balance(PI, [8, 9], b)
    q = torch.eye(10, dtype=torch.float64)[[8, 9]]
    general = feasibility(KLProblem.discrete(PI, q, b))
    assert caught.value.margin == pytest.approx(general.margin, abs=1e-9)


@pytest.mark.parametrize("minority", [[8, 8], [7, 8, 9]])
def test_classes_must_be_different_and_have_a_threshold_each(minority):
    with pytest.raises(ValueError, match="need different classes and one threshold each"):
        class_balance(PI, minority, f64(3.0, 3.0))


# Mixtures and losses of networks


def square(weights):
    means = f64((1, 1), (-1, 1), (-1, -1), (1, -1))
    return GaussianMixture.isotropic(means, 0.2, f64(*weights))


FOUR, FOURTH = square((0.32, 0.32, 0.32, 0.04)), square((0, 0, 0, 1))


def test_four_modes_in_the_plane_have_the_multiplier_of_their_classes():
    problem = constrained.kl_problem(FOUR, [FOURTH], f64(math.log(4)))
    found = solve(problem)
    torch.testing.assert_close(found.lam, f64(0.28), rtol=1e-4, atol=0)
    optimum = constrained.mix([FOUR, FOURTH], mixture_weights(found.lam))
    shares = optimum.weights.reshape(2, 4).sum(dim=0)
    torch.testing.assert_close(shares, torch.full((4,), 0.25).double(), rtol=0, atol=1e-4)


def test_the_mixed_world_is_the_optimal_density():
    problem = constrained.kl_problem(MAJOR, [MINOR, OTHER], f64(0.9, 0.7))
    x, cell = constrained.grid(WORLDS)
    optimum = constrained.mix(WORLDS, mixture_weights(LAM))
    torch.testing.assert_close(optimum.log_density(x).exp() * cell, problem.optimum(LAM))


@pytest.mark.parametrize("dim", [1, 2])
def test_densities_on_the_grid_sum_to_one(dim):
    worlds = WORLDS if dim == 1 else [FOUR, FOURTH]
    for sigma in (0.0, 3.0):
        x, cell = constrained.grid(worlds, sigma)
        for world in worlds:
            total = world.log_density(x, sigma).exp().sum() * cell
            assert float(total) == pytest.approx(1, abs=1e-12)


def test_worlds_of_three_or_different_dimensions_are_refused():
    solid = GaussianMixture.isotropic(torch.zeros(1, 3), 1.0)
    for worlds in ([solid], [MAJOR, FOUR]):
        with pytest.raises(ValueError, match="need all 1 or all 2"):
            constrained.grid(worlds)


@pytest.mark.parametrize("q, r, points", [(MINOR, MAJOR, 2001), (FOURTH, FOUR, 81)])
def test_divergence_is_excess_loss_over_all_noise_levels(q, r, points):
    levels = constrained.nats_levels(1e-3, 1e3, 45)
    problem = constrained.noise_problem([r, q], *levels, f64(1.0), points=points)
    excess = (problem.losses(f64(0.0)) - problem.irreducible)[1]
    exact = constrained.kl_problem(r, [q], f64(1.0)).losses(f64(0.0))[1]
    assert float(excess) == pytest.approx(float(exact), rel=1e-5)
    gaps = [constrained.noise_gap(q, r, sigma, points) for sigma in levels[0].tolist()]
    assert float(levels[1] @ torch.stack(gaps)) == pytest.approx(float(excess), rel=1e-9)


def test_the_weighted_sum_of_losses_is_the_loss_on_the_mixture():
    """Resampling: of any function, here the best for one of the distributions."""
    problem = noisy()
    f = problem.best(f64(0.0, 0.2, 0.8))
    loss = problem.losses_of(f)
    weights = mixture_weights(LAM)
    mixture = constrained.mix(WORLDS, weights)
    levels = constrained.nats_levels(0.05, 20.0, 40)
    total = 0.0
    for n, (sigma, weight) in enumerate(zip(*(part.tolist() for part in levels), strict=True)):
        x, cell = constrained.grid(WORLDS, sigma, 801)
        mass = mixture.log_density(x, sigma).exp() * cell
        noise = -sigma * mixture.score(x, sigma)
        total += weight * (1 + float(mass @ (f[n] ** 2 - 2 * f[n] * noise)[:, 0]))
    lagrangian = loss[0] + LAM @ loss[1:]
    assert float(lagrangian) == pytest.approx(float(1 + LAM.sum()) * total, rel=1e-12)


def test_the_best_function_is_the_noise_in_the_mixtures_points():
    problem, weights = noisy(), mixture_weights(LAM)
    sigma = constrained.nats_levels(0.05, 20.0, 40)[0][17].item()
    x, _ = constrained.grid(WORLDS, sigma, 801)
    mixture = constrained.mix(WORLDS, weights)
    expected = (x - mixture.posterior_mean(x, sigma)) / sigma
    torch.testing.assert_close(problem.best(weights)[17], expected, rtol=0, atol=1e-9)


def test_the_loss_is_the_mean_squared_error_of_the_noise():
    """By drawing: the simple loss of DDPM at one of its steps."""
    schedule = DDPM(20, 0.01, 0.3)
    problem = constrained.noise_problem(
        WORLDS, *constrained.simple_levels(schedule), f64(0.3, 0.3), points=1001
    )
    assert problem.level.sum() == pytest.approx(1.0, abs=1e-12)
    weights, source = mixture_weights(LAM), torch.Generator().manual_seed(0)
    mixture = constrained.mix(WORLDS, weights)
    expected = []
    for sigma in schedule.sigmas().tolist():
        clean = MINOR.sample(20_000, source)
        noise = torch.randn(clean.shape, generator=source).double()
        found = -sigma * mixture.score(clean + sigma * noise, sigma)
        expected.append((found - noise).square().mean())
    assert float(problem.losses(LAM)[1]) == pytest.approx(float(sum(expected)) / 20, rel=0.01)


def test_equal_thresholds_on_losses_are_not_equal_divergences():
    narrow, wide = line((1.0, -3.0, 0.1)), line((1.0, 3.0, 2.0))
    q0 = line((0.5, -3.0, 0.1), (0.5, 3.0, 2.0))
    levels, unit = constrained.nats_levels(1e-3, 1e3, 60), math.log(1e6)
    problem = constrained.noise_problem([q0, narrow, wide], *levels, f64(1.0, 1.0), points=4001)
    mean = problem.irreducible[1:] / unit
    limits = constrained.threshold(f64(0.5, 0.5), mean, unit)
    torch.testing.assert_close((limits - mean) * unit, f64(0.5, 0.5))
    assert limits[0] < 0.8 * limits[1]


def test_steps_of_a_discrete_schedule_are_worth_their_share_of_log_snr():
    worth = constrained.nats_a_step(DDPM())
    places = [1, 10, 100, 300, 500, 999]
    expected = f64(320, 70.6, 10.0, 5.0, 5.5, 10.1)
    torch.testing.assert_close(worth[places], expected, rtol=0.01, atol=0)


def test_an_empty_range_of_levels_is_refused():
    for ends in ((1.0, 0.1, 10), (0.0, 1.0, 10), (0.1, 1.0, 1)):
        with pytest.raises(ValueError, match="need 2 or more and 0 < sigma_min < sigma_max"):
            constrained.nats_levels(*ends)


# A figure over thresholds


@pytest.mark.parametrize("m", [1, 2])
def test_frames_are_the_dual_at_each_threshold(m):
    problem = KLProblem.discrete(Q0, Q[:m], torch.ones(m))
    thresholds = f64(*[[0.25] * m, [0.4] * m, [-0.1] * m])
    frames = dual_frames(problem, f64(0.0, 0.5, 2.0), thresholds)
    assert frames.g.shape == (3, *[3] * m)
    second = replace(problem, b=thresholds[1])
    place = (0, 2)[2 - m :]
    lam = f64(0.0, 2.0)[2 - m :]
    assert frames.g[(1, *place)].item() == pytest.approx(second.dual(lam).item(), abs=1e-12)
    found = solve(second)
    torch.testing.assert_close(frames.lam[1], found.lam)
    torch.testing.assert_close(frames.losses[1], found.losses)
    assert frames.value[1].item() == pytest.approx(found.primal, abs=1e-12)
    assert frames.value[2].item() == math.inf and frames.losses[2].isnan().all()


# What is refused


@pytest.mark.parametrize("q0", [[0.5, 0.6], [1.2, -0.2]])
def test_what_is_no_distribution_is_refused(q0):
    with pytest.raises(ValueError, match="distribution 0"):
        KLProblem.discrete(f64(*q0), f64(0.5, 0.5)[None], f64(1.0))


@pytest.mark.parametrize("b", [[1.0], [1.0, math.inf], [1.0, 1.0, 1.0]])
def test_thresholds_must_be_one_finite_number_a_constraint(b):
    with pytest.raises(ValueError, match="2 constraints need as many finite thresholds"):
        letters(b=b)


def test_a_negative_alpha_is_refused():
    with pytest.raises(ValueError, match=r"alpha is -0\.1; it must be 0 or more"):
        letters(alpha=-0.1)
