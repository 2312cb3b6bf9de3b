"""Measures of samples. Each result says how many samples it was measured on, and what as many
samples of a perfect sampler give: differences smaller than that are noise.
"""

from diffbook_lib.metrics.classifiers import (
    RECIPES,
    Recipe,
    cached_classifier,
    class_histogram,
    classes_of,
    classifier,
    classifier_of,
    sure_share,
    train_classifier,
)
from diffbook_lib.metrics.clouds import (
    in_mode,
    mode_weight_error,
    nearest_distance,
    sliced_wasserstein,
)
from diffbook_lib.metrics.constraints import multipliers, violation
from diffbook_lib.metrics.denoising import denoising_error
from diffbook_lib.metrics.frechet import frechet_distance
from diffbook_lib.metrics.inception_v3 import InceptionMissing, inception
from diffbook_lib.metrics.judge import Judge, grading_flops
from diffbook_lib.metrics.likelihood import bits, bits_per_dim
from diffbook_lib.metrics.measurement import Measurement
from diffbook_lib.metrics.probe import (
    Reader,
    decoder_blocks,
    linear_probe,
    published_probe,
)
from diffbook_lib.metrics.shares import class_shares
from diffbook_lib.nets.classifier import Classifier

__all__ = [
    "RECIPES",
    "Classifier",
    "InceptionMissing",
    "Judge",
    "Measurement",
    "Reader",
    "Recipe",
    "bits",
    "bits_per_dim",
    "cached_classifier",
    "class_histogram",
    "class_shares",
    "classes_of",
    "classifier",
    "classifier_of",
    "decoder_blocks",
    "denoising_error",
    "frechet_distance",
    "grading_flops",
    "in_mode",
    "inception",
    "linear_probe",
    "mode_weight_error",
    "multipliers",
    "nearest_distance",
    "published_probe",
    "sliced_wasserstein",
    "sure_share",
    "train_classifier",
    "violation",
]
