"""A miniature method: a sweep, a projection after the step, two averages."""

from diffbook_lib.specs.parts import EDMNoise, PointNet


class Spec(EDMNoise, PointNet):
    """Points of the plane, denoised by a perceptron whose weights keep their norm."""

    coordinates = ("nfe",)

    nfe: int = 5
