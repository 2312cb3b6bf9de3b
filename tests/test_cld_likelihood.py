"""The likelihood against exact densities, which the probability-flow ODE must follow."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal, Normal
from worlds import (
    CRITICAL,
    DATA,
    HEAVY,
    at_prior,
    close,
    f64,
    processes,
    randn,
    some_processes,
)

from diffbook_lib import cld, exact, rng
from diffbook_lib.cld import CLD, Langevin, State
from diffbook_lib.samplers import rademacher

TIGHT = {"rtol": 1e-7, "atol": 1e-7}
LONG = CLD(beta0=10.0)  # ends at the prior to nine digits
COVARIANCE = f64([0.5, 0.2], [0.2, 0.3])
GAUSSIAN = exact.Gaussian(f64(0.4, -0.2), COVARIANCE)


def normal_log_density(x, variance):
    return Normal(f64(0), f64(variance).sqrt()).log_prob(x).sum(dim=1)


def start_of(process, n, data=DATA, seed=0):
    """n draws of (x_0, v_0)."""
    x = data.sample(n, torch.Generator().manual_seed(seed))
    return State(x, math.sqrt(process.gamma * process.M) * randn(n, 2, seed=seed + 1))


def test_log_density_of_gaussian_data():
    """The exact law of (x, v) at the smallest time, written out."""
    state, eps = start_of(LONG, 6, GAUSSIAN), 0.01
    found = cld.log_density(LONG, LONG.exact_score(GAUSSIAN), state, eps=eps, **TIGHT)
    F, noise = LONG.flow(LONG.B(eps)), LONG.covariance(eps, var_v=LONG.gamma * LONG.M)
    mean = torch.cat([F.xx * GAUSSIAN.means[0], F.vx * GAUSSIAN.means[0]])
    column = torch.stack([F.xx, F.vx])
    added = torch.stack([noise.xx, noise.xv, noise.xv, noise.vv]).reshape(2, 2)
    added = added - LONG.eps_num * torch.eye(2)
    eye = torch.eye(2).double()
    law = torch.kron(torch.outer(column, column), COVARIANCE) + torch.kron(added, eye)
    expected = MultivariateNormal(mean, law).log_prob(torch.cat(state, dim=1))
    close(found.log_density, expected, rtol=1e-5, atol=1e-5)


@some_processes("under", "critical", "heavy", "linear beta")
@pytest.mark.parametrize("data", [GAUSSIAN, DATA], ids=["one mode", "two modes"])
def test_log_density_differs_from_the_exact_one_by_the_prior_at_the_end(process, data):
    """The ODE with the exact score carries the exact density; the model puts the prior in the
    place of the law at t = 1."""
    state, eps = start_of(process, 6, data), 0.01
    found = cld.log_density(process, process.exact_score(data), state, eps=eps, **TIGHT)
    exact_at = lambda t, state: process.marginal(data, t).log_density(torch.cat(state, dim=1))
    x, v = found.state
    prior = normal_log_density(x, 1.0) + normal_log_density(v, process.M)
    expected = exact_at(eps, state) - exact_at(1.0, found.state) + prior
    close(found.log_density, expected, rtol=1e-5, atol=1e-5)
    assert float((exact_at(eps, state) - prior).abs().min()) > 1e-3  # there is a way to go


@processes
def test_log_density_with_the_score_of_the_prior(process):
    """The flow turns (x, v / sqrt(M)) round the origin, and the prior's density with it."""
    state = State(randn(5, 2), randn(5, 2, seed=1))
    found = cld.log_density(process, at_prior(process), state, **TIGHT)
    expected = normal_log_density(state.x, 1.0) + normal_log_density(state.v, process.M)
    close(found.log_density, expected, rtol=1e-5, atol=1e-5)
    assert (found.state.x - state.x).abs().max() > 0.1


def test_hutchinson_averages_to_the_exact_trace():
    """Over all sign vectors exactly; a single one is off."""
    state, score = start_of(CRITICAL, 5), CRITICAL.exact_score(DATA)
    signs = torch.cartesian_prod(*[f64(-1.0, 1.0)] * 2)
    probes = signs[:, None].expand(4, 5, 2)
    expected, _, _ = cld.log_density(CRITICAL, score, state)
    average, _, _ = cld.log_density(CRITICAL, score, state, probes)
    single, _, _ = cld.log_density(CRITICAL, score, state, probes[:1])
    close(average, expected, rtol=1e-3, atol=1e-3)
    assert (single - expected).abs().max() > 0.05


def test_hutchinson_with_random_signs_is_unbiased():
    state, score, n = start_of(CRITICAL, 1), CRITICAL.exact_score(DATA), 500
    expected, _, _ = cld.log_density(CRITICAL, score, state)
    many = State(*(part.expand(n, -1) for part in state))
    probes = rademacher(1, many.x, rng.generator(0, "probes"))
    found, _, _ = cld.log_density(CRITICAL, score, many, probes)
    error = float(found.std()) / n**0.5
    assert 1e-6 < abs(float(found.mean() - expected)) < 4 * error < 0.1


# The bound on the density of the data.


@pytest.mark.parametrize("process", [CRITICAL, Langevin(M=1.7, gamma=0.6)])
def test_position_bound_adds_the_entropy_of_the_velocity(process):
    law = Normal(f64(0), f64(process.gamma * process.M).sqrt())
    joint = randn(3)
    close(cld.position_bound(process, joint, 5), joint + 5 * law.entropy())


def test_the_bound_is_tight_for_gaussian_data():
    """There v_0 is independent of x_0 under the model too, so no draw of it matters."""
    process = replace(LONG, gamma=1.0)  # the velocity's law hardly moves from t = 0 to 1e-5
    x0, score = start_of(process, 4, GAUSSIAN).x, process.exact_score(GAUSSIAN)
    for seed in (1, 2):
        found = cld.log_likelihood_bound(process, score, x0, randn(4, 2, seed=seed))
        close(found.log_density, GAUSSIAN.log_density(x0), rtol=0, atol=1e-3)


def test_the_bound_has_the_mean_of_the_released_one_and_less_scatter():
    n, score = 400, CRITICAL.exact_score(DATA)
    x0, noise = f64([0.9, -0.2]).expand(n, 2), randn(n, 2, seed=3)
    bound, _, _ = cld.log_likelihood_bound(CRITICAL, score, x0, noise)
    variance = CRITICAL.gamma * CRITICAL.M
    v0 = variance**0.5 * noise
    joint, _, _ = cld.log_density(CRITICAL, score, State(x0, v0))
    close(bound, joint - normal_log_density(v0, variance), rtol=1e-9)
    released = cld.position_bound(CRITICAL, joint, 2)
    gap = released - bound
    assert abs(float(gap.mean())) < 4 * float(gap.std()) / n**0.5
    assert float(bound.std()) < 0.1 * float(released.std())
    assert float(bound.mean()) < float(DATA.log_density(x0[:1])) + 1e-2


@pytest.mark.parametrize("scale", [0.8, 1.2])
def test_a_wrong_score_lowers_the_bound(scale):
    n, score = 300, CRITICAL.exact_score(DATA)
    x0, noise = start_of(CRITICAL, n).x, randn(n, 2, seed=3)
    wrong = lambda state, t: scale * score(state, t)
    best, _, _ = cld.log_likelihood_bound(CRITICAL, score, x0, noise, rtol=1e-4, atol=1e-4)
    less, _, _ = cld.log_likelihood_bound(CRITICAL, wrong, x0, noise, rtol=1e-4, atol=1e-4)
    loss = best - less
    assert float(loss.mean()) > 4 * float(loss.std()) / n**0.5


# Networks and cost.


def small_net(dtype):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 16), nn.SiLU(), nn.Linear(16, 2)).to(dtype)
    return lambda u, t, label: net(u) * t[:, None]


def test_a_float32_network_follows_its_float64_copy():
    x0, noise = randn(5, 2), randn(5, 2, seed=1)
    double, _, _ = cld.log_likelihood_bound(HEAVY, HEAVY.score(small_net(torch.float64)), x0, noise)
    score = HEAVY.score(small_net(torch.float32))
    single, end, _ = cld.log_likelihood_bound(HEAVY, score, x0.float(), noise.float())
    assert single.dtype == end.x.dtype == end.v.dtype == torch.float32
    assert not single.requires_grad
    torch.testing.assert_close(single.double(), double, rtol=1e-3, atol=1e-3)


def test_images_are_taken_as_they_are():
    score = lambda state, t: -(state.v + 0.3 * state.x).tanh()
    x0, noise = randn(3, 1, 2, 2), randn(3, 1, 2, 2, seed=1)
    probes = rademacher(2, x0, rng.generator(0, "probes"))
    images = cld.log_likelihood_bound(CRITICAL, score, x0, noise, probes)
    flat = cld.log_likelihood_bound(
        CRITICAL, score, x0.flatten(1), noise.flatten(1), probes.flatten(2)
    )
    close(images.log_density, flat.log_density)
    assert images.state.x.shape == images.state.v.shape == x0.shape


def test_network_calls_are_counted():
    seen = []

    def score(state, t):
        seen.append(float(t.min()))
        assert float(t.max()) <= 1 + 1e-12  # never where the network was not trained
        return -2 * state.v + state.x.sin()

    x0, noise, calls = randn(5, 2), randn(5, 2, seed=1), []
    for rtol, atol in ((1e-2, 1e-3), (1e-2, 1e-7), (1e-7, 1e-7)):
        seen.clear()
        found = cld.log_likelihood_bound(CRITICAL, score, x0, noise, rtol=rtol, atol=atol)
        assert found.nfe == len(seen)
        assert min(seen) == pytest.approx(1e-5)
        calls.append(found.nfe)
    assert calls == sorted(set(calls))  # more with every tolerance
