"""Groups of parameters that several methods share. A method's class inherits those it has."""

from typing import Annotated

from pydantic import Field

from diffbook_lib.specs.base import Count, Counts, RunSpec

Factor = Annotated[int, Field(ge=1, le=64)]


class Pictures(RunSpec):
    """What can be done with pictures before they are learned."""

    flip: bool = Field(
        False, description="mirror training images left-right at random"
    )
    dequantise: bool = Field(
        False,
        description="spread levels over their bins for training, round samples to levels",
    )
    size: int = Field(
        0, ge=0, description="side of the pictures; 0: as the data set has them"
    )
    levels: int = Field(
        0, ge=0, description="your own array file: how many levels it has"
    )


class PointNet(RunSpec):
    """Multilayer perceptrons, for points."""

    width: Count = Field(64, le=2**16, description="mlp: units of a layer")
    depth: Count = Field(
        3, le=1000, description="mlp: residual blocks; plain-mlp: hidden layers"
    )


class UNet(RunSpec):
    """Convolutional networks on several resolutions, for images."""

    channels: Count = Field(
        16, le=2**14, description="unet, ncsnpp: channels at full resolution"
    )
    multipliers: Annotated[tuple[Factor, ...], Field(strict=False)] = Field(
        (1, 2),
        min_length=1,
        description="unet, ncsnpp: channels of each level, over channels",
    )
    blocks: Count = Field(
        1, le=1000, description="unet, ncsnpp: residual blocks a level"
    )
    attention: Counts = Field(
        (4,), description="unet, ncsnpp: resolutions with self-attention"
    )
    dropout: float = Field(
        0.0, ge=0, lt=1, description="unet, ncsnpp: dropout probability"
    )


class EDMNoise(RunSpec):
    """Preconditioning and noise levels of EDM training (Karras et al. 2022, Table 1)."""

    sigma_data: float = Field(0.5, gt=0, description="standard deviation of the data")
    P_mean: float = Field(-1.2, description="mean of ln sigma in training")
    P_std: float = Field(
        1.2, gt=0, description="standard deviation of ln sigma in training"
    )
