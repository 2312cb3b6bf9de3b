"""The U-Net: shapes at every size, attention and blocks against their formulas, labels."""

import math
from itertools import pairwise

import pytest
import torch
from networks import awake, same_numbers_every_time  # noqa: F401
from torch.nn import functional as F

from diffbook_lib.nets.unet import Attention, Downsample, ResidualBlock, UNet, Upsample, group_norm


def build(*sizes, **options):
    return UNet(*sizes, **options)


SHAPES = [
    ((1, 1, 8), {}),
    ((2, 1, 8), {"log_noise": True}),
    ((1, 1, 28), {"channels": 8, "multipliers": (1, 2, 2), "attention": (7,)}),
    ((3, 3, 32), {"channels": 8, "multipliers": (1, 2, 2), "attention": (16, 8), "blocks": 2}),
    ((6, 3, 64), {"channels": 8, "multipliers": (1, 1, 2, 2), "attention": ()}),
    ((1, 1, 8), {"channels": 12, "multipliers": (1,)}),
]


@pytest.mark.parametrize("sizes, options", SHAPES)
def test_shape_start_at_zero_and_gradients(sizes, options):
    inputs, outputs, size = sizes
    net, x, noise = build(*sizes, **options), torch.randn(2, inputs, size, size), torch.rand(2)
    assert torch.equal(net(x, noise), torch.zeros(2, outputs, size, size))
    awake(net)(x, noise).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def resolutions_of_attention(net, size):
    seen = []
    for module in net.modules():
        if isinstance(module, Attention):
            module.register_forward_hook(lambda module, inputs, out: seen.append(out.shape[-1]))
    net(torch.zeros(1, 1, size, size), torch.ones(1))
    return seen


def test_attention_stands_where_asked():
    net = build(1, 1, 16, channels=8, multipliers=(1, 2, 2), attention=(8,))
    assert resolutions_of_attention(net, 16) == [8, 4, 8, 8]  # encoder, middle, decoder
    net = build(1, 1, 16, channels=8, multipliers=(1, 2, 2), attention=())
    assert resolutions_of_attention(net, 16) == [4]


@pytest.mark.parametrize("channels, heads", [(16, 1), (64, 2)])
def test_attention_by_the_formula(channels, heads):
    layer = awake(Attention(channels))
    x = torch.randn(2, channels, 3, 3)
    out = x.clone()
    for i in range(2):
        flat = layer.norm(x)[i].reshape(channels, 9)
        weight, bias = layer.qkv.weight[:, :, 0, 0], layer.qkv.bias[:, None]
        q, k, v = (weight @ flat + bias).chunk(3)
        mixed = []
        for head in range(heads):
            part = slice(head * channels // heads, (head + 1) * channels // heads)
            scores = q[part].T @ k[part] / math.sqrt(channels / heads)
            mixed.append(v[part] @ scores.softmax(dim=1).T)
        projected = layer.out.weight[:, :, 0, 0] @ torch.cat(mixed) + layer.out.bias[:, None]
        out[i] += projected.reshape(channels, 3, 3)
    torch.testing.assert_close(layer(x, torch.zeros(2, 1)), out, rtol=1e-4, atol=1e-5)


def test_a_residual_block_by_the_formula():
    block = awake(ResidualBlock(8, 16, width=6, dropout=0.5))
    x, embedding = torch.randn(2, 8, 4, 4), torch.randn(2, 6)
    h = block.conv1(F.silu(F.group_norm(x, 8, block.norm1.weight, block.norm1.bias)))
    modulation = embedding @ block.modulation.weight.T + block.modulation.bias
    scale, shift = modulation[:, :16, None, None], modulation[:, 16:, None, None]
    h = F.group_norm(h, 8, block.norm2.weight, block.norm2.bias) * (1 + scale) + shift
    torch.testing.assert_close(block(x, embedding), block.skip(x) + block.conv2(F.silu(h)))


@pytest.mark.parametrize("label", [None, torch.tensor([2, 0])])
def test_the_whole_by_the_formula(label):
    """Two levels, read off the parameters: what is kept on the way down joins on the way up, the
    embedding goes through a SiLU once, and so does what enters the last convolution."""
    net = awake(build(1, 1, 8, channels=8, multipliers=(1, 2), attention=(4,), classes=3))
    x, noise = torch.randn(2, 1, 8, 8), torch.rand(2)
    embedding = net.embedding(noise, label)
    embedding = embedding * torch.sigmoid(embedding)

    def through(modules, h):
        for module in modules:
            h = module(h, embedding)
        return h

    top = F.conv2d(x, net.stem.weight, net.stem.bias, padding=1)
    (first,), (halve,), (second, attend) = net.encoder
    a = first(top, embedding)
    b = halve(a, embedding)
    c = through((second, attend), b)
    h = through(net.middle, c)
    for modules, kept in zip(net.decoder, (c, b, a, top), strict=True):
        h = through(modules, torch.cat([h, kept], dim=1))
    h = F.group_norm(h, 8, net.norm.weight, net.norm.bias)
    expected = F.conv2d(h * torch.sigmoid(h), net.head.weight, net.head.bias, padding=1)
    torch.testing.assert_close(net(x, noise, label), expected, rtol=1e-4, atol=1e-5)


def test_fresh_blocks_are_the_identity():
    x, embedding = torch.randn(2, 16, 4, 4), torch.randn(2, 6)
    assert torch.equal(ResidualBlock(16, 16, 6, 0.0)(x, embedding), x)
    assert torch.equal(Attention(16)(x, embedding), x)


def test_dropout_acts_in_training_only():
    block = awake(ResidualBlock(8, 8, width=6, dropout=0.5))
    x, embedding = torch.randn(2, 8, 4, 4), torch.randn(2, 6)
    assert torch.equal(block(x, embedding), block(x, embedding))
    block.train()
    assert not torch.equal(block(x, embedding), block(x, embedding))


def test_resolutions():
    x = torch.randn(2, 8, 4, 4)
    assert Downsample(8)(x, None).shape == (2, 8, 2, 2)
    assert Upsample(8)(x, None).shape == (2, 8, 8, 8)


@pytest.mark.parametrize("channels, groups", [(16, 8), (12, 4), (6, 2), (7, 1)])
def test_groups_divide_the_channels(channels, groups):
    assert group_norm(channels).num_groups == groups


def test_images_are_independent_and_see_their_own_noise():
    net, x, noise = awake(build(1, 1, 8)), torch.randn(3, 1, 8, 8), torch.rand(3)
    out = net(x, noise)
    torch.testing.assert_close(net(x[1:2], noise[1:2]), out[1:2], rtol=1e-4, atol=1e-5)
    changed = net(x, noise + torch.tensor([0, 0.5, 0])) - out
    assert (changed.flatten(1).abs().amax(dim=1) > 1e-3).tolist() == [False, True, False]


def test_labels_and_the_missing_label():
    net = awake(build(1, 1, 8, classes=3))
    x, noise = torch.randn(1, 1, 8, 8), torch.rand(1)
    outs = [net(x, noise, torch.tensor([label])) for label in range(4)]
    assert all((a - b).abs().max() > 1e-3 for a, b in pairwise(outs))
    assert torch.equal(net(x, noise), outs[3])  # no label is the fourth embedding


def test_a_label_for_an_unconditional_net_is_refused():
    with pytest.raises(ValueError, match="classes=0"):
        build(1, 1, 8)(torch.zeros(1, 1, 8, 8), torch.ones(1), torch.zeros(1, dtype=torch.int64))


def test_a_size_that_cannot_be_halved_is_refused():
    with pytest.raises(ValueError, match="size 28 cannot be halved 3 times"):
        UNet(1, 1, 28, multipliers=(1, 2, 2, 2))


def test_channels_that_do_not_split_into_heads_are_refused():
    with pytest.raises(ValueError, match="100 channels do not split into 3"):
        Attention(100)
