"""Networks by name, from the attributes of a specification."""

from types import SimpleNamespace

import pytest
import torch
from networks import same_numbers_every_time  # noqa: F401

from diffbook_lib import nets, rng
from diffbook_lib.nets.edm2 import EDM2UNet, parts_of
from diffbook_lib.nets.mlp import MLP, PlainMLP
from diffbook_lib.nets.ncsnpp import NCSNpp
from diffbook_lib.nets.unet import UNet

SPEC = SimpleNamespace(
    width=24,
    depth=2,
    channels=12,
    multipliers=[1, 1, 2],
    blocks=2,
    attention=[2],
    dropout=0.25,
    fir=True,
    progressive_input=True,
    time_embedding="positional",
    config="E",
    variant="seed",
)

BY_HAND = {  # name: size, classes, the network
    "mlp": ((), 3, lambda: MLP(4, 2, 24, 2, log_noise=True, classes=3)),
    "plain-mlp": ((), 0, lambda: PlainMLP(4, 2, 24, 2)),
    "unet": (
        (8, 8),
        3,
        lambda: UNet(4, 2, 8, 12, [1, 1, 2], 2, [2], classes=3, dropout=0.25, log_noise=True),
    ),
    "ncsnpp": (
        (8, 8),
        0,
        lambda: NCSNpp(4, 2, 8, 12, [1, 1, 2], 2, [2], 0.25, True, True, "positional"),
    ),
    "edm2": (
        (8, 8),
        3,
        lambda: EDM2UNet(4, 2, 8, 12, [1, 1, 2], 2, [2], parts_of("E", "seed"), 3, 0.25),
    ),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_a_network_by_name_is_that_made_by_hand(name):
    size, classes, by_hand = BY_HAND[name]
    with rng.seeded(0, "network"):
        net = nets.make(name, 4, 2, SPEC, size, classes=classes, log_noise=True)
    with rng.seeded(0, "network"):
        expected = by_hand()
    assert repr(net) == repr(expected)  # all modules, dropout included
    own, theirs = net.state_dict(), expected.state_dict()
    assert own.keys() == theirs.keys() and all(torch.equal(own[key], theirs[key]) for key in own)
    x, noise = torch.randn(3, 4, *size), torch.rand(3) + 0.1
    label = torch.tensor([0, 2, 1]) if classes else None
    assert torch.equal(net.eval()(x, noise, label), expected.eval()(x, noise, label))
    assert net(x, noise, label).shape == (3, 2, *size)


@pytest.mark.parametrize("name", ["mlp", "unet"])
def test_the_logarithm_of_the_noise_is_a_choice(name):
    net = nets.make(name, 4, 2, SPEC, BY_HAND[name][0])
    assert not net.embedding.log


@pytest.mark.parametrize(
    "name, size, classes, sentence",
    [
        ("resnet", (), 0, "unknown network 'resnet'; known: mlp, plain-mlp, unet, ncsnpp, edm2"),
        ("unet", (), 0, "'unet' is for images, but the data are points; use 'mlp' or 'plain-mlp'"),
        ("mlp", (8, 8), 0, "'mlp' is for points, but the data are images of 8×8; use 'unet' or"),
        ("ncsnpp", (178, 218), 0, "'ncsnpp' is for square images, but these are of 178×218"),
        ("unet", (64,), 0, "'unet' is for square images, but these are of 64"),
        ("plain-mlp", (), 3, "'plain-mlp' takes no class labels; use 'mlp', or classes=0"),
        ("ncsnpp", (8, 8), 3, "'ncsnpp' takes no class labels; use 'unet' or 'edm2', or classes=0"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(name, size, classes, sentence):
    with pytest.raises(ValueError, match=sentence):
        nets.make(name, 4, 2, SPEC, size, classes=classes)
