"""Labelled data sets with other shares of their classes, and examples that a module holds."""

import io

import pytest
import torch
from PIL import Image
from torch import nn

from diffbook_lib import data, exact
from diffbook_lib.data import ArrayDataset, Kept
from diffbook_lib.errors import Refused


def labelled(*counts: int) -> ArrayDataset:
    """These many examples of each class, classes in turn as far as they reach."""
    labels = [c for i in range(max(counts)) for c, n in enumerate(counts) if i < n]
    numbers = torch.arange(len(labels)).view(-1, 1, 1, 1).to(torch.uint8)
    names = tuple(map(str, range(len(counts))))
    return ArrayDataset(numbers, torch.tensor(labels), classes=names, name="mine")


def counts(dataset):
    return [len(rows) for rows in data.class_rows(dataset)]


def test_classes_lose_examples_from_their_end():
    whole = labelled(5, 6, 4)
    found = data.thinned(whole, {1: 2, 2: 0})
    assert counts(found) == [5, 2, 0] and found.classes == whole.classes
    kept = found.examples.flatten()
    assert torch.equal(kept, kept.sort().values), "in stored order"
    ones = whole.examples[data.class_rows(whole)[1][:2]]
    assert torch.equal(found.examples[data.class_rows(found)[1]], ones)
    assert counts(data.of_classes(whole, [0, 2])) == [5, 0, 4]


def test_oversampling_repeats_examples_in_turn():
    found = data.balanced(labelled(7, 3, 0, 2))
    assert counts(found) == [7, 7, 0, 7]
    rows = found.examples[data.class_rows(found)[1]].flatten()
    repeats = rows.unique(return_counts=True)[1]
    assert sorted(repeats.tolist()) == [2, 2, 3]


@pytest.mark.parametrize("most", [{3: 1}, {-1: 1}, {0: 6}, {1: -1}])
def test_classes_that_are_not_there_are_refused(most):
    with pytest.raises(Refused, match=r"the classes have \{0: 5, 1: 6, 2: 4\}"):
        data.thinned(labelled(5, 6, 4), most)


def test_a_choice_of_nothing_is_refused():
    with pytest.raises(Refused, match="no example of mine is left"):
        data.of_classes(labelled(2, 2), [])
    with pytest.raises(Refused, match="has no labels"):
        data.balanced(ArrayDataset(torch.zeros(3, 1, 1, 1).byte()))


def test_corners_are_four_equal_modes():
    found, world = data.load("corners"), exact.GaussianMixture.corners()
    assert counts(found) == [8000] * 4 and found.shape == (2,)
    for rows, mean in zip(data.class_rows(found), world.means, strict=True):
        points = found.examples[rows]
        torch.testing.assert_close(points.mean(0).double(), mean, rtol=0, atol=0.01)
        torch.testing.assert_close(points.std(0), torch.full((2,), 0.2), rtol=0.05, atol=0)
    unseen = data.load("corners", "test")
    assert not torch.equal(unseen.examples, found.examples)


def test_a_mixture_answers_for_one_mode_where_the_label_is_known():
    world = exact.GaussianMixture.corners(weights=torch.tensor([1.0, 2, 3, 4]))
    x, sigma = torch.randn(5, 2), torch.tensor([0.1, 0.5, 1, 3, 9])
    for c in range(4):
        alone = exact.Gaussian(world.means[c], world.covariances[c])
        found = world(x, sigma, torch.full((5,), c))
        torch.testing.assert_close(found, alone(x, sigma))
    assert not torch.allclose(world(x, sigma), found)


class Holder(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("examples", torch.zeros(6, 2))


def test_kept_examples_are_what_was_loaded_last():
    holder = Holder()
    kept = Kept(holder, "examples", None)
    assert (kept.batch(0, 0, 4).x == 0).all() and (kept.shape, kept.size) == ((2,), 6)
    held = torch.randn(6, 2)
    holder.load_state_dict({"examples": held})
    plain = data.from_tensor(held, None, "examples", "")
    for step in range(3):
        assert torch.equal(kept.batch(1, step, 4, 1, 3).x, plain.batch(1, step, 4, 1, 3).x)
    assert kept.to("meta") is kept
    holder.to("meta")
    assert kept.batch(0, 0, 2).x.device.type == "meta"


def test_imagenette_is_read_from_the_users_copy(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFBOOK_DATA", str(tmp_path))
    monkeypatch.setenv("DIFFBOOK_CACHE", str(tmp_path / "cache"))
    with pytest.raises(data.MissingDataError, match="imagenette2-320"):
        data.load("imagenette")
    for part, n in (("train", 3), ("val", 2)):
        for c in range(10):
            place = tmp_path / "imagenette" / "imagenette2-320" / part / f"n{c:08d}"
            place.mkdir(parents=True)
            for i in range(n):
                out = io.BytesIO()
                Image.new("RGB", (40, 30), (20 * c, i, 0)).save(out, "JPEG")
                (place / f"{i}.JPEG").write_bytes(out.getvalue())
    train, test = (data.load("imagenette", split, size=16) for split in ("train", "test"))
    assert counts(train) == [3] * 10 and counts(test) == [2] * 10
    assert train.classes[1] == "English springer" and train.shape == (3, 16, 16)
    assert "30 of 9,469" in train.description
