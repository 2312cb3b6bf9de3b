"""Kernels against quadrature, conversions against definitions, EDM against its own promises."""

import math

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.integrate import quad, solve_ivp
from waits import Waits

from diffbook_lib import diffusion, exact, rng
from diffbook_lib.diffusion import DDPM, EDM, VE, VP, LogNormal, UniformLogSNR

TIMES = torch.tensor([1e-6, 1e-3, 0.1, 0.5, 1.0], dtype=torch.float64)
VPS = [VP(), VP(beta_min=0.3, beta_max=5.0), VP(beta_min=2.0, beta_max=2.0)]
KERNELS = [*VPS, VE(), VE(sigma_min=0.1, sigma_max=3.0)]


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(actual, expected, rtol=1e-12, atol=1e-12):
    expected = torch.as_tensor(expected, dtype=torch.float64).expand_as(actual)
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)


# Kernels.


@pytest.mark.parametrize("kernel", VPS)
def test_vp_against_quadrature_of_beta(kernel):
    def beta(t):
        return kernel.beta_min + t * (kernel.beta_max - kernel.beta_min)

    areas = [quad(beta, 0, float(t), epsabs=0)[0] for t in TIMES]
    integral = torch.tensor(areas, dtype=torch.float64)
    close(kernel.alpha(TIMES), torch.exp(-integral / 2))
    close(kernel.std(TIMES) ** 2, -torch.expm1(-integral))
    close(kernel.sigma(TIMES), kernel.std(TIMES) / kernel.alpha(TIMES))


@pytest.mark.parametrize("kernel", VPS)
def test_vp_solves_its_sde(kernel):
    """d alpha = -beta/2 alpha dt and d var = beta (1 - var) dt."""

    def slope(t, y):
        beta = kernel.beta_min + t * (kernel.beta_max - kernel.beta_min)
        return [-beta / 2 * y[0], beta * (1 - y[1])]

    path = solve_ivp(slope, (0, 1), [1, 0], t_eval=TIMES.numpy(), rtol=1e-10, atol=1e-12)
    close(kernel.alpha(TIMES), path.y[0], rtol=1e-8, atol=1e-9)
    close(kernel.std(TIMES) ** 2, path.y[1], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("t", [1e-12, 1e-7, 1e-3, 1.0])
def test_vp_keeps_its_digits_at_small_times(t):
    with mpmath.workdps(50):
        integral = mpmath.mpf("0.1") * t + mpmath.mpf("19.9") * mpmath.mpf(t) ** 2 / 2
        std = float(mpmath.sqrt(1 - mpmath.exp(-integral)))
        sigma = float(mpmath.sqrt(mpmath.exp(integral) - 1))
    t = torch.tensor([t], dtype=torch.float64)
    close(VP().std(t), std, atol=0)
    close(VP().sigma(t), sigma, atol=0)
    close(VP().time(VP().sigma(t)), t, atol=0)


@pytest.mark.parametrize("kernel", [VE(), VE(sigma_min=0.1, sigma_max=3.0)])
def test_ve_is_geometric_and_leaves_the_image_alone(kernel):
    ends = kernel.sigma(torch.tensor([0.0, 1.0]))
    close(ends, [kernel.sigma_min, kernel.sigma_max])
    ratios = kernel.sigma(torch.linspace(0, 1, 11, dtype=torch.float64)).log().diff()
    close(ratios, ratios[0])
    assert torch.equal(kernel.alpha(TIMES), torch.ones(5, dtype=torch.float64))
    assert torch.equal(kernel.std(TIMES), kernel.sigma(TIMES))


@settings(deadline=None, derandomize=True)
@given(kernel=st.sampled_from(KERNELS), t=st.floats(1e-6, 1))
def test_time_is_the_inverse_of_sigma(kernel, t):
    t = torch.tensor([t], dtype=torch.float64)
    close(kernel.time(kernel.sigma(t)), t, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kernel", KERNELS)
def test_coefficients_are_float64_whatever_the_time(kernel):
    t = torch.tensor([0.25])
    for name in ("alpha", "std", "sigma", "time"):
        value = getattr(kernel, name)(t)
        assert value.dtype == torch.float64
        close(value, getattr(kernel, name)(t.double()))


def test_perturb():
    x, noise, t = randn(2, 3, 4), randn(2, 3, 4, seed=1), torch.tensor([0.1, 0.8]).double()
    expected = [VP().alpha(s) * a + VP().std(s) * n for s, a, n in zip(t, x, noise, strict=True)]
    close(diffusion.perturb(VP(), x, t, noise), torch.stack(expected))
    assert diffusion.perturb(VP(), x.float(), t, noise.float()).dtype == torch.float32


# Noise levels.

EVERY_KIND = [
    LogNormal(),
    LogNormal(P_mean=0.4, P_std=1.0),
    UniformLogSNR(),
    UniformLogSNR(0.1, 10.0, stratified=True),
    DDPM(),
    DDPM(steps=50),
]
every_kind = pytest.mark.parametrize("levels", EVERY_KIND, ids=str)


@every_kind
def test_levels_of_shares_are_those_of_the_whole(levels):
    source = lambda: rng.generator(0, "loss", 3)
    whole = levels.draw(9, source())
    shares = [levels.draw(b - a, rng.Share(source(), a, b, 9)) for a, b in [(0, 2), (2, 9)]]
    assert torch.equal(torch.cat(shares), whole)
    assert whole.dtype == torch.float32 and (whole > 0).all()


@every_kind
def test_levels_follow_their_distribution(levels):
    log_sigma = levels.draw(20_000, rng.generator(0, "loss")).double().log()
    if isinstance(levels, DDPM):
        index = levels.nearest(log_sigma.exp())
        found = torch.bincount(index, minlength=levels.steps)
        assert stats.chisquare(found).pvalue > 0.001
        return
    if isinstance(levels, LogNormal):
        law = stats.norm(levels.P_mean, levels.P_std)
    else:
        low, high = math.log(levels.sigma_min), math.log(levels.sigma_max)
        law = stats.uniform(low, high - low)
    assert stats.kstest(log_sigma, law.cdf).pvalue > 0.001


def test_stratified_levels_fill_each_part_of_the_range_once():
    levels = UniformLogSNR(0.1, 10.0, stratified=True)
    log_snr = -2 * levels.draw(16, rng.generator(0, "loss")).double().log()
    parts = (log_snr + 2 * math.log(10)) / (4 * math.log(10)) * 16
    assert sorted(parts.floor().tolist()) == list(range(16))


@pytest.mark.parametrize("levels", [DDPM(), DDPM(steps=50, beta_first=0.01, beta_last=0.2)])
def test_the_discrete_schedule_by_hand(levels):
    steps, first, last = levels.steps, levels.beta_first, levels.beta_last
    product = 1.0
    for i in range(steps):
        product *= 1 - (first + i * (last - first) / (steps - 1))
        assert float(levels.alpha_bar()[i]) == pytest.approx(product, rel=1e-10)
        assert float(levels.sigmas()[i]) == pytest.approx(
            ((1 - product) / product) ** 0.5, rel=1e-9
        )


def test_the_thousand_steps_of_ddpm():
    """From 0.01, the square root of the first beta, to 157.4 (Karras et al. 2022, Table 1)."""
    sigmas = DDPM().sigmas()
    assert len(sigmas) == 1000
    assert float(sigmas[0]) == pytest.approx(0.0100005, rel=1e-6)
    assert float(DDPM().alpha_bar()[-1]) == pytest.approx(4.0358e-5, rel=1e-4)
    assert float(sigmas[-1]) == pytest.approx(157.407, rel=1e-4)


def test_the_nearest_step_of_the_discrete_schedule():
    levels, sigma = DDPM(), torch.logspace(-4, 4, 500, dtype=torch.float64)
    expected = (sigma[:, None] - levels.sigmas()).abs().argmin(dim=1)
    assert torch.equal(levels.nearest(sigma), expected)
    assert torch.equal(levels.nearest(levels.sigmas()), torch.arange(1000))


@pytest.mark.parametrize(
    "make, named",
    [
        (lambda: UniformLogSNR(1.0, 0.5), r"sigma_min=1.0, sigma_max=0.5"),
        (lambda: UniformLogSNR(0.0, 0.5), r"sigma_min=0.0"),
        (lambda: DDPM(steps=1), "steps=1"),
        (lambda: DDPM(beta_last=1.0), "beta_last=1.0"),
        (lambda: DDPM(beta_first=0.03), "beta_first=0.03"),
    ],
)
def test_levels_that_are_none_are_refused(make, named):
    with pytest.raises(ValueError, match=named):
        make()


# Conversions. With the true clean image and noise every name has its definition.

SIGMA = torch.tensor([1e-3, 0.5, 80.0], dtype=torch.float64)
CLEAN, NOISE = randn(3, 1, 2, 2), randn(3, 1, 2, 2, seed=1)
X = CLEAN + diffusion.expand(SIGMA, CLEAN) * NOISE


def true_score():
    """Of N(clean, sigma^2 I), by autograd."""
    x = X.clone().requires_grad_()
    law = torch.distributions.Normal(CLEAN, diffusion.expand(SIGMA, X).expand_as(X))
    return torch.autograd.grad(law.log_prob(x).sum(), x)[0]


def true_v():
    """The velocity on the circle, with the angle of x = cos clean + sin noise."""
    angle = diffusion.expand(SIGMA, X).atan()
    return angle.cos() * NOISE - angle.sin() * CLEAN


DEFINITIONS = {"score": true_score(), "noise": NOISE, "v": true_v()}


@pytest.mark.parametrize("name", DEFINITIONS)
def test_conversions_follow_the_definitions_both_ways(name):
    there = getattr(diffusion, f"{name}_from_denoised")
    back = getattr(diffusion, f"denoised_from_{name}")
    close(there(CLEAN, X, SIGMA), DEFINITIONS[name], rtol=1e-9, atol=1e-9)
    close(back(DEFINITIONS[name], X, SIGMA), CLEAN, rtol=1e-9, atol=1e-9)


@settings(deadline=None, derandomize=True)
@given(
    name=st.sampled_from(list(DEFINITIONS)),
    x=st.floats(-10, 10),
    denoised=st.floats(-10, 10),
    sigma=st.floats(0.01, 100),
)
def test_conversions_round_trip(name, x, denoised, sigma):
    x, denoised, sigma = (torch.tensor([[y]]).double() for y in (x, denoised, sigma))
    there = getattr(diffusion, f"{name}_from_denoised")(denoised, x, sigma[0])
    back = getattr(diffusion, f"denoised_from_{name}")(there, x, sigma[0])
    close(back, denoised, rtol=1e-9, atol=1e-9)


# Networks trained elsewhere, played by the exact one for Gaussian data.

WORLD = exact.Gaussian(torch.tensor([0.4, -1.0]), torch.diag(torch.tensor([0.3, 0.3])))


def exact_net(kernel, predicts, time_scale=1.0):
    """What a perfect network of this kind returns for x_t ~ N(alpha m, alpha^2 s^2 + std^2)."""

    def net(x_t, time, label):
        t = time / time_scale
        alpha, std = kernel.alpha(t)[:, None], kernel.std(t)[:, None]
        score = (alpha * WORLD.means - x_t) / (alpha**2 * WORLD.covariances[0, 0, 0] + std**2)
        clean, noise = (x_t + std**2 * score) / alpha, -std * score
        length = (alpha**2 + std**2).sqrt()
        v = (alpha * noise - std * clean) / length
        return {"score": score, "noise": noise, "clean": clean, "v": v}[predicts]

    return net


@pytest.mark.parametrize("predicts", ["noise", "v", "score", "clean"])
@pytest.mark.parametrize("kernel, time_scale", [(VP(), 1.0), (VP(), 1000.0), (VE(), 1.0)])
def test_a_foreign_network_as_a_denoiser(kernel, predicts, time_scale):
    net = exact_net(kernel, predicts, time_scale)
    denoiser = diffusion.denoiser_from_net(net, kernel, predicts, time_scale)
    x, sigma = 2 * randn(4, 2), torch.tensor([0.05, 0.3, 1.0, 20.0], dtype=torch.float64)
    close(denoiser(x, sigma), WORLD(x, sigma), rtol=1e-9, atol=1e-9)


def test_a_foreign_network_sees_its_own_frame():
    seen = {}

    def net(x_t, time, label):
        seen.update(x=x_t, time=time, label=label)
        return x_t

    x, sigma, label = torch.randn(2, 1, 2, 2), VP().sigma(torch.tensor([0.2, 0.9])), torch.arange(2)
    diffusion.denoiser_from_net(net, VP(), "clean", 1000)(x, sigma, label)
    alpha = VP().alpha(torch.tensor([0.2, 0.9])).float()
    torch.testing.assert_close(seen["x"], alpha[:, None, None, None] * x)
    torch.testing.assert_close(seen["time"], torch.tensor([200.0, 900.0]))
    assert seen["label"] is label and seen["x"].dtype == torch.float32


def test_an_unknown_prediction_is_refused():
    with pytest.raises(ValueError, match="'epsilon'; allowed: noise, v, score, clean"):
        diffusion.denoiser_from_net(lambda x, t, label: x, VP(), "epsilon")


# EDM.

LEVELS = torch.tensor([0.002, 0.1, 0.5, 3.0, 80.0], dtype=torch.float64)
EDMS = [EDM(), EDM(sigma_data=1.3, levels=LogNormal(P_mean=0.4, P_std=1.0))]


@pytest.mark.parametrize("edm", EDMS)
def test_edm_coefficients_of_table_1(edm):
    for i, sigma in enumerate(LEVELS.tolist()):
        total = sigma**2 + edm.sigma_data**2
        assert float(edm.c_skip(LEVELS)[i]) == pytest.approx(edm.sigma_data**2 / total)
        assert float(edm.c_out(LEVELS)[i]) == pytest.approx(sigma * edm.sigma_data / total**0.5)
        assert float(edm.c_in(LEVELS)[i]) == pytest.approx(1 / total**0.5)
        assert float(edm.c_noise(LEVELS)[i]) == pytest.approx(math.log(sigma) / 4)
        expected = total / (sigma * edm.sigma_data) ** 2
        assert float(edm.weight(LEVELS)[i]) == pytest.approx(expected)


@pytest.mark.parametrize("edm", EDMS)
@pytest.mark.parametrize("sigma", LEVELS)
def test_edm_input_and_target_have_unit_variance(edm, sigma):
    """Of the network's input, c_in x, and of what it has to return, (x0 - c_skip x) / c_out."""
    clean, noise = edm.sigma_data * randn(100_000), randn(100_000, seed=1)
    x = clean + sigma * noise
    target = (clean - edm.c_skip(sigma) * x) / edm.c_out(sigma)
    for values in (edm.c_in(sigma) * x, target):
        assert values.mean() == pytest.approx(0, abs=0.02)
        assert values.var() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("edm", EDMS)
@pytest.mark.parametrize("sigma", LEVELS)
def test_edm_skip_is_the_least_squares_estimate(edm, sigma):
    """So that c_out, the size of what is left to the network, is as small as can be."""
    # x = clean + sigma noise as rows over the independent units (clean / sigma_data, noise)
    clean, x = np.array([edm.sigma_data, 0.0]), np.array([edm.sigma_data, float(sigma)])
    skip = np.linalg.lstsq(x[:, None], clean, rcond=None)[0][0]
    assert float(edm.c_skip(sigma)) == pytest.approx(skip)
    assert float(edm.c_out(sigma)) == pytest.approx(np.linalg.norm(clean - skip * x))


def gaussian_net(edm, std):
    """The network that makes `edm.denoiser` exact for data N(0, std^2): linear in its input."""

    def net(x, c_noise, label=None):
        sigma = (4 * c_noise).exp()
        x, sigma = x / edm.c_in(sigma)[:, None], sigma[:, None]
        denoised = x * std**2 / (std**2 + sigma**2)
        return (denoised - edm.c_skip(sigma) * x) / edm.c_out(sigma)

    return net


@pytest.mark.parametrize("edm", EDMS)
def test_edm_denoiser_wraps_the_exact_network(edm):
    x = randn(5, 3)
    expected = exact.Gaussian(torch.zeros(3), 0.09 * torch.eye(3).double())(x, LEVELS)
    close(edm.denoiser(gaussian_net(edm, 0.3))(x, LEVELS), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("edm", EDMS)
@pytest.mark.parametrize("std", [0.2, 1.0])
def test_edm_loss_at_the_optimum_of_a_gaussian(edm, std):
    """E[weight * posterior variance] by Gauss-Hermite quadrature over ln sigma."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    sigma = np.exp(edm.levels.P_mean + edm.levels.P_std * nodes)
    variance = std**2 * sigma**2 / (std**2 + sigma**2)
    weighted = variance * (sigma**2 + edm.sigma_data**2) / (sigma * edm.sigma_data) ** 2
    expected = (weighted * weights).sum() / weights.sum()

    source = rng.generator(0, "loss")
    loss = edm.loss(gaussian_net(edm, std), std * randn(50_000, 2), source)
    assert abs(float(loss.mean()) - expected) < 4 * float(loss.std()) / len(loss) ** 0.5


@pytest.mark.parametrize("edm", EDMS)
def test_edm_loss_of_a_silent_network_is_one_at_every_level(edm):
    x = edm.sigma_data * randn(50_000, 4)
    loss = edm.loss(lambda x, noise, label: 0 * x, x, rng.generator(0, "loss"))
    assert float(loss.mean()) == pytest.approx(1, abs=0.02)


def test_edm_loss_by_hand():
    edm, x, label = EDM(), randn(4, 1, 2, 2), torch.arange(4)
    net = lambda x, noise, label: x.sin() + diffusion.expand(noise, x) + diffusion.expand(label, x)
    source = rng.generator(7, "loss")
    sigma = (-1.2 + 1.2 * rng.normal((4,), source)).exp()
    noise = rng.normal(x.shape, source)
    for i, loss in enumerate(edm.loss(net, x, rng.generator(7, "loss"), label)):
        noisy = x[i] + sigma[i] * noise[i]
        total = sigma[i] ** 2 + 0.25
        out = (noisy / total.sqrt()).sin() + sigma[i].log() / 4 + label[i]
        denoised = 0.25 / total * noisy + 0.5 * sigma[i] / total.sqrt() * out
        expected = total / (0.5 * sigma[i]) ** 2 * ((denoised - x[i]) ** 2).mean()
        close(loss, expected, rtol=1e-6)


def test_edm_loss_of_shares_is_the_loss_of_the_whole():
    edm, x, net = EDM(), randn(6, 2), lambda x, noise, label: x
    whole = edm.loss(net, x, rng.generator(0, "loss"))
    shares = [
        edm.loss(net, x[a:b], rng.Share(rng.generator(0, "loss"), a, b, 6))
        for a, b in [(0, 2), (2, 6)]
    ]
    close(torch.cat(shares), whole)


@every_kind
def test_edm_loss_is_the_error_at_a_draw(levels):
    """Of the clean images, the noise that follows the levels, and any distribution of these."""
    edm, x, label = EDM(levels=levels), randn(5, 1, 2, 2), torch.arange(5)
    source = rng.generator(7, "loss")
    sigma, noise = levels.draw(5, source), rng.normal(x.shape, source)
    draw = edm.draw(x, rng.generator(7, "loss"))
    assert torch.equal(draw.clean, x) and torch.equal(draw.sigma, sigma)
    close(draw.noisy, x + diffusion.expand(sigma, x) * noise)
    net = lambda x, noise, label: x.sin() + diffusion.expand(label, x)
    loss = edm.loss(net, x, rng.generator(7, "loss"), label)
    assert torch.equal(edm.error(net, draw, label), loss)
    other = lambda x, noise, label: x.cos()
    assert not torch.equal(edm.error(other, draw, label), loss)


@every_kind
def test_edm_waits_for_no_device(levels):
    edm, x, label = EDM(levels=levels), randn(5, 1, 2, 2).float(), torch.arange(5)
    source, net = rng.generator(7, "loss"), lambda x, noise, label: x.sin()
    with Waits() as waits:
        edm.loss(net, x, source, label)
        edm.denoiser(net)(x, torch.ones(5))
    assert waits.count == 0
