"""Measures against closed forms, scipy, and what real data of the same count give."""

import json
import math
from importlib.util import find_spec

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch

from diffbook_lib import checkpoint, data, metrics, records, rng
from diffbook_lib.exact import GaussianMixture
from diffbook_lib.metrics import Measurement, Recipe
from diffbook_lib.metrics.clouds import wasserstein_1d
from diffbook_lib.metrics.frechet import gaussian_distance
from diffbook_lib.metrics.measurement import measured


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


# Measurement


def test_a_measurement_says_what_it_was_measured_on():
    result = measured("Fréchet distance", 4.31, 2000, 0, [2.93, 3.4, 3.68])
    assert str(result) == "Fréchet distance 4.3 (n = 2000, floor 2.9–3.7, seed 0)"
    assert result.floor == pytest.approx((2.93 + 3.4 + 3.68) / 3)
    assert not result.inside_floor
    assert str(measured("Bits", 3.2071, 100, standard_error=0.021)) == "Bits 3.21 ± 0.02 (n = 100)"


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
    result = measured("Measure", value, 10, 0, [2.0, 3.0], better)
    assert str(result).endswith(verdict)
    assert result.inside_floor == verdict.startswith(",")


def test_a_record_takes_a_measurement():
    result = measured("Fréchet distance", 4.3, 2000, 1, [2.9, 3.7], reference=1797)
    kept = records.Metric.model_validate(result)
    assert kept == records.Metric.model_validate(json.loads(json.dumps(result.to_dict())))
    assert (kept.value, kept.samples, kept.seed, kept.floor) == (4.3, 2000, 1, 3.3)
    assert kept.details == {"reference": 1797, "floor_draws": [2.9, 3.7]}


def test_no_floor_is_no_verdict():
    result = Measurement("Measure", 0.0, 2)
    assert result.floor_range is None
    assert not result.inside_floor


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


def test_the_floor_falls_with_the_number_of_samples(net, digits):
    floors = {}
    for n in (500, 2000, 5000):
        result = metrics.frechet_distance(some(digits, n), digits, net.features)
        floors[n] = result.floor
        assert result.value < 2 * result.floor_range[1], "real digits are near the floor"
    assert 5 < floors[500] < 25
    assert 1 < floors[2000] < 7
    assert floors[500] > floors[2000] > floors[5000] > 0


def test_what_is_no_digit_lies_far_above_the_floor(net, digits):
    mean, root = digits[:].x.mean(0), digits[:].x.flatten(1).T.cov()
    root = torch.linalg.cholesky(root.double() + 1e-6 * torch.eye(64))
    gaussian = (normal(2000, 64) @ root.T).view(-1, 1, 8, 8).float() + mean
    white = normal(2000, 1, 8, 8, seed=1).float()
    distances = [metrics.frechet_distance(x, digits, net.features) for x in (gaussian, white)]
    assert distances[0].value > 20 * distances[0].floor_range[1]
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
        (torch.zeros(5, 1, 8, 8, dtype=torch.uint8), "to_unit"),
    ],
)
def test_broken_samples_are_refused(samples, message, digits):
    with pytest.raises(ValueError, match=message):
        metrics.frechet_distance(samples, digits, flat)


def test_broken_features_are_refused(digits):
    with pytest.raises(ValueError, match="flatten"):
        metrics.frechet_distance(some(digits, 5), digits, lambda x: x)
    with pytest.raises(ValueError, match="features hold values that are not finite"):
        metrics.frechet_distance(some(digits, 5), digits, lambda x: flat(x) * torch.nan)


@pytest.mark.skipif(find_spec("torch_fidelity") is not None, reason="torch-fidelity is installed")
def test_inception_without_its_package_says_what_to_install():
    with pytest.raises(metrics.InceptionMissing, match=r"pip install 'diffbook_lib\[inception\]'"):
        metrics.inception()


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


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_a_damaged_cache_is_reported_and_the_classifier_trained_anew(
    damage, small, tmp_path, monkeypatch
):
    monkeypatch.setenv("DIFFBOOK_CACHE", str(tmp_path))
    first = metrics.cached_classifier(*small)
    (file,) = files(tmp_path)
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes({"cut": content[:-9], "flipped": content, "empty": b""}[damage])
    with pytest.warns(UserWarning, match="training this classifier anew"):
        second = metrics.cached_classifier(*small)
    assert torch.equal(first.head.weight, second.head.weight)
    assert checkpoint.load(file).info == {"accuracy": first.accuracy}


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
    unlabelled = data.ArrayDataset(train.images, None, levels=17, name="bare")
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


# Point clouds


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
    with pytest.raises(ValueError, match="1 of 5 points"):
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
    true = metrics.mode_weight_error(x, means, weights=counts)
    assert true.value == pytest.approx(0)
    assert true.inside_floor
    assert 0 < true.floor < 0.05


def test_copies_lie_nearer_to_the_training_images_than_unseen_digits():
    train, test = data.load("digits"), data.load("digits", "test")
    unseen = metrics.nearest_distance(test[:].x, train, test)
    assert unseen.value == pytest.approx(2.09, abs=0.1)
    assert unseen.inside_floor
    copies = metrics.nearest_distance(train[:100].x, train, test)
    assert copies.value == pytest.approx(0, abs=1e-5)
    assert not copies.inside_floor


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
    x = metrics.dequantise(stored[:, None], source, levels)
    log_density = torch.distributions.Normal(0, sigma).log_prob(x)[:, 0]
    result = metrics.bits_per_dim(log_density, 1, levels, seed=0)
    assert result.value == pytest.approx(entropy, abs=4 * result.details["standard_error"])


def test_discrete_probabilities_need_no_change_of_variables():
    assert metrics.bits(torch.tensor([-64 * math.log(17)]), 64, levels=None).item() == (
        pytest.approx(math.log2(17))
    )


@pytest.mark.parametrize("levels", [17, 256])
def test_dequantised_levels_fill_their_bins(levels):
    stored = torch.arange(levels, dtype=torch.uint8).repeat(400, 1)
    x = metrics.dequantise(stored, rng.generator(0, "dequantise"), levels)
    assert x.dtype == torch.float32
    offsets = (x - data.to_unit(stored, levels)) * (levels - 1) / 2
    assert -0.5001 <= offsets.min() < -0.499 and 0.499 < offsets.max() <= 0.5001
    assert offsets.mean().abs() < 4 / math.sqrt(12 * offsets.numel())
    assert (data.to_levels(x, levels) == stored).double().mean() > 0.9999


def test_dequantise_and_bits_refuse_what_has_no_levels():
    with pytest.raises(ValueError, match="integer levels"):
        metrics.dequantise(torch.zeros(2, 3), rng.generator(0, "x"))
    with pytest.raises(ValueError, match="levels is 1"):
        metrics.bits(torch.zeros(2), 3, levels=1)
    with pytest.raises(ValueError, match="log densities"):
        metrics.bits_per_dim(torch.tensor([0.0, torch.nan]), 3)
