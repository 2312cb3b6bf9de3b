"""diffbook_lib.data: batches by key, the catalogue, built-in data sets."""

import math
from collections import Counter
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffbook_lib import data, exact, rng
from diffbook_lib.data import ArrayDataset, SampledDataset, text, to_levels, to_unit
from diffbook_lib.errors import Refused


def numbered(n: int, **options) -> ArrayDataset:
    """n one-pixel images that hold their own number, modulo 256; it is also their label."""
    number = torch.arange(n)
    return ArrayDataset(number.view(n, 1, 1, 1).to(torch.uint8), number, **options)


# --- batches -------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_any_split_of_a_batch_gives_the_same_rows(data):
    """Shares of any sizes put together are the batch, also across epochs and with mirroring."""
    n, total = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 60))
    seed, step = data.draw(st.integers(0, 5)), data.draw(st.integers(0, 50))
    cuts = data.draw(st.sets(st.integers(1, total - 1)) if total > 1 else st.just(set()))
    dataset = ArrayDataset(torch.arange(2 * n, dtype=torch.uint8).view(n, 1, 1, 2), flip=True)
    whole = dataset.batch(seed, step, total).x
    edges = [0, *sorted(cuts), total]
    shares = [dataset.batch(seed, step, total, a, b).x for a, b in pairwise(edges)]
    assert torch.equal(torch.cat(shares), whole)
    assert torch.equal(dataset.batch(seed, step, total, 0, total).x, whole)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 30), st.integers(1, 50), st.integers(0, 3))
def test_every_epoch_shows_every_example_once_in_its_own_order(n, total, seed):
    dataset = numbered(n)
    steps = math.ceil(3 * n / total)
    stream = torch.cat([dataset.batch(seed, k, total).label for k in range(steps)])
    for epoch in range(3):
        expected = rng.permutation(n, seed, "order", epoch)
        assert torch.equal(stream[epoch * n : (epoch + 1) * n], expected)


def test_every_epoch_has_its_own_order():
    dataset = numbered(40)
    first, second = (dataset.batch(0, k, 40).label for k in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(first.sort().values, second.sort().values)
    assert not torch.equal(first, torch.arange(40))


def test_batches_do_not_depend_on_what_was_asked_before():
    fresh, used = numbered(10), numbered(10)
    for step in (7, 0, 100, 3):
        used.batch(0, step, 4)
    assert torch.equal(fresh.batch(0, 3, 4).x, used.batch(0, 3, 4).x)
    assert not torch.equal(fresh.batch(1, 3, 10).x, used.batch(0, 3, 10).x)


def test_mirroring_is_fair_new_each_epoch_and_the_same_for_every_batch_size():
    images = torch.tensor([0, 255], dtype=torch.uint8).expand(500, 1, 1, 2)
    dataset = ArrayDataset(images, flip=True)
    first, second = (dataset.batch(0, k, 500).x[:, 0, 0, 0] > 0 for k in range(2))
    assert 200 < first.sum() < 300
    assert not torch.equal(first, second)
    small = torch.cat([dataset.batch(0, k, 100).x for k in range(5)])[:, 0, 0, 0] > 0
    assert torch.equal(small, first)
    assert torch.equal(dataset[:].x, to_unit(images, 256)), "stored examples are never mirrored"


@pytest.mark.parametrize("rows", [(-1, 4), (0, 9), (4, 4), (5, 4)])
def test_rows_outside_the_batch_are_refused(rows):
    stream = SampledDataset(lambda n, g: torch.randn(n, 2, generator=g), (2,))
    for dataset in (numbered(10), stream):
        with pytest.raises(ValueError, match=r"rows .* of batch 0 of 8"):
            dataset.batch(0, 0, 8, *rows)
        with pytest.raises(ValueError, match="batch -1"):
            dataset.batch(0, -1, 8)


def test_levels_become_the_unit_interval_and_come_back():
    for count, dtype in ((17, torch.uint8), (256, torch.uint8), (2**16, torch.int32)):
        levels = torch.arange(count).to(dtype)
        x = to_unit(levels, count)
        assert x.dtype == torch.float32
        assert (x[0], x[-1]) == (-1, 1)
        assert torch.equal(to_levels(x, count), levels.to(torch.int64))
    assert to_levels(torch.tensor([-3.0, 3.0]), 256).tolist() == [0, 255]


def test_stored_types():
    sound = ArrayDataset(torch.tensor([[-(2**15), 2**15 - 1]], dtype=torch.int16), levels=2**16)
    assert sound[:].x.tolist() == [[-1, 1]]
    assert sound.as_levels()[:].x.tolist() == [[0, 2**16 - 1]]
    floats = torch.randn(3, 2, dtype=torch.float64)
    assert torch.equal(ArrayDataset(floats, levels=None)[:].x, floats.float())
    assert numbered(3).as_levels().batch(0, 0, 2).x.dtype == torch.int64
    with pytest.raises(ValueError, match="floating-point data None"):
        ArrayDataset(floats)
    with pytest.raises(ValueError, match="no examples"):
        ArrayDataset(floats[:0], levels=None)
    with pytest.raises(ValueError, match="2 labels for 3"):
        ArrayDataset(floats, torch.zeros(2), levels=None)


def test_to_moves_all_of_it():
    dataset = numbered(10, classes=tuple("0123456789"))
    moved = dataset.to("meta")
    assert moved.examples.device.type == moved.labels.device.type == "meta"
    assert moved.batch(0, 0, 4).x.shape == (4, 1, 1, 1) and moved.classes == dataset.classes


def test_a_batch_of_three_and_a_half_epochs_holds_every_example_three_or_four_times():
    dataset = numbered(10)
    counts = torch.bincount(dataset.batch(0, 0, 35).label, minlength=10)
    assert sorted(counts.tolist()) == [3] * 5 + [4] * 5
    counts += torch.bincount(dataset.batch(0, 1, 35).label, minlength=10)
    assert counts.tolist() == [7] * 10


# --- dequantisation ------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [17, 256])
def test_dequantised_levels_fill_their_bins(levels):
    stored = torch.arange(levels, dtype=torch.uint8).repeat(400, 1)
    x = data.dequantise(stored, rng.generator(0, "dequantise"), levels)
    assert x.dtype == torch.float32
    offsets = (x - to_unit(stored, levels)) * (levels - 1) / 2
    assert -0.5001 <= offsets.min() < -0.499 and 0.499 < offsets.max() <= 0.5001
    assert offsets.mean().abs() < 4 / math.sqrt(12 * offsets.numel())
    assert (to_levels(x, levels) == stored).double().mean() > 0.9999


def test_only_levels_can_be_dequantised():
    with pytest.raises(ValueError, match="integer levels"):
        data.dequantise(torch.zeros(2, 3), rng.generator(0, "x"))
    for wrong in ({"levels": None}, {"levels": 27, "discrete": True}):
        values = torch.zeros(2, 3) if wrong["levels"] is None else torch.zeros(2, 3).byte()
        with pytest.raises(ValueError, match="only levels"):
            ArrayDataset(values, dequantise=True, **wrong)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 30), st.integers(0, 9), st.sets(st.integers(1, 29)))
def test_dequantised_rows_of_any_share_are_those_of_the_whole(total, step, cuts):
    dataset = ArrayDataset(torch.arange(40).byte().view(10, 1, 2, 2), dequantise=True, flip=True)
    whole = dataset.batch(3, step, total).x
    edges = [0, *sorted(cut for cut in cuts if cut < total), total]
    shares = [dataset.batch(3, step, total, a, b).x for a, b in pairwise(edges)]
    assert torch.equal(torch.cat(shares), whole)


def test_dequantisation_is_keyed_by_the_step_and_keeps_the_levels():
    levels = torch.arange(17, dtype=torch.uint8).repeat(40, 1).view(40, 17)
    plain = ArrayDataset(levels, levels=17)
    spread = ArrayDataset(levels, levels=17, dequantise=True)
    first, second = spread.batch(0, 0, 40).x, spread.batch(0, 1, 40).x
    assert not torch.equal(first, second)
    noise = rng.generator(0, "dequantise", 1)
    assert torch.equal(second, data.dequantise(levels, noise, 17))
    assert torch.equal(to_levels(first, 17), levels.long())
    assert not torch.equal(first, spread.batch(1, 0, 40).x)
    for rows in (slice(None), slice(2, 5)):
        assert torch.equal(spread[rows].x, plain[rows].x), "stored examples are exact"
    assert torch.equal(spread.as_levels().batch(0, 0, 40).x, levels.long())


def test_dequantised_sound_stays_within_half_a_bin():
    samples = torch.tensor([[-(2**15), 0, 2**15 - 1]], dtype=torch.int16)
    sound = ArrayDataset(samples, levels=2**16, kind="sound", dequantise=True)
    offsets = (sound.batch(0, 0, 1).x - sound[:].x) * (2**16 - 1) / 2
    assert 0 < offsets.abs().max() <= 0.51


@pytest.mark.parametrize("kind", ["points", "text", "sound"])
def test_only_images_are_mirrored(kind):
    with pytest.raises(ValueError, match=f"{kind} have no left and right"):
        ArrayDataset(torch.zeros(2, 4).byte(), kind=kind, flip=True)


# --- parts and tensors ---------------------------------------------------------------------


def test_a_subset_says_what_it_is_part_of():
    dataset = numbered(1500, description="small digits, train", flip=True)
    part = dataset.subset([7, 2, 2])
    assert part.labels.tolist() == part.examples.flatten().tolist() == [7, 2, 2]
    assert (part.size, part.shape, part.flip) == (3, (1, 1, 1), True)
    assert part.description == "3 of 1,500 images of small digits, train"
    first = dataset.first(250)
    assert first.labels.tolist() == list(range(250))
    assert first.description == "the first 250 of 1,500 images of small digits, train"
    for n in (0, 1501):
        with pytest.raises(Refused, match=r"take between 1 and 1,500"):
            dataset.first(n)


@pytest.mark.parametrize("n", [2, 9, 1500])
def test_halves_are_disjoint_and_together_everything(n):
    dataset = numbered(n, description="digits")
    one, other = dataset.halves(3)
    assert (one.size, other.size) == (n // 2, n - n // 2)
    assert sorted([*one.labels.tolist(), *other.labels.tolist()]) == list(range(n))
    assert one.labels.tolist() == sorted(one.labels.tolist())
    again, _ = dataset.halves(3)
    assert torch.equal(again.labels, one.labels)
    assert one.description.startswith("random half 1 (seed 3):")
    assert one.description != other.description
    if n == 1500:
        assert 300 < (one.labels < 750).sum() < 450, "chosen at random"
        assert not torch.equal(dataset.halves(4)[0].labels, one.labels)


def test_samples_at_hand_are_a_data_set():
    levels = torch.randint(17, (20, 1, 4, 4), generator=torch.Generator().manual_seed(0))
    images = data.from_tensor(to_unit(levels, 17) + 0.01, 17, "samples", "20 samples of a run")
    assert images.examples.dtype == torch.uint8 and images.kind == "images"
    assert torch.equal(images.as_levels()[:].x, levels)
    assert images.description == "20 samples of a run"
    points = data.from_tensor(torch.randn(5, 2), None, "p", "points", torch.arange(5))
    assert points.kind == "points" and points.labels.tolist() == list(range(5))
    wide = data.from_tensor(torch.tensor([[0, 999]]), 1000, "w", "")
    assert wide.as_levels()[:].x.tolist() == [[0, 999]]


# --- built-in data sets --------------------------------------------------------------------


def test_digits():
    train, test, every = (data.load("digits", split) for split in ("train", "test", "all"))
    assert (train.size, test.size, every.size) == (1500, 297, 1797)
    assert train.shape == (1, 8, 8) and train.levels == 17
    assert train.examples.dtype == torch.uint8 and int(train.examples.max()) == 16
    assert torch.equal(torch.cat([train.examples, test.examples]), every.examples)
    values = train[:].x.unique()
    assert torch.equal(values, torch.arange(17) / 8 - 1)
    assert sum(Counter(every.labels.tolist()).values()) == 1797
    assert every[:].x.mean() == pytest.approx(-0.390, abs=0.002)
    assert every[:].x.std() == pytest.approx(0.752, abs=0.002)
    again = data.load("digits")
    assert torch.equal(again.examples, train.examples), "the division is fixed"


def test_mixture9_has_nine_equal_modes_of_the_stated_width():
    dataset = data.load("mixture9")
    assert dataset.size == math.inf and dataset.shape == (2,)
    x = dataset.batch(0, 0, 45_000).x
    means = exact.GaussianMixture.grid().means
    assert means.norm(dim=1).sort().values.tolist() == pytest.approx(
        [0, *[0.5] * 4, *[math.sqrt(0.5)] * 4]
    )
    distance, mode = torch.cdist(x.double(), means).min(dim=1)
    assert torch.bincount(mode, minlength=9).tolist() == pytest.approx([5000] * 9, abs=300)
    assert (distance**2).mean().sqrt() == pytest.approx(math.sqrt(2) * 0.04, rel=0.01)


def test_swissroll5_against_scikit_learn():
    from sklearn.datasets import make_swiss_roll

    x = data.load("swissroll5").batch(0, 0, 50_000).x
    corners = torch.tensor([(0, 0), (0.8, 0.8), (0.8, -0.8), (-0.8, 0.8), (-0.8, -0.8)])
    distance, which = torch.cdist(x, corners).min(dim=1)
    assert torch.bincount(which).tolist() == pytest.approx([10_000] * 5, abs=400)
    roll = torch.from_numpy(make_swiss_roll(50_000, noise=0.2, random_state=0)[0][:, [0, 2]])
    levels = torch.linspace(0.01, 0.99, 50)
    ours = distance.double().quantile(levels.double())
    theirs = (0.01 * roll).norm(dim=1).quantile(levels.double())
    assert (ours - theirs).abs().max() < 0.002


def test_streams_are_keyed_and_shared():
    train, test = data.load("swissroll5"), data.load("swissroll5", "test")
    whole = train.batch(3, 5, 10)
    parts = [train.batch(3, 5, 10, 0, 4).x, train.batch(3, 5, 10, 4, 10).x]
    assert torch.equal(torch.cat(parts), whole.x) and whole.label is None
    assert not torch.equal(train.batch(3, 6, 10).x, whole.x)
    assert not torch.equal(test.batch(3, 5, 10).x, whole.x)


def test_pydoc_text():
    train, valid = data.load("pydoc", length=100), data.load("pydoc", "valid", length=100)
    assert train.shape == (100,) and train.levels == 27 and train.size > 1000
    x = train.batch(0, 0, 8).x
    assert x.dtype == torch.int64 and x.min() >= 0 and x.max() <= 26
    words = text.decode(train.examples.flatten()).split()
    assert words.count("the") > 1000
    assert 0.04 < valid.size / train.size < 0.07
    with pytest.raises(ValueError, match="length is 0"):
        data.load("pydoc", length=0)


def test_symbols_and_letters():
    assert text.encode(" az").tolist() == [0, 1, 26]
    assert text.decode(text.encode("hello there")) == "hello there"
    assert text.clean("  It's 3 o'Clock,\n naïve\tÉ") == "it s o clock na ve"
    for wrong in ("A", "a1", "é", "a\nb", "`", "{"):
        with pytest.raises(ValueError, match="neither a-z nor a space"):
            text.encode(wrong)


# --- the catalogue -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("digit",), "unknown data set 'digit'; did you mean 'digits'"),
        (("digits", "valid"), "unknown split of digits 'valid'.*train, test, all"),
        ((("../digits"),), "unknown data set"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(arguments, message):
    with pytest.raises(Refused, match=message):
        data.load(*arguments)


def test_unknown_options_are_refused():
    with pytest.raises(ValueError, match="unknown option of pydoc 'lenght'; did you mean 'length'"):
        data.load("pydoc", lenght=3)
    with pytest.raises(ValueError, match=r"unknown option of digits 'size'.*known: none"):
        data.load("digits", size=8)
