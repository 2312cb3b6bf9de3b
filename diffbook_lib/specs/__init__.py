"""The parameters of a run: `<method>.py` holds the class `Spec` of a method, with every parameter's
name, type, default, bounds and meaning, once. `base` has what all runs have, `parts` the groups
that several methods share.
"""

import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from diffbook_lib.specs.base import RunSpec
from diffbook_lib.specs.explain import SpecError, check_name, explain, nearest, shown
from diffbook_lib.specs.plain import plain_yaml

__all__ = [
    "RunSpec",
    "SpecError",
    "check_name",
    "find",
    "make",
    "methods",
    "nearest",
    "plain_yaml",
    "shown",
]
SHARED = {"base", "explain", "parts", "plain"}


def methods() -> list[str]:
    """The methods that have a specification."""
    return sorted({module.name for module in pkgutil.iter_modules(__path__)} - SHARED)


def find(method: str) -> type[RunSpec]:
    """The specification class of a method; SpecError with the nearest match if unknown."""
    if method not in (known := methods()):
        raise SpecError(
            f"unknown method {method!r}; methods: {', '.join(known)}{nearest(method, known)}"
        )
    cls: type[RunSpec] = importlib.import_module(f"{__name__}.{method}").Spec
    return cls


def make(method: str, mapping: Mapping[str, Any]) -> RunSpec:
    """The checked specification with these values and the class's defaults for the rest.

    Raises SpecError that names every unknown parameter and every value that is not allowed.
    """
    cls = find(method)
    if mapping.get("method", method) != method:
        raise SpecError(
            f"method is {mapping['method']!r} in a specification of {method!r}"
        )
    try:
        return cls(**{**mapping, "method": method})
    except ValidationError as error:
        # of a list whose only item is wrong, pydantic says that it is too short as well
        lines = [
            explain(cls, dict(problem))
            for problem in error.errors()
            if problem["type"] != "too_short" or not problem["input"]
        ]
        raise SpecError("\n".join(lines)) from None
