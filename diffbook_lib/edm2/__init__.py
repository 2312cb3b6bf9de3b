"""EDM2: the chapter `book/edm2.ipynb` derives what stands here.

loss: denoising with a learned weight of the noise levels. magnitudes: how far weights
and activations have grown. growth: the same in the course of a training. schedule: the
learning rate. The network, with its configurations C to G, is `nets.edm2`.
"""

from diffbook_lib.edm2 import magnitudes
from diffbook_lib.edm2.growth import Growth
from diffbook_lib.edm2.loss import EDM2Loss, uncertain
from diffbook_lib.edm2.schedule import InverseSqrt

__all__ = ["EDM2Loss", "Growth", "InverseSqrt", "magnitudes", "uncertain"]
