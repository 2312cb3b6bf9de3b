"""How the networks see the noise level and the class."""

import torch
from torch import Tensor, nn


class NoiseEmbedding(nn.Module):
    """A scalar noise feature (batch,), and optionally a class label int64 (batch,),
    as a vector (batch, width).

    Random Fourier features of the scalar, the scalar itself, then two linear layers.
    With `log=True` the scalar is a positive time or noise level and its logarithm
    over 4 is embedded: levels that differ by a factor then look equally far apart at
    both ends of the range. With `classes` > 0 each label has a vector of its own, and
    so has no label, for "any".
    """

    frequencies: Tensor

    def __init__(
        self, width: int, features: int = 32, log: bool = False, classes: int = 0
    ) -> None:
        super().__init__()
        self.log, self.classes = log, classes
        self.register_buffer("frequencies", 2 * torch.pi * torch.randn(features))
        self.layers = nn.Sequential(
            nn.Linear(2 * features + 1, width), nn.SiLU(), nn.Linear(width, width)
        )
        self.labels = nn.Embedding(classes + 1, width) if classes else None

    def forward(self, noise: Tensor, label: Tensor | None = None) -> Tensor:
        level = (noise.log() / 4 if self.log else noise)[:, None]  # (batch, 1)
        angles = level * self.frequencies  # (batch, features)
        vector: Tensor = self.layers(
            torch.cat([angles.cos(), angles.sin(), level], dim=1)
        )
        if self.labels is None:
            if label is not None:
                raise ValueError(
                    "this network was built with classes=0: it takes no class label"
                )
            return vector
        if label is None:
            label = torch.full(noise.shape, self.classes, device=noise.device)
        out: Tensor = vector + self.labels(label)
        return out
