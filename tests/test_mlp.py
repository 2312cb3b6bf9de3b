"""The perceptrons: shapes, formulas, the residual one's start at zero, and that they see noise."""

from itertools import pairwise

import pytest
import torch
from networks import awake, same_numbers_every_time  # noqa: F401
from torch.nn import functional as F

from diffbook_lib import rng
from diffbook_lib.nets.mlp import MLP, MLPBlock, PlainMLP


def build(**options):
    return MLP(4, 2, width=32, **options)


@pytest.mark.parametrize("log_noise", [False, True])
def test_shape_and_start_at_zero(log_noise):
    out = build(log_noise=log_noise)(torch.randn(5, 4), torch.rand(5) + 0.01)
    assert torch.equal(out, torch.zeros(5, 2))


def test_a_block_is_h_plus_f_of_the_modulated_h():
    block = awake(MLPBlock(16))
    h, embedding = torch.randn(3, 16), torch.randn(3, 16)
    normal = (h - h.mean(1, keepdim=True)) / (h.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    modulation = embedding @ block.modulation.weight.T + block.modulation.bias
    inner = normal * (1 + modulation[:, :16]) + modulation[:, 16:]
    first, second = block.layers[1], block.layers[3]
    inside = F.silu(F.silu(inner) @ first.weight.T + first.bias) @ second.weight.T + second.bias
    torch.testing.assert_close(block(h, embedding), h + inside)


@pytest.mark.parametrize("classes, label", [(0, None), (3, None), (3, torch.tensor([0, 2, 1]))])
def test_the_whole_by_the_formula(classes, label):
    """Blocks between two linear layers, the embedding through a SiLU, the last norm."""
    net = awake(build(depth=2, classes=classes))
    x, noise = torch.randn(3, 4), torch.rand(3)
    embedding = net.embedding(noise, label)
    h = x @ net.stem.weight.T + net.stem.bias
    for block in net.blocks:
        h = block(h, embedding * torch.sigmoid(embedding))
    h = (h - h.mean(1, keepdim=True)) / (h.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(net(x, noise, label), h @ net.head.weight.T + net.head.bias)


def test_a_fresh_block_is_the_identity():
    h = torch.randn(3, 16)
    assert torch.equal(MLPBlock(16)(h, torch.randn(3, 16)), h)


def test_rows_are_independent_and_see_their_own_noise():
    net, x, noise = awake(build()), torch.randn(4, 4), torch.rand(4)
    out = net(x, noise)
    torch.testing.assert_close(net(x[2:3], noise[2:3]), out[2:3])
    changed = (net(x, noise + torch.tensor([0, 0, 0.5, 0])) != out).any(dim=1)
    assert changed.tolist() == [False, False, True, False]


def test_every_parameter_gets_a_gradient():
    net = awake(build(depth=2))
    net(torch.randn(8, 4), torch.rand(8)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_depth_counts_blocks():
    assert [len(build(depth=d).blocks) for d in (0, 2, 5)] == [0, 2, 5]


def test_labels_and_the_missing_label():
    net = awake(build(classes=3))
    x, noise = torch.randn(1, 4), torch.rand(1)
    outs = [net(x, noise, torch.tensor([label])) for label in range(4)]
    assert all((a - b).abs().max() > 1e-3 for a, b in pairwise(outs))
    assert torch.equal(net(x, noise), outs[3])  # no label is the fourth embedding


def test_classes_change_none_of_the_other_parameters_at_the_start():
    with rng.seeded(0, "network"):
        plain = build().embedding.state_dict()
    with rng.seeded(0, "network"):
        conditional = build(classes=3).embedding.state_dict()
    assert set(conditional) - set(plain) == {"labels.weight"}
    assert all(torch.equal(value, conditional[name]) for name, value in plain.items())


def test_a_label_is_refused():
    with pytest.raises(ValueError, match=r"classes=0.*takes no class label"):
        build()(torch.randn(2, 4), torch.rand(2), torch.zeros(2, dtype=torch.int64))


def test_the_plain_mlp_has_the_published_size():
    assert sum(p.numel() for p in PlainMLP(4, 2).parameters()) == 50_562


@pytest.mark.parametrize("depth", [1, 3])
def test_the_plain_mlp_by_the_formula(depth):
    net, x, t = PlainMLP(4, 2, width=8, depth=depth), torch.randn(5, 4), torch.rand(5)
    *hidden, (weight, bias) = zip(*2 * [iter(net.parameters())], strict=True)
    assert len(hidden) == depth
    h = torch.cat([x, t[:, None]], dim=1)
    for w, b in hidden:
        h = F.silu(h @ w.T + b)
    torch.testing.assert_close(net(x, t), h @ weight.T + bias)


def test_the_plain_mlp_trains_every_parameter_and_refuses_a_label():
    net, x, t = PlainMLP(2, 1), torch.randn(8, 2), torch.rand(8)
    net(x, t).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())
    with pytest.raises(ValueError, match="PlainMLP takes no class label"):
        net(x, t, torch.zeros(8, dtype=torch.int64))
