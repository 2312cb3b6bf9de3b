"""Multilayer perceptrons for points in a few dimensions: a residual one and a plain
one."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffbook_lib.nets.embedding import NoiseEmbedding


def zero_linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer that starts at zero, so that its block starts as the
    identity."""
    layer = nn.Linear(inputs, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class MLPBlock(nn.Module):
    """h + f(h), where the noise embedding scales and shifts the normalised h inside
    f."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(width, 2 * width)
        last = zero_linear(width, width)
        self.layers = nn.Sequential(
            nn.SiLU(), nn.Linear(width, width), nn.SiLU(), last
        )

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.modulation(embedding).chunk(2, dim=1)
        out: Tensor = h + self.layers(self.norm(h) * (1 + scale) + shift)
        return out


class MLP(nn.Module):
    """Points (batch, inputs), a noise feature (batch,) and, with `classes` > 0, a
    class label int64 (batch,) or None for "any" -> (batch, outputs); starts at
    zero."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        width: int = 64,
        depth: int = 3,
        log_noise: bool = False,
        classes: int = 0,
    ) -> None:
        super().__init__()
        self.embedding = NoiseEmbedding(width, log=log_noise, classes=classes)
        self.stem = nn.Linear(inputs, width)
        self.blocks = nn.ModuleList(MLPBlock(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.head = zero_linear(width, outputs)

    def forward(
        self, x: Tensor, noise: Tensor, label: Tensor | None = None
    ) -> Tensor:
        embedding = F.silu(self.embedding(noise, label))
        h: Tensor = self.stem(x)
        for block in self.blocks:
            h = block(h, embedding)
        out: Tensor = self.head(self.norm(h))
        return out


class PlainMLP(nn.Module):
    """Points (batch, inputs), times (batch,) -> (batch, outputs); time is one more
    input.

    The network of the two-dimensional examples in Dockhorn et al., "Score-based
    generative modeling with critically-damped Langevin diffusion", ICLR 2022.
    """

    def __init__(
        self, inputs: int, outputs: int, width: int = 128, depth: int = 4
    ) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(inputs + 1, width), nn.SiLU())
        for _ in range(depth - 1):
            self.layers.extend([nn.Linear(width, width), nn.SiLU()])
        self.layers.append(nn.Linear(width, outputs))

    def forward(
        self, x: Tensor, noise: Tensor, label: Tensor | None = None
    ) -> Tensor:
        if label is not None:
            raise ValueError("PlainMLP takes no class label; call it with label=None")
        out: Tensor = self.layers(torch.cat([x, noise[:, None]], dim=1))
        return out
