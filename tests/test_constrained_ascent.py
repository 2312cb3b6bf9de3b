"""The multipliers' step, and its certificate."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffbook_lib.constrained import Ascent, Multipliers, running_mean


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


def walk(rule, violations, start, scales=None):
    """All multipliers of a walk; each violation's change is against the one before."""
    states, before = [Multipliers.at(start)], violations[0]
    for n, violation in enumerate(violations):
        scale = 1.0 if scales is None else scales[n]
        states.append(rule.step(states[-1], violation, violation - before, scale))
        before = violation
    return states


def test_a_step_adds_the_violation_and_never_falls_below_zero():
    rule, at = Ascent(eta=0.5), Multipliers.at(f64(0.2, 0.2, 0.0))
    after = rule.step(at, f64(1.0, -1.0, -3.0))
    torch.testing.assert_close(after.lam, f64(0.7, 0.0, 0.0))
    half = rule.step(at, f64(1.0, -1.0, -3.0), scale=0.5)
    torch.testing.assert_close(half.lam, f64(0.45, 0.0, 0.0))


def test_relaxed_multipliers_settle_at_the_violation_over_twice_alpha():
    """The fixed point of the released code's rule, lam = loss / (2 alpha)."""
    states = walk(Ascent(eta=0.5, alpha=0.085), [f64(0.0165, 0.03)] * 400, f64(0.0, 5.0))
    torch.testing.assert_close(states[-1].lam, f64(0.0165, 0.03) / (2 * 0.085))


def test_a_cap_holds_and_the_rest_is_remembered_as_withheld():
    states = walk(Ascent(eta=1.0, cap=2.0), [f64(1.5)] * 4, f64(0.0))
    assert [state.lam.item() for state in states] == [0.0, 1.5, 2.0, 2.0, 2.0]
    assert states[-1].withheld.item() == 4.0
    assert states[-1].mean_violation().item() == 1.5


def test_a_controller_adds_its_gain_times_the_change():
    rule = Ascent(eta=0.1, gain=3.0)
    states = walk(rule, [f64(1.0), f64(2.0), f64(1.5)], f64(1.0))
    steps = [0.1 * 1.0, 0.1 * (2.0 + 3.0), 0.1 * (1.5 - 1.5)]
    expected = [1.0 + sum(steps[:n]) for n in range(4)]
    assert [state.lam.item() for state in states] == pytest.approx(expected)


def noise(steps, m, seed):
    return torch.randn(steps, m, generator=torch.Generator().manual_seed(seed)).double()


@given(
    st.integers(0, 2**31),
    st.floats(1e-3, 2.0),
    st.sampled_from([0.0, 0.1]),
    st.sampled_from([0.3, math.inf]),
    st.sampled_from([0.0, 4.0]),
    st.floats(-2.0, 2.0),
)
@settings(max_examples=60, deadline=None)
def test_no_mean_violation_exceeds_its_bound(seed, eta, alpha, cap, gain, shift):
    rule, violations = Ascent(eta, alpha, cap, gain), noise(30, 2, seed) + shift
    scales = torch.rand(30, generator=torch.Generator().manual_seed(seed)).tolist()
    states = walk(rule, violations, f64(0.0, 0.2), scales)
    assert all(state.certified() for state in states)
    lam = torch.stack([state.lam for state in states])
    assert (lam >= 0).all() and (lam <= cap).all()
    weights = torch.tensor(scales, dtype=torch.float64)[:, None]
    relaxed = violations - 2 * alpha * lam[:-1]
    mean = (weights * relaxed).sum(dim=0) / weights.sum()
    end = states[-1]
    torch.testing.assert_close(end.mean_violation(), mean)
    assert (end.mean_violation() <= end.bound() + 1e-9 * (1 + end.bound().abs())).all()


def test_the_bound_is_that_of_the_risen_multipliers():
    violations = noise(40, 3, 1)
    end = walk(Ascent(eta=0.2), violations, f64(0.0, 0.5, 1.0))[-1]
    expected = (end.lam - f64(0.0, 0.5, 1.0)) / (0.2 * 40)
    torch.testing.assert_close(end.bound(), expected)


def test_the_bound_is_the_mean_violation_where_nothing_is_projected():
    end = walk(Ascent(eta=0.2), noise(40, 3, 1) + 1, f64(50.0, 50.0, 50.0))[-1]
    torch.testing.assert_close(end.bound(), end.mean_violation())


@pytest.mark.parametrize("field", ["lam", "pushed"])
def test_what_disturbs_the_ascent_loses_the_certificate(field):
    end = walk(Ascent(eta=0.2), noise(40, 2, 1).abs(), f64(0.0, 0.0))[-1]
    by = -1e-3 if field == "lam" else 1e-3
    assert end.certified()
    assert not end._replace(**{field: getattr(end, field) + by}).certified()


def test_before_the_first_step_nothing_is_violated_or_bounded():
    at = Multipliers.at(f64(0.3, 0.0))
    assert at.certified()
    assert at.mean_violation().tolist() == at.bound().tolist() == [0.0, 0.0]


def test_steps_change_nothing_in_place():
    at = Multipliers.at(f64(0.3))
    copies = [part.clone() for part in at]
    Ascent(eta=0.1, cap=0.31).step(at, f64(1.0))
    for part, copy in zip(at, copies, strict=True):
        assert torch.equal(part, copy)


def test_single_precision_violations_are_added_in_double():
    at = Multipliers.at(torch.zeros(1))
    rule = Ascent(eta=1e-4)
    for _ in range(1000):
        at = rule.step(at, torch.tensor([0.1]))
    assert at.lam.dtype == torch.float64
    assert at.lam.item() == pytest.approx(1000 * 1e-4 * torch.tensor(0.1).item(), rel=1e-12)


def test_the_running_mean_is_the_mean():
    values, mean = noise(9, 2, 4), torch.zeros(2).double()
    for n, value in enumerate(values, start=1):
        mean = running_mean(mean, value, n)
    torch.testing.assert_close(mean, values.mean(dim=0))


@pytest.mark.parametrize(
    "name, value",
    [("eta", 0.0), ("eta", math.inf), ("alpha", -1.0), ("cap", 0.0), ("gain", -0.1)],
)
def test_a_wrong_rule_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"{name} is {value}; it must be"):
        Ascent(**{"eta": 0.1, name: value})


@pytest.mark.parametrize("lam", [[0.1, -0.2], [math.nan], [[0.1]]])
def test_wrong_multipliers_are_refused(lam):
    with pytest.raises(ValueError, match="need a list of numbers >= 0"):
        Multipliers.at(torch.tensor(lam))
