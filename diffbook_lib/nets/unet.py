"""One compact U-Net, from 8×8 digits to 64×64 colour images."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffbook_lib.nets.embedding import NoiseEmbedding


def group_norm(channels: int) -> nn.GroupNorm:
    """Group normalisation in eight groups, or fewer where eight do not divide the
    channels."""
    return nn.GroupNorm(math.gcd(8, channels), channels)


def zero_conv(inputs: int, outputs: int, kernel: int = 3) -> nn.Conv2d:
    """A convolution that starts at zero, so that its block starts as the identity."""
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
    nn.init.zeros_(conv.weight)
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    return conv


class ResidualBlock(nn.Module):
    """Two convolutions around a skip; the noise embedding scales and shifts between
    them."""

    def __init__(self, inputs: int, outputs: int, width: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = group_norm(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.modulation = nn.Linear(width, 2 * outputs)
        self.norm2 = group_norm(outputs)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zero_conv(outputs, outputs)
        self.skip = (
            nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        )

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.modulation(embedding)[:, :, None, None].chunk(2, dim=1)
        h = self.norm2(h) * (1 + scale) + shift
        out: Tensor = self.skip(x) + self.conv2(self.dropout(F.silu(h)))
        return out


class Attention(nn.Module):
    """Self-attention over all positions, heads of about 32 channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.heads = max(1, channels // 32)
        if channels % self.heads:
            raise ValueError(
                f"{channels} channels do not split into {self.heads} attention heads"
            )
        self.norm = group_norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = zero_conv(channels, channels, kernel=1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        b, c, h, w = x.shape
        q, k, v = (
            self.qkv(self.norm(x))
            .reshape(b, 3, self.heads, c // self.heads, h * w)
            .transpose(-1, -2)  # (b, 3, heads, positions, channels of a head)
            .unbind(1)
        )
        attended = F.scaled_dot_product_attention(q, k, v)
        out: Tensor = x + self.out(attended.transpose(-1, -2).reshape(b, c, h, w))
        return out


class Downsample(nn.Module):
    """Half the resolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return out


class Upsample(nn.Module):
    """Twice the resolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        out: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return out


class UNet(nn.Module):
    """Images (batch, inputs, size, size), a noise feature (batch,) and optionally a
    class label int64 (batch,) -> (batch, outputs, size, size); starts at zero.

    One level per multiplier, each half the resolution of the one before; `attention`
    lists the resolutions at which the blocks are followed by self-attention (the
    middle always has it). A conditional network (`classes` > 0) given no label uses
    an embedding of its own for "any".
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int,
        channels: int = 16,
        multipliers: Sequence[int] = (1, 2),
        blocks: int = 1,
        attention: Sequence[int] = (4,),
        classes: int = 0,
        dropout: float = 0.0,
        log_noise: bool = False,
    ) -> None:
        super().__init__()
        check_size(size, multipliers)
        width = 4 * channels
        self.embedding = NoiseEmbedding(width, log=log_noise, classes=classes)
        self.stem = nn.Conv2d(inputs, channels, 3, padding=1)

        def level(c_in: int, c_out: int, resolution: int) -> nn.ModuleList:
            block = nn.ModuleList([ResidualBlock(c_in, c_out, width, dropout)])
            if resolution in attention:
                block.append(Attention(c_out))
            return block

        self.encoder, self.decoder = nn.ModuleList(), nn.ModuleList()
        c, skips = channels, [channels]
        for i, multiplier in enumerate(multipliers):
            if i:
                self.encoder.append(nn.ModuleList([Downsample(c)]))
                skips.append(c)
            for _ in range(blocks):
                self.encoder.append(level(c, c := multiplier * channels, size >> i))
                skips.append(c)
        self.middle = nn.ModuleList(
            [
                ResidualBlock(c, c, width, dropout),
                Attention(c),
                ResidualBlock(c, c, width, dropout),
            ]
        )
        for i, multiplier in reversed(list(enumerate(multipliers))):
            for last in [False] * blocks + [True]:
                modules = level(
                    c + skips.pop(), c := multiplier * channels, size >> i
                )
                if i and last:
                    modules.append(Upsample(c))
                self.decoder.append(modules)
        self.norm = group_norm(c)
        self.head = zero_conv(c, outputs)

    def forward(
        self, x: Tensor, noise: Tensor, label: Tensor | None = None
    ) -> Tensor:
        embedding = F.silu(self.embedding(noise, label))
        h = self.stem(x)
        skips = [h]
        for modules in self.encoder:
            h = apply_each(modules, h, embedding)
            skips.append(h)
        h = apply_each(self.middle, h, embedding)
        for modules in self.decoder:
            h = apply_each(modules, torch.cat([h, skips.pop()], dim=1), embedding)
        out: Tensor = self.head(F.silu(self.norm(h)))
        return out


def check_size(size: int, multipliers: Sequence[int]) -> None:
    """ValueError unless images of this size can be halved once for every further
    multiplier."""
    halvings = len(multipliers) - 1
    if size % 2**halvings:
        raise ValueError(
            f"size {size} cannot be halved {halvings} times; "
            f"use fewer multipliers than {tuple(multipliers)}"
        )


def apply_each(modules: nn.Module, h: Tensor, embedding: Tensor) -> Tensor:
    """h after all modules of a list, each of which also takes the embedding."""
    for module in modules.children():
        h = module(h, embedding)
    return h
