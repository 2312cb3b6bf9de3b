"""Constrained diffusion by dual training: the chapter `book/constrained.ipynb` derives
what stands here.

ascent: the multipliers' step and its certificate. denoising: the loss that is
constrained, and what it is in nats. training: dual training of such a loss.
"""

from diffbook_lib.constrained.ascent import Ascent, Multipliers, running_mean
from diffbook_lib.constrained.denoising import NoiseLoss, nats
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
    "Dual",
    "Fixed",
    "Lagrangian",
    "Multipliers",
    "NoiseLoss",
    "Outcome",
    "Timetable",
    "nats",
    "running_mean",
    "unconstrained",
]
