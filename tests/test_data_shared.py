"""diffbook_lib.data on real files, where a folder with them is at hand.

The folder is the one DIFFBOOK_SHARED_DATA names, else `shared/data` beside the checkout.
"""

import os
import warnings
from pathlib import Path

import pytest
import torch

from diffbook_lib import data
from diffbook_lib.data import ChecksumError, PartialDataWarning, text

BESIDE = Path(__file__).resolve().parents[2] / "shared" / "data"
FOLDER = Path(os.environ.get("DIFFBOOK_SHARED_DATA") or BESIDE)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIFFBOOK_CACHE", str(folder))
        patch.setenv("DIFFBOOK_DATA", str(FOLDER))
        yield folder


def real(name: str, split: str = "train", **options):
    """A data set that is whole: nothing may be warned of."""
    if not (FOLDER / name).is_dir():
        pytest.skip(f"no real {name} in {FOLDER}; DIFFBOOK_SHARED_DATA can name another folder")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return data.load(name, split, **options)


def real_part(name: str, split: str = "train", **options):
    """A data set of which only a part is here: refused unless asked for, then with a warning."""
    if not (FOLDER / name).is_dir():
        pytest.skip(f"no real {name} in {FOLDER}; DIFFBOOK_SHARED_DATA can name another folder")
    with pytest.raises(ChecksumError, match="allow_partial=True"):
        data.load(name, split, **options)
    with pytest.warns(PartialDataWarning) as caught:
        dataset = data.load(name, split, allow_partial=True, **options)
    assert dataset.description in str(caught[0].message)
    return dataset


def counts(dataset) -> list[int]:
    return torch.bincount(dataset.labels).tolist()


def moments(dataset) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel on the scale 0 ... 1."""
    pixels = dataset.examples.transpose(0, 1).flatten(1).double() / 255
    return pixels.mean(1).tolist(), pixels.std(1, correction=0).tolist()


def test_mnist():
    train, test = real("mnist"), real("mnist", "test")
    assert counts(train) == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert counts(test) == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    (mean,), (std,) = moments(train)
    assert mean == pytest.approx(0.13066, abs=1e-5) and std == pytest.approx(0.30811, abs=1e-5)
    assert train[:2].x.mean() == pytest.approx(
        2 * float(train.examples[:2].double().mean()) / 255 - 1
    )


def test_fashion_mnist():
    train, test = real("fashion-mnist"), real("fashion-mnist", "test")
    assert counts(train) == [6000] * 10 and counts(test) == [1000] * 10
    (mean,), (std,) = moments(train)
    assert mean == pytest.approx(0.28604, abs=1e-5) and std == pytest.approx(0.35302, abs=1e-5)


def test_cifar10():
    train, test = real_part("cifar10"), real_part("cifar10", "test")
    assert counts(train) == [396, 366, 420, 384, 422, 393, 414, 385, 407, 413]
    assert counts(test) == [103, 89, 100, 103, 90, 86, 112, 102, 106, 109]
    mean, std = moments(train)
    assert mean == pytest.approx([0.4916, 0.4818, 0.4447], abs=1e-4)
    assert std == pytest.approx([0.2471, 0.2440, 0.2625], abs=1e-4)
    assert train.classes[3] == "cat"
    assert "4,000 of 50,000" in train.description


@pytest.mark.slow
def test_cifar10_jpeg_is_a_copy_of_cifar10():
    copy = real("cifar10-jpeg", "test")
    assert counts(copy) == [1000] * 10 and copy.shape == (3, 32, 32)
    assert "JPEG copy" in copy.description
    original = real_part("cifar10", "test")
    cats = copy.examples[copy.labels == 3].float()
    first = original.examples[original.labels == 3][0].float()
    error = ((cats - first) ** 2).flatten(1).mean(1)
    assert int(error.argmin()) == 0 and error[0] < 200 < error[1:].min()


def test_tiny_imagenet():
    train, test = real_part("tiny-imagenet"), real_part("tiny-imagenet", "test")
    assert counts(train) == [100] * 20 and counts(test) == [50] * 20
    assert train.shape == test.shape == (3, 64, 64) and len(train.classes) == 20


def test_text8():
    sizes = {"splits": (3_600_000, 200_000, 200_000)}
    train, test = real_part("text8", **sizes), real_part("text8", "test", **sizes)
    assert train.size == 14_400 and test.size == 800 and train.shape == (250,)
    assert text.decode(train.examples[0, :40]) == " anarchism originated as a term of abuse"
    assert (train.examples == 0).float().mean() == pytest.approx(0.1692, abs=2e-3)
    assert train.examples.unique().tolist() == list(range(27))


def test_fsdd():
    train, test = real("fsdd"), real("fsdd", "test", rate=16_000)
    assert counts(train) == [270] * 10 and counts(test) == [30] * 10
    assert train.shape == (8_000,) and test.shape == (16_000,)


def test_the_folder_stays_as_it_was():
    if not FOLDER.is_dir():
        pytest.skip(f"no folder {FOLDER}")
    listing = lambda: sorted((str(p), p.stat().st_mtime_ns) for p in FOLDER.rglob("*"))
    before = listing()
    real("mnist", "test")
    real_part("tiny-imagenet", "test")
    with pytest.raises(data.MissingDataError):
        data.load("celeba")
    assert listing() == before
