"""Linear probes: features read off hooks against the same blocks called by hand, both fits where
the answer is known."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from diffbook_lib import diffusion, metrics, nets, rng
from diffbook_lib.data import ArrayDataset
from diffbook_lib.errors import Refused

SPEC = SimpleNamespace(
    channels=8,
    multipliers=(1, 2),
    blocks=1,
    attention=(4,),
    dropout=0.0,
    width=8,
    depth=2,
    fir=False,
    progressive_input=False,
    time_embedding="fourier",
    config="C",
    variant="seed",
)


class TwoBlocks(nn.Module):
    """Its first block's features tell the class of `stripes`, its second block's nothing."""

    def __init__(self):
        super().__init__()
        self.decoder = nn.ModuleList([nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 4, 1)])
        self.decoder[1].weight.data.zero_()

    def forward(self, x, noise, label=None):
        return self.decoder[1](self.decoder[0](x)).mean(1, keepdim=True)


def net():
    with rng.seeded(0, "test"):
        return TwoBlocks().eval()


def reader(net, blocks=("decoder.0", "decoder.1")):
    return metrics.Reader(diffusion.EDM().denoiser(net), net, blocks)


def patches(n, seed):
    """Images of one grey level and a small noise; the class is whether the level is high."""
    source = rng.generator(seed, "patches")
    labels = rng.integers(2, (n,), source)
    levels = torch.where(labels.bool(), 170, 90)[:, None, None, None]
    noise = rng.integers(40, (n, 1, 6, 6), source)
    return ArrayDataset((levels + noise).to(torch.uint8), labels, classes=("dark", "bright"))


TRAIN, TEST = patches(300, 0), patches(120, 1)


def test_features_are_the_means_of_what_the_block_gives():
    made = net()
    x, sigma = TEST[:7].x, 0.3
    found = reader(made).features(x, sigma, rng.generator(0, "noise"))
    noisy = x + sigma * rng.normal(x.shape, rng.generator(0, "noise"))
    c_in = (sigma**2 + 0.25) ** -0.5
    expected = made.decoder[0](c_in * noisy).mean((2, 3))
    torch.testing.assert_close(found["decoder.0"], expected)
    assert found["decoder.1"].shape == (7, 4) and not found["decoder.1"].requires_grad
    assert not made.decoder[0]._forward_hooks


@pytest.mark.parametrize(
    "name, inputs", [("unet", 1), ("ncsnpp", 1), ("edm2", 1), ("mlp", 2), ("plain-mlp", 2)]
)
def test_blocks_of_every_network_can_be_read(name, inputs):
    size = (8, 8) if name in nets.IMAGES else ()
    made = nets.make(name, inputs, inputs, SPEC, size).eval()
    blocks = metrics.decoder_blocks(made) if size else [list(dict(made.named_modules()))[-1]]
    x = torch.randn(3, inputs, *size)
    found = reader(made, blocks).features(x, 3.0, rng.generator(0, "noise"))
    assert list(found) == blocks and len(blocks) >= (2 if size else 1)
    assert all(f.shape[0] == 3 and f.ndim == 2 and f.isfinite().all() for f in found.values())


def test_a_block_that_was_not_called_is_named():
    made = net()
    made.unused = nn.Linear(1, 1)
    with pytest.raises(Refused, match="not its unused"):
        reader(made, ["decoder.0", "unused"]).features(TEST[:2].x, 0.5, rng.generator(0, "noise"))


def by_block(found):
    return {m.at["block"]: m for m in found}


@pytest.mark.parametrize(
    "probe, options",
    [(metrics.linear_probe, {}), (metrics.published_probe, {"epochs": 8, "batch": 25, "lr": 0.1})],
)
def test_the_class_is_read_where_it_stands(probe, options):
    found = by_block(probe(reader(net()), TRAIN, TEST, 0.1, **options))
    assert found["decoder.0"].value > 0.97
    assert abs(found["decoder.1"].value - 0.5) < 0.15
    one = found["decoder.0"]
    assert (one.samples, one.better, one.at["sigma"]) == (120, "higher", 0.1)
    assert one.details["training"] == 300 and "standard_error" in one.details


@pytest.mark.parametrize("probe", [metrics.linear_probe, metrics.published_probe])
def test_much_noise_hides_the_class(probe):
    options = {"passes": 1} if probe is metrics.linear_probe else {"epochs": 2, "lr": 0.1}
    values = [
        by_block(probe(reader(net()), TRAIN, TEST, sigma, **options))["decoder.0"].value
        for sigma in (0.1, 100.0)
    ]
    assert values[0] > values[1] + 0.2


@pytest.mark.parametrize("probe", [metrics.linear_probe, metrics.published_probe])
def test_a_probe_is_repeated_exactly_and_leaves_the_network_as_it_was(probe):
    made = net()
    before = {n: p.clone() for n, p in made.named_parameters()}
    options = {"passes": 1} if probe is metrics.linear_probe else {"epochs": 1}
    first, second = (probe(reader(made), TRAIN, TEST, 0.5, **options) for _ in range(2))
    assert first == second
    assert all(torch.equal(p, before[n]) and p.grad is None for n, p in made.named_parameters())


def test_images_without_labels_are_refused():
    with pytest.raises(Refused, match="needs labels"):
        metrics.linear_probe(reader(net()), ArrayDataset(TRAIN.examples), TEST, 0.5)


def test_noise_and_mirrorings_are_new_in_every_pass():
    """A class that only the left half shows is gone where half of the images are mirrored."""
    half = torch.zeros(200, 1, 6, 6, dtype=torch.uint8)
    labels = torch.arange(200) % 2
    half[labels == 0, ..., :3], half[labels == 1, ..., 3:] = 255, 255
    data = ArrayDataset(half, labels, classes=("left", "right"))

    class Left(nn.Module):
        def __init__(self):
            super().__init__()
            self.decoder = nn.ModuleList([nn.Conv2d(1, 1, (6, 3), stride=(6, 6), bias=False)])
            self.decoder[0].weight.data.fill_(1 / 18)

        def forward(self, x, noise, label=None):
            return x + self.decoder[0](x).mean()

    only = reader(Left().eval(), ["decoder.0"])
    (plain,) = metrics.linear_probe(only, data, data, 0.05)
    (mirrored,) = metrics.linear_probe(only, data, data, 0.05, flip=True)
    assert plain.value == 1 and mirrored.value < 0.75


def test_the_published_rate_falls_by_half_a_cosine(monkeypatch):
    rates = []
    step = torch.optim.Adam.step

    def recorded(optimizer, *arguments):
        rates.append(optimizer.param_groups[0]["lr"])
        return step(optimizer, *arguments)

    monkeypatch.setattr(torch.optim.Adam, "step", recorded)
    metrics.published_probe(reader(net()), TRAIN, TEST, 0.5, epochs=4, batch=150)
    epochs = torch.arange(4, dtype=torch.float64).repeat_interleave(2)
    expected = 1e-3 * (1 + (torch.pi * epochs / 4).cos()) / 2
    assert rates == pytest.approx(expected.tolist(), rel=1e-9)
