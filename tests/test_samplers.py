"""Samplers against closed forms. With Gaussian data every step is affine in the starting point and
the noises, so probing with units gives mean and variance of the result exactly, and the order of a
sampler can be measured without Monte Carlo error."""

import math
from itertools import pairwise

import pytest
import torch
from waits import Waits
from worlds import probe_line

from diffbook_lib import exact, rng, samplers
from diffbook_lib.diffusion import VP
from diffbook_lib.samplers import ancestral, ddim, euler_maruyama, heun, heun_churn, run

MEAN, STD, START, END = 0.7, 0.5, 5.0, 0.1
WORLD = exact.Gaussian(torch.tensor([MEAN]).double(), torch.tensor([[STD**2]]).double())
RANDOM = [euler_maruyama, ancestral]
STEPS = [20, 40, 80, 160]


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(actual, expected, rtol=1e-10, atol=1e-10):
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)


def geometric(steps):
    ends = [math.log10(START), math.log10(END)]
    return torch.logspace(*ends, steps + 1, dtype=torch.float64)


def karras(steps):
    return samplers.karras_sigmas(steps + 1, END, START, zero=False)


def falling(steps, end=0.0):
    return torch.linspace(START, end, steps + 1, dtype=torch.float64)


def keyed(shape):
    return lambda i: rng.normal(shape, rng.generator(0, "sampler", i), torch.float64)


def coefficients(sampler, sigmas, denoiser=WORLD):
    """The end point as offset + a x + sum of b_i noise_i, by probing: (offset, a, b (steps,))."""

    def walk(x, noise):
        return run(sampler(denoiser, x, sigmas, *([noise] if sampler in RANDOM else [])))

    offset, a, b = probe_line(walk, len(sigmas) - 1)
    return float(offset), float(a), b


def moments(sampler, sigmas):
    """Mean and variance of the end point when the start has the exact law at sigmas[0]."""
    offset, a, b = coefficients(sampler, sigmas)
    variance = a**2 * (STD**2 + float(sigmas[0]) ** 2) + float(b.square().sum())
    return offset + a * MEAN, variance


def slope(steps, errors):
    """Of log error against log step size."""
    x = -torch.tensor(steps).double().log()
    y = torch.tensor(errors).double().log()
    return float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())


@pytest.mark.parametrize("grid", [geometric, karras])
@pytest.mark.parametrize("sampler, order", [(ddim, 1), (heun, 2)])
def test_order_of_the_ode_samplers(sampler, order, grid):
    exact_ratio = math.sqrt((STD**2 + END**2) / (STD**2 + START**2))
    errors = []
    for steps in STEPS:
        offset, a, _ = coefficients(sampler, grid(steps))
        errors.append(abs(a - exact_ratio))
        assert offset + a * MEAN == pytest.approx(MEAN)  # the mean stays where it is
    assert slope(STEPS, errors) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("sampler", RANDOM)
def test_weak_order_of_the_random_samplers(sampler):
    errors = []
    for steps in STEPS:
        mean, variance = moments(sampler, geometric(steps))
        assert mean == pytest.approx(MEAN)
        errors.append(abs(variance - (STD**2 + END**2)))
    assert slope(STEPS, errors) == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("sampler", RANDOM)
def test_order_of_the_mean_map_of_the_random_samplers(sampler):
    """The exact reverse SDE takes E[x] to the posterior mean at the lower level."""
    exact_ratio = (STD**2 + END**2) / (STD**2 + START**2)
    errors = [abs(coefficients(sampler, geometric(steps))[1] - exact_ratio) for steps in STEPS]
    assert slope(STEPS, errors) == pytest.approx(1, abs=0.15)


def test_random_samplers_share_the_mean_map_and_differ_in_noise():
    em, anc = (coefficients(sampler, geometric(10)) for sampler in RANDOM)
    assert em[:2] == pytest.approx(anc[:2])
    # from one level to the next: EM adds start^2 - end^2, ancestral end^2/start^2 times that
    start, end = geometric(10)[-2:].tolist()
    assert float(em[2][-1]) ** 2 == pytest.approx(start**2 - end**2)
    assert float(anc[2][-1]) ** 2 == pytest.approx((start**2 - end**2) * end**2 / start**2)


def one_point(x, sigma, label=None):
    return torch.full_like(x, MEAN)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_ancestral_is_exact_for_one_data_point(steps):
    offset, a, b = coefficients(ancestral, falling(steps, END), one_point)
    assert offset + a * MEAN == pytest.approx(MEAN)
    assert a**2 * START**2 + float(b.square().sum()) == pytest.approx(END**2)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_ddim_is_exact_for_one_data_point(steps):
    offset, a, _ = coefficients(ddim, falling(steps, END), one_point)
    assert (offset, a) == pytest.approx((MEAN * (1 - END / START), END / START))


@pytest.mark.parametrize("sampler", [ddim, heun, *RANDOM])
def test_a_last_step_to_zero_is_a_plain_denoising(sampler):
    sigmas = torch.tensor([START, END, 0.0], dtype=torch.float64)
    before, after = sampler(WORLD, randn(5, 1), sigmas, *[keyed((5, 1))] * (sampler in RANDOM))
    close(after, WORLD(before, END))


def test_ddim_is_the_textbook_step_in_the_variance_preserving_frame():
    """x_s = alpha_s D + std_s (x_t - alpha_t D) / std_t (Song et al. 2021, Eq. 12, no noise)."""
    times, x, world = (
        torch.linspace(0.9, 0.1, 5).double(),
        randn(6, 2),
        exact.GaussianMixture.grid(),
    )
    alphas, stds, sigmas = VP().alpha(times), VP().std(times), VP().sigma(times)
    x_t = alphas[0] * x
    for i in range(4):
        clean = world(x_t / alphas[i], sigmas[i])
        noise = (x_t - alphas[i] * clean) / stds[i]
        x_t = alphas[i + 1] * clean + stds[i + 1] * noise
    close(run(ddim(world, x, sigmas)), x_t / alphas[-1])


def test_ancestral_is_ho_et_al_in_the_variance_preserving_frame():
    """Ho et al. 2020, Eq. 6-7, with their alpha, bar alpha and tilde beta."""
    times, x, world = (
        torch.linspace(0.9, 0.1, 5).double(),
        randn(6, 2),
        exact.GaussianMixture.grid(),
    )
    bars, sigmas, noise = VP().alpha(times) ** 2, VP().sigma(times), keyed((6, 2))
    x_t = bars[0].sqrt() * x
    for i, (bar, bar_next) in enumerate(pairwise(bars)):
        clean, alpha = world(x_t / bar.sqrt(), sigmas[i]), bar / bar_next
        mean = bar_next.sqrt() * (1 - alpha) / (1 - bar) * clean
        mean = mean + alpha.sqrt() * (1 - bar_next) / (1 - bar) * x_t
        x_t = mean + ((1 - bar_next) / (1 - bar) * (1 - alpha)).sqrt() * noise(i)
    close(run(ancestral(world, x, sigmas, noise)), x_t / bars[-1].sqrt())


def test_euler_maruyama_is_the_reverse_sde_in_the_variance():
    world, x, noise = exact.GaussianMixture.grid(), randn(6, 2), keyed((6, 2))
    expected = x
    for i, (start, end) in enumerate(pairwise(geometric(4).tolist())):
        step = start**2 - end**2
        expected = expected + step * world.score(expected, start) + step**0.5 * noise(i)
    close(run(euler_maruyama(world, x, geometric(4), noise)), expected)


def test_heun_is_the_trapezoid_rule():
    world, x = exact.GaussianMixture.grid(), randn(6, 2)
    expected = x
    for start, end in pairwise(geometric(4).tolist()):
        h = end - start
        first = -start * world.score(expected, start)
        second = -end * world.score(expected + h * first, end)
        expected = expected + h * (first + second) / 2
    close(run(heun(world, x, geometric(4))), expected)


@pytest.mark.parametrize(
    "sampler, to_zero, nfe",
    [
        (ddim, True, 10),
        (ddim, False, 10),
        (heun, True, 19),
        (heun, False, 20),
        (euler_maruyama, True, 10),
        (ancestral, True, 10),
    ],
)
def test_network_calls_and_states(sampler, to_zero, nfe):
    counted = samplers.CountCalls(WORLD)
    sigmas = falling(10) if to_zero else geometric(10)
    states = list(sampler(counted, randn(3, 1), sigmas, *[keyed((3, 1))] * (sampler in RANDOM)))
    assert counted.nfe == nfe and len(states) == 10


@pytest.mark.parametrize("sampler", [ddim, heun, *RANDOM])
def test_images_labels_and_types_go_through(sampler):
    seen = []

    def denoiser(x, sigma, label):
        seen.append((sigma.shape, sigma.dtype, label))
        return x / 2

    x, label = torch.randn(3, 1, 2, 2), torch.arange(3)
    noise = [lambda i: torch.randn(3, 1, 2, 2)] * (sampler in RANDOM)
    end = run(sampler(denoiser, x, falling(3), *noise, label=label))
    assert end.shape == x.shape and end.dtype == torch.float32
    assert all(s == (3,) and d == torch.float32 and y is label for s, d, y in seen)


@pytest.mark.parametrize("sampler", [ddim, heun, *RANDOM])
@pytest.mark.parametrize("sigmas", [[1.0, 2.0], [2.0, 1.0, 1.0], [1.0, 0.0, -0.5]])
def test_noise_levels_must_fall(sampler, sigmas):
    with pytest.raises(ValueError, match=rf"sigmas must fall.*\[{sigmas[0]}, {sigmas[1]}"):
        run(
            sampler(
                WORLD, randn(1, 1), torch.tensor(sigmas), *[keyed((1, 1))] * (sampler in RANDOM)
            )
        )


def test_a_single_noise_level_is_refused():
    with pytest.raises(ValueError, match="sigmas"):
        run(ddim(WORLD, randn(1, 1), torch.tensor([1.0])))


@pytest.mark.parametrize("rho", [1.0, 7.0])
def test_karras_grid(rho):
    n, low, high = 7, 0.002, 80.0
    expected = [
        (high ** (1 / rho) + i / (n - 1) * (low ** (1 / rho) - high ** (1 / rho))) ** rho
        for i in range(n)
    ]
    grid = samplers.karras_sigmas(n, low, high, rho)
    close(grid, torch.tensor([*expected, 0.0], dtype=torch.float64))
    assert torch.equal(samplers.karras_sigmas(n, low, high, rho, zero=False), grid[:-1])


@pytest.mark.parametrize(
    "arguments, named",
    [
        ((1, 0.1, 1.0), "steps=1"),
        ((5, 1.0, 0.1), "sigma_min=1.0"),
        ((5, 0.0, 1.0), "sigma_min=0.0"),
    ],
)
def test_karras_grid_refuses_an_empty_range(arguments, named):
    with pytest.raises(ValueError, match=named):
        samplers.karras_sigmas(*arguments)


def test_run_returns_the_last_state_with_and_without_a_bar(capsys):
    assert run(iter([1, 2, 3])) == 3
    assert run(iter([1, 2, 3]), steps=3, progress=True) == 3


# Heun with churn.


def churned(x, sigmas, noise, S_churn, S_tmin, S_tmax, S_noise):
    """Algorithm 2 of Karras et al. 2022, line by line; N steps have N + 1 levels."""
    N = len(sigmas) - 1
    for i in range(N):
        t, t_next = float(sigmas[i]), float(sigmas[i + 1])
        gamma = min(S_churn / N, math.sqrt(2) - 1) if S_tmin <= t <= S_tmax else 0
        t_hat = t + gamma * t
        x_hat = x + math.sqrt(t_hat**2 - t**2) * S_noise * noise(i)
        d = (x_hat - WORLD(x_hat, t_hat)) / t_hat
        x = x_hat + (t_next - t_hat) * d
        if t_next != 0:
            d_next = (x - WORLD(x, t_next)) / t_next
            x = x_hat + (t_next - t_hat) * (d + d_next) / 2
    return x


@pytest.mark.parametrize("to_zero", [True, False])
@pytest.mark.parametrize(
    "churn", [(1.0, 0.0, 9.0, 1.0), (100.0, 0.5, 3.0, 1.1), (2.0, 20.0, 30.0, 1.0)]
)
def test_heun_churn_is_algorithm_2(churn, to_zero):
    sigmas, x, noise = falling(8) if to_zero else geometric(8), randn(5, 1), keyed((5, 1))
    names = ("S_churn", "S_tmin", "S_tmax", "S_noise")
    found = run(heun_churn(WORLD, x, sigmas, noise, **dict(zip(names, churn, strict=True))))
    close(found, churned(x, sigmas, noise, *churn))


def test_heun_churn_without_churn_is_heun():
    x, noise = randn(5, 1), lambda i: pytest.fail("no noise is wanted")
    end = run(heun_churn(WORLD, x, geometric(6), noise, S_churn=0.0))
    assert torch.equal(end, run(heun(WORLD, x, geometric(6))))
    outside = run(heun_churn(WORLD, x, geometric(6), noise, S_tmin=10.0))
    assert torch.equal(outside, end)


def test_heun_churn_keeps_the_variance_to_second_order():
    """What is added before a step leaves with it: Gaussian data keep their law."""
    errors = []
    for steps in STEPS:

        def walk(x, noise):
            grid = geometric(steps)  # noqa: B023
            return run(heun_churn(WORLD, x, grid, noise, None, 4.0, 0.0, 9.0, 1.0))

        _, a, b = probe_line(walk, steps)
        variance = float(a) ** 2 * (STD**2 + START**2) + float(b.square().sum())
        errors.append(abs(variance - (STD**2 + END**2)))
    assert slope(STEPS, errors) == pytest.approx(2, abs=0.2)


@pytest.mark.parametrize("sampler", [ddim, heun, heun_churn, *RANDOM])
def test_steps_wait_for_no_device(sampler):
    x, noise = randn(3, 1).float(), [lambda i: randn(3, 1).float()]
    denoiser = lambda x, sigma, label: x / (1 + sigma[:, None])
    walk = sampler(denoiser, x, falling(4), *noise * (sampler not in (ddim, heun)))
    next(walk)
    with Waits() as waits:
        list(walk)
    assert waits.count == 0


# Probability flow and likelihood.

TIGHT = {"rtol": 1e-9, "atol": 1e-9}


@pytest.mark.parametrize("start, end", [(5.0, 0.1), (0.1, 5.0)])
@pytest.mark.parametrize(
    "world",
    [WORLD, exact.GaussianMixture(torch.tensor([[-1.0], [2.0]]), torch.tensor([[[0.1]], [[0.5]]]))],
    ids=["one", "two"],
)
def test_probability_flow_against_the_closed_form(world, start, end):
    x = start * randn(10, 1)
    flowed = samplers.probability_flow(world, x, start, end, **TIGHT)
    close(flowed, world.flow(x, start, end), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("start, end", [(5.0, 0.1), (0.1, 5.0), (80.0, 0.002)])
def test_the_odes_call_the_network_between_their_ends_only(start, end, dtype):
    seen = []

    def watched(x, sigma, label=None):
        seen.append(sigma)
        return x * (0.25 / (0.25 + sigma[:, None] ** 2))

    x = start * randn(10, 1).to(dtype)
    flowed = samplers.probability_flow(watched, x, start, end)
    if start < end:
        samplers.log_likelihood(watched, x, start, end)
    low, high = (torch.tensor(f(start, end), dtype=dtype) for f in (min, max))
    levels = torch.cat(seen)
    assert levels.min() >= low and levels.max() <= high
    torch.testing.assert_close(torch.stack(levels.aminmax()), torch.stack([low, high]))
    expected = x * math.sqrt((0.25 + end**2) / (0.25 + start**2))
    torch.testing.assert_close(flowed, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("start, end", [(1.0, 0.0), (-1.0, 1.0)])
def test_probability_flow_refuses_levels_that_are_not_positive(start, end):
    with pytest.raises(ValueError, match=r"0\.0|-1\.0"):
        samplers.probability_flow(WORLD, randn(1, 1), start, end)


COVARIANCE = torch.tensor([[1.0, 0.3, 0.0], [0.3, 0.5, 0.1], [0.0, 0.1, 0.2]], dtype=torch.float64)


def test_log_likelihood_of_a_gaussian():
    """The flow is linear, so the law it defines is Gaussian with a known covariance."""
    low, high, x = 0.1, 3.0, randn(5, 3)
    world, eye = exact.Gaussian(torch.zeros(3), COVARIANCE), torch.eye(3).double()
    logp, latent = samplers.log_likelihood(world, x, low, high, **TIGHT)
    at_low, at_high = COVARIANCE + low**2 * eye, COVARIANCE + high**2 * eye
    law = high**2 * at_low @ at_high.inverse()
    zero = torch.zeros(3, dtype=torch.float64)
    expected = torch.distributions.MultivariateNormal(zero, law).log_prob(x)
    close(logp, expected, rtol=1e-6, atol=1e-6)
    close(latent, world.flow(x, low, high), rtol=1e-6, atol=1e-6)


def test_log_likelihood_of_a_mixture():
    """Up to the difference between the mixture's law at sigma_max and the prior."""
    world, x = exact.GaussianMixture.grid(std=0.2), 0.7 * randn(8, 2)
    logp, _ = samplers.log_likelihood(world, x, 0.02, 80.0, **TIGHT)
    close(logp, world.log_density(x, 0.02), rtol=0, atol=1e-3)


def test_log_likelihood_of_images():
    world = exact.Gaussian(torch.zeros(4), torch.eye(4))
    x = randn(3, 1, 2, 2)
    flat, _ = samplers.log_likelihood(world, x.reshape(3, 4), 0.1, 50.0)
    shaped, latent = samplers.log_likelihood(world, x, 0.1, 50.0)
    close(shaped, flat)
    assert latent.shape == x.shape


def test_hutchinson_is_unbiased():
    """The mean over all 2^d sign vectors is the exact divergence."""
    world, x = exact.GaussianMixture(randn(4, 3), COVARIANCE.expand(4, 3, 3)), randn(5, 3)
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0]).double()] * 3)
    probes = signs[:, None].expand(8, 5, 3)
    expected, _ = samplers.log_likelihood(world, x, 0.1, 3.0, **TIGHT)
    estimate, _ = samplers.log_likelihood(world, x, 0.1, 3.0, probes=probes, **TIGHT)
    single, _ = samplers.log_likelihood(world, x, 0.1, 3.0, probes=probes[:1], **TIGHT)
    close(estimate, expected, rtol=1e-6, atol=1e-6)
    assert (single - expected).abs().max() > 1e-3


def test_rademacher():
    x = torch.zeros(6, 1, 4, 4, dtype=torch.float64)
    signs = samplers.rademacher(50, x, rng.generator(0, "probes"))
    assert signs.shape == (50, 6, 1, 4, 4) and signs.dtype == x.dtype
    assert torch.equal(signs.abs(), torch.ones_like(signs))
    assert abs(float(signs.mean())) < 4 / signs.numel() ** 0.5
    shares = [
        samplers.rademacher(50, x[a:b], rng.Share(rng.generator(0, "probes"), a, b, 6))
        for a, b in [(0, 2), (2, 6)]
    ]
    assert torch.equal(torch.cat(shares, dim=1), signs)
