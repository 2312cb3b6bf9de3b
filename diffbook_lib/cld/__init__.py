"""Critically-damped Langevin diffusion: the chapter `book/cld.ipynb` derives what stands here.

process: the forward process and its closed forms. objective: what the network learns. samplers:
the way back. likelihood: the bound on log p. smoothness: how hard the score is to represent.
vpsde: the same without a velocity, for comparison.
"""

from diffbook_lib.cld import vpsde
from diffbook_lib.cld.likelihood import (
    Likelihood,
    log_density,
    log_likelihood_bound,
    position_bound,
)
from diffbook_lib.cld.objective import CLD, Kernel
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
    Sample,
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
from diffbook_lib.cld.vpsde import VPSDE

__all__ = [
    "CLD",
    "VPSDE",
    "Cholesky",
    "Covariance",
    "Flow",
    "Kernel",
    "Langevin",
    "Likelihood",
    "Sample",
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
    "vpsde",
    "xi",
    "xi_vp",
]
