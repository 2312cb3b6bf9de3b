"""Shares of classes with their floors, violations and multipliers as figures."""

import pytest
import torch

from diffbook_lib import data, metrics
from diffbook_lib.constrained import Ascent, Dual, Fixed, Lagrangian, Timetable
from diffbook_lib.errors import Refused


def test_shares_have_errors_and_floors():
    counts = torch.tensor([50, 30, 20, 0])
    found = metrics.class_shares(counts, "abcd", seed=3, accuracy=0.9)
    *shares, distance = found
    assert [m.value for m in shares] == [0.5, 0.3, 0.2, 0]
    assert [m.at for m in shares] == [{"class": name} for name in "abcd"]
    assert distance.value == pytest.approx(0.3) and distance.samples == 100
    assert all(m.details["accuracy"] == 0.9 and m.seed == 3 for m in found)
    assert shares[0].details["standard_error"] == pytest.approx(0.05)
    low, high = shares[0].floor_range
    assert 0.1 < low < 0.25 < high < 0.4 and not shares[0].inside_floor
    assert 0 < distance.floor < 0.15


def test_equal_shares_are_inside_the_floor():
    even = metrics.class_shares(torch.tensor([250, 251, 249, 250]), "abcd")
    assert even[-1].inside_floor and sum(m.inside_floor for m in even[:4]) >= 3


def test_what_was_known_before_is_counted_together():
    found = metrics.class_shares(torch.tensor([10, 20, 70]), "abc", earlier={0, 1})
    (known,) = [m for m in found if m.name == "Share of the earlier classes"]
    assert known.value == pytest.approx(0.3)
    assert known.floor == pytest.approx(2 / 3, abs=0.1)


@pytest.mark.parametrize("counts", [[1, 2], [0, 0, 0]])
def test_counts_that_are_none_are_refused(counts):
    with pytest.raises(Refused, match="of 3 classes"):
        metrics.class_shares(torch.tensor(counts), "abc")


class Shift:
    """A problem whose error is the distance of an example from 1."""

    def draw(self, x, source):
        return x

    def error(self, net, draw, label=None):
        return (draw - 1).square().sum(dim=1)


def test_a_violation_is_the_mean_over_the_threshold():
    dual = Fixed(["one", "two"], 0.5)
    lagrangian = Lagrangian(Shift(), dual, (0.25, 1.0))
    examples = data.from_tensor(torch.zeros(10, 2), None, "zeros", "")
    found = metrics.violation(lagrangian, None, examples, "two", "held out", draws=40)
    assert found.value == pytest.approx(1.0) and found.samples == 40
    assert found.at == {"constraint": "two", "examples": "held out"}
    assert found.details["standard_error"] == 0
    spread = data.from_tensor(torch.arange(20.0).view(10, 2), None, "spread", "")
    one, other = (metrics.violation(lagrangian, None, spread, "one", seed=s) for s in (0, 0))
    assert one == other and one.details["standard_error"] > 0


def test_multipliers_come_with_their_path_and_certificate():
    dual = Dual(["c", "d"], Ascent(0.1), Timetable(20, moments=10))
    for step in range(1, 21):
        values = {"violation/c": torch.tensor(1.0), "violation/d": torch.tensor(-1.0)}
        dual.after_step(step, values)
    first, second = metrics.multipliers(dual)
    assert first.at == {"constraint": "c"} and second.value == 0
    assert first.value == pytest.approx(0.1 * sum(range(16, 21)) / 5)
    assert first.details["multipliers"] == pytest.approx([0.2 * i for i in range(1, 11)])
    assert first.details["violations"] == [1.0] * 10 and first.details["steps_apart"] == 2
    for found, mean in ((first, 1.0), (second, -1.0)):
        assert found.details["mean_violation"] == pytest.approx(mean)
        assert found.details["bound"] >= found.details["mean_violation"] - 1e-12
