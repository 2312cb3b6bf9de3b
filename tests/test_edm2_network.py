"""EDM2's network: magnitudes, sizes of the published networks, what each configuration does."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from networks import awake, same_numbers_every_time  # noqa: F401
from torch import nn
from torch.nn import functional as F

from diffbook_lib.edm2 import magnitudes
from diffbook_lib.nets.edm2 import (
    LADDER,
    EDM2UNet,
    Normalised,
    Plain,
    Uncertainty,
    parts_of,
    primitives,
    project,
)
from diffbook_lib.nets.edm2.blocks import Attention
from diffbook_lib.nets.edm2.primitives import (
    Fourier,
    mp_cat,
    mp_silu,
    mp_sum,
    normalize,
    pixel_norm,
    pixel_norm_root,
    plain_cat,
    plain_sum,
    unit_rows,
)

SEED_LETTERS = pytest.mark.parametrize("config", "CDEFG")
EVERY = pytest.mark.parametrize("config, variant", LADDER)


def build(config="G", variant="seed", **options):
    small = {"channels": 8, "multipliers": (1, 2), "blocks": 1, "attention": (4,)}
    return EDM2UNet(1, 1, 8, **small | {"parts": parts_of(config, variant)} | options)


def rms(x):
    return float(x.detach().square().mean().sqrt())


@torch.no_grad()
def block_outputs(net, *inputs):
    """What every block of a network gives."""
    seen = []
    for block in [*net.encoder, *net.middle, *net.decoder]:
        block.register_forward_hook(lambda module, inputs, out: seen.append(out))
    net(*inputs)
    return seen


# Sizes

CIFAR = {"size": 32, "channels": 128, "multipliers": (1, 2, 2, 2), "blocks": 2, "attention": (16,)}
TINY = CIFAR | {"size": 64, "blocks": 4}
IMAGENET = {"size": 64, "multipliers": (1, 2, 3, 4), "blocks": 3, "attention": (16, 8)}
XS = IMAGENET | {"channels": 128, "classes": 1000}
S = IMAGENET | {"channels": 192, "classes": 1000}
HEAD = True  # with the network of u(sigma)
PUBLISHED = [
    ("C", "seed", 3, CIFAR, not HEAD, 39_509_888),
    ("E", "seed", 3, CIFAR, not HEAD, 39_509_888),
    ("G", "seed", 3, CIFAR, not HEAD, 39_542_685),
    ("C", "seed", 3, TINY, not HEAD, 62_414_720),
    ("E", "seed", 3, TINY, not HEAD, 62_414_720),
    ("G", "seed", 3, TINY, not HEAD, 62_447_533),
    ("C", "seed", 3, IMAGENET | {"channels": 192}, not HEAD, 277_045_056),
    ("G", "seed", 3, IMAGENET | {"channels": 192}, not HEAD, 279_441_253),
    ("G", "official", 4, XS, HEAD, 124_713_253),
    ("G", "official", 4, XS | {"classes": 0}, HEAD, 124_201_253),
    ("G", "official", 4, S, HEAD, 280_212_837),
    ("G", "official", 3, S, HEAD, 280_209_381),
    ("G", "official", 3, CIFAR, HEAD, 37_871_645),
    (
        *("G", "official", 3),
        CIFAR | {"channels": 64, "multipliers": (1, 2, 2)},
        not HEAD,
        6_750_166,
    ),
]


@pytest.mark.parametrize("config, variant, channels, settings, head, count", PUBLISHED)
def test_published_networks_have_their_exact_size(config, variant, channels, settings, head, count):
    parts = parts_of(config, variant)
    with torch.device("meta"):
        nets = [EDM2UNet(channels, channels, parts=parts, **settings)]
        nets += [Uncertainty(parts)] * head
    assert sum(p.numel() for net in nets for p in net.parameters()) == count


# Primitives


def test_operations_keep_magnitudes_and_plain_ones_do_not():
    a, b = torch.randn(2, 4000, 64, dtype=torch.float64)
    noise = torch.randn(500, dtype=torch.float64)
    layer = Normalised(64, 64).double()
    kept = [
        mp_silu(a),
        *(mp_sum(a, b, t) for t in (0.0, 0.3, 0.5, 1.0)),
        *(mp_cat(a[:, :48], b[:, :16], t) for t in (0.3, 0.5)),
        Fourier(64, math.sqrt(2)).double()(noise),
        layer(a),
    ]
    assert [rms(x) for x in kept] == pytest.approx([1] * len(kept), abs=0.02)
    plain = [F.silu(a), plain_sum(a, b), Fourier(64, 1.0).double()(noise)]
    assert [rms(x) for x in plain] == pytest.approx([0.596, 2**0.5, 0.5**0.5], abs=0.02)


def test_the_constant_of_silu_is_its_root_mean_square():
    z = torch.linspace(-12, 12, 200_001, dtype=torch.float64)
    density = torch.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    exact = math.sqrt(torch.trapezoid(F.silu(z) ** 2 * density, z))
    assert abs(primitives.SILU_RMS - exact) < 5e-4


def test_joined_inputs_have_equal_shares_whatever_their_widths():
    a, b = torch.randn(1000, 8), torch.randn(1000, 4)
    both = mp_cat(a, b)
    torch.testing.assert_close(both[:, :8], a * 0.75**0.5)
    torch.testing.assert_close(both[:, 8:], b * 1.5**0.5)
    assert torch.equal(plain_cat(a, b), torch.cat([a, b], 1))


@pytest.mark.parametrize("dim", [None, 1, (2, 3)])
@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_normalise_is_its_formula_and_its_gradient_that_of_the_formula(dim, scale):
    x = torch.randn(3, 4, 2, 3, dtype=torch.float64, requires_grad=True)
    formula = scale * x / (1e-4 + x.square().mean(dim or (1, 2, 3), keepdim=True).sqrt())
    upstream = torch.randn_like(formula)
    ours = normalize(x, dim, scale)
    torch.testing.assert_close(ours, formula, rtol=1e-12, atol=0)
    (gradient,) = torch.autograd.grad(ours, x, upstream)
    (expected,) = torch.autograd.grad(formula, x, upstream)
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-12)
    assert torch.autograd.gradcheck(lambda x: normalize(x, dim, scale), x)


def test_nothing_is_normalised_to_nothing():
    x = torch.zeros(2, 3, requires_grad=True)
    normalize(x).sum().backward()
    assert torch.equal(normalize(x), x) and torch.equal(x.grad, torch.full((2, 3), 1e4))


def test_half_precision_is_normalised_in_single():
    x = 300 * torch.randn(4, 64, 2, 2)  # the squares overflow in float16
    for dtype, rtol in ((torch.float16, 2e-3), (torch.bfloat16, 1e-2)):
        out = pixel_norm(x.to(dtype))
        assert out.dtype == dtype
        torch.testing.assert_close(out.float(), pixel_norm(x), rtol=rtol, atol=1e-3)


def test_the_two_pixel_norms_differ_by_where_their_small_number_stands():
    x = torch.randn(2, 16, 3, 3, dtype=torch.float64)
    torch.testing.assert_close(pixel_norm(x), pixel_norm_root(x), rtol=5e-4, atol=0)
    tiny = 1e-4 * pixel_norm(x)
    assert rms(pixel_norm(tiny)) == pytest.approx(0.5, abs=1e-3)
    assert rms(pixel_norm_root(tiny)) == pytest.approx(0.5**0.5, abs=1e-3)


# Layers


@pytest.mark.parametrize("kernel", [0, 1, 3])
def test_layers_use_their_weights_as_they_say(kernel):
    x = torch.randn(2, 5) if kernel == 0 else torch.randn(2, 5, 4, 4)
    plain, normalised = Plain(5, 3, kernel), Normalised(5, 3, kernel)
    apply = F.linear if kernel == 0 else partial(F.conv2d, padding=kernel // 2)
    assert torch.equal(plain(x), apply(x, plain.weight))
    rows = normalised.weight.flatten(1)
    unit = (rows / rows.norm(dim=1, keepdim=True)).reshape(normalised.weight.shape)
    torch.testing.assert_close(normalised(x), apply(x, unit), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "reference, kernel", [(nn.Linear(300, 200), 0), (nn.Conv2d(30, 200, 3), 3)]
)
def test_plain_layers_start_as_those_of_torch_do(reference, kernel):
    layer = Plain(300 if kernel == 0 else 30, 200, kernel)
    ours, theirs = layer.weight.detach(), reference.weight.detach()
    assert ours.shape == theirs.shape
    assert float(ours.abs().max() / theirs.abs().max()) == pytest.approx(1, abs=0.01)
    assert rms(ours) / rms(theirs) == pytest.approx(1, abs=0.02)


def test_the_gradient_is_orthogonal_to_a_normalised_weight_only():
    x = torch.randn(40, 12)
    for kind, least, most in ((Normalised, 0.0, 1e-3), (Plain, 0.05, 1.0)):
        net = nn.ModuleDict({"layer": kind(12, 6)})
        net["layer"](x).sigmoid().sum().backward()
        cosines = magnitudes.gradient_cosines(net)["layer"].abs()
        assert least <= float(cosines.max()) < most


def test_projection_moves_stored_weights_of_projected_layers_only():
    nets = {config: awake(build(config)) for config in "CDEFG"}
    for config, net in nets.items():
        before = {name: p.clone() for name, p in net.named_parameters()}
        project(net)
        for name, parameter in net.named_parameters():
            on_sphere = config in "EFG" and parameter.ndim > 1
            assert torch.equal(parameter, before[name]) != on_sphere, (config, name)
            if on_sphere:
                rows = parameter.flatten(1).square().mean(dim=1).sqrt()
                torch.testing.assert_close(rows, torch.ones_like(rows), rtol=2e-4, atol=0)


def test_projection_does_not_change_what_the_network_says():
    net, x, noise = awake(build()), torch.randn(2, 1, 8, 8), torch.randn(2)
    before = net(x, noise)
    assert float(before.std()) > 0.01
    project(net)
    torch.testing.assert_close(net(x, noise), before, rtol=1e-3, atol=1e-3)


def test_a_forward_pass_leaves_the_weights_alone():
    net = build().train()
    before = [p.clone() for p in net.parameters()]
    net(torch.randn(2, 1, 8, 8), torch.randn(2)).sum().backward()
    assert all(map(torch.equal, before, net.parameters()))


# The ladder


def test_each_configuration_changes_what_its_letter_says():
    changed = {
        after: {
            name
            for name, value in vars(parts_of(before, "seed")).items()
            if getattr(parts_of(after, "seed"), name) != value
        }
        for before, after in zip("CDEF", "DEFG", strict=True)
    }
    assert changed == {
        "D": {"layer", "clip"},
        "E": {"layer"},
        "F": {"block", "before_output", "embedding_layers"},
        "G": {
            *("waves", "activation", "residual_sum", "attention_sum", "label_sum", "cat", "gain"),
        },
    }


@EVERY
def test_images_are_independent_and_see_their_own_noise_level(config, variant):
    net = awake(build(config, variant)).double()
    x, noise = torch.randn(3, 1, 8, 8).double(), torch.randn(3).double()
    out = net(x, noise)
    assert out.shape == x.shape
    torch.testing.assert_close(net(x[1:2], noise[1:2]), out[1:2])
    changed = (net(x, noise + torch.tensor([0, 0.5, 0])) - out).flatten(1).abs().amax(dim=1)
    assert (changed > 1e-3).tolist() == [False, True, False]


@SEED_LETTERS
def test_labels_matter_where_there_are_classes(config):
    net, x, noise = awake(build(config, classes=3)), torch.randn(3, 1, 8, 8), torch.randn(3)
    label = torch.tensor([0, 1, 2])
    out, none = net(x, noise, label), net(x, noise)
    assert float((out - none).flatten(1).abs().amax(dim=1).min()) > 1e-4
    torch.testing.assert_close(net(x[1:], noise[1:], label[1:]), out[1:], rtol=1e-4, atol=1e-4)
    other = net(x, noise, torch.tensor([0, 2, 2]))
    assert ((other - out).flatten(1).abs().amax(dim=1) > 1e-4).tolist() == [False, True, False]
    with pytest.raises(ValueError, match="takes no class label"):
        build(config)(x, noise, label)


def test_a_class_vector_has_the_magnitude_of_a_feature():
    net = build(classes=7)
    one_hot = net.embedding.scaled_one_hot(torch.arange(7), torch.zeros(7))
    assert rms(one_hot) == pytest.approx(1)
    torch.testing.assert_close(one_hot.argmax(dim=1), torch.arange(7))


def test_gains_start_where_the_variant_has_them():
    x, noise = torch.randn(2, 1, 8, 8), torch.randn(2)
    for variant, start in (("seed", 1.0), ("official", 0.0)):
        net = build(variant=variant)
        gains = [p for name, p in net.named_parameters() if name.endswith("gain")]
        assert sorted({float(g) for g in gains}) == sorted({0.0, start})
        assert torch.equal(net(x, noise), torch.zeros_like(x))
        net(x, noise).sub(1).square().sum().backward()
        moved = {name for name, p in net.named_parameters() if p.grad.abs().max() > 0}
        assert moved == {"gain"}


def test_activations_of_g_keep_their_magnitude_and_those_of_c_do_not():
    for config, variant, low, high in (("G", "official", 0.7, 1.3), ("C", "seed", 0.0, 0.7)):
        net = build(config, variant, channels=64, blocks=2, attention=())
        seen = block_outputs(net, 0.7 * torch.randn(4, 1, 8, 8), torch.randn(4))
        assert low < sum(map(rms, seen)) / len(seen) < high


def test_blocks_are_clipped_from_d_on():
    x, noise = torch.randn(1, 1, 8, 8), torch.randn(1)
    for config, clip in (("C", math.inf), ("D", 256), ("E", 256), ("G", 256)):
        parts = parts_of(config, "seed")
        assert parts.clip == clip
        for small in (1e-3, math.inf):
            net = build(config, parts=replace(parts, clip=small))
            largest = max(float(out.abs().max()) for out in block_outputs(net, x, noise))
            assert (largest < 1.001e-3) == (small == 1e-3)


def test_attention_is_that_of_its_formula():
    parts = replace(parts_of("G", "official"), head_channels=4)
    module, x = Attention(8, parts).double(), torch.randn(2, 8, 3, 3).double()
    q, k, v = (
        F.conv2d(x, unit_rows(module.qkv.weight)).reshape(2, 3, 2, 4, 9).movedim(1, 0)
    )  # (batch, heads, channels, positions)
    q, k, v = (part / part.square().mean(dim=2, keepdim=True).sqrt() for part in (q, k, v))
    logits = torch.einsum("bhci,bhcj->bhij", q, k) / 2
    assert float(logits.abs().max()) <= 2 + 1e-9
    attended = torch.einsum("bhij,bhcj->bhci", logits.softmax(dim=-1), v).reshape(2, 8, 3, 3)
    expected = F.conv2d(attended, unit_rows(module.out.weight))
    torch.testing.assert_close(module(x), expected, rtol=1e-3, atol=1e-3)


def test_dropout_acts_in_training_only():
    net, x, noise = awake(build(dropout=0.5)), torch.randn(1, 1, 8, 8), torch.randn(1)
    assert torch.equal(net(x, noise), net(x, noise))
    net.train()
    assert not torch.equal(net(x, noise), net(x, noise))


@EVERY
def test_bfloat16_autocast(config, variant):
    net, x, noise = awake(build(config, variant)), torch.randn(2, 1, 8, 8), torch.randn(2)
    exact = net(x, noise)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = net(x, noise)
    assert (rough - exact).norm() < 0.1 * exact.norm()
    rough.float().square().sum().backward()
    assert all(p.grad.isfinite().all() for p in net.parameters())


def test_what_it_cannot_do_is_refused():
    with pytest.raises(ValueError, match="no configuration C official; known: C seed, D seed"):
        parts_of("C", "official")
    with pytest.raises(ValueError, match="size 8 cannot be halved 4 times"):
        build(multipliers=(1, 1, 1, 1, 1))
    parts = replace(parts_of("G", "official"), head_channels=5)
    with pytest.raises(ValueError, match="16 channels do not split into attention heads of 5"):
        build(parts=parts)


# How far it has grown


def test_magnitudes_of_weights_and_activations_by_hand():
    net = build("G", "official", classes=3)
    with torch.no_grad():
        net.stem.weight[1] *= 3
    found = magnitudes.weight_magnitudes(net)
    assert found.keys() == magnitudes.weights(net).keys()
    assert float(found["stem"][1]) == pytest.approx(3, rel=1e-3)
    assert float(found["stem"][0]) == pytest.approx(1, rel=1e-3)

    x, noise, label = torch.randn(2, 1, 8, 8), torch.randn(2), torch.tensor([0, 2])
    seen = magnitudes.activation_magnitudes(net, x, noise, label)
    assert seen.keys() == found.keys()
    stem = net.stem(torch.cat([x, torch.ones_like(x)], dim=1))
    torch.testing.assert_close(seen["stem"], stem.square().mean(dim=(0, 2, 3)).sqrt())
    assert seen["embedding.label"].shape == (16,)
    assert not net.stem._forward_hooks


def test_relative_steps_are_lengths_over_lengths():
    net = nn.Sequential(Plain(4, 3))
    before = magnitudes.copied(net)
    with torch.no_grad():
        net[0].weight *= 1.25
    assert magnitudes.relative_steps(before, magnitudes.copied(net)) == {"0": pytest.approx(0.25)}
    with pytest.raises(ValueError, match="0 has no gradient"):
        magnitudes.gradient_cosines(net)
