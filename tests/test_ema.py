"""Weight averaging against explicit weighted sums, closed forms and reference values."""

import copy
import json
import os
from pathlib import Path

import mpmath
import numpy as np
import pytest
import torch
from torch import nn
from waits import Waits

from diffbook_lib.ema import EMA, WIDEST, power_exponent, power_width, profile

GOLDEN = Path(os.environ.get("DIFFBOOK_GOLDEN", Path(__file__).parent / "golden")) / "edm2.json"


class Scalar(nn.Module):
    def __init__(self, value=0.0):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(value))
        self.register_buffer("count", torch.tensor(0))


def follow(ema, net, values):
    for k, value in enumerate(values):
        with torch.no_grad():
            net.w.fill_(value)
            net.count.fill_(k + 1)
        ema.update(net)
    return ema.parameters["w"].item()


def unrolled(betas):
    """The weight of each step in the average after the last, float64, by unrolling the recursion.

    The first entry belongs to the weights at the start.
    """
    weights = [1.0]
    for beta in betas:
        weights = [w * beta for w in weights] + [1 - beta]
    return np.array(weights)


def impulse_response(name, steps):
    """The weight of each step, measured: one parameter for each step, nonzero only there."""

    class Impulses(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(steps))

    net = Impulses()
    ema = EMA(net, profile(name), 1)
    for row in torch.eye(steps):
        net.w.data.copy_(row)
        ema.update(net)
    return ema.parameters["w"].double().numpy()


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.999])
def test_classic_is_the_explicit_weighted_average(decay):
    values = np.random.default_rng(0).normal(size=200)
    betas = [min(decay, (1 + t) / (10 + t)) for t in range(1, 201)]
    expected = unrolled(betas) @ np.concatenate([[3.0], values])
    net = Scalar(3.0)
    assert follow(EMA(net, profile(f"classic-{decay}"), 1), net, values) == pytest.approx(
        expected, abs=1e-5
    )


@pytest.mark.parametrize("sigma_rel", [0.02, 0.1, 0.25])
def test_power_is_the_explicit_weighted_average(sigma_rel):
    """The products of beta telescope: after step T, step t weighs (t/T)^g1 - ((t-1)/T)^g1."""
    t = np.arange(201) / 200
    weights = np.diff(t ** (power_exponent(sigma_rel) + 1))
    values = np.random.default_rng(1).normal(size=200)
    net = Scalar(1e6)  # the weights at the start must leave no trace
    result = follow(EMA(net, profile(f"power-{sigma_rel}"), 1), net, values)
    assert result == pytest.approx(weights @ values, abs=1e-5)


@pytest.mark.parametrize("sigma_rel", [0.05, 0.1, 0.2])
def test_width_of_the_power_profile(sigma_rel):
    steps = 1000
    weights = impulse_response(f"power-{sigma_rel}", steps)
    t = np.arange(1, steps + 1)
    assert weights.sum() == pytest.approx(1, abs=1e-5)
    mean = weights @ t
    assert np.sqrt(weights @ (t - mean) ** 2) == pytest.approx(sigma_rel * steps, rel=1e-3)


@pytest.mark.parametrize("sigma_rel", [1e-4, 0.01, 0.05, 0.1, 0.2, 0.28, WIDEST - 1e-9])
def test_power_exponent_solves_the_equation(sigma_rel):
    """sigma_rel^2 (gamma + 2)^2 (gamma + 3) = gamma + 1, in 50 digits."""
    gamma = power_exponent(sigma_rel)
    with mpmath.workdps(50):
        excess = lambda g: mpmath.mpf(sigma_rel) ** 2 * (g + 2) ** 2 * (g + 3) - (g + 1)
        near = 1e-12 * (1 + gamma)
        assert excess(gamma - near) < 0 < excess(gamma + near)
    assert power_width(gamma) == pytest.approx(sigma_rel, rel=1e-12)


@pytest.mark.skipif(not GOLDEN.exists(), reason="no reference values for edm2")
def test_reference_values():
    golden = json.loads(GOLDEN.read_text())
    case = golden["sigma_rel_to_gamma"]
    assert [power_exponent(s) for s in case["std"]] == pytest.approx(case["exp"], rel=1e-7)
    case = golden["power_beta"]
    for sigma_rel, betas in zip(case["std"], case["beta"], strict=True):
        found = [profile(f"power-{sigma_rel}").beta(t, 1) for t in case["t_next"]]
        assert found == pytest.approx(betas, rel=1e-7)
    case = golden["ema_track"]
    for sigma_rel, expected in zip(case["target_std"], case["direct"], strict=True):
        net = Scalar()
        tracked = follow(EMA(net, profile(f"power-{sigma_rel}"), 1), net, case["theta"])
        assert tracked == pytest.approx(expected, rel=1e-5)


def test_a_later_update_does_not_change_the_network():
    net = nn.Linear(2, 2)
    before = copy.deepcopy(net.state_dict())
    EMA(net, profile("power-0.1"), 1).update(net)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_buffers_are_copied():
    net, other = Scalar(), Scalar()
    ema = EMA(net, profile("classic-0.9"), 1)
    follow(ema, net, [1.0, 2.0, 3.0])
    ema.copy_to(other)
    assert other.count.item() == 3
    assert other.w.item() == ema.parameters["w"].item() != net.w.item()


def test_the_average_is_float32_for_a_bfloat16_network():
    net = nn.Linear(4, 4).bfloat16()
    ema = EMA(net, profile("classic-0.999"), 1)
    ema.update(net)
    assert {p.dtype for p in ema.parameters.values()} == {torch.float32}


NAMES = ["classic-0.99", "power-0.1", "halflife-40", "halflife-500000-ramp-0.05"]


@pytest.mark.parametrize("name", NAMES)
def test_state_continues_exactly(name):
    values = torch.randn(20).tolist()
    make = lambda net: EMA(net, profile(name), 16)
    net = Scalar()
    whole = follow(make(net), net, values)
    net = Scalar()
    first = make(net)
    follow(first, net, values[:7])
    second = make(Scalar(-5.0))
    second.load_state_dict({name: t.clone() for name, t in first.state_dict().items()})
    assert follow(second, net, values[7:]) == whole
    assert all(isinstance(t, torch.Tensor) for t in second.state_dict().values())


def test_updates_wait_for_no_device():
    net = Scalar()
    averages = [EMA(net, profile(name), 16) for name in NAMES]
    with Waits() as waits:
        for ema in averages:
            ema.update(net)
    assert waits.count == 0


# Half-lives, in images.


@pytest.mark.parametrize("batch", [1, 8])
def test_what_is_a_half_life_old_weighs_half(batch):
    steps, images = 64, 16
    net = Scalar(1.0)  # the weights at the start, zero from then on
    ema = EMA(net, profile(f"halflife-{images}"), batch)
    left = follow(ema, net, [0.0] * steps)
    assert left == pytest.approx(0.5 ** (steps * batch / images), rel=1e-5)


def test_the_ramp_is_that_of_the_released_code():
    """In EDM's loop the average is updated before the step's images are counted as seen."""
    seen, batch, ramp = 0, 512, 0.05
    for step in range(1, 60_000):
        halflife = min(500_000, seen * ramp)
        expected = 0.5 ** (batch / max(halflife, 1e-8))
        if step < 4 or step % 997 == 0:
            beta = profile("halflife-500000-ramp-0.05").beta(step, batch)
            assert beta == pytest.approx(expected, rel=1e-12)
        seen += batch
    assert seen * ramp > 500_000  # both sides of the minimum were seen


# Names.


@pytest.mark.parametrize("name", [*NAMES, "classic-0", "power-0.285", "halflife-1500.5"])
def test_a_profile_has_the_name_it_is_found_by(name):
    assert profile(name).name == name
    assert profile(profile(name).name) == profile(name)


@pytest.mark.parametrize("name", ["classic-0.99999999", "halflife-1e3", "power-.1", "power-1e-3"])
def test_other_ways_to_write_a_number(name):
    assert profile(profile(name).name) == profile(name)


@pytest.mark.parametrize(
    "name",
    ["linear-0.9", "classic", "classic-", "classic--0.5", "halflife-5-ramp", "power-0.1-x", "0.9"],
)
def test_a_text_that_names_no_profile_is_refused_with_the_three_forms(name):
    with pytest.raises(ValueError, match=r"classic-DECAY.*power-SIGMA_REL.*halflife-IMAGES") as e:
        profile(name)
    assert repr(name) in str(e.value)


@pytest.mark.parametrize(
    "name, named",
    [
        ("classic-1.0", r"decay is 1\.0.*\[0, 1\)"),
        ("power-0.3", r"0\.3.*between 0 and 0\.2887"),
        ("power-0", r"0\.0.*between 0 and"),
        ("halflife-0", "half-life is 0.0"),
        ("halflife-5-ramp-0", "ramp is 0.0"),
    ],
)
def test_numbers_out_of_range_are_refused(name, named):
    with pytest.raises(ValueError, match=named):
        profile(name)


def test_the_average_of_another_network_is_refused():
    other = EMA(nn.Linear(1, 1), profile("power-0.1"), 1).state_dict()
    with pytest.raises(ValueError, match=r"another network.*weight"):
        EMA(Scalar(), profile("power-0.1"), 1).load_state_dict(other)
