"""The U-Net of EDM2, and the network of its loss."""

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffbook_lib.nets.edm2.blocks import learned_gain, scaled
from diffbook_lib.nets.edm2.layers import project
from diffbook_lib.nets.edm2.parts import Parts
from diffbook_lib.nets.edm2.primitives import Fourier
from diffbook_lib.nets.ncsnpp import down, up
from diffbook_lib.nets.unet import check_size


class Embedding(nn.Module):
    """A noise feature (batch,) and, with `classes` > 0, a label int64 (batch,) or None
    for the zero vector -> (batch, width)."""

    def __init__(self, features: int, width: int, classes: int, parts: Parts) -> None:
        super().__init__()
        self.parts, self.classes = parts, classes
        self.fourier = Fourier(features, parts.waves)
        inputs = [features, *[width] * (parts.embedding_layers - 1)]
        self.layers = nn.ModuleList(parts.layer(n, width) for n in inputs)
        self.label = parts.layer(classes, width) if classes else None

    def forward(self, noise: Tensor, label: Tensor | None) -> Tensor:
        h = self.fourier(noise)
        for i, layer in enumerate(self.layers):
            h = layer(self.parts.activation(h) if i else h)
        if self.label is not None:
            h = self.parts.label_sum(h, self.label(self.scaled_one_hot(label, h)))
        elif label is not None:
            raise ValueError(
                "this network was built with classes=0: it takes no class label"
            )
        out: Tensor = self.parts.activation(h)
        return out

    def scaled_one_hot(self, label: Tensor | None, like: Tensor) -> Tensor:
        """Vectors (batch, classes) of root mean square one, or zeros."""
        if label is None:
            return like.new_zeros(len(like), self.classes)
        return F.one_hot(label, self.classes).to(like.dtype) * math.sqrt(self.classes)


class EDM2UNet(nn.Module):
    """Images (batch, inputs, size, size), a noise feature (batch,) and optionally a
    class label int64 (batch,) -> (batch, outputs, size, size).

    One level per multiplier, each half the resolution of the one before, with
    `blocks` blocks in the encoder and one more in the decoder; `attention` lists the
    resolutions whose blocks have self-attention (the first of the two middle blocks
    always has it). `parts`: the configuration.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int,
        channels: int,
        multipliers: Sequence[int],
        blocks: int,
        attention: Sequence[int],
        parts: Parts,
        classes: int = 0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_size(size, multipliers)
        self.parts = parts
        levels = [multiplier * channels for multiplier in multipliers]
        width = 4 * channels if parts.wide_embedding else max(levels)
        block = partial(parts.block, width=width, parts=parts, dropout=dropout)
        decode = partial(block, decodes=True)
        attends = [size >> i in attention for i in range(len(levels))]

        self.embedding = Embedding(channels, width, classes, parts)
        self.stem = parts.layer(inputs + 1, channels, 3)
        self.encoder, self.decoder = nn.ModuleList(), nn.ModuleList()
        c, skips = channels, [channels]
        for i, level in enumerate(levels):
            if i:
                self.encoder.append(block(c, c, resample=down(fir=False)))
                skips.append(c)
            for _ in range(blocks):
                self.encoder.append(block(c, c := level, attends=attends[i]))
                skips.append(c)
        middle = decode if parts.middle_decodes else block
        self.middle = nn.ModuleList([middle(c, c, attends=True), middle(c, c)])
        self.joins: list[bool] = []  # which blocks of the decoder take a skip
        for i, level in reversed(list(enumerate(levels))):
            if i < len(levels) - 1:
                self.decoder.append(decode(c, c, resample=up(fir=False)))
                self.joins.append(False)
            for _ in range(blocks + 1):
                joined = c + skips.pop()
                self.decoder.append(decode(joined, c := level, attends=attends[i]))
                self.joins.append(True)
        self.head = parts.layer(c, outputs, 3)
        self.gain = learned_gain(parts, 0.0)

    def forward(
        self, x: Tensor, noise: Tensor, label: Tensor | None = None
    ) -> Tensor:
        embedding = self.embedding(noise, label)
        h = self.stem(torch.cat([x, torch.ones_like(x[:, :1])], dim=1))
        skips = [h]
        for block in self.encoder:
            h = block(h, embedding)
            skips.append(h)
        for block in self.middle:
            h = block(h, embedding)
        for block, joins in zip(self.decoder, self.joins, strict=True):
            h = block(self.parts.cat(h, skips.pop()) if joins else h, embedding)
        return scaled(self.head(self.parts.before_output(h)), self.gain)


class Uncertainty(nn.Module):
    """u(sigma), the logarithm of the loss to be expected at a noise level: noise
    features ln(sigma) / 4 (batch,) -> (batch,). One layer on random waves."""

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self.fourier = Fourier(parts.uncertainty_features, parts.waves)
        self.linear = parts.layer(parts.uncertainty_features, 1)

    def forward(self, noise: Tensor) -> Tensor:
        out: Tensor = self.linear(self.fourier(noise))[:, 0]
        return out

    def after_step(self, step: int, measures: object) -> None:
        """Project its weight, as the network's are."""
        project(self)
