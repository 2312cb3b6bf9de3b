"""NCSN++: the convolutional network of score-based models, at the scale of published
results.

Song, Sohl-Dickstein, Kingma, Kumar, Ermon and Poole, "Score-based generative modeling
through stochastic differential equations", ICLR 2021, in the form that Dockhorn,
Vahdat and Kreis use in "Score-based generative modeling with critically-damped
Langevin diffusion", ICLR 2022.

Where two branches meet, their sum is divided by √2, which keeps the variance; and the
last layer of each residual branch starts near zero.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffbook_lib.nets.unet import apply_each, check_size

NEAR_ZERO = 1e-10
Layer = TypeVar("Layer", nn.Conv2d, nn.Linear)


def start(layer: Layer, scale: float = 1.0) -> Layer:
    """The layer with zero biases and uniform weights of variance scale / (mean of
    both fans)."""
    nn.init.xavier_uniform_(layer.weight, gain=math.sqrt(scale))
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer


def conv(inputs: int, outputs: int, scale: float = 1.0) -> nn.Conv2d:
    """A 3×3 convolution that keeps the resolution."""
    return start(nn.Conv2d(inputs, outputs, 3, padding=1), scale)


def group_norm(channels: int) -> nn.GroupNorm:
    """Group normalisation in groups of four channels, or in 32 larger groups."""
    groups = min(channels // 4, 32)
    if groups == 0 or channels % groups:
        raise ValueError(
            f"{channels} channels do not split into {groups} groups of equal size"
        )
    return nn.GroupNorm(groups, channels, eps=1e-6)


def merge(x: Tensor, h: Tensor) -> Tensor:
    """The sum of two branches, of the variance of one."""
    return (x + h) / math.sqrt(2)


class FIR(nn.Module):
    """Blur each channel along both axes by `taps` over their sum.

    Images (batch, channels, size, size), with `padding` zeros on every side; only
    every `stride`-th pixel of the result is computed.
    """

    kernel: Tensor

    def __init__(
        self, stride: int = 1, padding: int = 0, taps: Sequence[int] = (1, 3, 3, 1)
    ) -> None:
        super().__init__()
        self.stride, self.padding = stride, padding
        share = torch.tensor(taps) / sum(taps)
        self.register_buffer("kernel", torch.outer(share, share), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        weight = self.kernel.expand(channels, 1, -1, -1)
        return F.conv2d(
            x, weight, stride=self.stride, padding=self.padding, groups=channels
        )


class FIRUp(FIR):
    """Twice the resolution: zeros between the pixels, blurred, times four."""

    def forward(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        weight = 4 * self.kernel.expand(channels, 1, -1, -1)
        padding = (len(self.kernel) - 1) // 2
        return F.conv_transpose2d(
            x, weight, stride=2, padding=padding, groups=channels
        )


def down(fir: bool) -> nn.Module:
    """Half the resolution: by a smooth filter, or by means over 2×2 pixels."""
    return FIR(stride=2, padding=1) if fir else nn.AvgPool2d(2)


def up(fir: bool) -> nn.Module:
    """Twice the resolution: by a smooth filter, or by repeating each pixel."""
    return FIRUp() if fir else nn.Upsample(scale_factor=2.0)


class TimeEmbedding(nn.Module):
    """Times (batch,) in (0, 1] as vectors (batch, 4 channels).

    Sines and cosines, then two linear layers. "fourier": of log t, at random
    frequencies that are not trained, one per channel; "positional": of t itself, half
    as many, from 1 down to 1/10000.
    """

    frequencies: Tensor

    def __init__(self, channels: int, kind: str) -> None:
        super().__init__()
        if kind == "fourier":
            frequencies = 2 * torch.pi * 16 * torch.randn(channels)
        elif kind == "positional":
            frequencies = torch.logspace(0, -4, channels // 2)
        else:
            raise ValueError(
                f'time_embedding is "fourier" or "positional", not "{kind}"'
            )
        self.log = kind == "fourier"
        self.register_buffer("frequencies", frequencies)
        width = 4 * channels
        self.layers = nn.Sequential(
            start(nn.Linear(2 * len(frequencies), width)),
            nn.SiLU(),
            start(nn.Linear(width, width)),
        )

    def forward(self, t: Tensor) -> Tensor:
        angles = (t.log() if self.log else t)[:, None] * self.frequencies
        out: Tensor = self.layers(torch.cat([angles.sin(), angles.cos()], dim=1))
        return out


class ResidualBlock(nn.Module):
    """Two convolutions, the time embedding added between them, around a shortcut.

    `resample`, if given, changes the resolution of both branches.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        width: int,
        dropout: float,
        resample: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.norm1 = group_norm(inputs)
        self.resample = resample or nn.Identity()
        self.conv1 = conv(inputs, outputs)
        self.time = start(nn.Linear(width, outputs))
        self.norm2 = group_norm(outputs)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = conv(outputs, outputs, NEAR_ZERO)
        same = inputs == outputs and resample is None
        self.shortcut = (
            nn.Identity() if same else start(nn.Conv2d(inputs, outputs, 1))
        )

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv1(self.resample(F.silu(self.norm1(x))))
        h = h + self.time(embedding)[:, :, None, None]
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return merge(self.shortcut(self.resample(x)), h)


class Attention(nn.Module):
    """Self-attention over all positions, with one head."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.query = start(nn.Linear(channels, channels))
        self.key = start(nn.Linear(channels, channels))
        self.value = start(nn.Linear(channels, channels))
        self.out = start(nn.Linear(channels, channels), NEAR_ZERO)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = (
            self.norm(x).flatten(2).mT[:, None]
        )  # (batch, one head, positions, channels)
        h = F.scaled_dot_product_attention(self.query(h), self.key(h), self.value(h))
        return merge(x, self.out(h).mT.reshape(x.shape))


def input_path(inputs: int, outputs: int, fir: bool) -> nn.Sequential:
    """The input at half its resolution and in more channels, to be merged with the
    state."""
    if fir:
        strided = nn.Conv2d(inputs, outputs, 3, stride=2)
        return nn.Sequential(FIR(padding=2), start(strided))
    return nn.Sequential(nn.AvgPool2d(2), conv(inputs, outputs))


class NCSNpp(nn.Module):
    """Images (batch, inputs, size, size), times (batch,) in (0, 1] -> (batch,
    outputs, size, size); starts near zero.

    One level per multiplier, each half the resolution of the one before. `attention`
    lists the resolutions with self-attention: after every block of the encoder, once
    in the decoder; the middle always has it. With `fir` the resolution changes by
    smooth filters, otherwise by 2×2 means and repeated pixels. With
    `progressive_input` the input, halved and convolved, joins the state after each
    halving. The defaults are the CIFAR-10 setting of Dockhorn et al. (2022).
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int,
        channels: int = 128,
        multipliers: Sequence[int] = (1, 2, 2, 2),
        blocks: int = 8,
        attention: Sequence[int] = (16,),
        dropout: float = 0.1,
        fir: bool = True,
        progressive_input: bool = True,
        time_embedding: str = "fourier",
    ) -> None:
        super().__init__()
        check_size(size, multipliers)
        self.embedding = TimeEmbedding(channels, time_embedding)
        self.stem = conv(inputs, channels)
        block = partial(ResidualBlock, width=4 * channels, dropout=dropout)
        levels = [multiplier * channels for multiplier in multipliers]
        befores, afters = [channels, *levels[:-1]], [*levels[1:], levels[-1]]
        self.encoder, self.decoder = nn.ModuleList(), nn.ModuleList()
        for i, (before, c, after) in enumerate(
            zip(befores, levels, afters, strict=True)
        ):
            attend = size >> i in attention
            encoder = [before] + [c] * (blocks - 1)
            decoder = (
                [after + c] + [2 * c] * (blocks - 1) + [c + before]
            )  # states and skips
            self.encoder.append(_level(block, encoder, c, [attend] * blocks))
            self.decoder.append(
                _level(block, decoder, c, [False] * blocks + [attend])
            )
        self.downs, self.ups, self.paths = (
            nn.ModuleList(),
            nn.ModuleList(),
            nn.ModuleList(),
        )
        for c, after in pairwise(levels):
            self.downs.append(block(c, c, resample=down(fir)))
            self.ups.append(block(after, after, resample=up(fir)))
        if progressive_input:
            self.paths.extend(
                input_path(*c, fir) for c in pairwise([inputs, *levels[:-1]])
            )
        c = levels[-1]
        self.middle = nn.ModuleList([block(c, c), Attention(c), block(c, c)])
        self.norm = group_norm(levels[0])
        self.head = conv(levels[0], outputs, NEAR_ZERO)

    def forward(
        self, x: Tensor, noise: Tensor, label: Tensor | None = None
    ) -> Tensor:
        if label is not None:
            raise ValueError("NCSNpp takes no class label; call it with label=None")
        embedding = F.silu(self.embedding(noise))
        h, path = self.stem(x), x
        skips = [h]
        for i, level in enumerate(self.encoder):
            if i:
                h = self.downs[i - 1](h, embedding)
                if self.paths:
                    h = path = merge(h, self.paths[i - 1](path))
                skips.append(h)
            for modules in level.children():
                h = apply_each(modules, h, embedding)
                skips.append(h)
        h = apply_each(self.middle, h, embedding)
        for i, level in reversed(list(enumerate(self.decoder))):
            for modules in level.children():
                h = apply_each(modules, torch.cat([h, skips.pop()], dim=1), embedding)
            if i:
                h = self.ups[i - 1](h, embedding)
        out: Tensor = self.head(F.silu(self.norm(h)))
        return out


def _level(
    block: Callable[..., nn.Module],
    inputs: list[int],
    outputs: int,
    attend: list[bool],
) -> nn.ModuleList:
    """Residual blocks at one resolution, each followed by attention where asked."""
    level = nn.ModuleList()
    for c, attends in zip(inputs, attend, strict=True):
        level.append(
            nn.ModuleList([block(c, outputs)] + [Attention(outputs)] * attends)
        )
    return level
