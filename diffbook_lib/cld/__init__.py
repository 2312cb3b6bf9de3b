"""Critically-damped Langevin diffusion: the chapter `book/cld.ipynb` derives what
stands here.

process: the forward process and its closed forms. objective: what the network learns.
samplers: the way back. likelihood: the bound on log p. smoothness: how hard the score
is to represent. The same without a velocity, for comparison, is `diffusion.VPSDE`.
"""

from diffbook_lib.cld.likelihood import (
    Likelihood,
    log_density,
    log_likelihood_bound,
    position_bound,
)
from diffbook_lib.cld.objective import CLD, CLDDraw, Kernel
from diffbook_lib.cld.process import (
    Cholesky,
    Covariance,
    Flow,
    Langevin,
    Score,
    State,
    cholesky,
)
from diffbook_lib.cld.samplers import (
    euler_maruyama,
    half_step,
    midpoint_score_step,
    probability_flow,
    sample,
    score_step,
    sscs,
    sscs2,
    time_grid,
)
from diffbook_lib.cld.smoothness import jacobian_norm, xi, xi_vp

__all__ = [
    "CLD",
    "CLDDraw",
    "Cholesky",
    "Covariance",
    "Flow",
    "Kernel",
    "Langevin",
    "Likelihood",
    "Score",
    "State",
    "cholesky",
    "euler_maruyama",
    "half_step",
    "jacobian_norm",
    "log_density",
    "log_likelihood_bound",
    "midpoint_score_step",
    "position_bound",
    "probability_flow",
    "sample",
    "score_step",
    "sscs",
    "sscs2",
    "time_grid",
    "xi",
    "xi_vp",
]
