"""NCSN++: sizes of the published networks, resampling and blocks against their formulas."""

import math

import numpy as np
import pytest
import scipy.signal
import torch
from networks import awake, same_numbers_every_time  # noqa: F401
from torch import nn
from torch.nn import functional as F

from diffbook_lib.nets.ncsnpp import (
    NEAR_ZERO,
    Attention,
    NCSNpp,
    ResidualBlock,
    TimeEmbedding,
    conv,
    group_norm,
    input_path,
    merge,
    start,
)
from diffbook_lib.nets.resample import FIR, down, up


def build(inputs=2, outputs=1, size=8, **options):
    small = {"channels": 8, "multipliers": (1, 2), "blocks": 1, "attention": (4,)}
    return NCSNpp(inputs, outputs, size, **(small | options))


CELEBA = {
    "multipliers": (1, 1, 2, 2, 2, 2, 2),
    "fir": False,
    "progressive_input": False,
    "time_embedding": "positional",
}
PUBLISHED = [
    ((6, 3, 32), {}, 107_593_859),  # CIFAR-10
    ((3, 3, 32), {}, 107_586_947),  # CIFAR-10 without velocities
    ((6, 3, 256), {"blocks": 2, **CELEBA}, 65_466_371),  # CelebA-HQ-256
    ((6, 3, 256), {"blocks": 4, **CELEBA}, 103_073_795),
]


@pytest.mark.parametrize("sizes, options, count", PUBLISHED)
def test_published_networks_have_their_exact_size(sizes, options, count):
    inputs, outputs, size = sizes
    with torch.device("meta"):
        net = NCSNpp(*sizes, **options)
        out = net(torch.zeros(2, inputs, size, size), torch.ones(2))
    assert sum(p.numel() for p in net.parameters() if p.requires_grad) == count
    assert out.shape == (2, outputs, size, size)


VARIANTS = [
    ((2, 1, 8), {}),
    ((2, 1, 8), {"fir": False}),
    ((2, 1, 8), {"progressive_input": False}),
    ((2, 1, 8), {"time_embedding": "positional"}),
    ((1, 1, 8), {"multipliers": (1,), "attention": ()}),
    ((2, 1, 8), {"channels": 16, "multipliers": (1, 2, 2), "blocks": 2, "attention": (8, 2)}),
    ((2, 1, 28), {"multipliers": (2, 1, 3), "attention": (7,)}),
]


@pytest.mark.parametrize("sizes, options", VARIANTS)
def test_shape_start_near_zero_and_gradients(sizes, options):
    inputs, outputs, size = sizes
    net, x, t = build(*sizes, **options), torch.randn(2, inputs, size, size), torch.rand(2) + 0.01
    out = net(x, t)
    assert out.shape == (2, outputs, size, size)
    assert 0 < out.abs().max() < 1e-3
    awake(net)(x, t).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def by_upfirdn(image, rise, fall, padding):
    """Zeros put between the pixels, zeros around, blurred, thinned: every axis by itself."""
    taps = rise * np.array([1, 3, 3, 1]) / 8
    for axis in (0, 1):
        full = scipy.signal.upfirdn(taps, image, rise, 1, axis=axis)  # three zeros on each side
        size = image.shape[axis] * rise // fall
        first = 3 - padding
        image = np.take(full, range(first, first + fall * size, fall), axis=axis)
    return image


@pytest.mark.parametrize("rise, fall, padding", [(1, 2, 1), (2, 1, 2)])
def test_filters_agree_with_scipy(rise, fall, padding):
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    layer = (down if fall == 2 else up)(fir=True).double()
    expected = np.stack([[by_upfirdn(c.numpy(), rise, fall, padding) for c in b] for b in x])
    torch.testing.assert_close(layer(x), torch.from_numpy(expected))


def test_filters_keep_a_constant_and_a_slope_inside():
    constant, slope = torch.ones(1, 1, 8, 8), torch.arange(8.0).expand(1, 1, 8, 8)
    for layer in (up(fir=True), down(fir=True), FIR(padding=2)):
        inside = layer(constant)[..., 2:-2, 2:-2]
        torch.testing.assert_close(inside, torch.ones_like(inside))
    steps = up(fir=True)(slope)[..., 2:-2, 2:-2].diff(dim=-1)
    torch.testing.assert_close(steps, torch.full_like(steps, 0.5))
    steps = down(fir=True)(slope)[..., 1:-1, 1:-1].diff(dim=-1)
    torch.testing.assert_close(steps, torch.full_like(steps, 2.0))


def test_filters_do_not_shift_and_weigh_all_pixels_alike():
    x = torch.zeros(1, 1, 8, 8)
    x[..., 3:5, 3:5] = torch.rand(2, 2)
    for layer, gain in ((up(fir=True), 4), (down(fir=True), 1 / 4)):
        torch.testing.assert_close(layer(x).sum(), gain * x.sum())
        torch.testing.assert_close(layer(x.flip(-1)), layer(x).flip(-1))


def test_down_of_up_is_a_smooth_version_of_the_image():
    x = torch.zeros(1, 1, 9, 9)
    x[..., 4, 4] = 1
    row = down(fir=True)(up(fir=True)(x))[0, 0, 4]
    taps = torch.tensor([6.0, 20.0, 6.0]) / 32  # [1, 3, 3, 1] * [1, 3, 3, 1], every second, / 32
    torch.testing.assert_close(row[3:6], taps * 20 / 32)
    assert torch.equal(row[:3], torch.zeros(3))


def test_plain_resampling():
    x = torch.arange(4.0).reshape(1, 1, 2, 2)
    assert down(fir=False)(x).tolist() == [[[[1.5]]]]
    assert up(fir=False)(x)[0, 0].tolist() == [[0, 0, 1, 1]] * 2 + [[2, 2, 3, 3]] * 2
    assert torch.equal(down(fir=False)(up(fir=False)(x)), x)


@pytest.mark.parametrize("fir", [True, False])
def test_the_input_path_by_the_formula(fir):
    layers = awake(input_path(2, 5, fir))
    x = torch.randn(1, 2, 8, 8)
    weight, bias = layers[1].weight, layers[1].bias
    if fir:  # one 6×6 convolution, every second pixel
        blur = torch.outer(*2 * [torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8])
        both = F.conv_transpose2d(weight, blur.expand(2, 1, 4, 4), groups=2)  # blur is symmetric
        expected = F.conv2d(x, both, bias, stride=2, padding=2)
    else:
        expected = F.conv2d(F.avg_pool2d(x, 2), weight, bias, padding=1)
    torch.testing.assert_close(layers(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("resample", [None, down(fir=True), up(fir=True)])
def test_a_residual_block_by_the_formula(resample):
    block = awake(ResidualBlock(8, 16, width=6, dropout=0.5, resample=resample))
    x, embedding = torch.randn(2, 8, 4, 4), torch.randn(2, 6)
    change = resample or (lambda h: h)
    h = F.silu(F.group_norm(x, 2, block.norm1.weight, block.norm1.bias, eps=1e-6))
    h = F.conv2d(change(h), block.conv1.weight, block.conv1.bias, padding=1)
    h = h + (embedding @ block.time.weight.T + block.time.bias)[:, :, None, None]
    h = F.silu(F.group_norm(h, 4, block.norm2.weight, block.norm2.bias, eps=1e-6))
    h = F.conv2d(h, block.conv2.weight, block.conv2.bias, padding=1)
    shortcut = F.conv2d(change(x), block.shortcut.weight, block.shortcut.bias)
    torch.testing.assert_close(block(x, embedding), (shortcut + h) / 2**0.5)


def test_a_block_has_a_shortcut_layer_only_where_something_changes():
    def shortcut(*args):
        return type(ResidualBlock(*args).shortcut)

    assert shortcut(8, 8, 6, 0.0) is nn.Identity
    assert shortcut(8, 12, 6, 0.0) is nn.Conv2d
    assert shortcut(8, 8, 6, 0.0, down(fir=False)) is nn.Conv2d


def test_attention_by_the_formula():
    layer = awake(Attention(8))
    x = torch.randn(2, 8, 3, 3)
    out = x.clone()
    for i in range(2):
        flat = layer.norm(x)[i].reshape(8, 9).T  # (positions, channels)
        q, k, v = layer.query(flat), layer.key(flat), layer.value(flat)
        mixed = (q @ k.T / math.sqrt(8)).softmax(dim=1) @ v
        out[i] += layer.out(mixed).T.reshape(8, 3, 3)
    torch.testing.assert_close(layer(x, torch.zeros(2, 1)), out / 2**0.5, rtol=1e-4, atol=1e-5)


def test_fresh_branches_add_nothing_and_merging_keeps_the_variance():
    x, embedding = torch.randn(2, 16, 4, 4), torch.randn(2, 6)
    for layer in (ResidualBlock(16, 16, 6, 0.0), Attention(16)):
        assert 0 < (layer(x, embedding) - x / 2**0.5).abs().max() < 1e-4
    a, b = torch.randn(2, 100_000)
    assert merge(a, b).var().item() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("scale", [1.0, NEAR_ZERO])
@pytest.mark.parametrize("make", [lambda: nn.Linear(30, 90), lambda: nn.Conv2d(4, 12, 3)])
def test_starting_weights(make, scale):
    layer = start(make(), scale)
    fans = (30 + 90) / 2 if isinstance(layer, nn.Linear) else 9 * (4 + 12) / 2
    width = math.sqrt(3 * scale / fans)  # a uniform distribution on ±width
    assert layer.weight.abs().max() <= 1.0001 * width
    assert layer.weight.var().item() == pytest.approx(width**2 / 3, rel=0.2)
    assert not layer.bias.any()


def test_time_embeddings_by_the_formula():
    t = torch.tensor([0.1, 1.0])
    fourier = TimeEmbedding(8, "fourier")
    angles = t.log()[:, None] * fourier.frequencies
    expected = fourier.layers(torch.cat([angles.sin(), angles.cos()], dim=1))
    torch.testing.assert_close(fourier(t), expected)
    positional = TimeEmbedding(8, "positional")
    angles = t[:, None] * torch.tensor([10000 ** (-i / 3) for i in range(4)])
    expected = positional.layers(torch.cat([angles.sin(), angles.cos()], dim=1))
    torch.testing.assert_close(positional(t), expected)
    assert fourier(t).shape == positional(t).shape == (2, 32)


def test_fourier_frequencies_are_random_and_frozen():
    embedding = TimeEmbedding(400, "fourier")
    scale = embedding.frequencies.std().item() / (2 * math.pi)
    assert scale == pytest.approx(16, rel=0.1)
    assert "frequencies" not in dict(embedding.named_parameters())
    assert "frequencies" in embedding.state_dict()


def resolutions_of_attention(**options):
    net, seen = build(1, 1, 16, multipliers=(1, 2, 2), blocks=2, **options), []
    for module in net.modules():
        if isinstance(module, Attention):
            module.register_forward_hook(lambda module, inputs, out: seen.append(out.shape[-1]))
    net(torch.zeros(1, 1, 16, 16), torch.ones(1))
    return seen


def test_attention_stands_where_asked():
    assert resolutions_of_attention(attention=(8,)) == [8, 8, 4, 8]  # encoder, middle, decoder
    assert resolutions_of_attention(attention=()) == [4]
    assert resolutions_of_attention(attention=(16, 4)) == [16, 16, 4, 4, 4, 4, 16]


def calls(net, *args):
    """The inputs and the result of every module of the network, by name."""
    seen = {}
    for name, module in net.named_modules():
        module.register_forward_hook(
            lambda module, inputs, out, name=name: seen.update({name: (inputs, out)})
        )
    net(*args)
    return seen


def test_the_progressive_input_joins_after_each_halving():
    x = path = torch.randn(1, 2, 8, 8)
    net = awake(build(multipliers=(1, 2, 2), attention=()))
    seen = calls(net, x, torch.rand(1))
    for i in (0, 1):
        assert torch.equal(seen[f"paths.{i}"][0][0], path)
        path = (seen[f"downs.{i}"][1] + seen[f"paths.{i}"][1]) / 2**0.5
        torch.testing.assert_close(seen[f"encoder.{i + 1}.0.0"][0][0], path)


def test_swish_follows_the_embedding_and_the_last_norm():
    seen = calls(awake(build()), torch.randn(1, 2, 8, 8), torch.rand(1))
    embedding = F.silu(seen["embedding"][1])
    given = [inputs[0] for name, (inputs, _) in seen.items() if name.endswith(".time")]
    assert len(given) == 10  # two in the encoder, four in the decoder, down, up and the middle
    assert all(torch.equal(vector, embedding) for vector in given)
    assert torch.equal(seen["head"][0][0], F.silu(seen["norm"][1]))


def test_images_are_independent_and_see_their_own_time():
    net, x, t = awake(build()), torch.randn(3, 2, 8, 8), torch.rand(3)
    out = net(x, t)
    torch.testing.assert_close(net(x[1:2], t[1:2]), out[1:2], rtol=1e-4, atol=1e-4)
    changed = (net(x, t + torch.tensor([0, 0.5, 0])) - out).flatten(1).abs().amax(dim=1)
    assert (changed > 1e-2).tolist() == [False, True, False]


def test_dropout_acts_in_training_only():
    net, x, t = awake(build(dropout=0.5)), torch.randn(1, 2, 8, 8), torch.rand(1)
    assert torch.equal(net(x, t), net(x, t))
    net.train()
    assert not torch.equal(net(x, t), net(x, t))


@pytest.mark.parametrize("fir", [True, False])
def test_bfloat16_autocast(fir):
    net, x, t = awake(build(fir=fir)), torch.randn(2, 2, 8, 8), torch.rand(2)
    exact = net(x, t)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = net(x, t)
    assert rough.dtype == torch.bfloat16
    assert (rough - exact).norm() < 0.1 * exact.norm()
    rough.float().square().sum().backward()
    assert all(p.grad.isfinite().all() for p in net.parameters())


def test_state_dict_round_trip():
    net, other = awake(build()), build().eval()
    x, t = torch.randn(1, 2, 8, 8), torch.rand(1)
    assert not torch.equal(net(x, t), other(x, t))
    other.load_state_dict(net.state_dict())
    assert torch.equal(net(x, t), other(x, t))


@pytest.mark.parametrize("channels, groups", [(8, 2), (72, 18), (128, 32), (384, 32)])
def test_groups(channels, groups):
    assert group_norm(channels).num_groups == groups


@pytest.mark.parametrize("channels, groups", [(3, 0), (11, 2), (144, 32)])
def test_channels_that_do_not_split_into_groups_are_refused(channels, groups):
    with pytest.raises(ValueError, match=f"{channels} channels do not split into {groups}"):
        group_norm(channels)


def test_what_it_cannot_do_is_refused():
    with pytest.raises(ValueError, match="size 28 cannot be halved 3 times"):
        NCSNpp(1, 1, 28)
    with pytest.raises(ValueError, match='"fourier" or "positional", not "learned"'):
        build(time_embedding="learned")
    with pytest.raises(ValueError, match="takes no class label"):
        build()(torch.zeros(1, 2, 8, 8), torch.ones(1), torch.zeros(1, dtype=torch.int64))


def test_a_convolution_keeps_the_resolution():
    assert conv(2, 5)(torch.zeros(1, 2, 7, 7)).shape == (1, 5, 7, 7)
