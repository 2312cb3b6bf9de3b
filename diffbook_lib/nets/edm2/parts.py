"""What the configurations of EDM2 differ in."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from diffbook_lib.nets.edm2.layers import Layer

Two = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Parts:
    """The parts of one network.

    layer: convolutions and matrices. block: the residual block, with its norms.
    before_output: what is done to the last block's output before the last convolution.
    embedding_layers: matrices between the waves of the noise level and the blocks.
    waves: amplitude of these waves. activation, residual_sum, attention_sum,
    label_sum, cat: fixed functions; the sums join a block's input and residual, the
    same for attention, and the embeddings of noise level and class. gain: the first
    value of each block's learned gain on the embedding, the output's starts at zero;
    None: no learned gains. clip: largest magnitude of a block's output.

    The rest is where published networks of the same letter differ. pixel_norm:
    normalisation over channels. middle_decodes: whether the blocks at the lowest
    resolution are of the decoder's type. head_channels: channels of an attention head;
    None: one head. wide_embedding: embedding of 4 channels, otherwise as wide as the widest
    level. uncertainty_features: waves that u(sigma) sees.
    """

    layer: type[Layer]
    block: Callable[..., nn.Module]
    before_output: Callable[[Tensor], Tensor]
    embedding_layers: int
    waves: float
    activation: Callable[[Tensor], Tensor]
    residual_sum: Two
    attention_sum: Two
    label_sum: Two
    cat: Two
    gain: float | None
    clip: float
    pixel_norm: Callable[[Tensor, int], Tensor]
    middle_decodes: bool
    head_channels: int | None
    wide_embedding: bool
    uncertainty_features: int
