"""The network of EDM2: a U-Net of which every configuration, C to G, is one choice of
parts.

primitives: operations that keep magnitudes. layers: how a layer uses its weight.
blocks: the two residual blocks. parts: what a configuration chooses. ladder: what each
of them chooses. unet: the network they all share.
"""

from diffbook_lib.nets.edm2.ladder import LADDER, parts_of
from diffbook_lib.nets.edm2.layers import Normalised, Plain, Projected, project
from diffbook_lib.nets.edm2.parts import Parts
from diffbook_lib.nets.edm2.unet import EDM2UNet, Uncertainty

__all__ = [
    "LADDER",
    "EDM2UNet",
    "Normalised",
    "Parts",
    "Plain",
    "Projected",
    "Uncertainty",
    "parts_of",
    "project",
]
