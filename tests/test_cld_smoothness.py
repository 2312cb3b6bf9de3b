"""How complicated the score is: against quadrature, autograd and Jacobians made another way."""

import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal
from torch.func import jacrev, vmap
from worlds import DATA, LINE, close, drift_matrix, f64, processes, randn, some_processes

from diffbook_lib import cld, exact
from diffbook_lib.cld import CLD
from diffbook_lib.diffusion import VP

TIMES = [0.02, 0.2, 0.6]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def log_mixture(laws, weights):
    """log density of a mixture, of points (n, d)."""

    def log_density(u):
        parts = torch.stack([law.log_prob(u) for law in laws])
        return (parts + weights.log()[:, None]).logsumexp(dim=0)

    return log_density


def departure(log_density, u, rest, columns):
    """|grad log p + rest|^2 in the given columns of u (n,), by autograd."""
    u = u.requires_grad_()
    slope = torch.autograd.grad(log_density(u).sum(), u)[0]
    return (slope + rest)[:, columns].square().sum(dim=1)


def laws_with_velocity(process, data, t):
    """The modes of (x_t, v_t), from the matrix exponential and the stationary covariance."""
    eye = torch.eye(data.dim).double()
    F = torch.linalg.matrix_exp(drift_matrix(process) * process.B(f64(t)))
    D = torch.kron(f64([1, 0], [0, process.M]), eye)
    F, laws = torch.kron(F, eye), []
    for mean, covariance in zip(data.means, data.covariances, strict=True):
        start = torch.block_diag(covariance, process.gamma * process.M * eye)
        centre = F @ torch.cat([mean, 0 * mean])
        laws.append(MultivariateNormal(centre, D + F @ (start - D) @ F.T))
    return laws


def laws_without(data, t):
    """The modes of x_t with the default beta, 0.1 + 19.9 t."""
    alpha = torch.exp(-f64(0.1 * t + 19.9 * t**2 / 2) / 2)
    noise = (1 - alpha**2) * torch.eye(data.dim)
    pairs = zip(data.means, data.covariances, strict=True)
    return [MultivariateNormal(alpha * m, alpha**2 * c + noise) for m, c in pairs]


def is_mean_of(estimate, n, values, density, cell):
    """Whether it is within four standard errors of the mean of n draws of `values`, both moments
    by quadrature on a grid."""
    weight = density * cell
    assert abs(float(weight.sum()) - 1) < 1e-6
    mean = (weight * values).sum()
    error = ((weight * (values - mean) ** 2).sum() / n).sqrt()
    assert float(4 * error) < 0.2 * float(mean)
    return abs(estimate - float(mean)) < 4 * float(error)


@some_processes("critical", "heavy")
@pytest.mark.parametrize("t", TIMES)
def test_xi_in_one_dimension_by_quadrature(process, t):
    n = 20_000
    log_density = log_mixture(laws_with_velocity(process, LINE, t), LINE.weights)
    x, v = torch.linspace(-7, 7, 701).double(), torch.linspace(-7, 7, 701).double()
    u = torch.cartesian_prod(x, v * process.M**0.5)
    values = departure(log_density, u, u.detach() / process.M, slice(1, 2))
    cell = 0.02**2 * process.M**0.5
    found = cld.xi(process, LINE, t, n, generator())
    assert is_mean_of(found, n, values, log_density(u.detach()).exp(), cell)


@pytest.mark.parametrize("t", TIMES)
def test_xi_vp_in_one_dimension_by_quadrature(t):
    n = 20_000
    log_density = log_mixture(laws_without(LINE, t), LINE.weights)
    x = torch.linspace(-7, 7, 7001).double()[:, None]
    values = departure(log_density, x, x.detach(), slice(0, 1))
    found = cld.xi_vp(VP(), LINE, t, n, generator())
    assert is_mean_of(found, n, values, log_density(x.detach()).exp(), 0.002)


@processes
@pytest.mark.parametrize("t", TIMES)
def test_xi_on_its_own_draws_by_autograd(process, t):
    u = process.marginal(DATA, t).sample(500, generator())
    log_density = log_mixture(laws_with_velocity(process, DATA, t), DATA.weights)
    values = departure(log_density, u, u.detach() / process.M, slice(2, 4))
    assert cld.xi(process, DATA, t, 500, generator()) == pytest.approx(float(values.mean()))


@pytest.mark.parametrize("t", TIMES)
def test_xi_vp_on_its_own_draws_by_autograd(t):
    log_density = log_mixture(laws_without(DATA, t), DATA.weights)
    source, n = generator(), 500
    x = float(VP().alpha(f64(t))) * DATA.sample(n, source)
    noise = torch.randn(n, 2, generator=source, dtype=torch.float64)
    x = x + float(VP().std(f64(t))) * noise
    values = departure(log_density, x, x.detach(), slice(0, 2))
    assert cld.xi_vp(VP(), DATA, t, n, generator()) == pytest.approx(float(values.mean()))


@pytest.mark.parametrize("t", TIMES)
def test_xi_is_zero_for_data_like_the_prior(t):
    data = exact.Gaussian(torch.zeros(2), torch.eye(2))
    for process in (CLD(M=1.0, gamma=1.0), CLD(M=0.25, gamma=1.0, beta1=3.0)):
        assert cld.xi(process, data, t, 1000, generator()) < 1e-20
    assert cld.xi_vp(VP(), data, t, 1000, generator()) < 1e-20
    assert cld.xi(CLD(gamma=0.04), data, t, 1000, generator()) > 1e-6


def test_the_nine_modes_are_easier_with_a_velocity():
    """Mass 1 and beta 8, the horizon of mass 1/4 and beta 4."""
    data, process = exact.GaussianMixture.grid(), CLD(M=1.0, gamma=1.0, beta0=8.0)
    for t in (0.01, 0.1, 0.4):
        ours, plain = (
            cld.xi(process, data, t, 4000, generator()),
            cld.xi_vp(VP(), data, t, 4000, generator()),
        )
        assert ours < plain / 5


# Jacobians.


def small_net():
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    return lambda u, t, label: layers(torch.cat([u.flatten(1), t[:, None]], dim=1))


def test_jacobian_norm_by_forward_over_rows():
    net, u, t = small_net(), randn(6, 4), randn(6, seed=1)
    single = lambda u, t: net(u[None], t[None], None)[0]
    jacobians = vmap(jacrev(single))(u, t)  # (6, 3, 4)
    found = cld.jacobian_norm(net, u, t)
    close(found, jacobians.square().sum(dim=(1, 2)))
    assert not found.requires_grad


def test_jacobian_norm_of_a_row_is_its_own():
    net, u, t = small_net(), randn(6, 4), randn(6, seed=1)
    whole = cld.jacobian_norm(net, u, t)
    for i in range(6):
        close(cld.jacobian_norm(net, u[i : i + 1], t[i : i + 1]), whole[i : i + 1])
    changed = torch.cat([u[:3], 100 * u[3:]])
    close(cld.jacobian_norm(net, changed, t)[:3], whole[:3])


def test_jacobian_norm_of_images():
    net, u, t = small_net(), randn(6, 1, 2, 2), randn(6, seed=1)
    before = u.clone()
    image = lambda u, t, label: net(u, t, label)[:, :, None, None]
    close(cld.jacobian_norm(image, u, t), cld.jacobian_norm(net, u.flatten(1), t))
    assert torch.equal(u, before) and not u.requires_grad


def test_jacobian_norm_of_a_linear_map():
    matrix = f64([1, 2], [3, 4], [5, 6])
    found = cld.jacobian_norm(lambda u, t, label: u @ matrix.T, randn(2, 2), f64(0.1, 0.2))
    close(found, [91.0, 91.0])
