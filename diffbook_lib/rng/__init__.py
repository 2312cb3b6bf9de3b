"""Keyed randomness: every random number is a function of its key and number alone.

Nothing carries generator state from one step to the next, so a run resumed at step n
draws what an undisturbed run draws at step n, several processes draw what one draws,
and image i starts from the same noise whatever the batch size.

keyed: numbers of training steps, by (seed, purpose, step). images: numbers of single
images, by (seed, purpose, image number). counter: the counter-based generator behind
the latter.
"""

from diffbook_lib.rng.counter import philox
from diffbook_lib.rng.images import (
    image_noise,
    image_order,
    image_uniform,
    start_noise,
    step_noise,
)
from diffbook_lib.rng.keyed import (
    Share,
    Source,
    generator,
    integers,
    normal,
    permutation,
    seeded,
    stratified,
    uniform,
)

__all__ = [
    "Share",
    "Source",
    "generator",
    "image_noise",
    "image_order",
    "image_uniform",
    "integers",
    "normal",
    "permutation",
    "philox",
    "seeded",
    "start_noise",
    "step_noise",
    "stratified",
    "uniform",
]
