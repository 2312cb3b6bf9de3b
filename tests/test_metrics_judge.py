"""The judge of a data set: what it measures, what it refuses, what it keeps."""

import pytest
import torch

from diffbook_lib import data, metrics, rng
from diffbook_lib.errors import Refused
from diffbook_lib.metrics import Judge, frechet, judge


@pytest.fixture(scope="module")
def train():
    return data.load("digits")


@pytest.fixture(scope="module")
def grader(train):
    return Judge.of(train, seed=5)


@pytest.fixture
def colour():
    levels = rng.integers(256, (40, 3, 4, 4), rng.generator(0, "colour")).to(torch.uint8)
    return data.ArrayDataset(levels, None, name="pictures", description="colours")


def test_digits_are_graded_by_their_classifier(grader, train):
    everything, test = data.load("digits", "all"), data.load("digits", "test")
    net = metrics.classifier("digits")
    x = everything[:300].x
    distance, sure = grader.grade(x)
    assert [distance.name, sure.name] == ["Fréchet distance", "Share of samples classified surely"]
    expected = metrics.frechet_distance(x, everything, net.features).value
    assert distance.value == pytest.approx(expected, rel=1e-6)
    assert distance.details["reference"] == 1797
    assert sure == metrics.sure_share(x, net, test, seed=5)
    assert (distance.seed, len(distance.details["floor_draws"])) == (5, 10)


def test_copies_are_found_among_digits(grader, train):
    x = train[:300].x
    (found,) = grader.copies(x)
    assert found == metrics.nearest_distance(x, train, data.load("digits", "test"), seed=5)
    assert not found.inside_floor


def test_no_draws_are_no_floor(grader, train):
    assert [figure.floor for figure in grader.grade(train[:20].x, draws=0)] == [None, None]


def test_integer_levels_are_graded_like_images(grader, train):
    stored = train.as_levels()[:100].x
    assert grader.grade(stored) == grader.grade(train[:100].x)
    with pytest.raises(Refused, match="with 17 levels"):
        grader.grade(stored + 1)


def test_a_part_of_the_training_images_has_the_same_judge(grader, train):
    """Models of different parts of the data are compared with the same real images."""
    part = Judge.of(train.subset(range(100)), seed=5)
    x = data.load("digits", "test")[:50].x
    assert part.grade(x) == grader.grade(x)
    assert part.copies(x)[0].value > grader.copies(x)[0].value


def test_floors_are_drawn_once_for_each_number_of_samples(train, monkeypatch):
    grader, calls = Judge.of(train), []
    inner = frechet.FrechetDistance.floor

    def floor(self, n, draws):
        calls.append(n)
        return inner(self, n, draws)

    monkeypatch.setattr(frechet.FrechetDistance, "floor", floor)
    first, other = grader.grade(train[:60].x), grader.grade(train[60:120].x)
    assert calls == [60]
    assert first[0].details["floor_draws"] == other[0].details["floor_draws"]
    assert first[0].value != other[0].value


@pytest.mark.slow
def test_nine_modes_are_graded_by_their_modes():
    dataset = data.load("mixture9")
    grader = Judge.of(dataset, seed=2)
    x = dataset.batch(0, 0, 2000).x
    names = ["Share of samples in a mode", "Largest error of a mode's weight"]
    found = grader.grade(x)
    assert [figure.name for figure in found] == [*names, "Sliced Wasserstein distance"]
    assert all(figure.inside_floor for figure in found)
    assert found[0].details["radius"] == 0.12
    assert found[2].details["reference"] == 20_000
    share, weights, distance = grader.grade(0.8 * x)
    assert not share.inside_floor and not distance.inside_floor
    assert weights.inside_floor, "no mode has lost points to another"
    assert grader.copies(x) == []


def test_other_points_are_graded_by_their_distance():
    points = torch.randn(500, 3, generator=torch.Generator().manual_seed(0))
    own = data.ArrayDataset(points, None, levels=None, name="own")
    for dataset in (data.load("swissroll5"), own):
        (found,) = Judge.of(dataset).grade(dataset.batch(1, 0, 300).x)
        assert found.name == "Sliced Wasserstein distance"
        assert found.inside_floor


def test_text_and_sound_have_no_judge():
    with pytest.raises(Refused, match=r"'pydoc', of the shape \(64,\).*bits_per_dim"):
        Judge.of(data.load("pydoc"))


def test_grey_images_without_a_recipe_have_no_judge(train):
    grey = data.ArrayDataset(train.examples, None, levels=17, name="grey")
    with pytest.raises(Refused, match="3 colour channels, not 1"):
        Judge.of(grey)


def test_colour_images_are_graded_on_inception_against_the_training_set(
    colour, tmp_path, monkeypatch
):
    monkeypatch.setenv("DIFFBOOK_CACHE", str(tmp_path))
    calls = []

    def features(x):
        calls.append(len(x))
        return x.flatten(1)

    monkeypatch.setattr(judge, "inception", lambda device: features)
    grader = Judge.of(colour)
    assert calls == [40], "reference features are computed before anything is trained"
    (found,) = grader.grade(colour[:30].x)
    expected = metrics.frechet_distance(colour[:30].x, colour, lambda x: x.flatten(1))
    assert found == expected
    assert grader.copies(colour[:30].x) == []
    assert len(Judge.of(colour, held_out=colour).copies(colour[:30].x)) == 1


def test_features_of_real_images_are_computed_once(colour, tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFBOOK_CACHE", str(tmp_path))
    calls = []

    def features(x):
        calls.append(len(x))
        return x.flatten(1)

    first = judge.real_features(colour, features, "one")
    assert torch.equal(first, colour[:].x.flatten(1))
    assert torch.equal(first, judge.real_features(colour, features, "one"))
    assert calls == [40]
    judge.real_features(colour, features, "two")
    judge.real_features(colour.subset(range(39)), features, "one")
    assert calls == [40, 40, 39]


def test_the_cost_of_grading_is_that_of_the_features():
    convolutions = 64 * 9 * 32 + 64 * 32 * 9 * 32 + 16 * 32 * 9 * 64
    digits = 2 * (convolutions + 64 * 16 * 32 + 32 * 10)
    assert metrics.grading_flops("digits", (1, 8, 8), 1000) == 1000 * digits
    assert metrics.grading_flops("cifar10", (3, 32, 32), 10) == pytest.approx(1.14e11, rel=0.01)
    assert metrics.grading_flops("mixture9", (2,), 1000) == 0


def test_ones_own_images_are_judged_by_pixels_where_there_is_no_inception(monkeypatch):
    """Said in a warning; data of the catalogue are refused instead."""

    def missing(device):
        raise metrics.InceptionMissing("no package")

    monkeypatch.setattr(judge, "inception", missing)
    levels = torch.randint(256, (60, 3, 4, 4), dtype=torch.uint8)
    own = data.ArrayDataset(levels[:40], name=data.OWN, kind="images")
    unseen = data.ArrayDataset(levels[40:], name=data.OWN, kind="images")
    with pytest.warns(UserWarning, match="judged by pixels alone: no package"):
        found = metrics.Judge.of(own, held_out=unseen)
    (distance,) = found.grade(levels[:20])
    assert distance.name == "Sliced Wasserstein distance of pixels" and distance.floor > 0
    assert found.grade(own[:].x)[0].value == 0
    assert found.copies(levels[:20])[0].value == 0
    with pytest.raises(metrics.InceptionMissing):
        metrics.Judge.of(data.ArrayDataset(levels, name="cifar10", kind="images"))
