"""Inception with made-up weights of the right shapes, under the name of the official file."""

import hashlib
from importlib.util import find_spec

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from diffbook_lib import data, metrics, rng
from diffbook_lib.errors import Refused
from diffbook_lib.metrics import inception_v3

installed = pytest.mark.skipif(
    find_spec("torch_fidelity") is None, reason="torch-fidelity is not installed"
)


@pytest.fixture(scope="module")
def network():
    return inception_v3.network_class()


@pytest.fixture(scope="module")
def folder(network, tmp_path_factory):
    """A data folder with weights drawn at random."""
    folder = tmp_path_factory.mktemp("data")
    file = folder / "inception" / inception_v3.WEIGHTS.name
    file.parent.mkdir()
    with pytest.MonkeyPatch.context() as patch, rng.seeded(0, "inception"):
        patch.setattr(torch, "load", lambda path: {})
        patch.setattr(network, "load_state_dict", lambda self, state: None)
        net = network("inception-v3-compat", ["2048"], "none")
    torch.save(net.state_dict(), file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    weights = inception_v3.WEIGHTS._replace(checksum=f"sha256:{digest}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inception_v3, "WEIGHTS", weights)
        yield folder


@installed
def test_inception_gives_features_of_all_levels(folder, network, monkeypatch):
    seen, forward = [], network.forward

    def spy(self, x):
        seen.append(x)
        return forward(self, x)

    monkeypatch.setattr(network, "forward", spy)
    features = metrics.inception(folder=folder)
    levels = torch.arange(3 * 256, dtype=torch.uint8).view(1, 3, 16, 16).repeat(2, 1, 1, 1)
    levels[1] = levels[1].flip(-1)
    found = features(data.to_unit(levels, 256))
    assert found.shape == (2, 2048)
    assert found.isfinite().all() and found.std() > 0
    assert not torch.equal(found[0], found[1])
    assert seen[0].dtype == torch.uint8
    assert torch.equal(seen[0], levels), "256 levels"
    assert torch.equal(features(levels), found)
    assert torch.equal(features(levels[:1]), found[:1]), "the batch's statistics play no part"


@installed
def test_inception_refuses_grey_images(folder):
    with pytest.raises(Refused, match="3 colour channels, not 1"):
        metrics.inception(folder=folder)(torch.zeros(2, 1, 32, 32))


@installed
def test_the_stated_cost_is_the_networks(folder):
    features = metrics.inception(folder=folder)
    with FlopCounterMode(display=False) as counter:
        features(torch.zeros(1, 3, 32, 32))
    assert counter.get_total_flops() == pytest.approx(inception_v3.FLOPS, rel=0.01)


@installed
def test_other_weights_are_refused(folder, monkeypatch):
    wrong = inception_v3.WEIGHTS._replace(checksum="sha256:" + "0" * 64)
    monkeypatch.setattr(inception_v3, "WEIGHTS", wrong)
    with pytest.raises(data.ChecksumError, match="expected 0000"):
        metrics.inception(folder=folder)


def test_inception_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr(inception_v3, "find_spec", lambda name: None)
    with pytest.raises(metrics.InceptionMissing, match=r"pip install 'diffbook_lib\[inception\]'"):
        metrics.inception()
