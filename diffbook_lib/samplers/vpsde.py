"""Sampling of the variance-preserving SDE, in forward times that fall from 1, noise,
to 0."""

from collections.abc import Iterator

from torch import Tensor

from diffbook_lib.diffusion import VPSDE, VPScore
from diffbook_lib.samplers.walks import CountCalls, Noise, Sample, filled, run, steps


def euler_maruyama(
    process: VPSDE, score: VPScore, x: Tensor, times: Tensor, noise: Noise
) -> Iterator[Tensor]:
    """Euler-Maruyama on the reverse SDE; then a step from the last time to 0 without
    noise, which here needs the score. `noise(i)` is called once a step."""
    for i, (start, end) in enumerate(steps(times)):
        h = start - end
        drift = process.reverse_drift(score, x, filled(start, x))
        x = x + h * drift + (process.beta(start) * h).sqrt() * noise(i)
        yield x
    yield x + end * process.reverse_drift(score, x, filled(end, x))


def sample(
    process: VPSDE, score: VPScore, times: Tensor, start: Tensor, noise: Noise
) -> Sample:
    """From standard normal numbers `start` (batch, ...) down to the data by
    Euler-Maruyama; `noise(i)` is the noise of step i, as `rng.step_noise` makes
    it."""
    counted = CountCalls(score)
    x = run(euler_maruyama(process, counted, start, times, noise))
    return Sample(x, counted.nfe)
