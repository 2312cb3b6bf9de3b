"""The exercises of a page: registered with a judge, and answers judged."""

import difflib
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from diffbook_lib.checks.agreement import compare, numbers
from diffbook_lib.checks.badge import Badge, CheckFailed, Finding

Verdict = str | None
Answer = Callable[..., Any]  # a reader's function
Judge = Callable[[Answer], Verdict]
EXERCISES: dict[str, Judge] = {}


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
            expected, got = numbers(reference(*case)), numbers(answer)
            failure, _ = compare(got, expected, rtol, atol)
            if failure:
                shown = ", ".join(_short(argument) for argument in case)
                return f"at ({shown}) {failure}, yours first{_factor(got, expected)}"
        return None

    return judge


def check_exercise(name: str, function: Answer) -> Badge:
    """Judges a reader's answer.

    Raises CheckFailed that says what is wrong, and ValueError for an exercise that the
    page has not set.
    """
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
    return Badge((Finding(name, "right"),))


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
