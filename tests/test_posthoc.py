"""Reconstructed averages against averages tracked directly, and against integrals."""

from functools import cache, partial

import mpmath
import numpy as np
import pytest
import torch
from scipy.integrate import quad
from torch import nn

from diffbook_lib import ema
from diffbook_lib.ema import Snapshot

T = 1024
TRACKED = (0.05, 0.1)
WANTED = (0.01, 0.02, 0.03, 0.075, 0.15, 0.2, 0.25)
# relative L2 error of the weight profile with 4, 8, ... snapshot times of two averages
ERRORS = {
    4: (0.66, 0.36, 0.17, 0.035, 0.11, 0.22, 0.39),
    8: (0.52, 0.25, 0.10, 0.013, 0.033, 0.078, 0.18),
    16: (0.36, 0.12, 0.039, 0.0035, 0.0090, 0.023, 0.079),
    32: (0.17, 0.040, 0.011, 9e-4, 0.0023, 0.0064, 0.034),
    64: (0.058, 0.011, 0.0029, 2e-4, 6e-4, 0.0017, 0.014),
}
CONDITION = {8: 5e2, 16: 6e3, 64: 1.6e6, 256: 4.6e8}


class Impulses(nn.Module):
    """A parameter for each step, nonzero there alone: its average is the weight of each step."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(T))
        self.register_buffer("waves", torch.tensor([1 / 3]))


@cache
def tracked():
    """The snapshots of two averages after every 16 steps, and the averages wanted, tracked."""
    net, kept = Impulses(), []
    averages = {s: ema.EMA(net, ema.Power(s), 1) for s in (*TRACKED, *WANTED)}
    for step, row in enumerate(torch.eye(T), 1):
        net.w.data.copy_(row)
        for average in averages.values():
            average.update(net)
        if step % 16 == 0:
            states = ({n: t.clone() for n, t in averages[s].state_dict().items()} for s in TRACKED)
            kept += [
                Snapshot(step, s, partial(dict, state))
                for s, state in zip(TRACKED, states, strict=True)
            ]
    return kept, {s: averages[s].parameters["w"] for s in WANTED}


def times_of(count: int, sigmas: tuple[float, ...] = TRACKED) -> tuple[torch.Tensor, torch.Tensor]:
    pairs = [(T * k // count, s) for k in range(1, count + 1) for s in sigmas]
    times, widths = zip(*pairs, strict=True)
    return torch.tensor(times, dtype=torch.float64), torch.tensor(widths, dtype=torch.float64)


@pytest.mark.parametrize("count", ERRORS)
def test_the_error_against_a_tracked_average_is_that_of_the_table(count):
    kept, direct = tracked()
    used = [snapshot for snapshot in kept if snapshot.time % (T // count) == 0]
    for sigma_rel, expected in zip(WANTED, ERRORS[count], strict=True):
        net = Impulses()
        found = ema.reconstruct(net, used, sigma_rel)
        wanted = direct[sigma_rel]
        error = ((net.w - wanted).norm() / wanted.norm()).item()
        # the table has one or two digits
        assert error == pytest.approx(expected, rel=0.25, abs=5e-5)
        assert found.error == pytest.approx(error, rel=0.1, abs=1e-4)


@pytest.mark.parametrize("sigma_rel, expected", [(0.05, 0.18), (0.15, 0.07), (0.2, 0.12)])
def test_one_tracked_average_is_not_enough(sigma_rel, expected):
    found = ema.coefficients(*times_of(16, sigmas=(0.1,)), T, sigma_rel)
    assert found.error == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("count", CONDITION)
def test_the_condition_is_that_of_the_sheet(count):
    found = ema.coefficients(*times_of(count), T, 0.15)
    assert found.condition == pytest.approx(CONDITION[count], rel=0.3)


@pytest.mark.parametrize("count", [8, 16, 64])
def test_a_tracked_average_is_found_again(count):
    times, sigmas = times_of(count)
    for i, sigma_rel in enumerate(TRACKED, 2 * count - 2):
        x = ema.coefficients(times, sigmas, T, sigma_rel).coefficients
        assert x[i] == pytest.approx(1, abs=1e-9)
        assert x.abs().sum() - x[i].abs() < 1e-9


def test_short_averages_amplify_rounding():
    grows = {s: ema.coefficients(*times_of(64), T, s).amplification for s in (0.01, 0.02, 0.2)}
    assert grows[0.01] == pytest.approx(142, rel=0.05)
    assert grows[0.02] == pytest.approx(37, rel=0.05)
    assert 2 < grows[0.2] < 2.4


@pytest.mark.parametrize(
    "a, b", [((10, 0.05), (20, 0.1)), ((20, 0.2), (10, 0.02)), ((7, 0.1), (7, 0.25))]
)
def test_inner_products_are_integrals(a, b):
    def density(t, time, sigma_rel):
        gamma = ema.power_exponent(sigma_rel)
        return (gamma + 1) / time * (t / time) ** gamma if t <= time else 0.0

    expected, _ = quad(
        lambda t: density(t, *a) * density(t, *b), 0, min(a[0], b[0]), epsabs=0, epsrel=1e-12
    )
    pairs = (torch.tensor([value], dtype=torch.float64) for value in (*a, *b))
    assert ema.inner_products(*pairs).item() == pytest.approx(expected, rel=1e-10)


def test_inner_products_do_not_overflow():
    """Of a late and a very early short average, in 50 digits."""
    times, sigmas = torch.tensor([1e-9, 1.0]), torch.tensor([0.01, 0.012], dtype=torch.float64)
    found = ema.inner_products(times, sigmas, times, sigmas)
    with mpmath.workdps(50):
        a, b = map(ema.power_exponent, sigmas.tolist())
        early = mpmath.mpf(times[0].item())
        exact = (a + 1) * (b + 1) * early**b / (a + b + 1)
    assert found[0, 1].item() == pytest.approx(float(exact), rel=1e-9, abs=1e-300)
    assert torch.equal(found, found.mT) and found.isfinite().all()


def test_coefficients_sum_to_one_and_those_of_least_squares_do_not():
    system = *times_of(5), T, 0.2
    assert ema.least_squares(*system).sum().item() == pytest.approx(0.942, abs=5e-4)
    assert ema.coefficients(*system).coefficients.sum().item() == pytest.approx(1, abs=1e-14)


def test_least_squares_is_nearest():
    times, sigmas = times_of(6)
    x = ema.least_squares(times, sigmas, T, 0.17)
    t = (np.arange(200_000) + 0.5) * T / 200_000

    def density(time, sigma_rel):
        gamma = ema.power_exponent(sigma_rel)
        return np.where(t <= time, (gamma + 1) / time * (t / time) ** gamma, 0)

    basis = np.stack([density(*pair) for pair in zip(times.tolist(), sigmas.tolist(), strict=True)])
    expected, *_ = np.linalg.lstsq(basis.T, density(T, 0.17), rcond=None)
    np.testing.assert_allclose(x, expected, rtol=0, atol=1e-3)


# From snapshots to a network.


def test_an_average_at_an_earlier_time_uses_what_was_known_then():
    kept, _ = tracked()
    half = [snapshot for snapshot in kept if snapshot.time <= 512]
    nets = [Impulses() for _ in range(2)]
    found = ema.reconstruct(nets[0], kept, 0.15, at=512)
    ema.reconstruct(nets[1], half, 0.15)
    assert torch.equal(nets[0].w, nets[1].w) and len(found.coefficients) == len(half)
    assert nets[0].w[512:].abs().max() == 0


def test_weights_that_never_change_stay_and_buffers_are_the_last():
    net = Impulses()
    net.w.data.fill_(0.7)
    kept = []
    for time in (1, 2, 3):
        net.waves.fill_(time)
        state = {n: t.clone() for n, t in ema.EMA(net, ema.Power(0.1), 1).state_dict().items()}
        kept.append(Snapshot(time, 0.1, partial(dict, state)))
    other = Impulses()
    ema.reconstruct(other, reversed(kept), 0.02)
    torch.testing.assert_close(other.w, net.w)
    assert other.waves.item() == 3


@pytest.mark.parametrize(
    "pairs, words",
    [
        ([(5, 0.1), (10, 0.1), (11, 0.05)], "a snapshot at 11 says nothing of an average at 10"),
        ([(5, 0.1), (9, 0.1)], r"no snapshot at 10, only at \[5\.0, 9\.0\]"),
        ([(10, 0.1), (10, 0.1)], "comes twice"),
    ],
)
def test_what_gives_no_average_is_refused(pairs, words):
    times, sigmas = (torch.tensor(part, dtype=torch.float64) for part in zip(*pairs, strict=True))
    for solve in (ema.least_squares, ema.coefficients):
        with pytest.raises(ValueError, match=words):
            solve(times, sigmas, 10, 0.15)


def test_without_snapshots_there_is_no_average():
    with pytest.raises(ValueError, match="no snapshots"):
        ema.reconstruct(Impulses(), [], 0.1)


@pytest.mark.parametrize("sigma_rel", [0.02, 0.1, 0.25])
def test_the_sampled_profile_has_the_width_it_is_named_for(sigma_rel):
    at, length = 4000, 4100
    p = ema.power_response(sigma_rel, at, length)
    t = torch.arange(length, dtype=torch.float64)
    mean = p @ t
    assert p.sum().item() == pytest.approx(1, abs=1e-12) and p[at + 1 :].abs().max() == 0
    assert (p @ (t - mean) ** 2).sqrt().item() == pytest.approx(sigma_rel * at, rel=2e-3)
