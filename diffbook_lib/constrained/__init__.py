"""Constrained diffusion by dual training: the chapter `book/constrained.ipynb` derives
what stands here.

ascent: the multipliers' step and its certificate. problem: Lagrangian, mixture and dual,
exactly, on finite alphabets. solver: the optimum, the way to it, whether there is one.
classes: the closed form for classes. mixtures: Gaussian mixtures on a grid. losses:
those of networks, and what a threshold on them means in nats. denoising: such a loss of a
network. training: dual training of it.
"""

from diffbook_lib.constrained.ascent import Ascent, Multipliers, running_mean
from diffbook_lib.constrained.classes import ClassBalance, class_balance
from diffbook_lib.constrained.denoising import NoiseLoss, nats
from diffbook_lib.constrained.losses import (
    NoiseProblem,
    nats_a_step,
    nats_levels,
    noise_gap,
    noise_problem,
    simple_levels,
    threshold,
)
from diffbook_lib.constrained.mixtures import grid, kl_problem, mix
from diffbook_lib.constrained.problem import (
    Infeasible,
    KLProblem,
    Problem,
    entropy,
    kl,
    mixture_weights,
)
from diffbook_lib.constrained.solver import (
    DualFrames,
    Feasibility,
    Path,
    Solution,
    ascend,
    dual_frames,
    feasibility,
    solve,
)
from diffbook_lib.constrained.training import (
    Dual,
    Fixed,
    Lagrangian,
    Outcome,
    Timetable,
    unconstrained,
)

__all__ = [
    "Ascent",
    "ClassBalance",
    "Dual",
    "DualFrames",
    "Feasibility",
    "Fixed",
    "Infeasible",
    "KLProblem",
    "Lagrangian",
    "Multipliers",
    "NoiseLoss",
    "NoiseProblem",
    "Outcome",
    "Path",
    "Problem",
    "Solution",
    "Timetable",
    "ascend",
    "class_balance",
    "dual_frames",
    "entropy",
    "feasibility",
    "grid",
    "kl",
    "kl_problem",
    "mix",
    "mixture_weights",
    "nats",
    "nats_a_step",
    "nats_levels",
    "noise_gap",
    "noise_problem",
    "running_mean",
    "simple_levels",
    "solve",
    "threshold",
    "unconstrained",
]
