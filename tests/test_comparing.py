"""Two sides over their seeds: which is better, and how a band shows them."""

import statistics

import numpy as np
import pytest
from matplotlib import pyplot as plt

from diffbook_lib import figures, runs


@pytest.mark.parametrize(
    ("first", "second", "lower", "outcome"),
    [
        ((1.0, 1.2), (2.0, 2.2), True, "first"),
        ((1.0, 1.2), (2.0, 2.2), False, "second"),
        ((2.0, 2.2), (1.0, 1.2), True, "second"),
        ((1.0, 2.0), (2.0, 2.2), True, "open"),
        ((1.0, 3.0), (3.0, 5.0), True, "open"),  # a gap of 2 within deviations of 2.8
    ],
)
def test_sides_are_apart_by_more_than_their_deviations(first, second, lower, outcome):
    assert runs.apart(first, second, lower=lower) == outcome


def test_one_seed_decides_nothing():
    with pytest.raises(statistics.StatisticsError):
        runs.apart([1.0], [2.0])


def test_a_band_is_the_mean_and_one_deviation():
    ax = plt.subplots()[1]
    figures.band(ax, [0, 1], [[1, 3], [2, 6]], "C0", "both")
    line = ax.lines[0]
    assert line.get_label() == "both"
    np.testing.assert_allclose(line.get_ydata(), [2, 4])
    edges = ax.collections[0].get_paths()[0].vertices[:, 1]
    np.testing.assert_allclose([edges.min(), edges.max()], [2 - 2**0.5, 4 + 8**0.5])
    plt.close(ax.figure)
