"""Half and twice the resolution, without anything learned."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


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
