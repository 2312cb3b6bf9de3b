"""Two independent computations agree; a measured figure lies where the text says."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffbook_lib.checks.badge import Badge, CheckFailed, Finding


def check(
    name: str,
    left: Any,
    right: Any,
    *,
    way: str = "",
    rtol: float = 1e-6,
    atol: float = 0.0,
) -> Badge:
    """Compares two independent computations element by element.

    name: the label of the equation that is checked, after a comma what about it; or a
    claim. way: the independent way, for an equation: what completes "against".

    They agree where |left - right| <= atol + rtol * max(|left|, |right|). Shapes must
    match, and whatever is not finite or empty fails. Tensors, arrays, lists and numbers
    are compared in float64. Raises CheckFailed with the worst element; ValueError for
    tolerances below 0 or for one object given as both sides.
    """
    if left is right:
        raise ValueError(
            f"{name}: both sides are the same object, which checks nothing"
        )
    if not (rtol >= 0 and atol >= 0):
        raise ValueError(f"{name}: rtol={rtol} and atol={atol} must be 0 or more")
    left, right = numbers(left), numbers(right)
    failure, gap = compare(left, right, rtol, atol)
    if failure:
        raise CheckFailed(f"{name}: {failure}")
    result = f"{_points(left)}, agreement {gap:.1g}"
    return Badge((Finding(name, result, way, left.numel(), gap),))


def check_less(name: str, left: Any, right: Any, *, way: str = "") -> Badge:
    """Checks that left < right at every element; one side may be a single number.

    Raises CheckFailed with the worst element.
    """
    small, large = torch.broadcast_tensors(numbers(left), numbers(right))
    _all_finite(name, small)
    _all_finite(name, large)
    gap = large - small
    worst = int(gap.argmin())
    pair = f"{small.flatten()[worst]:.4g} < {large.flatten()[worst]:.4g}"
    if gap.min() <= 0:
        raise CheckFailed(f"{name}: {pair} does not hold{_at(gap, worst)}")
    result = pair + (f", the closest of {_points(gap)}" if gap.numel() > 1 else "")
    return Badge((Finding(name, result, way),))


def check_within(
    name: str, value: Any, low: float, high: float, *, way: str = ""
) -> Badge:
    """Checks that low <= value <= high at every element: for what is measured.

    Raises CheckFailed with the worst element; ValueError unless low < high.
    """
    if not low < high:
        raise ValueError(f"{name}: low={low} must be less than high={high}")
    values = numbers(value)
    _all_finite(name, values)
    outside = torch.maximum(low - values, values - high)
    worst = int(outside.argmax())
    if outside.max() > 0:
        number = f"{values.flatten()[worst]:.4g}"
        raise CheckFailed(
            f"{name}: {number} is not in [{low:g}, {high:g}]{_at(values, worst)}"
        )
    shown = f"{values.min():.3g}" + (
        f" to {values.max():.3g}" if values.numel() > 1 else ""
    )
    return Badge((Finding(name, f"{shown} in [{low:g}, {high:g}]", way),))


def numbers(value: Any) -> Tensor:
    """A value as a float64 tensor on the CPU."""
    if isinstance(value, list | tuple) and value:
        return torch.stack([numbers(item) for item in value])
    if isinstance(value, Tensor):
        return value.detach().cpu().to(torch.float64)
    return torch.from_numpy(np.array(value, dtype=np.float64))


def compare(
    left: Tensor, right: Tensor, rtol: float, atol: float
) -> tuple[str, float]:
    """What is wrong, or "", and the largest difference: absolute where atol is given,
    else relative."""
    if left.shape != right.shape:
        return (
            f"shapes differ, {tuple(left.shape)} and {tuple(right.shape)}",
            math.nan,
        )
    if left.numel() == 0:
        return "nothing to compare, both sides are empty", math.nan
    bad = ~(left.isfinite() & right.isfinite())
    size = torch.maximum(left.abs(), right.abs())
    gap = (left - right).abs()
    excess = torch.where(bad, math.inf, gap - (atol + rtol * size))
    worst = int(excess.argmax())
    a, b = left.flatten()[worst].item(), right.flatten()[worst].item()
    if excess.max() > 0:
        wrong = int((excess > 0).sum())
        return (
            f"{a:.10g} and {b:.10g} differ{_at(left, worst)}, "
            f"{wrong} of {left.numel()} outside rtol={rtol:g}, atol={atol:g}"
        ), math.nan
    if atol > 0:
        return "", float(gap.max())
    return "", float(torch.where(gap > 0, gap / size, 0.0).max())


def _all_finite(name: str, values: Tensor) -> None:
    if values.numel() == 0:
        raise CheckFailed(f"{name}: nothing to compare, the value is empty")
    if not values.isfinite().all():
        raise CheckFailed(
            f"{name}: {int((~values.isfinite()).sum())} values are not finite"
        )


def _points(values: Tensor) -> str:
    if values.numel() == 1:
        return "1 value"
    return " × ".join(str(side) for side in values.shape) + " values"


def _at(values: Tensor, worst: int) -> str:
    if values.ndim == 0:
        return ""
    index = [int(i) for i in torch.unravel_index(torch.tensor(worst), values.shape)]
    return f" at {index}"
