"""Convolutions and matrices without bias, and what is done to their weights."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffbook_lib.nets.edm2.primitives import normalize, unit_rows


class Layer(nn.Module):
    """A convolution over kernel × kernel pixels that keeps the resolution, or, with
    kernel 0, a matrix."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 0) -> None:
        super().__init__()
        self.padding = kernel // 2
        shape = (outputs, inputs, kernel, kernel) if kernel else (outputs, inputs)
        self.weight = nn.Parameter(self.first_weight(torch.Size(shape)))

    def first_weight(self, shape: torch.Size) -> Tensor:
        """The weight before training."""
        raise NotImplementedError

    def used_weight(self) -> Tensor:
        """The weight as the inputs meet it."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        weight = self.used_weight()
        if weight.ndim == 2:
            return F.linear(x, weight)
        return F.conv2d(x, weight, padding=self.padding)


class Plain(Layer):
    """The weight as it is stored."""

    def first_weight(self, shape: torch.Size) -> Tensor:
        """Uniform, of variance 1 / (3 fan-in): the default of torch."""
        return (2 * torch.rand(shape) - 1) / math.sqrt(shape[1:].numel())

    def used_weight(self) -> Tensor:
        return self.weight


class Normalised(Layer):
    """Rows of the weight are divided by their norm whenever they are used, so that
    the gradient has no component along them; the stored weight may grow."""

    def first_weight(self, shape: torch.Size) -> Tensor:
        """Standard normal."""
        return torch.randn(shape)

    def used_weight(self) -> Tensor:
        return unit_rows(self.weight)


class Projected(Normalised):
    """Normalised, and `project` brings the stored weight back to its sphere after
    every step."""

    def first_weight(self, shape: torch.Size) -> Tensor:
        """Standard normal, on the sphere."""
        return normalize(super().first_weight(shape))


@torch.no_grad()
def project(net: nn.Module) -> None:
    """Give each row of the weights of `Projected` layers root mean square one
    (Eq. 66). Other parameters stay as they are."""
    for module in net.modules():
        if isinstance(module, Projected):
            module.weight.copy_(normalize(module.weight))
