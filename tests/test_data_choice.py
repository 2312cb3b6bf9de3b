"""diffbook_lib.data: what is known without loading, and the data a specification names."""

from types import SimpleNamespace

import pytest
import torch

from diffbook_lib import data
from diffbook_lib.data import CATALOGUE, DataError
from diffbook_lib.errors import Refused


@pytest.fixture(autouse=True)
def nothing_at_hand(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFBOOK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("DIFFBOOK_DATA", str(tmp_path / "data"))


def spec(dataset: str, **values) -> SimpleNamespace:
    """A specification with the fields runs have, all of them not set."""
    unset = {"allow_partial": False, "path": "", "size": 0, "data_hash": "", "flip": False}
    return SimpleNamespace(**{"dataset": dataset, **unset, "dequantise": False, **values})


# --- known without loading -----------------------------------------------------------------


@pytest.mark.parametrize("name", ["digits", "pydoc"])
def test_what_is_known_is_what_is_loaded(name):
    about, dataset = data.describe(name), data.load(name)
    assert about.shape == dataset.shape and about.levels == dataset.levels
    assert about.kind == dataset.kind and about.discrete == dataset.discrete
    assert about.classes == dataset.classes and about.class_count == len(dataset.classes)
    for split in about.splits:
        assert data.load(name, split).size > 0


@pytest.mark.parametrize("name", ["mixture9", "swissroll5"])
def test_points_have_no_levels(name):
    about = data.describe(name)
    assert about.shape == data.load(name).shape == (2,)
    assert about.levels is None and about.kind == "points"


@pytest.mark.parametrize("name", sorted(set(CATALOGUE) - {"folder"}))
def test_all_are_described_where_nothing_is_at_hand(name):
    about = data.describe(name)
    assert about.name == name and min(about.shape) >= 1 and "train" in about.splits
    assert len(about.classes) in (0, about.class_count)


@pytest.mark.parametrize(
    ("name", "options", "shape"),
    [
        ("text8", {}, (250,)),
        ("text8", {"length": 64}, (64,)),
        ("pydoc", {"length": 100}, (100,)),
        ("celeba", {"size": 32}, (3, 32, 32)),
        ("imagenet", {"size": 128}, (3, 128, 128)),
        ("fsdd", {}, (8_000,)),
        ("fsdd", {"rate": 16_000}, (16_000,)),
        ("fsdd", {"rate": 16_000, "length": 100}, (100,)),
    ],
)
def test_options_change_what_is_known(name, options, shape):
    assert data.describe(name, **options).shape == shape


def test_a_description_refuses_what_load_refuses():
    with pytest.raises(Refused, match="did you mean 'digits'"):
        data.describe("digit")
    with pytest.raises(Refused, match="unknown option of pydoc 'lenght'; did you mean 'length'"):
        data.describe("pydoc", lenght=3)
    with pytest.raises(Refused, match="size is -3; it must be at least 1"):
        data.describe("celeba", size=-3)


# --- what a specification names ------------------------------------------------------------


def test_the_training_part_is_as_the_specification_says():
    plain = data.load("digits")
    made = data.training(spec("digits", flip=True, dequantise=True))
    assert made.flip and made.dequantise and torch.equal(made.examples, plain.examples)
    unseen = data.held_out(spec("digits", flip=True, dequantise=True))
    assert not unseen.flip and not unseen.dequantise
    assert torch.equal(unseen.examples, data.load("digits", "test").examples)
    bare = data.training(SimpleNamespace(dataset="digits"))
    assert not bare.flip and not bare.dequantise


def test_options_of_the_specification_reach_the_data_set():
    text = SimpleNamespace(dataset="pydoc", length=100)
    assert data.training(text).shape == data.held_out(text).shape == (100,)
    assert data.check(text).shape == (100,)


def test_streams_are_trained_on_and_held_out_too():
    train, unseen = data.training(spec("mixture9")), data.held_out(spec("mixture9"))
    assert not torch.equal(train.batch(0, 0, 4).x, unseen.batch(0, 0, 4).x)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (spec("pydoc", flip=True), "flip is True.*pydoc holds text; set flip = False"),
        (spec("sc09", flip=True), "flip is True.*sc09 holds sound"),
        (spec("mixture9", flip=True), "flip is True.*mixture9 holds points"),
        (spec("mixture9", dequantise=True), "dequantise is True.*no levels"),
        (spec("text8", dequantise=True), "dequantise is True.*symbols"),
        (spec("mnist", size=32), r"size is 32, but .* mnist takes no size .*none\); leave"),
        (spec("digits", path="/tmp"), "path is '/tmp', but the data set digits takes no path"),
        (spec("cifar10", data_hash="ab"), "data_hash is 'ab', but .* takes no data_hash"),
        (spec("celeba", length=3), r"length is 3, but .*\(it takes: size, attribute\)"),
        (spec("digit"), "did you mean 'digits'"),
        (spec("celeba", size=-1), "size is -1; it must be at least 1"),
        (spec("folder"), "needs path"),
        (spec("folder", path="/no/such/place"), "does not exist"),
    ],
)
@pytest.mark.parametrize("ask", [data.check, data.training, data.held_out])
def test_what_a_data_set_cannot_do_is_refused(ask, wrong, message):
    with pytest.raises(DataError, match=message):
        ask(wrong)


def test_the_check_loads_nothing():
    """None of these is at hand, and no download is tried."""
    for name in ("cifar10", "text8", "sc09", "imagenet"):
        assert data.check(spec(name)).name == name
    assert data.check(spec("cifar10", flip=True, dequantise=True)).kind == "images"
    assert data.check(spec("sc09", dequantise=True)).kind == "sound"


def test_a_data_set_without_a_test_part_says_so():
    with pytest.raises(DataError, match="celebahq has no test part; it has train"):
        data.held_out(spec("celebahq"))


def test_data_of_the_catalogue_have_no_fingerprint():
    assert data.fingerprint(spec("cifar10")) == ""
