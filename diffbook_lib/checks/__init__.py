"""Checks that a page runs on itself: two independent ways to one result, and the
exercises' judges.

A check that holds is a `Badge`, one line on the page; one that does not hold stops the
page with `CheckFailed`.
"""

from diffbook_lib.checks.agreement import check, check_less, check_within
from diffbook_lib.checks.badge import Badge, CheckFailed, Finding, together
from diffbook_lib.checks.exercises import (
    EXERCISES,
    check_exercise,
    exercise,
    like,
)

__all__ = [
    "EXERCISES",
    "Badge",
    "CheckFailed",
    "Finding",
    "check",
    "check_exercise",
    "check_less",
    "check_within",
    "exercise",
    "like",
    "together",
]
