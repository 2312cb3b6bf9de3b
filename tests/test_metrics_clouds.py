"""Measures of point clouds against closed forms and scipy."""

import math

import numpy as np
import pytest
import scipy.stats
import torch

from diffbook_lib import data, metrics, rng
from diffbook_lib.errors import Failed
from diffbook_lib.exact import GaussianMixture
from diffbook_lib.metrics.clouds import wasserstein_1d


def normal(*shape, seed=0, dtype=torch.float64):
    return rng.normal(shape, rng.generator(seed, "test"), dtype)


def test_wasserstein_in_one_dimension_is_scipys():
    x, y = normal(3, 57), 0.4 + 2 * normal(3, 91, seed=1)
    expected = [scipy.stats.wasserstein_distance(a, b) for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(wasserstein_1d(x, y), expected, rtol=1e-10)
    line = metrics.sliced_wasserstein(x[0, :, None], y[0, :, None], projections=3)
    assert line.value == pytest.approx(expected[0], rel=1e-10)


def test_ties_do_not_disturb_wasserstein():
    x, y = torch.tensor([[0.0, 0, 1, 1]]), torch.tensor([[0.0, 1]])
    assert wasserstein_1d(x, y).item() == 0
    assert wasserstein_1d(x, y + 1).item() == 1


@pytest.mark.parametrize(("dims", "mean_cosine"), [(2, 2 / math.pi), (3, 1 / 2)])
def test_sliced_wasserstein_of_a_shift_is_the_mean_projected_shift(dims, mean_cosine):
    x = normal(500, dims)
    shift = torch.full((dims,), 3.0).double()
    result = metrics.sliced_wasserstein(x + shift, x, projections=2000, floor_draws=1)
    assert result.value == pytest.approx(shift.norm().item() * mean_cosine, rel=0.03)
    assert not result.inside_floor


def test_sliced_wasserstein_of_gaussians_of_other_width():
    """W1 of N(0, 1) and N(0, s^2) is (s - 1) E|z| along every direction."""
    result = metrics.sliced_wasserstein(
        1.5 * normal(5000, 2, seed=1), normal(5000, 2), floor_draws=2
    )
    assert result.value == pytest.approx(0.5 * math.sqrt(2 / math.pi), rel=0.05)


@pytest.mark.parametrize("reference", [500, 2000])
def test_samples_of_the_same_distribution_are_near_the_floor(reference):
    results = [
        metrics.sliced_wasserstein(
            normal(500, 2, seed=seed), normal(reference, 2, seed=seed + 100), projections=32
        )
        for seed in range(20)
    ]
    assert 0.7 < sum(r.value for r in results) / sum(r.floor for r in results) < 1.3
    assert sum(r.inside_floor for r in results) >= 12


def test_clouds_of_other_dimensions_are_refused():
    with pytest.raises(ValueError, match=r"\(5, 2\) and \(5, 3\)"):
        metrics.sliced_wasserstein(torch.zeros(5, 2), torch.zeros(5, 3))
    with pytest.raises(Failed, match="1 of 5 points"):
        bad = torch.zeros(5, 2).index_fill(0, torch.tensor([0]), torch.nan)
        metrics.sliced_wasserstein(bad, torch.zeros(5, 2))
    with pytest.raises(ValueError, match=r"\(5, 3\) and modes \(9, 2\)"):
        metrics.in_mode(torch.zeros(5, 3), torch.zeros(9, 2))


def test_the_share_in_modes_has_its_closed_form():
    """Within three standard deviations of a normal mode in the plane lie 1 - exp(-9/2)."""
    world = GaussianMixture.grid()
    x = world.sample(20_000, rng.generator(0, "x"))
    result = metrics.in_mode(x, world.means, reference=world.sample(50_000, rng.generator(0, "y")))
    expected = 1 - math.exp(-4.5)
    assert result.value == pytest.approx(expected, abs=4 * result.details["standard_error"])
    assert result.floor == pytest.approx(expected, abs=0.002)
    assert metrics.in_mode(x + 5, world.means).value == 0


def test_the_mode_weight_error_finds_the_worst_mode():
    means = torch.tensor([[0.0, 0], [1, 0], [0, 1], [1, 1]])
    counts = torch.tensor([420, 300, 180, 100])
    x = means.repeat_interleave(counts, 0) + 0.01
    result = metrics.mode_weight_error(x, means)
    assert result.value == pytest.approx(0.17)
    assert result.details["standard_error"] == pytest.approx(math.sqrt(0.42 * 0.58 / 1000))
    assert result.details["shares"] == [0.42, 0.3, 0.18, 0.1]
    assert not result.inside_floor
    scarce = means.repeat_interleave(torch.tensor([300, 300, 300, 100]), 0)
    assert metrics.mode_weight_error(scarce, means).value == pytest.approx(0.15)
    true = metrics.mode_weight_error(x, means, weights=counts)
    assert true.value == pytest.approx(0)
    assert true.inside_floor
    assert 0 < true.floor < 0.05


def test_copies_lie_nearer_to_the_training_images_than_unseen_digits():
    train, test = data.load("digits"), data.load("digits", "test")
    unseen = metrics.nearest_distance(test[:].x, train, test)
    assert unseen.value == pytest.approx(2.09, abs=0.1)
    assert unseen.inside_floor
    assert (unseen.samples, unseen.details["reference"]) == (297, 297)
    assert metrics.nearest_distance(test[:50].x, train, test).samples == 50
    copies = metrics.nearest_distance(train[:100].x, train, test)
    assert copies.value == pytest.approx(0, abs=1e-5)
    assert not copies.inside_floor
