"""Operations with their way back written out: as many passes over memory as needed, and
no more."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def root_mean_square(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Along some dimensions, kept with size one; float32 for lower precision."""
    precise = torch.promote_types(x.dtype, torch.float32)
    norm: Tensor = torch.linalg.vector_norm(x, dim=dims, keepdim=True, dtype=precise)
    return norm * math.sqrt(norm.numel() / x.numel())


class Normalize(torch.autograd.Function):
    """x times scale / (eps + rms), the root mean square along some dimensions.

    The way back takes from the gradient nearly all of its part along x: the result
    does not change with the length of x, but for eps.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, dims: tuple[int, ...], scale: float, eps: float
    ) -> Tensor:
        rms = root_mean_square(x, dims)
        factor = scale / (eps + rms)
        ctx.dims = dims
        n = x.numel() / rms.numel()
        ctx.save_for_backward(x, factor, n * rms * (eps + rms))
        out: Tensor = x * factor.to(x.dtype)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        x, factor, square = ctx.saved_tensors
        along = (grad * x).sum(ctx.dims, keepdim=True, dtype=factor.dtype)
        along /= square.clamp(min=torch.finfo(square.dtype).tiny)  # 0 where x is 0
        rest = grad.addcmul(x, along.to(x.dtype), value=-1)
        return rest.mul_(factor.to(x.dtype)), None, None, None


class ScaledSiLU(torch.autograd.Function):
    """scale silu(x)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        ctx.save_for_backward(x)
        return F.silu(x).mul_(scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return torch.ops.aten.silu_backward(grad, x).mul_(ctx.scale), None


class ScaledCat(torch.autograd.Function):
    """scale_a a and scale_b b along the channels."""

    @staticmethod
    def forward(
        ctx: Any, a: Tensor, b: Tensor, scale_a: float, scale_b: float
    ) -> Tensor:
        ctx.scales, ctx.sizes = (scale_a, scale_b), (a.shape[1], b.shape[1])
        out = torch.cat([a, b], dim=1)
        for part, scale in zip(out.split(ctx.sizes, dim=1), ctx.scales, strict=True):
            part.mul_(scale)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        a, b = grad.split(ctx.sizes, dim=1)
        scale_a, scale_b = ctx.scales
        return scale_a * a, scale_b * b, None, None
