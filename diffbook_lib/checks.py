"""Checks that a page runs on itself: two independent ways to one result, and the exercises' judges.

Each check prints one line when it holds and stops the page with CheckFailed when it does not.
"""

import difflib
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

Verdict = str | None
Answer = Callable[..., Any]  # a reader's function
Judge = Callable[[Answer], Verdict]
EXERCISES: dict[str, Judge] = {}


class CheckFailed(AssertionError):
    """A claim of the page does not hold; the message names it and the worst place."""

    def _render_traceback_(self) -> list[str]:
        """What IPython shows instead of the frames of this module."""
        return [f"✗ {self}"]


def check(
    name: str, left: Any, right: Any, *, rtol: float = 1e-6, atol: float = 0.0
) -> None:
    """Compares two independent computations element by element.

    They agree where |left - right| <= atol + rtol * max(|left|, |right|). Shapes must match, and
    whatever is not finite or empty fails. Tensors, arrays, lists and numbers are compared in
    float64. Raises CheckFailed with the worst element; ValueError for tolerances below 0 or for
    one object given as both sides.
    """
    if left is right:
        raise ValueError(
            f"{name}: both sides are the same object, which checks nothing"
        )
    if not (rtol >= 0 and atol >= 0):
        raise ValueError(f"{name}: rtol={rtol} and atol={atol} must be 0 or more")
    failure, report = _compare(_numbers(left), _numbers(right), rtol, atol)
    if failure:
        raise CheckFailed(f"{name}: {failure}")
    print(f"✓ {name}: {report}")


def check_less(name: str, left: Any, right: Any) -> None:
    """Checks that left < right at every element; one side may be a single number."""
    small, large = torch.broadcast_tensors(_numbers(left), _numbers(right))
    _all_finite(name, small)
    _all_finite(name, large)
    gap = large - small
    worst = int(gap.argmin())
    pair = f"{small.flatten()[worst]:.4g} < {large.flatten()[worst]:.4g}"
    if gap.min() <= 0:
        raise CheckFailed(f"{name}: {pair} does not hold{_at(gap, worst)}")
    print(
        f"✓ {name}: {pair}"
        + (f", the closest of {_points(gap)}" if gap.numel() > 1 else "")
    )


def check_within(name: str, value: Any, low: float, high: float) -> None:
    """Checks that low <= value <= high at every element: for what is measured, not computed."""
    if not low < high:
        raise ValueError(f"{name}: low={low} must be less than high={high}")
    values = _numbers(value)
    _all_finite(name, values)
    outside = torch.maximum(low - values, values - high)
    worst = int(outside.argmax())
    if outside.max() > 0:
        number = f"{values.flatten()[worst]:.4g}"
        raise CheckFailed(
            f"{name}: {number} is not in [{low:g}, {high:g}]{_at(values, worst)}"
        )
    shown = f"{values.min():.4g}" + (
        f" to {values.max():.4g}" if values.numel() > 1 else ""
    )
    print(f"✓ {name}: {shown} in [{low:g}, {high:g}]")


def exercise(name: str, judge: Judge) -> None:
    """Registers the self-check of an exercise.

    judge(function) returns None when the reader's function is right, else a line that says what
    is wrong; `like` makes the common kind.
    """
    EXERCISES[name] = judge


def like(
    reference: Answer,
    *arguments: Sequence[Any],
    rtol: float = 1e-6,
    atol: float = 0.0,
) -> Judge:
    """A judge that compares a function with `reference` at each tuple of arguments."""
    if not arguments:
        raise ValueError("like() needs at least one tuple of arguments to compare at")

    def judge(function: Answer) -> Verdict:
        for case in arguments:
            answer = function(*case)
            if answer is None:
                return "your function returns nothing"
            expected, got = _numbers(reference(*case)), _numbers(answer)
            failure, _ = _compare(got, expected, rtol, atol)
            if failure:
                shown = ", ".join(_short(argument) for argument in case)
                return f"at ({shown}) {failure}, yours first{_factor(got, expected)}"
        return None

    return judge


def check_exercise(name: str, function: Answer) -> None:
    """Judges a reader's answer: prints a line when right, raises CheckFailed that says what is
    wrong, and ValueError for an exercise that the page has not set."""
    if name not in EXERCISES:
        near = difflib.get_close_matches(name, EXERCISES, n=1)
        hint = (
            f"did you mean {near[0]!r}?"
            if near
            else f"known here: {sorted(EXERCISES)}"
        )
        raise ValueError(
            f"no exercise {name!r}; {hint} (run the page from the top first)"
        )
    try:
        verdict = EXERCISES[name](function)
    except Exception as error:
        raise CheckFailed(
            f"{name}: your function raised {type(error).__name__}: {error}"
        ) from None
    if verdict:
        raise CheckFailed(f"{name}: {verdict}")
    print(f"✓ {name}: right")


def _numbers(value: Any) -> Tensor:
    """The value as a float64 tensor on the CPU."""
    if isinstance(value, list | tuple) and value:
        return torch.stack([_numbers(item) for item in value])
    if isinstance(value, Tensor):
        return value.detach().cpu().to(torch.float64)
    return torch.from_numpy(np.array(value, dtype=np.float64))


def _compare(
    left: Tensor, right: Tensor, rtol: float, atol: float
) -> tuple[str, str]:
    """(what is wrong, "") or ("", what was found)."""
    if left.shape != right.shape:
        return f"shapes differ, {tuple(left.shape)} and {tuple(right.shape)}", ""
    if left.numel() == 0:
        return "nothing to compare, both sides are empty", ""
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
        ), ""
    if atol > 0:
        return "", f"{_points(left)}, largest difference {gap.max():.1g}"
    relative = torch.where(gap > 0, gap / size, 0.0).max()
    return "", f"{_points(left)}, largest relative difference {relative:.1g}"


def _all_finite(name: str, values: Tensor) -> None:
    if values.numel() == 0:
        raise CheckFailed(f"{name}: nothing to compare, the value is empty")
    if not values.isfinite().all():
        raise CheckFailed(
            f"{name}: {int((~values.isfinite()).sum())} values are not finite"
        )


def _points(values: Tensor) -> str:
    if values.numel() == 1:
        return "1 point"
    return " × ".join(str(side) for side in values.shape) + " points"


def _at(values: Tensor, worst: int) -> str:
    if values.ndim == 0:
        return ""
    index = [int(i) for i in torch.unravel_index(torch.tensor(worst), values.shape)]
    return f" at {index}"


def _short(argument: Any) -> str:
    if isinstance(argument, Tensor) and argument.numel() > 1:
        return f"tensor {tuple(argument.shape)}"
    return f"{argument:g}" if isinstance(argument, float) else str(argument)


def _factor(got: Tensor, expected: Tensor) -> str:
    """A hint where the answer is off by one and the same factor everywhere."""
    if got.shape != expected.shape or not (expected != 0).all():
        return ""
    ratio = got / expected
    if (
        not ratio.isfinite().all()
        or (ratio - ratio.mean()).abs().max() > 1e-6 * ratio.abs().max()
    ):
        return ""
    return f" (yours is {ratio.mean():.6g} times the answer everywhere)"
