"""The diffusion without a velocity, against closed forms and exact moments."""

from dataclasses import replace

import pytest
import torch
from torch.distributions import Normal
from waits import Waits
from worlds import close, f64, fix_draws, in_shares, order, probe_line, randn, times_drawn

from diffbook_lib import cld, exact, rng, samplers
from diffbook_lib.diffusion import VPSDE
from diffbook_lib.samplers import run, vpsde

SLOW = VPSDE(beta0=0.5, beta1=2.0)
both = pytest.mark.parametrize("process", [VPSDE(), SLOW], ids=["default", "slow"])
mixed_or_not = pytest.mark.parametrize("mixed", [True, False], ids=["mixed", "plain"])
weightings = pytest.mark.parametrize("weighting", ["likelihood", "reweightedv1", "reweightedv2"])


def moments(process, t, mean=0.4, variance=0.3):
    """Of x_t for data N(mean, variance), from the integral of beta."""
    alpha = torch.exp(-(process.beta0 * t + process.beta1 * t**2 / 2) / 2)
    return alpha * mean, alpha**2 * variance + 1 - alpha**2


def gaussian_score(process):
    def score(x, t):
        mean, variance = moments(process, t[0])
        return -(x - mean) / variance

    return score


@both
def test_kernel_by_quadrature_of_beta(process):
    for t in f64(1e-3, 0.3, 1.0):
        clock = torch.linspace(0, float(t), 2001, dtype=torch.float64)
        B = torch.trapezoid(process.beta(clock), clock)
        close(process.kernel.alpha(t), torch.exp(-B / 2), rtol=1e-9)
        close(process.kernel.std(t) ** 2, 1 - torch.exp(-B), rtol=1e-9)
    assert process.beta(f64(0.5).float()).dtype == torch.float64


# The learning problem.


def sine_net(x, t, label=None):
    return (2 * x).sin() + t[:, None]


@both
@weightings
@mixed_or_not
def test_loss_by_hand(process, weighting, mixed, monkeypatch):
    process = replace(process, weighting=weighting, mixed_score=mixed, loss_eps=1e-3)
    u, x0, noise = f64(0.03, 0.9), randn(2, 3), randn(2, 3, seed=1)
    fix_draws(monkeypatch, u, noise)
    for i, loss in enumerate(process.loss(sine_net, x0, rng.generator(0, "loss"))):
        t = 1e-3 + (1 - 1e-3) * u[i]
        alpha, variance = moments(process, t, 1.0, 0.0)
        std = variance.sqrt()
        x = alpha * x0[i] + std * noise[i]
        score = -((2 * x).sin() + t) / std - (x if mixed else 0)
        rate = (process.beta0 + process.beta1 * t) / 2
        lam = {"likelihood": rate, "reweightedv1": rate * std**2, "reweightedv2": std**2}
        close(loss, lam[weighting] * ((score + noise[i] / std) ** 2).sum(), rtol=1e-9)


@mixed_or_not
@pytest.mark.parametrize("u", [0.05, 0.4])
def test_the_exact_score_minimises_the_loss(mixed, u, monkeypatch):
    process, n = VPSDE(mixed_score=mixed), 20_000
    data = exact.GaussianMixture.grid(std=0.2)
    x0 = data.sample(n, torch.Generator().manual_seed(0))
    fix_draws(monkeypatch, torch.full((n,), u).double(), randn(n, 2, seed=1))

    def net(change):
        def net(x, t, label=None):
            a, std = process.kernel.alpha(t[:1])[0], process.kernel.std(t[:1])[0]
            noise = change(-std * data.score(x / a, float(std / a)) / a, x)
            return noise - std * x if mixed else noise

        return net

    best = process.loss(net(lambda noise, x: noise), x0, None).mean()
    changes = [
        lambda noise, x: 1.1 * noise,
        lambda noise, x: 0.9 * noise,
        lambda noise, x: noise + 0.1,
        lambda noise, x: noise + 0.1 * x,
        lambda noise, x: noise - 0.1 * x,
    ]
    for change in changes:
        assert process.loss(net(change), x0, None).mean() > best + 1e-3


@both
@mixed_or_not
def test_score_of_a_gaussian_world(process, mixed):
    """A network that answers E[noise | x_t], less what the mixed score puts there by itself."""
    process = replace(process, mixed_score=mixed)

    def net(x, t, label):
        mean, variance = moments(process, t[:, None])
        std = moments(process, t[:, None], 0.0, 0.0)[1].sqrt()
        return std * (x - mean) / variance - (std * x if mixed else 0)

    t, x = f64(0.01, 0.3, 1.0), randn(3, 2).requires_grad_()
    mean, variance = moments(process, t[:, None])
    density = Normal(mean, variance.sqrt()).log_prob(x).sum()
    expected = torch.autograd.grad(density, x)[0]
    close(process.score(net)(x.detach(), t), expected, rtol=1e-8)


def test_a_silent_network_with_the_mixed_score_takes_the_data_for_standard_normal():
    silent, x, t = lambda x, t, label: torch.zeros_like(x), randn(3, 2), f64(0.01, 0.3, 1.0)
    close(VPSDE().score(silent)(x, t), -x)
    close(VPSDE(mixed_score=False).score(silent)(x, t), 0 * x)


def test_the_network_sees_images_times_and_labels():
    seen = []

    def net(x, t, label):
        seen.append((t.dtype, label))
        return x

    x, label = torch.randn(2, 1, 2, 2), torch.arange(2)
    score = VPSDE().score(net, label)(x, f64(0.1, 0.5))
    loss = VPSDE(weighting="likelihood").loss(net, x, rng.generator(0, "loss"), label)
    assert score.shape == x.shape and score.dtype == loss.dtype == torch.float32
    assert loss.shape == (2,)
    assert all(dtype == torch.float32 and passed is label for dtype, passed in seen)


def test_loss_draws_times_between_loss_eps_and_one():
    t = times_drawn(VPSDE(loss_eps=0.4), 5000)
    assert 0.4 <= float(t.min()) < 0.41 and 0.99 < float(t.max()) <= 1


@weightings
def test_loss_of_shares_is_the_loss_of_the_whole(weighting):
    whole, shares = in_shares(VPSDE(weighting=weighting), sine_net, randn(6, 2))
    close(shares, whole)


@weightings
@mixed_or_not
def test_loss_is_the_error_at_a_draw(weighting, mixed):
    process, x0 = VPSDE(weighting=weighting, mixed_score=mixed), randn(6, 2)
    draw = process.draw(x0, rng.generator(0, "loss"))
    alpha, std = process.kernel.alpha(draw.t)[:, None], process.kernel.std(draw.t)[:, None]
    close(draw.x, alpha * x0 + std * draw.noise)
    loss = process.loss(sine_net, x0, rng.generator(0, "loss"))
    assert torch.equal(process.error(sine_net, draw), loss)
    assert not torch.equal(process.error(lambda x, t, label: x, draw), loss)


@weightings
@mixed_or_not
def test_nothing_waits_for_the_device(weighting, mixed):
    """Neither loss nor score nor, after its first step, the sampler."""
    process, x = VPSDE(weighting=weighting, mixed_score=mixed), torch.randn(6, 2)
    source, t = rng.generator(0, "loss"), torch.rand(6).double()
    score, times = process.score(sine_net), cld.time_grid(5)
    walk = vpsde.euler_maruyama(process, score, x, times, lambda i: x)
    next(walk)
    with Waits() as waits:
        process.loss(sine_net, x, source)
        score(x, t)
        list(walk)
    assert waits.count == 0


@pytest.mark.parametrize(
    "fields, named",
    [
        ({"beta0": -1.0}, "beta0 is -1.0; it must be positive"),
        ({"beta1": -0.2}, r"beta1 is -0.2; it must keep beta\(1\) positive"),
        ({"loss_eps": 1.5}, "loss_eps is 1.5"),
    ],
)
def test_parameters_that_break_the_process_are_refused(fields, named):
    with pytest.raises(ValueError, match=named):
        VPSDE(**fields)


def test_an_unknown_weighting_is_refused():
    with pytest.raises(ValueError, match=r"weighting is 'v3'; it must be one of .*reweightedv2"):
        VPSDE(weighting="v3")


# Going back.


@both
@pytest.mark.parametrize("t", [0.1, 0.7])
def test_reverse_drift_takes_the_marginals_back(process, t):
    """d mean/dt = -beta mean / 2 and d variance/dt = beta (1 - variance), read backwards."""
    mean, variance = moments(process, f64(t)[0])
    x = f64([0.0], [1.0])
    drift = process.reverse_drift(gaussian_score(process), x, f64(t).expand(2))[:, 0]
    offset, factor = drift[0], drift[1] - drift[0]
    beta = process.beta0 + process.beta1 * t
    close(factor * mean + offset, beta * mean / 2)
    close(2 * factor * variance + beta, -beta * (1 - variance))


def errors_of_sampling(process, times):
    """Of mean and variance before the last step, from the exact law at the first time on."""
    score = gaussian_score(process)
    walk = lambda x, noise: list(vpsde.euler_maruyama(process, score, x, times, noise))[-2]
    offset, factor, spread = probe_line(walk, len(times) - 1)
    mean, variance = moments(process, times[0])
    expected_mean, expected_variance = moments(process, times[-1])
    variance = factor**2 * variance + spread.square().sum()
    return [
        float((offset + factor * mean - expected_mean).abs()),
        float((variance - expected_variance).abs()),
    ]


@both
@pytest.mark.parametrize("kind", ["linear", "quadratic"])
def test_order_of_euler_maruyama(process, kind):
    steps = [200, 400, 800]
    grids = [cld.time_grid(n + 1, kind, eps=0.1) for n in steps]
    errors = [errors_of_sampling(process, grid) for grid in grids]
    assert order(steps, errors) == pytest.approx([1, 1], abs=0.15)


def test_euler_maruyama_by_hand():
    """Two steps, then one to time 0 without noise, for which the score is called again."""
    noise, x, times = lambda i: randn(4, 2, seed=10 + i), randn(4, 2), f64(1.0, 0.6, 0.05)
    states = list(vpsde.euler_maruyama(SLOW, lambda x, t: x.sin() * t[:, None], x, times, noise))
    for i, (start, end) in enumerate([(1.0, 0.6), (0.6, 0.05), (0.05, 0.0)]):
        h, beta = start - end, 0.5 + 2.0 * start
        x = x + h * beta * (x / 2 + x.sin() * start)
        if end > 0:
            x = x + (beta * h) ** 0.5 * noise(i)
        close(states[i], x)
    assert len(states) == 3


def test_sample_starts_from_noise_and_counts_calls():
    score, calls = gaussian_score(VPSDE()), []

    def noise(i):
        calls.append(i)
        return randn(4, 1, seed=i)

    times = cld.time_grid(20)
    found = vpsde.sample(VPSDE(), score, times, randn(4, 1, seed=99), noise)
    start, draws = randn(4, 1, seed=99), lambda i: randn(4, 1, seed=i)
    close(found.x, run(vpsde.euler_maruyama(VPSDE(), score, start, times, draws)))
    assert found.nfe == 20 and calls == list(range(19))


in_sigma = pytest.mark.parametrize("sampler", ["ancestral", "ddim", "heun"])


@both
@in_sigma
def test_samplers_in_sigma_by_hand(process, sampler):
    """The walks of `samplers` in x_t / alpha with the posterior mean of Gaussian data,
    from the kernel's levels down to 0."""
    times, start, noise = f64(1.0, 0.6, 0.05), randn(4, 2), lambda i: randn(4, 2, seed=10 + i)
    alpha = torch.exp(-(process.beta0 * times + process.beta1 * times**2 / 2) / 2)
    sigmas = torch.cat([(1 / alpha**2 - 1).sqrt(), f64(0.0)])

    def posterior_mean(x, sigma, label=None):
        return 0.4 + 0.3 / (0.3 + sigma[:, None] ** 2) * (x - 0.4)

    more = {"noise": noise} if sampler == "ancestral" else {}
    walk = getattr(samplers, sampler)(posterior_mean, start / alpha[0], sigmas, **more)
    found = vpsde.sample(process, gaussian_score(process), times, start, noise, sampler)
    close(found.x, run(walk), rtol=1e-9)


@both
@pytest.mark.parametrize("sampler", ["em", "ancestral", "ddim", "heun"])
@pytest.mark.parametrize("calls", [9, 19, 49])
def test_every_sampler_uses_the_calls_it_is_given(process, sampler, calls):
    times = cld.time_grid(vpsde.time_count(sampler, calls))
    noise, x = lambda i: randn(4, 1, seed=i), randn(4, 1, seed=99)
    found = vpsde.sample(process, gaussian_score(process), times, x, noise, sampler)
    assert found.nfe == calls and found.x.isfinite().all()


def test_heun_leaves_a_call_over_rather_than_take_one_more():
    assert [vpsde.time_count("heun", calls) for calls in (3, 4, 5)] == [2, 2, 3]


def test_an_unknown_sampler_is_refused():
    with pytest.raises(ValueError, match="sampler is 'sscs'; allowed: em, ancestral, ddim, heun"):
        x = randn(4, 1)
        vpsde.sample(SLOW, gaussian_score(SLOW), f64(1.0, 0.1), x, lambda i: x, "sscs")


@both
def test_likelihood_of_a_gaussian_world(process):
    """Which is the density of the data where at t = 1 nothing of them is left."""
    x = 0.4 + 0.3**0.5 * randn(6, 2)
    found = vpsde.log_likelihood(process, gaussian_score(process), x, rtol=1e-8, atol=1e-8)
    variance = torch.exp(f64(process.beta0 + process.beta1 / 2)) - 1  # of the noise at t = 1
    stretch = (1 + variance / 0.3).sqrt()
    latent = Normal(0.0, variance.sqrt()).log_prob(0.4 + stretch * (x - 0.4))
    close(found.log_density, (latent + stretch.log()).sum(dim=1), rtol=0, atol=1e-4)
    if process == VPSDE():
        density = Normal(f64(0.4), f64(0.3**0.5)).log_prob(x).sum(dim=1)
        close(found.log_density, density, rtol=0, atol=0.01)
    assert found.nfe > 10


def test_float32_states_stay_float32():
    noise = lambda i: torch.randn(4, 1, 2, 2)
    score = VPSDE().score(lambda x, t, label: x * t[:, None, None, None])
    for sampler in ("em", "ancestral", "ddim", "heun"):
        found = vpsde.sample(VPSDE(), score, cld.time_grid(5), noise(0), noise, sampler)
        assert found.x.dtype == torch.float32


@pytest.mark.parametrize("times", [(0.5, 1.0), (1.0,)])
def test_times_must_fall(times):
    x, score = randn(4, 1), gaussian_score(VPSDE())
    with pytest.raises(ValueError, match="times"):
        vpsde.sample(VPSDE(), score, f64(*times), x, lambda i: x)
