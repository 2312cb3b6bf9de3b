"""Weight averaging against explicit weighted sums, closed forms and reference values."""

import copy
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from diffbook_lib.ema import EMA, power_exponent, power_width

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


def profile(betas):
    """The weight of each step in the average after the last, float64, by unrolling the recursion.

    The first entry belongs to the weights at the start.
    """
    weights = [1.0]
    for beta in betas:
        weights = [w * beta for w in weights] + [1 - beta]
    return np.array(weights)


def impulse_response(rule, value, steps):
    """The weight of each step, measured: one parameter for each step, nonzero only there."""

    class Impulses(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(steps))

    net = Impulses()
    ema = EMA(net, rule, value)
    for row in torch.eye(steps):
        net.w.data.copy_(row)
        ema.update(net)
    return ema.parameters["w"].double().numpy()


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.999])
def test_classic_is_the_explicit_weighted_average(decay):
    values = np.random.default_rng(0).normal(size=200)
    betas = [min(decay, (1 + t) / (10 + t)) for t in range(1, 201)]
    expected = profile(betas) @ np.concatenate([[3.0], values])
    net = Scalar(3.0)
    assert follow(EMA(net, "classic", decay), net, values) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("sigma_rel", [0.02, 0.1, 0.25])
def test_power_is_the_explicit_weighted_average(sigma_rel):
    """The products of beta telescope: after step T, step t weighs (t/T)^g1 - ((t-1)/T)^g1."""
    t = np.arange(201) / 200
    weights = np.diff(t ** (power_exponent(sigma_rel) + 1))
    values = np.random.default_rng(1).normal(size=200)
    net = Scalar(1e6)  # the weights at the start must leave no trace
    result = follow(EMA(net, "power", sigma_rel), net, values)
    assert result == pytest.approx(weights @ values, abs=1e-5)


@pytest.mark.parametrize("sigma_rel", [0.05, 0.1, 0.2])
def test_width_of_the_power_profile(sigma_rel):
    steps = 1000
    weights = impulse_response("power", sigma_rel, steps)
    t = np.arange(1, steps + 1)
    assert weights.sum() == pytest.approx(1, abs=1e-5)
    mean = weights @ t
    assert np.sqrt(weights @ (t - mean) ** 2) == pytest.approx(sigma_rel * steps, rel=1e-3)


@pytest.mark.parametrize("sigma_rel", [0.01, 0.05, 0.1, 0.2, 0.28])
def test_power_exponent_inverts_power_width(sigma_rel):
    assert power_width(power_exponent(sigma_rel)) == pytest.approx(sigma_rel, abs=1e-10)


@pytest.mark.skipif(not GOLDEN.exists(), reason="no reference values for edm2")
def test_reference_values():
    golden = json.loads(GOLDEN.read_text())
    case = golden["sigma_rel_to_gamma"]
    assert [power_exponent(s) for s in case["std"]] == pytest.approx(case["exp"], rel=1e-7)
    case = golden["power_beta"]
    for sigma_rel, betas in zip(case["std"], case["beta"], strict=True):
        ema = EMA(Scalar(), "power", sigma_rel)
        assert [ema.beta(t) for t in case["t_next"]] == pytest.approx(betas, rel=1e-7)
    case = golden["ema_track"]
    for sigma_rel, expected in zip(case["target_std"], case["direct"], strict=True):
        net = Scalar()
        tracked = follow(EMA(net, "power", sigma_rel), net, case["theta"])
        assert tracked == pytest.approx(expected, rel=1e-5)


def test_a_later_update_does_not_change_the_network():
    net = nn.Linear(2, 2)
    before = copy.deepcopy(net.state_dict())
    EMA(net, "power", 0.1).update(net)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_buffers_are_copied():
    net, other = Scalar(), Scalar()
    ema = EMA(net, "classic", 0.9)
    follow(ema, net, [1.0, 2.0, 3.0])
    ema.copy_to(other)
    assert other.count.item() == 3
    assert other.w.item() == ema.parameters["w"].item() != net.w.item()


def test_the_average_is_float32_for_a_bfloat16_network():
    net = nn.Linear(4, 4).bfloat16()
    ema = EMA(net, "classic", 0.999)
    ema.update(net)
    assert {p.dtype for p in ema.parameters.values()} == {torch.float32}


@pytest.mark.parametrize("rule, value", [("classic", 0.99), ("power", 0.1)])
def test_state_continues_exactly(rule, value):
    values = torch.randn(20).tolist()
    net = Scalar()
    whole = follow(EMA(net, rule, value), net, values)
    net = Scalar()
    first = EMA(net, rule, value)
    follow(first, net, values[:7])
    second = EMA(Scalar(-5.0), rule, value)
    second.load_state_dict({name: t.clone() for name, t in first.state_dict().items()})
    assert follow(second, net, values[7:]) == whole
    assert all(isinstance(t, torch.Tensor) for t in second.state_dict().values())


def test_errors_name_the_value():
    net = Scalar()
    with pytest.raises(ValueError, match=r"'linear'.*classic, power"):
        EMA(net, "linear", 0.9)
    with pytest.raises(ValueError, match=r"1\.0.*\[0, 1\)"):
        EMA(net, "classic", 1.0)
    with pytest.raises(ValueError, match=r"0\.3.*between 0 and 0\.2887"):
        EMA(net, "power", 0.3)
    with pytest.raises(ValueError, match=r"another network.*weight"):
        EMA(net, "power", 0.1).load_state_dict(EMA(nn.Linear(1, 1), "power", 0.1).state_dict())
