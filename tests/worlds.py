"""What the tests of `diffbook_lib.cld` share: processes, data with known answers, and `probe`.

Everything the process and the samplers do to a Gaussian is affine, so `probe` reads the exact
coefficients off unit inputs: means, covariances and orders come without Monte Carlo error.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from diffbook_lib import cld, exact, rng
from diffbook_lib.cld import CLD, Covariance, State

UNDER, CRITICAL, OVER = CLD(Gamma=0.3), CLD(), CLD(Gamma=5.0)
HEAVY = CLD(M=1.7, Gamma=2.0, beta0=0.5, beta1=3.0, gamma=0.6)
PROCESSES = {
    "under": UNDER,
    "critical": CRITICAL,
    "critical by number": CLD(M=0.3, Gamma=2 * math.sqrt(0.3)),
    "over": OVER,
    "light": CLD(M=0.02, Gamma=2.0),
    "heavy": HEAVY,
    "linear beta": CLD(beta0=0.1, beta1=6.9),
}
processes = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)


def some_processes(*names):
    return pytest.mark.parametrize("process", [PROCESSES[name] for name in names], ids=names)


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(actual, expected, rtol=1e-12, atol=1e-12):
    expected = torch.as_tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(actual.broadcast_to(expected.shape), expected, rtol=rtol, atol=atol)


def order(steps, errors):
    """Minus the slope of log error against log steps; errors (len(steps), ...)."""
    return -np.polyfit(np.log(steps), np.log(errors), 1)[0]


# The process as 2x2 matrices.


def square(entries):
    """A Flow, Covariance or Cholesky with scalar entries as a 2x2 matrix."""
    if isinstance(entries, Covariance):
        entries = (entries.xx, entries.xv, entries.xv, entries.vv)
    elif isinstance(entries, cld.Cholesky):
        entries = (entries.xx, torch.zeros_like(entries.xx), entries.vx, entries.vv)
    return torch.stack([e.reshape(()) for e in entries]).reshape(2, 2)


def drift_matrix(process, sign=1.0):
    """A, with the coupling of x and v times `sign`."""
    return f64([0, sign / process.M], [-sign, -process.friction / process.M])


def diffusion_matrix(process):
    return f64([0, 0], [0, 2 * process.friction])


def stationary(process):
    return f64([1, 0], [0, process.M])


def integrated_covariance(process, start, t, sign=1.0):
    """Sigma at t by integrating dSigma = beta (A Sigma + Sigma A^T + noise) dt."""
    A, noise = drift_matrix(process, sign).numpy(), diffusion_matrix(process).numpy()

    def slope(t, flat):
        sigma = flat.reshape(2, 2)
        beta = process.beta0 + process.beta1 * t
        return (beta * (A @ sigma + sigma @ A.T + noise)).ravel()

    path = solve_ivp(slope, (0, t), start.ravel(), method="DOP853", rtol=1e-12, atol=1e-14)
    return torch.from_numpy(path.y[:, -1].reshape(2, 2))


def units(rows, first):
    """noise(i) (rows, 1) that is one in row first + i and zero elsewhere."""

    def unit(i):
        noise = torch.zeros(rows, 1, dtype=torch.float64)
        noise[first + i] = 1
        return noise

    return unit


def probe_line(walk, draws):
    """The affine map `walk(x, noise)` of one coordinate x, `noise(i)` being draw i < draws:
    (offset, factor, noise coefficients (draws,))."""
    x = units(draws + 2, 1)(0)
    end = walk(x, units(draws + 2, 2))[:, 0]
    return end[0], end[1] - end[0], end[2:] - end[0]


def probe(step, draws):
    """The affine map `step(state, noise)` of one coordinate, `noise(i)` being draw i < draws:
    (offset (2,), matrix (2, 2), noise matrix (2, draws)). A step that returns k columns gives
    2k rows, those of x first."""
    unit = units(draws + 3, 1)
    rows = torch.cat(step(State(unit(0), unit(1)), units(draws + 3, 3)), dim=1)
    offset, rest = rows[0], (rows[1:] - rows[0]).T
    return offset, rest[:, :2], rest[:, 2:]


# Data.

DATA = exact.GaussianMixture(
    f64([0.5, -1.0], [1.5, 0.3]),
    0.1 * torch.stack([f64([2, 1], [1, 3]), f64([1, 0], [0, 1])]),
    f64(1, 2),
)
LINE = exact.GaussianMixture(f64([0.7], [-0.9]), f64([[0.04]], [[0.2]]), f64(1, 2))


def gaussian_score(process, mean, variance):
    """As `process.exact_score` for data N(mean, variance), written out for speed; a variance (k,)
    makes k worlds, one a column."""
    process = replace(process, eps_num=0)

    def score(state, t):
        F, sigma = process.flow(process.B(t[0])), process.covariance(t[0], var_x=variance)
        pull = sigma.xx * (state.v - F.vx * mean) - sigma.xv * (state.x - F.xx * mean)
        return -pull / (sigma.xx * sigma.vv - sigma.xv**2)

    return score


def at_prior(process):
    """The score of a velocity that has the stationary law."""
    return lambda state, t: -state.v / process.M


# Losses.


def fix_draws(monkeypatch, u, noise):
    """Replaces the draws of a loss: u (batch,) for times, noise (batch, ...)."""

    def normal(shape, source, dtype):
        assert tuple(shape) == noise.shape
        return noise

    monkeypatch.setattr(rng, "uniform", lambda shape, source, dtype: u)
    monkeypatch.setattr(rng, "normal", normal)


def times_drawn(process, n):
    """The times at which a loss asks its network, (n,)."""
    seen = []

    def net(u, t, label):
        seen.append(t)
        return torch.zeros_like(u[:, :1])

    process.loss(net, torch.zeros(n, 1), rng.generator(0, "loss"))
    return seen[0]


def in_shares(process, net, x0):
    """The loss of one batch, whole and put together from two workers' shares."""
    source = lambda: rng.generator(0, "loss")
    n = len(x0)
    shares = [process.loss(net, x0[a:b], rng.Share(source(), a, b, n)) for a, b in [(0, 2), (2, n)]]
    return process.loss(net, x0, source()), torch.cat(shares)
