"""Guidance where the answer is known, and its calls."""

import math

import pytest
import torch
from torch import nn

from diffbook_lib import diffusion, rng, samplers
from diffbook_lib.edm2 import InverseSqrt


def gaussian(mean, std):
    """The denoiser of N(mean, std^2)."""

    def denoiser(x, sigma, label=None):
        s2 = diffusion.expand(sigma, x) ** 2
        return (x * std**2 + mean * s2) / (std**2 + s2)

    return denoiser


def labelled(x, sigma, label=None):
    """Adds 10 for a missing label, the label where there is one."""
    return x + (10 if label is None else diffusion.expand(label, x))


X, SIGMA = torch.randn(4, 3, dtype=torch.float64), torch.tensor([0.1, 0.5, 2.0, 9.0])


@pytest.mark.parametrize("weight", [0.0, 1.0, 1.4, 3.0])
def test_the_guided_score_is_a_product_of_powers(weight):
    """D is linear in the score, so that of p_main^w p_guide^(1 - w)."""
    main, guide = gaussian(0.3, 0.5), gaussian(0.1, 0.8)
    x, sigma = X.clone().requires_grad_(), SIGMA.double()
    log = lambda mean, std: -((x - mean) ** 2) / (2 * (std**2 + sigma[:, None] ** 2))
    product = weight * log(0.3, 0.5) + (1 - weight) * log(0.1, 0.8)
    (expected,) = torch.autograd.grad(product.sum(), x)
    found = samplers.guided(main, guide, weight)(X, sigma)
    torch.testing.assert_close(diffusion.score_from_denoised(found, X, sigma), expected)


def test_the_guide_sees_the_label_unless_it_is_unlabelled():
    label = torch.tensor([1, 2, 3, 4])
    zero = lambda x, sigma, label=None: torch.zeros_like(x)
    guided = samplers.guided(zero, labelled, 2.0)
    torch.testing.assert_close(guided(X, SIGMA, label), -(X + label[:, None]))
    free = samplers.guided(zero, samplers.unlabelled(labelled), 2.0)
    torch.testing.assert_close(free(X, SIGMA, label), -(X + 10))
    assert torch.equal(samplers.unlabelled(labelled)(X, SIGMA, label), X + 10)


def test_weight_one_calls_no_guide():
    main, guide = map(samplers.CountCalls, (gaussian(0, 1), gaussian(0, 2)))
    for weight in (1.0, 1.5):
        samplers.guided(main, guide, weight)(X, SIGMA)
    assert (main.nfe, guide.nfe) == (2, 1)


def test_a_weak_guide_sharpens_the_main_denoiser():
    """Both know the mode, the guide blurs it more: guided samples stand closer to it."""
    x = 80 * rng.normal((2000, 1), rng.generator(0, "start"), torch.float64)
    sigmas = samplers.karras_sigmas(32, 0.002, 80)
    spread = {
        weight: samplers.run(
            samplers.heun(samplers.guided(gaussian(1, 0.5), gaussian(1, 0.8), weight), x, sigmas)
        ).std()
        for weight in (1.0, 2.0)
    }
    assert spread[1.0] == pytest.approx(0.5, rel=0.03) and spread[2.0] < 0.35


def test_a_network_that_ignores_labels_guides_one_that_uses_them():
    class Net(nn.Module):
        def __init__(self, uses):
            super().__init__()
            self.uses, self.w = uses, nn.Parameter(torch.zeros(()))

        def forward(self, x, noise, label=None):
            assert (label is not None) == self.uses
            return x * self.w

    edm, label = diffusion.EDM(), torch.zeros(4, dtype=torch.int64)
    main, guide = (edm.denoiser(Net(uses)) for uses in (True, False))
    found = samplers.guided(main, samplers.unlabelled(guide), 1.5)(X, SIGMA, label)
    torch.testing.assert_close(found, edm.c_skip(SIGMA.double())[:, None] * X)


# The learning rate.


def test_the_rate_rises_stays_and_falls():
    rate = InverseSqrt(0.01, batch=8, warmup_images=80, reference_steps=100)
    assert rate(1) == 0 and rate(6) == pytest.approx(0.005)
    assert {rate(n) for n in (11, 50, 101)} == {0.01}
    assert rate(401) == pytest.approx(0.005) and rate(1 + 10_000) == pytest.approx(0.001)


def test_both_factors_can_be_switched_off():
    assert {InverseSqrt(0.3, 4)(n) for n in (1, 10, 10**6)} == {0.3}
    assert InverseSqrt(0.3, 4, warmup_images=8)(10**6) == 0.3
    assert InverseSqrt(0.3, 4, reference_steps=5)(21) == pytest.approx(0.15)


def test_by_epochs_the_rate_changes_between_epochs_alone():
    """Twenty steps an epoch, four epochs of warm-up, a fall from the eighth on."""
    rate = InverseSqrt(1.0, 5, warmup_images=400, reference_steps=160, epoch=100)
    rates = [rate(step) for step in range(1, 20 * 33)]
    by_epoch = [set(rates[20 * e : 20 * (e + 1)]) for e in range(32)]
    assert all(len(values) == 1 for values in by_epoch)
    found = [values.pop() for values in by_epoch]
    assert found[:5] == pytest.approx([0.25, 0.5, 0.75, 1, 1])
    assert found[8] == 1 and found[9] == pytest.approx(math.sqrt(8 / 9))
    assert found[31] == pytest.approx(math.sqrt(8 / 31))
