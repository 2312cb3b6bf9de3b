"""Measures against closed forms, scipy, and what real data of the same count give."""

import numpy as np
import pytest
import scipy.linalg
import torch

from diffbook_lib import data, metrics, rng
from diffbook_lib.errors import Failed, Refused
from diffbook_lib.metrics import Recipe
from diffbook_lib.metrics.frechet import gaussian_distance


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIFFBOOK_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def digits():
    return data.load("digits", "all")


@pytest.fixture(scope="module")
def net(cache):
    return metrics.classifier("digits")


def normal(*shape, seed=0, dtype=torch.float64):
    return rng.normal(shape, rng.generator(seed, "test"), dtype)


def some(dataset, n, seed=0):
    return dataset[rng.integers(len(dataset), (n,), rng.generator(seed, "some"))].x


def flat(x):
    """Pixels as features."""
    return x.flatten(1)


# Fréchet distance


def test_frechet_is_scipys_matrix_square_root():
    mix = normal(12, 12, seed=1)
    x, y = normal(300, 12), normal(200, 12, seed=2) @ mix + 0.3
    a, b = np.cov(x.numpy().T), np.cov(y.numpy().T)
    shift = x.mean(0).numpy() - y.mean(0).numpy()
    root = scipy.linalg.sqrtm(a @ b).real
    assert gaussian_distance(x, y) == pytest.approx(
        shift @ shift + np.trace(a + b - 2 * root), rel=1e-9
    )


def test_frechet_of_fitted_gaussians_has_its_closed_form():
    """Clouds with exactly the moments of N(0, diag(s^2)) and N(m, diag(t^2))."""
    white = normal(500, 4)
    white = white - white.mean(0)
    white = torch.linalg.solve_triangular(
        torch.linalg.cholesky(white.T.cov()), white.T, upper=False
    ).T
    s, t = torch.tensor([1.0, 2, 3, 0.5]).double(), torch.tensor([2.0, 2, 1, 0.1]).double()
    m = torch.tensor([0.5, -1, 0, 2]).double()
    expected = (m**2).sum() + ((s - t) ** 2).sum()
    assert gaussian_distance(white * s, white * t + m) == pytest.approx(expected.item(), rel=1e-9)
    assert gaussian_distance(white * s, white * s) == pytest.approx(0, abs=1e-7)


def test_frechet_keeps_float64_where_float32_would_fail():
    x = 1e4 + normal(400, 3)
    assert gaussian_distance(x, x + 0.01) == pytest.approx(3e-4, rel=1e-3)


def test_frechet_distance_does_not_depend_on_chunks(digits, monkeypatch):
    samples = some(digits, 40)
    whole = metrics.frechet_distance(samples, digits, flat)
    monkeypatch.setattr("diffbook_lib.metrics.inputs.CHUNK", 7)
    assert metrics.frechet_distance(samples, digits, flat) == whole
    assert whole.details["reference"] == 1797
    assert whole.details["features"] == 64


def test_the_floor_falls_with_the_number_of_samples(digits):
    """Its excess goes with 1/n + 1/m; the reference has m = 1,797 images."""
    floors = {}
    for n in (500, 2000, 5000):
        result = metrics.frechet_distance(some(digits, n), digits, flat)
        floors[n] = result.floor / (1 / n + 1 / 1797)
        assert len(result.details["floor_draws"]) == 10
    assert floors[2000] == pytest.approx(floors[500], rel=0.1)
    assert floors[5000] == pytest.approx(floors[500], rel=0.1)


@pytest.mark.slow
def test_what_is_no_digit_lies_far_above_the_floor(net, digits):
    mean, root = digits[:].x.mean(0), digits[:].x.flatten(1).T.cov()
    root = torch.linalg.cholesky(root.double() + 1e-6 * torch.eye(64))
    gaussian = (normal(2000, 64) @ root.T).view(-1, 1, 8, 8).float() + mean
    white = normal(2000, 1, 8, 8, seed=1).float()
    distances = [metrics.frechet_distance(x, digits, net.features) for x in (gaussian, white)]
    assert distances[0].value > 10 * distances[0].floor_range[1]
    assert distances[1].value > 2 * distances[0].value
    assert metrics.sure_share(gaussian, net, digits).value < 0.8


def test_the_floor_is_keyed_by_the_seed(digits):
    samples = some(digits, 50)
    one, again, other = (
        metrics.frechet_distance(samples, digits, flat, seed=seed) for seed in (1, 1, 2)
    )
    assert one == again
    assert one.value == other.value
    assert one.details["floor_draws"] != other.details["floor_draws"]


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (torch.zeros(1, 1, 8, 8), "draw more"),
        (torch.zeros(0, 1, 8, 8), "draw more"),
        (torch.full((5, 1, 8, 8), torch.nan), r"5 of 5 images .* diverged"),
        (torch.zeros(5, 1, 8, 8).index_fill(0, torch.tensor([2]), torch.inf), "1 of 5 images"),
        (torch.zeros(5, 64), r"\(5, 64\); it must be \(n, 1, 8, 8\)"),
        (torch.zeros(5, 3, 8, 8), r"must be \(n, 1, 8, 8\)"),
        (torch.full((5, 1, 8, 8), 17), r"levels 17 to 17; with 17 .* in 0 \.\.\. 16"),
        (torch.full((5, 1, 8, 8), -1), "levels -1 to -1"),
    ],
)
def test_broken_samples_are_refused(samples, message, digits):
    with pytest.raises((Refused, Failed), match=message):
        metrics.frechet_distance(samples, digits, flat)


def test_integer_levels_are_images(net, digits):
    levels = digits.examples[:50]
    x = data.to_unit(levels, 17)
    held_out, train = data.load("digits", "test"), data.load("digits")
    for kind in (torch.uint8, torch.int64):
        stored = levels.to(kind)
        for measure in (
            lambda x: metrics.frechet_distance(x, digits, net.features),
            lambda x: metrics.sure_share(x, net, held_out),
            lambda x: metrics.nearest_distance(x, train, held_out),
            lambda x: metrics.frechet_distance(x, digits.as_levels(), net.features),
        ):
            assert measure(stored) == measure(x)
        counts = metrics.class_histogram(stored, net, levels=17)
        assert torch.equal(counts, metrics.class_histogram(x, net))
    with pytest.raises(Refused, match="pass levels, such as levels=256"):
        metrics.class_histogram(levels, net)


def test_broken_features_are_refused(digits):
    with pytest.raises(ValueError, match="flatten"):
        metrics.frechet_distance(some(digits, 5), digits, lambda x: x)
    with pytest.raises(Failed, match="features hold values that are not finite"):
        metrics.frechet_distance(some(digits, 5), digits, lambda x: flat(x) * torch.nan)


# Classifier


def test_the_classifier_knows_unseen_digits(net):
    test = data.load("digits", "test")
    with torch.no_grad():
        right = (net(test[:].x).argmax(1) == test.labels).double().mean().item()
    assert net.accuracy == right >= 0.97
    assert net.features(test[:3].x).shape == (3, 32)
    assert not net.training


def test_the_classifier_comes_from_the_cache(net, cache, monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError("trained again")

    monkeypatch.setattr("diffbook_lib.metrics.classifiers.train_classifier", never)
    again = metrics.classifier("digits")
    assert again.accuracy == net.accuracy
    for name, weight in again.state_dict().items():
        assert torch.equal(weight, net.state_dict()[name])
    assert not [path for path in cache.rglob("*") if path.is_file() and path.suffix == ".tmp"]


@pytest.fixture
def small():
    train = data.load("digits").subset(range(200))
    return train, data.load("digits", "test"), Recipe(epochs=1, batch=50)


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_training_is_keyed_by_the_seed(small):
    one, again, other = (metrics.train_classifier(*small, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one.head.weight, again.head.weight)
    assert not torch.equal(one.head.weight, other.head.weight)


def test_the_cache_knows_data_recipe_and_seed(small, tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFBOOK_CACHE", str(tmp_path))
    train, test, recipe = small
    metrics.cached_classifier(train, test, recipe)
    metrics.cached_classifier(train, test, recipe)
    assert len(files(tmp_path)) == 1
    metrics.cached_classifier(train, test, recipe, seed=1)
    metrics.cached_classifier(train, test, Recipe(epochs=1, batch=50, version=2))
    metrics.cached_classifier(train.subset(range(100)), test, recipe)
    assert len(files(tmp_path)) == 4


@pytest.mark.parametrize("damage", ["cut", "empty"])
def test_a_damaged_cache_is_reported_and_the_classifier_trained_anew(
    damage, small, tmp_path, monkeypatch
):
    monkeypatch.setenv("DIFFBOOK_CACHE", str(tmp_path))
    first = metrics.cached_classifier(*small)
    (file,) = files(tmp_path)
    file.write_bytes({"cut": file.read_bytes()[:-9], "empty": b""}[damage])
    with pytest.warns(UserWarning, match="is made anew"):
        second = metrics.cached_classifier(*small)
    assert torch.equal(first.head.weight, second.head.weight)
    assert metrics.cached_classifier(*small).accuracy == first.accuracy == second.accuracy


def test_a_cache_that_cannot_be_written_is_no_obstacle(small, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("DIFFBOOK_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="not kept for the next start"):
        assert metrics.cached_classifier(*small).accuracy > 0


def test_larger_images_have_a_classifier_too():
    net = metrics.Classifier((1, 28, 28), tuple("0123456789"))
    assert net(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    assert net.features(torch.zeros(2, 1, 28, 28)).shape == (2, 32)


def test_unknown_and_unlabelled_data_have_no_classifier(small):
    with pytest.raises(ValueError, match="digits, mnist, fashion-mnist"):
        metrics.classifier("cifar10")
    train, test, recipe = small
    unlabelled = data.ArrayDataset(train.examples, None, levels=17, name="bare")
    with pytest.raises(ValueError, match="'bare' has no labels"):
        metrics.cached_classifier(unlabelled, test, recipe)


def test_the_classifier_is_sure_of_real_digits(net, digits):
    test = data.load("digits", "test")
    result = metrics.sure_share(test[:].x, net, digits)
    with torch.no_grad():
        sure = net(test[:].x).softmax(1).amax(1) > 0.9
        real = net(digits[:].x).softmax(1).amax(1) > 0.9
    assert result.value == sure.double().mean().item() > 0.93
    assert result.details["real_share"] == real.double().mean().item() > 0.98
    low, high = result.floor_range
    assert low <= result.details["real_share"] <= high
    lower = metrics.sure_share(test[:].x, net, digits, threshold=0.5)
    assert lower.value >= result.value


def test_the_class_histogram_counts_every_sample(net):
    test = data.load("digits", "test")
    counts = metrics.class_histogram(test[:].x, net)
    truth = torch.bincount(test.labels, minlength=10)
    assert counts.sum() == len(test)
    assert (counts - truth).abs().max() <= 5
