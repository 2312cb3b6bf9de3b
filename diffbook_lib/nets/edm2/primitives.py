"""Operations that keep magnitudes: where the inputs have root mean square one over
their features and are not correlated, so has the output.

Karras et al., "Analyzing and improving the training dynamics of diffusion models",
CVPR 2024, Appendix B; equation numbers are theirs.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

EPS = 1e-4
SILU_RMS = 0.596  # root mean square of silu(z), z standard normal


class _Normalize(torch.autograd.Function):
    """x times scale / (EPS + rms), with the backward pass written out.

    It takes from the gradient nearly all of its part along x: the result does not
    change with the length of x, but for EPS.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, dims: tuple[int, ...], scale: float) -> Tensor:
        precise = torch.promote_types(x.dtype, torch.float32)
        norm = torch.linalg.vector_norm(x, dim=dims, keepdim=True, dtype=precise)
        n = x.numel() / norm.numel()
        rms = norm / math.sqrt(n)
        factor = scale / (EPS + rms)
        ctx.dims = dims
        ctx.save_for_backward(x, factor, n * rms * (EPS + rms))
        out: Tensor = x * factor.to(x.dtype)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        x, factor, square = ctx.saved_tensors
        along = (grad * x).sum(ctx.dims, keepdim=True, dtype=factor.dtype)
        along /= square.clamp(min=torch.finfo(square.dtype).tiny)  # 0 where x is 0
        rest = grad.addcmul(x, along.to(x.dtype), value=-1)
        return rest.mul_(factor.to(x.dtype)), None, None


def normalize(
    x: Tensor, dim: int | tuple[int, ...] | None = None, scale: float = 1.0
) -> Tensor:
    """scale x over EPS + its root mean square along `dim`; by default all but the
    first, so that each row of a weight has root mean square `scale` (Eq. 66)."""
    dims = tuple(range(1, x.ndim)) if dim is None else dim
    dims = (dims,) if isinstance(dims, int) else dims
    out: Tensor = _Normalize.apply(x, dims, scale)  # type: ignore[no-untyped-call]
    return out


def unit_rows(weight: Tensor) -> Tensor:
    """A weight with rows of L2 norm one (Eq. 47): independent inputs of variance one
    give outputs of variance one."""
    return normalize(weight, scale=1 / math.sqrt(weight[0].numel()))


def pixel_norm(x: Tensor, dim: int = 1) -> Tensor:
    """Root mean square one over the channels of each pixel."""
    return normalize(x, dim)


def pixel_norm_root(x: Tensor, dim: int = 1) -> Tensor:
    """The same with 1e-8 under the root, as the configurations C, E and G of
    FutureXiang have it."""
    return x * (x.square().mean(dim, keepdim=True) + 1e-8).rsqrt()


def group_norm(x: Tensor, groups: int = 32) -> Tensor:
    """Mean zero and variance one over groups of channels: as many groups as asked, or
    fewer where these do not divide the channels."""
    return F.group_norm(x, math.gcd(groups, x.shape[1]))


def mp_silu(x: Tensor) -> Tensor:
    """SiLU over its root mean square on standard normal inputs (Eq. 81)."""
    return F.silu(x) / SILU_RMS


def plain_sum(a: Tensor, b: Tensor) -> Tensor:
    """a + b."""
    return a + b


def mp_sum(a: Tensor, b: Tensor, t: float = 0.5) -> Tensor:
    """The share 1 - t of a and t of b, over the standard deviation of that sum
    (Eq. 88)."""
    norm = math.hypot(1 - t, t)
    return torch.add((1 - t) / norm * a, b, alpha=t / norm)


def plain_cat(a: Tensor, b: Tensor) -> Tensor:
    """Both along the channels."""
    return torch.cat([a, b], dim=1)


def mp_cat(a: Tensor, b: Tensor, t: float = 0.5) -> Tensor:
    """Both along the channels, so scaled that the whole has root mean square one and
    the shares 1 - t and t do not depend on the numbers of channels (Eq. 103)."""
    n_a, n_b = a.shape[1], b.shape[1]
    scale = math.sqrt(n_a + n_b) / math.hypot(1 - t, t)
    w_a, w_b = scale * (1 - t) / math.sqrt(n_a), scale * t / math.sqrt(n_b)
    return torch.cat([w_a * a, w_b * b], dim=1)


class Fourier(nn.Module):
    """Random waves of a scalar: (batch,) -> (batch, features), each of amplitude
    `scale`; sqrt(2) keeps the magnitude (Eq. 75). Frequencies and phases, in radians,
    are not trained."""

    frequencies: Tensor
    phases: Tensor

    def __init__(self, features: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.register_buffer("frequencies", 2 * math.pi * torch.randn(features))
        self.register_buffer("phases", 2 * math.pi * torch.rand(features))

    def forward(self, noise: Tensor) -> Tensor:
        angles = noise[:, None] * self.frequencies + self.phases
        return self.scale * angles.cos()
