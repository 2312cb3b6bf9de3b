"""EDM2's loss: the learned weight of the noise levels."""

import math

import pytest
import torch
from networks import same_numbers_every_time  # noqa: F401

from diffbook_lib import edm2, rng
from diffbook_lib.diffusion import EDM, LogNormal
from diffbook_lib.nets.edm2 import LADDER, Uncertainty, parts_of

EDM2 = EDM(levels=LogNormal(-0.4, 1.0))


def zero(x, noise, label=None):
    return torch.zeros_like(x)


def test_without_uncertainty_it_is_the_loss_of_edm():
    x = 0.5 * torch.randn(64, 1, 4, 4)
    problem = edm2.EDM2Loss(EDM2, lambda noise: torch.zeros_like(noise))
    loss, measures = problem.loss(zero, x, rng.generator(0, "loss", 0))
    expected = EDM2.loss(zero, x, rng.generator(0, "loss", 0))
    torch.testing.assert_close(loss, expected)
    assert measures.keys() == {"unweighted"} and loss.shape == (64,)
    assert torch.equal(measures["unweighted"], expected)


def test_each_image_is_weighed_by_what_is_expected_at_its_level():
    x = 0.5 * torch.randn(8, 1, 4, 4)
    problem = edm2.EDM2Loss(EDM2, lambda noise: 3 * noise)
    loss, measures = problem.loss(zero, x, rng.generator(0, "loss", 0))
    sigma = EDM2.draw(x, rng.generator(0, "loss", 0)).sigma
    u = 0.75 * sigma.log()
    torch.testing.assert_close(loss, measures["unweighted"] / u.exp() + u)


def test_a_network_that_says_zero_starts_with_loss_one():
    """The target of the network has variance one at every level where the data has 0.5."""
    x = 0.5 * torch.randn(4000, 1, 4, 4)
    problem = edm2.EDM2Loss(EDM2, lambda noise: torch.zeros_like(noise))
    loss, _ = problem.loss(zero, x, rng.generator(0, "loss", 0))
    assert float(loss.mean()) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("error", [0.02, 1.0, 30.0])
def test_the_best_uncertainty_is_the_logarithm_of_the_expected_error(error):
    errors = error * torch.rand(1000, dtype=torch.float64)
    u = torch.linspace(-6, 6, 12_001, dtype=torch.float64)
    losses = edm2.uncertain(errors[:, None], u).mean(dim=0)
    best = u[losses.argmin()]
    assert float(best) == pytest.approx(math.log(errors.mean()), abs=1e-3)
    assert float(losses.min()) == pytest.approx(1 + float(best), abs=1e-3)


@pytest.mark.parametrize("config, variant", LADDER)
def test_uncertainty_of_every_configuration(config, variant):
    parts = parts_of(config, variant)
    head, noise = Uncertainty(parts), torch.randn(5)
    u = head(noise)
    assert u.shape == (5,) and len(head.linear.weight[0]) == (128 if variant == "official" else 256)
    torch.testing.assert_close(head(noise[2:3]), u[2:3])
    with torch.no_grad():
        head.linear.weight *= 3
    head.after_step(1, {})
    size = float(head.linear.weight.detach().square().mean().sqrt())
    assert (abs(size - 1) < 2e-4) == (config in "EFG")


def test_it_learns_the_course_of_the_error():
    """u(sigma) of a network that never learns: 0, as the preconditioned target has variance one at
    every level; halved data halves the target's size where the noise is large."""
    torch.manual_seed(0)
    head = Uncertainty(parts_of("C", "seed"))
    problem = edm2.EDM2Loss(EDM2, head)
    adam = torch.optim.Adam(head.parameters(), 3e-2)
    for step in range(300):
        x = 0.25 * torch.randn(256, 1, 4, 4)
        loss, _ = problem.loss(zero, x, rng.generator(0, "loss", step))
        adam.zero_grad()
        loss.mean().backward()
        adam.step()
    sigma = torch.tensor([0.2, 0.7, 2.0])
    target = (EDM2.c_skip(sigma) * sigma) ** 2 + ((1 - EDM2.c_skip(sigma)) * 0.25) ** 2
    expected = (EDM2.weight(sigma) * target).log()
    torch.testing.assert_close(head(EDM2.c_noise(sigma)), expected, rtol=0, atol=0.15)
