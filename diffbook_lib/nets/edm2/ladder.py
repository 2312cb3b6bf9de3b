"""The configurations C to G: what each changes.

Karras et al., "Analyzing and improving the training dynamics of diffusion models",
CVPR 2024, Table 1. "seed" are the networks of FutureXiang's re-implementation for
CIFAR and Tiny-ImageNet (which has C, E and G), "official" is the authors' own G.
"""

import math
from dataclasses import replace
from functools import partial

from torch.nn.functional import silu

from diffbook_lib.nets.edm2 import primitives as p
from diffbook_lib.nets.edm2.blocks import GroupNormBlock, PixelNormBlock
from diffbook_lib.nets.edm2.layers import Normalised, Plain, Projected
from diffbook_lib.nets.edm2.parts import Parts

# No biases, cosine attention, random Fourier features of the noise level.
C = Parts(
    layer=Plain,
    block=GroupNormBlock,
    before_output=lambda x: silu(p.group_norm(x, groups=8)),
    embedding_layers=2,
    waves=1.0,
    activation=silu,
    residual_sum=p.plain_sum,
    attention_sum=p.plain_sum,
    label_sum=p.plain_sum,
    cat=p.plain_cat,
    gain=None,
    clip=math.inf,
    pixel_norm=p.pixel_norm_root,
    middle_decodes=False,
    head_channels=None,
    wide_embedding=True,
    uncertainty_features=256,
)

# Weights are normalised where they are used.
D = replace(C, layer=Normalised, clip=256.0)

# And so are the stored weights, after every step.
E = replace(D, layer=Projected)

# No group norms; a pixel norm at the start of the encoder's blocks. Simpler blocks.
F = replace(E, block=PixelNormBlock, before_output=lambda x: x, embedding_layers=1)

# Activations, sums, concatenations and waves keep magnitudes; learned gains.
G = replace(
    F,
    waves=math.sqrt(2),
    activation=p.mp_silu,
    residual_sum=partial(p.mp_sum, t=0.3),
    attention_sum=partial(p.mp_sum, t=0.3),
    label_sum=p.mp_sum,
    cat=p.mp_cat,
    gain=1.0,
)

# The authors' own G.
OFFICIAL_G = replace(
    G,
    gain=0.0,
    pixel_norm=p.pixel_norm,
    middle_decodes=True,
    head_channels=64,
    wide_embedding=False,
    uncertainty_features=128,
)

LADDER = {
    **{
        (letter, "seed"): parts
        for letter, parts in zip("CDEFG", (C, D, E, F, G), strict=True)
    },
    ("G", "official"): OFFICIAL_G,
}


def parts_of(config: str, variant: str) -> Parts:
    """The parts of a configuration, "C" to "G", in its variant, "seed" or, for G,
    "official". Raises ValueError for others."""
    if (config, variant) not in LADDER:
        known = ", ".join(f"{letter} {kind}" for letter, kind in LADDER)
        raise ValueError(f"no configuration {config} {variant}; known: {known}")
    return LADDER[config, variant]
