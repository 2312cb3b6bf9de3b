"""Averages of a network's weights over the course of training.

profiles: how an average forgets, and the average itself. posthoc: the average with
another profile, from snapshots of two that were tracked.
"""

from diffbook_lib.ema.posthoc import (
    Snapshot,
    Solution,
    coefficients,
    inner_products,
    least_squares,
    reconstruct,
)
from diffbook_lib.ema.profiles import (
    EMA,
    WIDEST,
    Classic,
    HalfLife,
    Power,
    Profile,
    power_exponent,
    power_response,
    power_width,
    profile,
)

__all__ = [
    "EMA",
    "WIDEST",
    "Classic",
    "HalfLife",
    "Power",
    "Profile",
    "Snapshot",
    "Solution",
    "coefficients",
    "inner_products",
    "least_squares",
    "power_exponent",
    "power_response",
    "power_width",
    "profile",
    "reconstruct",
]
