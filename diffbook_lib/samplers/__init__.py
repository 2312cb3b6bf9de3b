"""From noise to images: a sampler is a generator that yields the state after each
step; `run` walks one to its end.

Random samplers take `noise(i)`, standard normal numbers of the shape of x for step i,
so that the caller decides how they are keyed (`rng.step_noise`) and tests can fix
them.

walks: what all share. sigmas: down noise levels, for any denoiser. flows: adaptive
solvers and likelihoods. vpsde: the variance-preserving SDE in its own time.
guidance: denoisers made of others.
"""

from diffbook_lib.samplers import vpsde
from diffbook_lib.samplers.flows import (
    divergence,
    log_likelihood,
    probability_flow,
    rademacher,
)
from diffbook_lib.samplers.guidance import clipped, guided, unlabelled
from diffbook_lib.samplers.sigmas import (
    ancestral,
    ddim,
    euler_maruyama,
    heun,
    heun_churn,
    heun_step,
    karras_sigmas,
    line,
)
from diffbook_lib.samplers.walks import CountCalls, Noise, Sample, filled, run, steps

__all__ = [
    "CountCalls",
    "Noise",
    "Sample",
    "ancestral",
    "clipped",
    "ddim",
    "divergence",
    "euler_maruyama",
    "filled",
    "guided",
    "heun",
    "heun_churn",
    "heun_step",
    "karras_sigmas",
    "line",
    "log_likelihood",
    "probability_flow",
    "rademacher",
    "run",
    "steps",
    "unlabelled",
    "vpsde",
]
