"""What is wrong with a value, in a sentence."""

import difflib
import re
import reprlib
from collections.abc import Iterable
from typing import Any, get_args

from pydantic import BaseModel

from diffbook_lib.errors import Refused


class SpecError(Refused):
    """A method, preset or parameter that does not exist, or a value that is not allowed."""


def check_name(name: str) -> str:
    """`name`, if it can serve as a file name inside its folder; SpecError otherwise."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) or ".." in name:
        raise SpecError(
            f"the name {name!r} is refused: a run or preset name consists of letters, "
            "digits, '.', '_' and '-', without '/' and '..'"
        )
    return name


def nearest(name: str, allowed: Iterable[str]) -> str:
    """'; did you mean …?' if a name of `allowed` resembles `name`, else nothing."""
    folded = {candidate.lower(): candidate for candidate in allowed}
    close = difflib.get_close_matches(str(name).lower(), folded, n=1, cutoff=0.5)
    return f"; did you mean {folded[close[0]]!r}?" if close else ""


def shown(value: Any) -> str:
    """A value as Python writes it, shortened to what a reader can take in."""
    brief = reprlib.Repr()
    brief.maxlevel, brief.maxstring, brief.maxother = 3, 80, 80
    return brief.repr(value)


def explain(cls: type[BaseModel], problem: dict[str, Any]) -> str:
    """One line about one validation error: name, value, what is allowed, nearest match."""
    where, kind, value = problem["loc"], problem["type"], problem["input"]
    if not where:
        return str(problem["ctx"]["error"])
    name = str(where[0])
    if kind == "extra_forbidden":
        return f"unknown parameter {name!r} (value {shown(value)}){nearest(name, cls.model_fields)}"
    meaning = cls.model_fields[name].description
    if kind == "missing":
        return f"{name} is missing ({meaning})"
    if kind == "value_error":
        return f"{name}: {problem['ctx']['error']}"
    label = name + "".join(f"[{index}]" for index in where[1:])
    allowed = re.sub("^(Input|Tuple|List) should ", "it must ", problem["msg"])
    allowed = allowed.replace("valid tuple", "list").removesuffix(
        " after validation, not 0"
    )
    hint = _number_hint(value)
    if kind == "literal_error":
        hint = nearest(value, get_args(cls.model_fields[name].annotation))
    elif kind == "int_type" and isinstance(value, float) and value.is_integer():
        hint = f"; write {value:.0f}"
    return f"{label} is {shown(value)} ({meaning}): {allowed}{hint}"


def _number_hint(value: Any) -> str:
    """How to write a number that arrived as text, as '1e-3' does from YAML."""
    if not isinstance(value, str):
        return ""
    try:
        number = float(value)
    except ValueError:
        return ""
    if match := re.fullmatch(r"([+-]?\d+)(\.\d*)?[eE]([+-]?)(\d+)", value.strip()):
        whole, fraction, sign, exponent = match.groups()
        plain = f"{whole}{fraction or '.0'}e{sign or '+'}{exponent}"
        whole_number = f" or {number:.0f}" if number.is_integer() else ""
        return f"; this is text: YAML reads {value} so, write {plain}{whole_number}"
    return f"; this is text: write {value.strip()} without quotes"
