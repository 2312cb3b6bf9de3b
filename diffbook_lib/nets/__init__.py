"""Networks: one architecture a file or folder, and `make`, which builds one by name.

All are called net(x, noise, label=None) with a scalar noise feature (batch,).
"""

from collections.abc import Sequence
from typing import Any

from torch import nn

from diffbook_lib.nets.edm2 import EDM2UNet, parts_of
from diffbook_lib.nets.mlp import MLP, PlainMLP
from diffbook_lib.nets.ncsnpp import NCSNpp
from diffbook_lib.nets.unet import UNet

POINTS, IMAGES = ("mlp", "plain-mlp"), ("unet", "ncsnpp", "edm2")
LABELLED = ("mlp", "unet", "edm2")


def make(
    name: str,
    inputs: int,
    outputs: int,
    spec: Any,
    size: Sequence[int] = (),
    classes: int = 0,
    log_noise: bool = False,
) -> nn.Module:
    """The network of that name: "mlp" or "plain-mlp" for points (batch, inputs),
    "unet", "ncsnpp" or "edm2" for images (batch, inputs, *size), to (batch, outputs)
    or (batch, outputs, *size).

    `spec` holds its other parameters as attributes: width and depth; channels,
    multipliers, blocks, attention and dropout; fir, progressive_input and
    time_embedding; config and variant. `classes`: kinds of class label it takes.
    `log_noise`: "mlp" and "unet" embed the logarithm of the noise feature; the others
    see it in their own way. Raises ValueError for an unknown name, and for a network
    that does not fit the data.
    """
    if name not in (*POINTS, *IMAGES):
        raise ValueError(
            f"unknown network {name!r}; known: {', '.join((*POINTS, *IMAGES))}"
        )
    _check(name, tuple(size), classes)
    if name == "mlp":
        return MLP(inputs, outputs, spec.width, spec.depth, log_noise, classes)
    if name == "plain-mlp":
        return PlainMLP(inputs, outputs, spec.width, spec.depth)
    levels = (spec.channels, spec.multipliers, spec.blocks, spec.attention)
    if name == "unet":
        image = (inputs, outputs, size[0], *levels)
        return UNet(
            *image, classes=classes, dropout=spec.dropout, log_noise=log_noise
        )
    if name == "edm2":
        parts = parts_of(spec.config, spec.variant)
        image = (inputs, outputs, size[0], *levels)
        return EDM2UNet(*image, parts, classes, spec.dropout)
    options = (spec.dropout, spec.fir, spec.progressive_input, spec.time_embedding)
    return NCSNpp(inputs, outputs, size[0], *levels, *options)


def _check(name: str, size: tuple[int, ...], classes: int) -> None:
    if name in IMAGES and not size:
        raise ValueError(
            f"{name!r} is for images, but the data are points; use {_either(POINTS)}"
        )
    if name in POINTS and size:
        raise ValueError(
            f"{name!r} is for points, but the data are images of {_times(size)}; use "
            f"{_either(IMAGES)}"
        )
    if size and (len(size) != 2 or size[0] != size[1]):
        raise ValueError(
            f"{name!r} is for square images, but these are of {_times(size)}"
        )
    if classes and name not in LABELLED:
        others = [n for n in (POINTS if name in POINTS else IMAGES) if n in LABELLED]
        raise ValueError(
            f"{name!r} takes no class labels; use {_either(others)}, or classes=0"
        )


def _either(names: Sequence[str]) -> str:
    return " or ".join(map(repr, names))


def _times(size: Sequence[int]) -> str:
    return "×".join(map(str, size))
