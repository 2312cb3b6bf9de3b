"""Checks have teeth: they pass what agrees, and name the worst place of what does not."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffbook_lib import checks
from diffbook_lib.checks import (
    CheckFailed,
    check,
    check_exercise,
    check_less,
    check_within,
    exercises,
    together,
)


def test_a_check_is_one_line_of_text():
    right = torch.ones(4, 1000, dtype=torch.float64)
    badge = check("tweedie", right * (1 + 3e-12), right, way="another way", rtol=1e-9)
    assert repr(badge) == "✓ tweedie against another way: 4,000 values, agreement 3e-12"


def test_a_check_of_a_claim_says_what_was_found():
    badge = check("zero, almost", [0.0, 1e-9], [0.0, 0.0], atol=1e-8)
    assert repr(badge) == "✓ zero, almost: 2 values, agreement 1e-09"


def test_a_page_shows_a_badge_with_a_place_for_the_equations_number():
    shown = check("tweedie, twice", 1, 1.0, way="1 < 2")._repr_html_()
    place = '<a class="diffbook-eq" data-label="tweedie">(tweedie)</a>'
    line = f"{place} against 1 &lt; 2: 1 value, equal"
    assert shown == f'<p class="diffbook-badge"><span>✓</span> {line}</p>'


def test_a_family_is_one_badge():
    family = together(
        check("ddim", 1.0, 1.0 + 1e-12, way="torchdiffeq"),
        check("heun", [1.0, 2.0], [1.0, 2.0], way="torchdiffeq"),
        check_less("ahead", 1, 2),
        check_within("order", 2.0, 1.9, 2.1),
    )
    line = "ddim, heun against torchdiffeq: 3 values, agreement 1e-12"
    assert repr(family).splitlines() == [
        f"✓ {line}; 2 claims of the text hold",
        "  ddim: 1 value, agreement 1e-12",
        "  heun: 2 values, agreement 0",
        "  ahead: 1 < 2",
        "  order: 2 in [1.9, 2.1]",
    ]
    assert family._repr_html_().count("<li>") == 4


def test_inequalities_of_an_equation_make_its_badge():
    one = check_less("kl", 0.1, 0.2, way="moments")
    assert repr(one) == "✓ kl against moments: 0.1 < 0.2"
    two = together(one, check_within("kl, again", 0.1, 0, 1, way="moments"))
    assert repr(two).startswith("✓ kl against moments: 2 comparisons hold\n")


def test_no_family_has_no_members():
    with pytest.raises(ValueError, match="at least one"):
        together()


@pytest.mark.parametrize(
    ("left", "right"),
    [(1, 1.0), (np.array([1.0]), torch.tensor([1.0])), ([1, 2], (1.0, 2.0)), (True, 1)],
)
def test_kinds_of_numbers_can_be_mixed(left, right):
    check("kinds", left, right)


def test_read_only_arrays_and_gradients_are_no_trouble(recwarn):
    array = np.ones(3)
    array.flags.writeable = False
    check("kinds", array, torch.ones(3, requires_grad=True))
    assert not recwarn.list


def test_the_worst_element_is_named():
    left = torch.zeros(2, 3)
    left[1, 2] = 5
    with pytest.raises(CheckFailed, match=r"name: 5 and 0 differ at \[1, 2\], 1 of 6"):
        check("name", left, torch.zeros(2, 3))


@pytest.mark.parametrize(
    ("left", "right", "message"),
    [
        (math.nan, 1.0, "nan and 1 differ"),
        ([math.nan], [math.nan], "nan and nan"),
        ([1.0, math.inf], [1.0, math.inf], r"inf and inf differ at \[1\]"),
        ([1.0], [[1.0]], "shapes differ"),
        ([1.0, 1.0], 1.0, "shapes differ"),
        ([], [], "empty"),
        (1.0, -1.0, "1 and -1"),
    ],
)
def test_what_fails(left, right, message):
    with pytest.raises(CheckFailed, match=message):
        check("fails", left, right, rtol=0.5, atol=0.5)


@given(st.floats(-1e6, 1e6), st.floats(1e-9, 1e-3))
def test_the_tolerance_is_relative_to_the_larger_side(value, rtol):
    check("inside", value, value * (1 + 0.9 * rtol), rtol=rtol)
    if abs(value) > 1e-300:
        with pytest.raises(CheckFailed):
            check("outside", value, value * (1 + 1.2 * rtol), rtol=rtol)


@pytest.mark.parametrize("tolerance", [{"rtol": -1}, {"atol": math.nan}, {"rtol": math.nan}])
def test_wrong_tolerances_are_refused(tolerance):
    with pytest.raises(ValueError, match="must be 0 or more"):
        check("name", 1.0, 2.0, **tolerance)


def test_one_object_on_both_sides_checks_nothing():
    x = torch.ones(3)
    with pytest.raises(ValueError, match="same object"):
        check("name", x, x)


def test_less():
    badge = check_less("kl", [0.1, 0.3], 0.5)
    assert repr(badge) == "✓ kl: 0.3 < 0.5, the closest of 2 values"
    with pytest.raises(CheckFailed, match=r"0.5 < 0.5 does not hold at \[1\]"):
        check_less("kl", [0.1, 0.5], 0.5)
    with pytest.raises(CheckFailed, match="not finite"):
        check_less("kl", [math.nan], 1.0)
    with pytest.raises(CheckFailed, match="empty"):
        check_less("kl", [], 1.0)


def test_within():
    badge = check_within("order", [1.98, 2.02], 1.9, 2.1)
    assert repr(badge) == "✓ order: 1.98 to 2.02 in [1.9, 2.1]"
    with pytest.raises(CheckFailed, match=r"1.5 is not in \[1.9, 2.1\] at \[0\]"):
        check_within("order", [1.5, 2.0], 1.9, 2.1)
    with pytest.raises(CheckFailed, match="not finite"):
        check_within("order", math.nan, 1.9, 2.1)
    with pytest.raises(ValueError, match="must be less"):
        check_within("order", 2.0, 2.1, 1.9)


@pytest.fixture
def square(monkeypatch):
    monkeypatch.setattr(exercises, "EXERCISES", {})
    checks.exercise("square", checks.like(lambda x: x**2, (3.0,), (torch.arange(1.0, 4.0),)))


def test_a_right_answer(square):
    assert repr(check_exercise("square", lambda x: x * x)) == "✓ square: right"


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda x: 2 * x**2, r"at \(3\) 18 and 9 differ.*2 times the answer everywhere"),
        (lambda x: x + 6.0, r"at \(tensor \(3,\)\) 7 and 1 differ at \[0\]"),
        (lambda x: None, "returns nothing"),
        (lambda: 1, "raised TypeError"),
        (lambda x: 1 / 0, "raised ZeroDivisionError"),
    ],
)
def test_a_wrong_answer_is_told_what_is_wrong(square, answer, message):
    with pytest.raises(CheckFailed, match=message):
        check_exercise("square", answer)


def test_an_own_judge_speaks_for_itself(monkeypatch):
    monkeypatch.setattr(exercises, "EXERCISES", {})
    checks.exercise("odd", lambda f: None if f(2) == 5 else "2 should give 5")
    with pytest.raises(CheckFailed, match="odd: 2 should give 5"):
        check_exercise("odd", lambda n: n)


def test_an_unknown_exercise_names_the_nearest(square):
    with pytest.raises(ValueError, match="did you mean 'square'"):
        check_exercise("sqaure", abs)


def test_a_failure_is_shown_in_one_line_by_ipython():
    assert CheckFailed("tweedie: 1 and 2 differ")._render_traceback_() == [
        "✗ tweedie: 1 and 2 differ"
    ]


def test_a_judge_needs_cases():
    with pytest.raises(ValueError, match="at least one"):
        checks.like(abs)
