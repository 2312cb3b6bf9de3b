"""Critically-damped Langevin diffusion: the chapter `book/cld.ipynb` derives what stands here."""

from diffbook_lib.cld.process import CLD, Cholesky, Covariance, Flow, Score, State, cholesky
from diffbook_lib.cld.samplers import euler_maruyama, half_step, sample, score_step, sscs, time_grid

__all__ = [
    "CLD",
    "Cholesky",
    "Covariance",
    "Flow",
    "Score",
    "State",
    "cholesky",
    "euler_maruyama",
    "half_step",
    "sample",
    "score_step",
    "sscs",
    "time_grid",
]
