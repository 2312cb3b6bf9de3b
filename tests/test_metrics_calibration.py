"""Floors that are true: perfect samplers are found inside as often as the range says.

Of k draws of a floor and the value of a perfect sampler each is the highest, and the lowest,
with probability 1 / (k + 1). Every trial has its own real examples, samples and floor.
"""

import pytest
import scipy.stats
import torch

from diffbook_lib import metrics, rng
from diffbook_lib.metrics.inputs import share_draws

DRAWS = 4
TRIALS = 250


def source(trial, what):
    return rng.generator(trial, f"calibration/{what}")


def normal(trial, what, n, dims):
    return rng.normal((n, dims), source(trial, what), torch.float64)


def outside(measure):
    """How many of the trials lie above their floor, and how many below."""
    results = [measure(trial) for trial in range(TRIALS)]
    ranges = [result.floor_range for result in results]
    above = sum(r.value > high for r, (_, high) in zip(results, ranges, strict=True))
    below = sum(r.value < low for r, (low, _) in zip(results, ranges, strict=True))
    return above, below


def check(count, ties=0.0):
    """That `count` trials of probability 1 / (k + 1), less that of a tie, are no surprise."""
    probability = 1 / (DRAWS + 1)
    low = scipy.stats.binom.ppf(1e-3, TRIALS, probability - ties)
    assert low <= count <= scipy.stats.binom.ppf(1 - 1e-3, TRIALS, probability)


def frechet(n, m, dims):
    scale = 0.1 / torch.arange(1, dims + 1)

    def measure(trial):
        x, y = (scale * normal(trial, *what, dims) for what in (("x", n), ("y", m)))
        x, y = (points.reshape(-1, dims, 1, 1) for points in (x, y))
        flat = lambda x: x.flatten(1)
        return metrics.frechet_distance(x, y, flat, seed=trial, floor_draws=DRAWS)

    return measure


@pytest.mark.parametrize("n", [150, 400, 1200])
def test_perfect_samplers_are_inside_the_floor_of_the_frechet_distance(n):
    above, below = outside(frechet(n, 400, 6))
    check(above)
    check(below)


@pytest.mark.parametrize("n", [100, 300, 900])
def test_perfect_samplers_are_inside_the_floor_of_the_sliced_wasserstein_distance(n):
    def measure(trial):
        x, y = normal(trial, "x", n, 2), normal(trial, "y", 300, 2)
        named = {"projections": 8, "seed": trial, "floor_draws": DRAWS}
        return metrics.sliced_wasserstein(x, y, **named)

    above, below = outside(measure)
    check(above)
    check(below)


@pytest.mark.parametrize("n", [100, 297, 2000])
def test_unseen_examples_are_as_far_from_the_training_images_as_unseen_examples(n):
    """Every training image is -1, so an image x in [-1, 1] lies at the distance x + 1."""
    train = torch.full((2, 1, 1, 1), -1.0)

    def measure(trial):
        images = (
            2 * rng.uniform((count, 1, 1, 1), source(trial, what)).square() - 1
            for count, what in ((n, "samples"), (297, "held out"))
        )
        samples, held_out = images
        named = {"seed": trial, "floor_draws": DRAWS}
        return metrics.nearest_distance(samples, train, held_out, **named)

    above, below = outside(measure)
    check(above)
    check(below)


class Sure:
    """Sure of an image of one pixel where the pixel is positive."""

    shape = (1, 1, 1)

    def __call__(self, x):
        return 30 * x.flatten(1).relu() * torch.tensor([1.0, 0.0])


def hits(trial, what, n, share):
    return rng.uniform((n,), source(trial, what)) < share


def sure_share(trial, x, y):
    images = (2 * hit.float().reshape(-1, 1, 1, 1) - 1 for hit in (x, y))
    samples, held_out = images
    named = {"seed": trial, "floor_draws": DRAWS}
    return metrics.sure_share(samples, Sure(), held_out, **named)


def in_mode(trial, x, y):
    samples, real = (5 * (~hit).float()[:, None] for hit in (x, y))
    named = {"reference": real, "seed": trial, "floor_draws": DRAWS}
    return metrics.in_mode(samples, torch.zeros(1, 1), **named)


@pytest.mark.parametrize("measure", [sure_share, in_mode])
@pytest.mark.parametrize(("n", "m"), [(2000, 297), (1000, 4000)])
def test_a_true_share_is_inside_its_floor(measure, n, m):
    def trial(number):
        return measure(number, hits(number, "x", n, 0.9), hits(number, "y", m, 0.9))

    above, below = outside(trial)
    check(above, ties=0.03)
    check(below, ties=0.03)


@pytest.mark.parametrize("measure", [sure_share, in_mode])
def test_a_share_that_nearly_all_have_is_no_reason_for_doubt(measure):
    """Of 297 real examples all may hit where 2 in 1,000 miss."""

    def trial(number):
        return measure(number, hits(number, "x", 2000, 0.998), hits(number, "y", 297, 0.998))

    assert outside(trial)[1] <= TRIALS / (DRAWS + 1)


@pytest.mark.parametrize("count", [0, 5, 20])
def test_the_share_of_a_population_is_drawn_from_jeffreys_posterior(count):
    """Beta(count + 1/2, 20 - count + 1/2), seen through many samples."""
    known = torch.arange(20) < count
    draws = torch.tensor(share_draws(known, 20_000, 0, 400))
    posterior = scipy.stats.beta(count + 0.5, 20 - count + 0.5)
    assert draws.mean().item() == pytest.approx(posterior.mean(), abs=posterior.std() / 5)
    assert draws.std().item() == pytest.approx(posterior.std(), rel=0.2)


def test_true_weights_of_modes_are_inside_the_floor():
    weights = torch.tensor([0.1, 0.2, 0.3, 0.4])
    means = torch.arange(4.0)[:, None]

    def measure(trial):
        modes = torch.multinomial(weights, 1000, True, generator=source(trial, "x"))
        named = {"weights": weights, "seed": trial, "floor_draws": DRAWS}
        return metrics.mode_weight_error(means[modes], means, **named)

    above, below = outside(measure)
    check(above, ties=0.03)
    check(below, ties=0.03)
