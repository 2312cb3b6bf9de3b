"""Constrained diffusion by dual training: the chapter `book/constrained.ipynb` derives
what stands here.

ascent: the multipliers' step and its certificate.
"""

from diffbook_lib.constrained.ascent import Ascent, Multipliers, running_mean

__all__ = ["Ascent", "Multipliers", "running_mean"]
