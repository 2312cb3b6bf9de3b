"""Residual blocks: with group norms (configurations C to E), and with at most one
pixel norm (F and G)."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffbook_lib.nets.edm2.parts import Parts
from diffbook_lib.nets.edm2.primitives import group_norm


class Attention(nn.Module):
    """What self-attention over all positions adds. Queries, keys and values have root
    mean square one, so that the logits are bounded by the root of a head's channels."""

    def __init__(self, channels: int, parts: Parts) -> None:
        super().__init__()
        self.parts = parts
        size = min(parts.head_channels or channels, channels)
        if channels % size:
            raise ValueError(
                f"{channels} channels do not split into attention heads of {size}"
            )
        self.heads = channels // size
        self.qkv = parts.layer(channels, 3 * channels, 1)
        self.out = parts.layer(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        split = (len(x), 3, self.heads, x.shape[1] // self.heads, -1)
        qkv = self.parts.pixel_norm(self.qkv(x).reshape(split), 3)
        q, k, v = qkv.mT.unbind(
            1
        )  # each (batch, heads, positions, channels of a head)
        attended = F.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.out(attended.mT.reshape(x.shape))
        return out


class Block(nn.Module):
    """x (batch, inputs, ...) and an embedding (batch, width) -> (batch, outputs,
    ...): shortcut and residual branch are summed; attention may follow."""

    conv1: nn.Module

    def __init__(
        self,
        inputs: int,
        outputs: int,
        width: int,
        parts: Parts,
        dropout: float = 0.0,
        resample: nn.Module | None = None,
        decodes: bool = False,
        attends: bool = False,
    ) -> None:
        super().__init__()
        self.parts, self.decodes = parts, decodes
        self.resample = resample or nn.Identity()
        self.modulation = parts.layer(width, outputs)
        self.gain = learned_gain(parts, parts.gain)
        self.shortcut = (
            parts.layer(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        )
        self.conv1 = parts.layer(self.residual_inputs(inputs, outputs), outputs, 3)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = parts.layer(outputs, outputs, 3)
        self.attention = Attention(outputs, parts) if attends else None

    def residual_inputs(self, inputs: int, outputs: int) -> int:
        """Channels that the first convolution sees."""
        return inputs

    def branches(self, x: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
        """The shortcut and the residual, scaled by a factor (batch, outputs, 1, 1)
        between its convolutions."""
        raise NotImplementedError

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        factor = 1 + scaled(self.modulation(embedding), self.gain)
        x = self.parts.residual_sum(*self.branches(x, factor[:, :, None, None]))
        if self.attention is not None:
            x = self.parts.attention_sum(x, self.attention(x))
        if math.isinf(self.parts.clip):
            return x
        return F.hardtanh(x, -self.parts.clip, self.parts.clip, inplace=True)


class GroupNormBlock(Block):
    """Both branches are resampled; the residual one is normalised before each
    activation, the shortcut never."""

    def branches(self, x: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
        act = self.parts.activation
        h = self.conv1(self.resample(act(group_norm(x))))
        h = self.conv2(self.dropout(act(group_norm(h) * factor)))
        return self.shortcut(self.resample(x)), h


class PixelNormBlock(Block):
    """Resampling comes before the branches part. In the encoder so do the change of
    width and the block's only norm; in the decoder the change of width concerns the
    shortcut, and there is no norm."""

    def residual_inputs(self, inputs: int, outputs: int) -> int:
        return inputs if self.decodes else outputs

    def branches(self, x: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
        act = self.parts.activation
        x = self.resample(x)
        if not self.decodes:
            x = self.parts.pixel_norm(self.shortcut(x), 1)
        h = self.conv2(self.dropout(act(self.conv1(act(x)) * factor)))
        return (self.shortcut(x) if self.decodes else x), h


def learned_gain(parts: Parts, start: float | None) -> nn.Parameter | None:
    """A learned factor that starts at `start`, where the configuration has gains."""
    return (
        None if parts.gain is None else nn.Parameter(torch.tensor(float(start or 0)))
    )


def scaled(x: Tensor, gain: Tensor | None) -> Tensor:
    """gain x, or x where there is no gain."""
    return x if gain is None else gain * x
