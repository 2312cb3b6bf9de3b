"""The exact worlds against torch.distributions, autograd, quadrature and ODE integration."""

import math

import pytest
import torch
from scipy.integrate import quad
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal
from torchdiffeq import odeint

from diffbook_lib import exact
from diffbook_lib.exact import FiniteData, Gaussian, GaussianMixture

SIGMAS = [0.1, 0.7, 4.0]


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mixture(dim, modes=3):
    factors = randn(modes, dim, dim, seed=1)
    covariances = factors @ factors.mT + 0.05 * torch.eye(dim)
    return GaussianMixture(2 * randn(modes, dim, seed=2), covariances, torch.tensor([1.0, 2, 4]))


def reference(world, sigma):
    """The same mixture built from torch.distributions."""
    noisy = world.covariances + sigma**2 * torch.eye(world.dim, dtype=torch.float64)
    return MixtureSameFamily(Categorical(world.weights), MultivariateNormal(world.means, noisy))


def worlds(dim):
    return [
        mixture(dim),
        Gaussian(randn(dim), torch.diag(randn(dim) ** 2)),
        FiniteData(randn(6, dim)),
    ]


def autograd_score(world, x, sigma):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(world.log_density(x, sigma).sum(), x)[0]


def close(actual, expected, rtol=1e-10, atol=1e-10):
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)


WORLDS = [pytest.param(w, id=f"{type(w).__name__}-{d}d") for d in (1, 2, 3) for w in worlds(d)]
LINES = [pytest.param(w, id=type(w).__name__) for w in worlds(1)]


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("sigma", [0.0, *SIGMAS])
def test_density_of_a_mixture(dim, sigma):
    world, x = mixture(dim), 3 * randn(20, dim)
    close(world.log_density(x, sigma), reference(world, sigma).log_prob(x))


@pytest.mark.parametrize("sigma", SIGMAS)
def test_density_of_finite_data_is_a_mixture_of_kernels(sigma):
    points, x = randn(6, 2), 3 * randn(20, 2, seed=3)
    kernels = MultivariateNormal(points, sigma**2 * torch.eye(2, dtype=torch.float64))
    expected = MixtureSameFamily(Categorical(torch.ones(6).double()), kernels).log_prob(x)
    close(FiniteData(points).log_density(x, sigma), expected)


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("sigma", SIGMAS)
def test_score_is_the_gradient_of_the_log_density(world, sigma):
    x = 2 * randn(20, world.dim)
    close(world.score(x, sigma), autograd_score(world, x, sigma))


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_score_of_a_mixture_without_noise(dim):
    x = randn(20, dim)
    close(mixture(dim).score(x), autograd_score(mixture(dim), x, 0.0))


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("sigma", SIGMAS)
def test_posterior_mean_is_tweedie(world, sigma):
    x = 2 * randn(20, world.dim)
    close(world.posterior_mean(x, sigma), x + sigma**2 * autograd_score(world, x, sigma))


@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("x", [-2.0, 0.1, 3.0])
def test_posterior_mean_is_the_mean_of_the_posterior(sigma, x):
    """Bayes' rule by quadrature over the clean point."""
    world = mixture(1)
    clean = reference(world, 0.0)

    def joint(x0):
        return math.exp(
            clean.log_prob(torch.tensor([x0]).double()) - (x - x0) ** 2 / (2 * sigma**2)
        )

    limits = {"a": -20, "b": 20, "points": [x, *world.means[:, 0].tolist()], "limit": 200}
    mean = quad(lambda x0: x0 * joint(x0), **limits)[0] / quad(joint, **limits)[0]
    assert float(world.posterior_mean(torch.tensor([[x]]), sigma)) == pytest.approx(mean, abs=1e-7)


@pytest.mark.parametrize("world", WORLDS)
def test_every_row_has_its_own_noise_level(world):
    x, sigma = randn(4, world.dim), torch.tensor([0.1, 0.5, 1.0, 7.0], dtype=torch.float64)
    for method in (world.log_density, world.score, world.posterior_mean):
        rows = [method(x[i : i + 1], float(sigma[i])) for i in range(4)]
        close(method(x, sigma), torch.cat(rows), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("world", LINES)
@pytest.mark.parametrize("sigma", SIGMAS)
def test_cdf_is_the_integral_of_the_density(world, sigma):
    for x in (-1.0, 0.3, 2.0):
        line = torch.linspace(-40, x, 200_001, dtype=torch.float64)[:, None]
        area = torch.trapezoid(world.log_density(line, sigma).exp(), line[:, 0])
        close(world.cdf(line[-1:], sigma)[0, 0], area, rtol=0, atol=1e-7)


def test_cdf_of_finite_data_without_noise_counts_points():
    world = FiniteData(torch.tensor([[-1.0], [0.0], [0.0], [2.0]]))
    x = torch.tensor([[-2.0], [-1.0], [0.5], [3.0]], dtype=torch.float64)
    close(world.cdf(x, 0.0), torch.tensor([[0.0], [0.25], [0.75], [1.0]], dtype=torch.float64))


def integrated(world, x, start, end):
    """dx/dsigma = -sigma score, in s = log sigma."""
    times = torch.tensor([start, end], dtype=torch.float64).log()
    slope = lambda s, x: -torch.exp(2 * s) * autograd_score(world, x, float(s.exp()))
    return odeint(slope, x, times, rtol=1e-10, atol=1e-10)[-1]


@pytest.mark.parametrize(
    "world", [*LINES, pytest.param(Gaussian(randn(3), mixture(3).covariances[0]), id="Gaussian-3d")]
)
@pytest.mark.parametrize("start, end", [(3.0, 0.2), (0.2, 3.0)])
def test_flow_against_integration_of_the_ode(world, start, end):
    x = start * randn(10, world.dim, seed=5)
    close(world.flow(x, start, end), integrated(world, x, start, end), rtol=1e-7, atol=1e-7)


def test_flow_keeps_quantiles_and_goes_back():
    world, x = mixture(1), 3 * randn(20, 1)
    there = world.flow(x, 2.0, 0.1)
    close(world.cdf(there, 0.1), world.cdf(x, 2.0))
    close(world.flow(there, 0.1, 2.0), x, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("x", [-10.0, 10.0])
def test_flow_far_out(x):
    x = torch.tensor([[x]], dtype=torch.float64)
    world = GaussianMixture.isotropic(torch.tensor([[-1.0], [1.0]]), 0.2)
    close(world.flow(x, 1.0, 0.1), integrated(world, x, 1.0, 0.1), rtol=1e-6, atol=1e-6)


def test_flow_of_a_gaussian_in_one_dimension_two_ways():
    """The closed form, and quantiles of the same Gaussian written as two equal modes."""
    one = Gaussian(torch.tensor([0.3]), torch.tensor([[0.5]]))
    two = GaussianMixture(one.means.repeat(2, 1), one.covariances.repeat(2, 1, 1))
    x = randn(20, 1)
    close(one.flow(x, 1.0, 0.0), two.flow(x, 1.0, 0.0))


def test_flow_of_finite_data_ends_on_the_data():
    points = torch.tensor([[-1.0], [0.5], [2.0]], dtype=torch.float64)
    x = FiniteData(points).flow(20 * randn(30, 1), 20.0, 0.0)
    nearest = (x - points.T).abs().min(dim=1).values
    assert nearest.max() < 1e-12


def test_flow_in_two_dimensions_is_refused():
    with pytest.raises(ValueError, match="d = 1 here, this world has d = 2"):
        mixture(2).flow(randn(3, 2), 1.0, 0.0)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_finite_data_by_brute_force(sigma):
    points, x = randn(5, 3), randn(4, 3, seed=6)
    for row, mean in zip(x, FiniteData(points).posterior_mean(x, sigma), strict=True):
        weights = [math.exp(-float(((row - p) ** 2).sum()) / (2 * sigma**2)) for p in points]
        expected = sum(w * p for w, p in zip(weights, points, strict=True)) / sum(weights)
        close(mean, expected)


@pytest.mark.parametrize("chunk", [1, 7, 20, 21, 1000])
@pytest.mark.parametrize("sigma", [1e-3, 0.7, 1e3])
def test_finite_data_in_chunks(chunk, sigma, monkeypatch):
    """The last chunk is shorter, and the nearest point may lie in any."""
    points, x = randn(11, 3), randn(5, 3, seed=6)
    x[0], x[1], x[2] = points[10], points[0], 1e4 * points[5]
    whole = FiniteData(points)
    means, densities = whole.posterior_mean(x, sigma), whole.log_density(x, sigma)
    monkeypatch.setattr(exact, "CHUNK", chunk)
    parts = FiniteData(points)
    close(parts.posterior_mean(x, sigma), means, rtol=1e-9, atol=1e-12)
    close(parts.log_density(x, sigma), densities)
    logits = -(torch.cdist(x, points, compute_mode="donot_use_mm_for_euclid_dist") ** 2)
    close(means, (logits / (2 * sigma**2)).softmax(dim=1) @ points, rtol=1e-6, atol=1e-8)


def test_finite_data_in_chunks_has_the_gradient_of_the_whole(monkeypatch):
    points, x = randn(11, 2), randn(5, 2, seed=6).requires_grad_()
    jacobian = lambda world: torch.autograd.grad(world.posterior_mean(x, 0.7)[:, 0].sum(), x)[0]
    whole = jacobian(FiniteData(points))
    monkeypatch.setattr(exact, "CHUNK", 6)
    close(jacobian(FiniteData(points)), whole)
    assert whole.abs().min() > 1e-3


def test_finite_data_keeps_its_points_as_they_are():
    points = randn(20, 1, 2, 2).float()
    world = FiniteData(points)
    assert world.points.data_ptr() == points.data_ptr()
    x = randn(4, 4)
    close(world.posterior_mean(x, 0.5), FiniteData(points.double()).posterior_mean(x, 0.5))


def test_products_in_float32_are_right_as_far_as_they_say():
    """To about eps |x| |point| / sigma^2 in the exponent, and with it in the mean."""
    points, x, sigma = randn(200, 50).float(), randn(8, 50, seed=6), 2.0
    double = FiniteData(points).posterior_mean(x, sigma)
    single = FiniteData(points, torch.float32).posterior_mean(x, sigma)
    assert single.dtype == torch.float32
    lengths = float(x.norm(dim=1).max() * points.norm(dim=1).max())
    assert 0 < (single - double).abs().max() < 2**-23 * lengths / sigma**2 * points.abs().max()


def test_finite_data_at_the_extremes_of_noise():
    points = randn(5, 3)
    world, x = FiniteData(points), points + 0.01
    close(world.posterior_mean(x, 1e-4), points)
    close(world.posterior_mean(x, 1e7), points.mean(dim=0).expand(5, 3), atol=1e-9)


def test_a_flat_mode_keeps_its_samples_in_the_plane():
    world = Gaussian(torch.zeros(2), torch.tensor([[1.0, 1.0], [1.0, 1.0]]))
    x = world.sample(100, torch.Generator().manual_seed(0))
    close(x[:, 0], x[:, 1])
    assert x[:, 0].var() > 0.5


def test_samples_have_the_moments_of_the_mixture():
    world, n = mixture(2), 40_000
    x = world.sample(n, torch.Generator().manual_seed(0))
    share = world.weights[:, None]
    mean = (share * world.means).sum(dim=0)
    spread = world.means - mean
    covariance = (share[:, None] * (world.covariances + spread[:, :, None] * spread[:, None])).sum(
        0
    )
    assert ((x.mean(dim=0) - mean).abs() < 4 * (covariance.diag() / n).sqrt()).all()
    close(x.T.cov(), covariance, rtol=0.05, atol=0.05)
    assert torch.equal(x, world.sample(n, torch.Generator().manual_seed(0)))


def test_the_grid_is_that_of_the_paper():
    a = math.sqrt(0.5)
    centres = {(0, 0), (a, 0), (-a, 0), (0, a), (0, -a)}
    centres |= {(i * a / 2, j * a / 2) for i in (-1, 1) for j in (-1, 1)}
    world = GaussianMixture.grid()
    expected = torch.tensor(sorted(centres), dtype=torch.float64)
    close(torch.tensor(sorted(world.means.tolist()), dtype=torch.float64), expected, atol=1e-7)
    close(world.covariances, 0.04**2 * torch.eye(2).double().expand(9, 2, 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_world_is_a_denoiser_of_images(dtype):
    world, x = FiniteData(randn(5, 1, 2, 2)), randn(3, 1, 2, 2).to(dtype)
    sigma = torch.full((3,), 0.5, dtype=dtype)
    denoised = world(x, sigma, label=torch.zeros(3))
    assert denoised.shape == x.shape and denoised.dtype == dtype
    expected = world.posterior_mean(x.reshape(3, 4), 0.5).reshape(x.shape).to(dtype)
    assert torch.equal(denoised, expected)


def test_isotropic_and_equal_weights():
    means = randn(4, 2)
    world = GaussianMixture.isotropic(means, 0.3)
    expected = GaussianMixture(means, 0.09 * torch.eye(2).double().repeat(4, 1, 1), torch.ones(4))
    x = randn(5, 2)
    close(world.log_density(x), expected.log_density(x))
    close(world.weights.sum(), torch.tensor(1.0).double())


def test_covariances_of_the_wrong_shape_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 3, 3\).*need \(2, 2, 2\)"):
        GaussianMixture(torch.zeros(2, 2), torch.eye(3).expand(2, 3, 3))


@pytest.mark.parametrize("variance, weight", [(-1.0, 1.0), (1.0, -1.0)])
def test_what_is_no_mixture_is_refused(variance, weight):
    covariances = torch.tensor([[[1.0]], [[variance]]])
    with pytest.raises(ValueError, match="positive semi-definite"):
        GaussianMixture(torch.zeros(2, 1), covariances, torch.tensor([2.0, weight]))
