"""A measured figure: what it says, what it keeps; bits per dimension."""

import json
import math

import numpy as np
import pytest
import scipy.stats
import torch

from diffbook_lib import data, metrics, rng
from diffbook_lib.errors import Failed
from diffbook_lib.metrics import Measurement
from diffbook_lib.metrics.measurement import Measure


def figure(value, draws, name="Measure", samples=10, **fields):
    found = Measurement(name, value, samples, 0, **fields)
    return found.with_floor(draws) if draws else found


def test_a_measurement_says_what_it_was_measured_on():
    result = figure(4.31, [2.93, 3.4, 3.68], "Fréchet distance", 2000)
    assert str(result) == "Fréchet distance 4.3 (n = 2000, floor 2.9–3.7, seed 0)"
    assert result.floor == pytest.approx((2.93 + 3.4 + 3.68) / 3)
    assert not result.inside_floor
    assert str(figure(3.2071, [], "Bits", 100, details={"standard_error": 0.021})) == (
        "Bits 3.21 ± 0.02 (n = 100, seed 0)"
    )


@pytest.mark.parametrize(
    ("better", "value", "verdict"),
    [
        ("lower", 1.0, ", inside the floor: noise"),
        ("lower", 2.5, ", inside the floor: noise"),
        ("lower", 3.5, ")"),
        ("higher", 1.0, ")"),
        ("higher", 3.5, ", as high as in real data"),
        ("equal", 1.0, ")"),
        ("equal", 2.5, ", as in real data"),
        ("equal", 3.5, ")"),
    ],
)
def test_the_verdict_depends_on_which_side_is_better(better, value, verdict):
    result = figure(value, [2.0, 3.0], better=better)
    assert str(result).endswith(verdict)
    assert result.inside_floor == verdict.startswith(",")


def test_a_measurement_survives_json_whole():
    result = figure(4.3, [2.9, 3.7], details={"reference": 1797}, at={"sampler": "sscs", "nfe": 20})
    kept = json.loads(json.dumps(result.to_dict()))
    assert Measurement(**kept) == result
    assert kept["at"] == {"sampler": "sscs", "nfe": 20}
    assert kept["details"] == {"reference": 1797, "floor_draws": [2.9, 3.7]}


def test_coordinates_are_numbers_and_words():
    assert Measurement("Measure", 1.0, 2).at == {}
    with pytest.raises(ValueError, match=r"coordinate sizes is \[1\], a list"):
        Measurement("Measure", 1.0, 2, at={"sizes": [1]})
    with pytest.raises(ValueError, match="coordinate nfe is tensor"):
        Measurement("Measure", 1.0, 2, at={"nfe": torch.tensor(3)})


def test_coordinates_are_shown_after_the_name():
    result = figure(4.3, [], at={"sampler": "sscs", "nfe": 20})
    assert str(result) == "Measure, sampler sscs, nfe 20: 4.3 (n = 10, seed 0)"


class Counting(Measure):
    """The mean of samples; counts how often its floor is drawn."""

    def __init__(self):
        super().__init__(seed=3)
        self.drawn = []

    def figure(self, samples):
        return Measurement("Mean", samples.mean().item(), len(samples), self.seed)

    def floor(self, n, draws):
        self.drawn.append((n, draws))
        return [float(n)] * draws


def test_a_floor_is_drawn_once_for_each_number_of_samples():
    measure = Counting()
    for n in (2, 5, 2, 5):
        assert measure(torch.zeros(n), 4).floor == n
    assert measure.drawn == [(2, 4), (5, 4)]
    assert measure(torch.zeros(2), 0).floor is None


def test_no_floor_is_no_verdict():
    result = Measurement("Measure", 0.0, 2)
    assert result.floor_range is None
    assert not result.inside_floor


# Bits per dimension


@pytest.mark.parametrize(("levels", "expected"), [(256, 8.0), (17, math.log2(17)), (2, 1.0)])
def test_uniform_noise_costs_all_bits(levels, expected):
    """Dequantised uniform levels are uniform on the cube of side 2 levels / (levels - 1)."""
    dims = 64
    log_density = torch.full((5,), -dims * math.log(2 * levels / (levels - 1)))
    result = metrics.bits_per_dim(log_density, dims, levels)
    assert result.value == pytest.approx(expected, rel=1e-6)
    assert result.details["standard_error"] == pytest.approx(0, abs=1e-6)


def test_bits_of_a_gaussian_are_the_entropy_of_its_levels():
    """Fine levels: the cost of the density equals that of the discrete probabilities."""
    levels, sigma = 256, 0.3
    edges = (np.arange(levels + 1) - 0.5) / ((levels - 1) / 2) - 1
    probability = np.diff(scipy.stats.norm.cdf(edges, scale=sigma))
    entropy = -(probability * np.log2(probability)).sum() / probability.sum()
    source = rng.generator(0, "levels")
    stored = torch.multinomial(torch.from_numpy(probability), 20_000, True, generator=source)
    x = data.to_unit(stored[:, None] + rng.uniform((20_000, 1), source) - 0.5, levels)
    log_density = torch.distributions.Normal(0, sigma).log_prob(x)[:, 0]
    result = metrics.bits_per_dim(log_density, 1, levels, seed=0)
    assert result.value == pytest.approx(entropy, abs=4 * result.details["standard_error"])


def test_discrete_probabilities_need_no_change_of_variables():
    assert metrics.bits(torch.tensor([-64 * math.log(17)]), 64, levels=None).item() == (
        pytest.approx(math.log2(17))
    )


def test_bits_refuse_what_has_no_levels():
    with pytest.raises(ValueError, match="levels is 1"):
        metrics.bits(torch.zeros(2), 3, levels=1)
    with pytest.raises(Failed, match="log densities"):
        metrics.bits_per_dim(torch.tensor([0.0, torch.nan]), 3)
