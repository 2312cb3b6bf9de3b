"""Measures of samples. Each result says how many samples it was measured on, and what as many
real examples give: differences smaller than that are noise.
"""

from .classifiers import (
    RECIPES,
    Classifier,
    Recipe,
    cached_classifier,
    class_histogram,
    classifier,
    sure_share,
    train_classifier,
)
from .clouds import in_mode, mode_weight_error, nearest_distance, sliced_wasserstein
from .frechet import InceptionMissing, frechet_distance, inception
from .likelihood import bits, bits_per_dim, dequantise
from .measurement import Measurement

__all__ = [
    "RECIPES",
    "Classifier",
    "InceptionMissing",
    "Measurement",
    "Recipe",
    "bits",
    "bits_per_dim",
    "cached_classifier",
    "class_histogram",
    "classifier",
    "dequantise",
    "frechet_distance",
    "in_mode",
    "inception",
    "mode_weight_error",
    "nearest_distance",
    "sliced_wasserstein",
    "sure_share",
    "train_classifier",
]
