"""How the networks see the noise level."""

import torch
from torch import Tensor, nn


class NoiseEmbedding(nn.Module):
    """A scalar noise feature (batch,) as a vector (batch, width).

    Random Fourier features of the scalar, the scalar itself, then two linear layers. With
    `log=True` the scalar is a positive time or noise level and its logarithm over 4 is embedded:
    levels that differ by a factor then look equally far apart at both ends of the range.
    """

    frequencies: Tensor

    def __init__(self, width: int, features: int = 32, log: bool = False) -> None:
        super().__init__()
        self.log = log
        self.register_buffer("frequencies", 2 * torch.pi * torch.randn(features))
        self.layers = nn.Sequential(
            nn.Linear(2 * features + 1, width), nn.SiLU(), nn.Linear(width, width)
        )

    def forward(self, noise: Tensor) -> Tensor:
        level = (noise.log() / 4 if self.log else noise)[:, None]  # (batch, 1)
        angles = level * self.frequencies  # (batch, features)
        return self.layers(torch.cat([angles.cos(), angles.sin(), level], dim=1))
